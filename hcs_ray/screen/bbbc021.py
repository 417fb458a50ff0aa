"""A screen in the layout of BBBC021 version 1: three tables, and a plate's TIFFs in a folder or unopened zip.

A plate's images are read from its folder ``<Plate>/``; where that lacks one of them and the plate's zip is
there (``BBBC021_v1_images_<Plate>.zip``), all are read from the zip, in place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.config import Bbbc021Screen
from hcs_ray.contracts import InputError
from hcs_ray.screen import Screen, file_column
from hcs_ray.screen.archives import read_directory
from hcs_ray.screen.bbbc021_tables import CHANNELS, TableNames, join_tables
from hcs_ray.screen.images import Location, TiffSource
from hcs_ray.screen.listing import plate_digests, select_plates
from hcs_ray.storage import Storage

_LISTING_THREADS: Final = 8  # each waits for a store


def open_bbbc021(config: Bbbc021Screen, storage: Storage) -> Screen:
    """Read, join and check the tables, choose the plates, and find every image.

    What a plate is (control wells are told by their place on all plates) does not depend on which plates are
    chosen. An image counts in its plate's digest with its name and its size, one in a zip with its CRC too;
    so unpacking a zip is a change of the raw screen.

    Raises:
        InputError: as `join_tables`; a plate in ``screen.plates`` that the tables lack; a plate that has
            neither folder nor zip; a zip that is not to be trusted.
    """
    contents = read_tables(config, storage)
    image, moa, compound = contents.values()
    fields = join_tables(image, moa, compound, config)
    fields = select_plates(fields, config.plates, config.image_table)
    listed, fields = _find_images(storage, fields, config)
    return Screen(
        fields=fields,
        channels=CHANNELS,
        source=TiffSource(storage, CHANNELS),
        plates=plate_digests(fields, CHANNELS, listed),
        tables=table_digests(storage, contents),
        absent=_absent(storage, fields, listed),
        nuclear_channel=config.nuclear_channel,
        camera_maximum=config.camera_maximum,
    )


def read_tables(config: TableNames, storage: Storage) -> dict[str, bytes]:
    """The image, moa and compound table by name, in this order."""
    return {
        name: storage.read(name) for name in (config.image_table, config.moa_table, config.compound_table)
    }


def table_digests(storage: Storage, contents: dict[str, bytes]) -> dict[str, str]:
    """Table -> SHA-256, by the tables' full names."""
    return {f"{storage.url}/{name}": hashlib.sha256(data).hexdigest() for name, data in contents.items()}


class _Image(NamedTuple):
    """An image as a folder or a zip lists it."""

    location: str
    size: int
    crc: int | None = None


Images = dict[str, _Image]  # by file name


def zip_name(plate: str) -> str:
    """The name of a plate's zip, as its public address has it."""
    return f"BBBC021_v1_images_{plate}.zip"


def _find_images(
    storage: Storage, fields: pd.DataFrame, config: Bbbc021Screen
) -> tuple[dict[str, object], pd.DataFrame]:
    """What is listed at each location, and the fields with the locations of their images."""
    columns = [file_column(channel) for channel in CHANNELS]
    wanted = {str(plate): _names(rows[columns]) for plate, rows in fields.groupby(c.PLATE)}
    with ThreadPoolExecutor(_LISTING_THREADS) as pool:
        found = dict(
            zip(wanted, pool.map(lambda plate: _images(storage, plate, wanted[plate]), wanted), strict=True)
        )
    _require_plates(found, config)
    listed: dict[str, object] = {}
    moved = {}
    for plate, names in wanted.items():
        for name in names & found[plate].keys():
            image = found[plate][name]
            listed[image.location] = [name, image.size, image.crc]
            moved[f"{plate}/{name}"] = image.location
    locations = {column: fields[column].map(lambda path: moved.get(path, path)) for column in columns}
    return listed, fields.assign(**locations)


def _names(locations: pd.DataFrame) -> set[str]:
    return {str(path).partition("/")[2] for column in locations for path in locations[column]}


def _images(storage: Storage, plate: str, wanted: set[str]) -> Images:
    """A plate's images: those in its folder, unless some are missing there and the plate has a zip."""
    folder = {
        path.rpartition("/")[2]: _Image(path, size)
        for path, size in storage.sizes(plate).items()
        if path.count("/") == 1
    }
    if wanted <= folder.keys() or storage.size(zip_name(plate)) is None:
        return folder
    return _zipped(storage, plate, wanted)


def _zipped(storage: Storage, plate: str, wanted: set[str]) -> Images:
    """The wanted members of a plate's zip by file name, whatever folder of the zip they lie in."""
    path = zip_name(plate)
    images: Images = {}
    for member in read_directory(storage, path).values():
        name = member.name.rpartition("/")[2]
        if name not in wanted:
            continue  # a folder's .DS_Store, a Thumbs.db
        if name in images:
            raise InputError(f"{storage.url}/{path}: holds {name} in two folders; download it again")
        images[name] = _Image(str(Location(path, member.name)), member.size, member.crc)
    return images


def _require_plates(found: dict[str, Images], config: Bbbc021Screen) -> None:
    if missing := sorted(plate for plate, images in found.items() if not images):
        first = missing[0]
        raise InputError(
            f"{config.image_table}: {len(missing)} of {len(found)} plates have neither a folder nor a zip "
            f"among the images, first {first} ({zip_name(first)}): download it (hcs-ray download ... "
            f"--plates {first}) or name the plates that you have in screen.plates"
        )


def _absent(storage: Storage, fields: pd.DataFrame, listed: Iterable[str]) -> dict[str, str]:
    """Key -> one line, for each field with an image that is not listed."""
    known = set(listed)
    absent: dict[str, str] = {}
    for channel in CHANNELS:
        gone = fields[~fields[file_column(channel)].isin(known)]
        for key, path in zip(gone[c.KEY], gone[file_column(channel)], strict=True):
            absent.setdefault(str(key), f"{storage.url}/{path}: is not there ({channel} of {key})")
    return absent
