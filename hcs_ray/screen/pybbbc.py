"""A screen that pybbbc prepared: one HDF5 file a plate, read in place.

A file ``<plate>.h5``, in the screen's folder or in ``hdf5/`` below, holds for its N fields ``images``
(N, 3, H, W) float16 in the order Actin, Tubulin, DAPI, and ``site``, ``replicate``, ``well``, ``plate``,
``compound``, ``moa`` ("null" where unknown) and ``concentration`` (float16). `hcs_ray.screen.float16` says
what the pixels are and what they have lost.

With BBBC021's three tables in the folder the fields are those of the tables, and the files must agree with
them. Without, the files' own columns give the rows: concentrations as the shortest decimals that float16
tells apart (all of BBBC021's come back exactly), no SMILES, and control wells told by their place on all
plates that have a file. A location is ``<file>::images[<row>,<plane>]``.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Final

import numpy as np
import pandas as pd
import xxhash

from hcs_ray import contracts as c
from hcs_ray.config import PybbbcScreen
from hcs_ray.contracts import InputError
from hcs_ray.screen import BadImageError, Field, RawField, Screen, file_column
from hcs_ray.screen.bbbc021 import read_tables, table_digests
from hcs_ray.screen.bbbc021_tables import CHANNELS, field_row, join_tables, perturbation_types
from hcs_ray.screen.float16 import FULL_SCALE, Float16Error, Half, to_integers
from hcs_ray.screen.listing import plate_digests, select_plates
from hcs_ray.screen.pybbbc_file import PLANES, UNKNOWN, PlateFile, damaged, opened, read_plate_file
from hcs_ray.screen.tables import TEXT
from hcs_ray.screen.wells import padded_well
from hcs_ray.storage import Storage

_FILE: Final = re.compile(r"(?:hdf5/)?([^/]+)\.h5")
_VIRTUAL: Final = "bbbc021"  # pybbbc's file that points to all others
_LOCATION: Final = re.compile(r"(.+)::images\[([0-9]{1,9}),([0-2])\]", re.DOTALL)


def open_pybbbc(config: PybbbcScreen, storage: Storage) -> Screen:
    """The fields of a preparation.

    Raises:
        InputError: names the file that is missing, damaged or contradicts the tables; a plate that is not
            there; plates with raw values beside scaled ones.
    """
    sizes = storage.sizes()
    paths = _plate_paths(sizes, storage)
    fields, files, contents = _read(config, storage, paths)
    scaled = _one_scale(files, storage)
    listed = {
        location: [sizes[file.path], file.made, scaled]
        for file in files.values()
        for row in range(len(file.columns["site"]))
        for location in _locations(file.path, row)
    }
    return Screen(
        fields=fields,
        channels=CHANNELS,
        source=PybbbcSource(storage, CHANNELS, scaled),
        plates=plate_digests(fields, CHANNELS, listed),
        tables=table_digests(storage, contents),
        absent=_absent(fields, set(listed), storage),
        nuclear_channel=config.nuclear_channel,
        camera_maximum=FULL_SCALE if scaled else config.camera_maximum,
    )


def _plate_paths(sizes: dict[str, int], storage: Storage) -> dict[str, str]:
    """Plate -> file; one in the folder itself comes before one in ``hdf5/``."""
    inner_first = sorted(sizes, key=lambda path: -path.count("/"))
    found = ((match.group(1), path) for path in inner_first if (match := _FILE.fullmatch(path)))
    paths = {plate: path for plate, path in found if plate != _VIRTUAL}
    if not paths:
        raise InputError(f"{storage.url}: has no <plate>.h5, neither here nor in hdf5/")
    return paths


def _read(
    config: PybbbcScreen, storage: Storage, paths: dict[str, str]
) -> tuple[pd.DataFrame, dict[str, PlateFile], dict[str, bytes]]:
    """The fields of the chosen plates, their files, and the tables where there are any."""
    names = (config.image_table, config.moa_table, config.compound_table)
    missing = [name for name in names if storage.size(name) is None]
    if len(missing) == len(names):
        files = {plate: read_plate_file(storage, path) for plate, path in sorted(paths.items())}
        fields = select_plates(_fields_of_files(files, config, storage), config.plates, storage.url)
        return fields, {plate: files[plate] for plate in fields[c.PLATE].unique()}, {}
    if missing:
        raise InputError(f"{storage.url}/{missing[0]}: is missing; put in all three tables, or none")
    contents = read_tables(config, storage)
    image, moa, compound = contents.values()
    fields = select_plates(join_tables(image, moa, compound, config), config.plates, config.image_table)
    plates = fields[c.PLATE].unique()
    if lost := [plate for plate in plates if plate not in paths]:
        raise InputError(
            f"{storage.url}: has no {lost[0]}.h5 ({len(lost)} of {len(plates)} plates have no file); "
            "prepare it with pybbbc, or name the plates that you have in screen.plates"
        )
    files = {str(plate): read_plate_file(storage, paths[plate]) for plate in plates}
    return _with_locations(fields, files, storage), files, contents


def _fields_of_files(files: dict[str, PlateFile], config: PybbbcScreen, storage: Storage) -> pd.DataFrame:
    """The field table as the files' own columns give it."""
    fields = pd.DataFrame([row for file in files.values() for row in _rows(file, config, storage)])
    if (again := fields[c.KEY].duplicated()).any():
        first = fields[again].iloc[0]
        raise InputError(
            f"{storage.url}: {first[file_column(CHANNELS[0])]}: {first[c.KEY]} stands there twice"
        )
    fields[c.MOA] = fields[c.MOA].astype(TEXT)
    fields[c.SMILES] = pd.Series(None, index=fields.index, dtype=TEXT)
    fields[c.PERT_TYPE] = perturbation_types(fields, config)
    columns = [c.KEY, *c.FIELD_COLUMNS, *(file_column(channel) for channel in CHANNELS)]
    return fields.sort_values(c.KEY, ignore_index=True)[columns]


def _rows(file: PlateFile, config: PybbbcScreen, storage: Storage) -> Iterator[dict[str, object]]:
    columns = file.columns
    for row in range(len(columns["site"])):
        where = f"{storage.url}/{file.path} row {row}"
        if not 0 <= columns["concentration"][row] < np.inf:
            raise InputError(f"{where}: concentration {columns['concentration'][row]} is not a number")
        place = columns["plate"][row], columns["well"][row], columns["site"][row]
        treatment = columns["compound"][row], file.concentration(row)
        moa = columns["moa"][row]
        labelled = moa not in (UNKNOWN, "") and treatment[0] != config.negative_control
        yield {
            **field_row(place, columns["replicate"][row], treatment, config.source, where),
            **_location_columns(file.path, row),
            c.MOA: moa if labelled else None,
        }


def _location_columns(path: str, row: int) -> dict[str, str]:
    return dict(zip(map(file_column, CHANNELS), _locations(path, row), strict=True))


def _locations(path: str, row: int) -> list[str]:
    """Where the channels of a file's field lie."""
    return [f"{path}::images[{row},{PLANES.index(channel)}]" for channel in CHANNELS]


def _with_locations(fields: pd.DataFrame, files: dict[str, PlateFile], storage: Storage) -> pd.DataFrame:
    """The tables' fields with the rows of the files, which must say the same; a field may lack its row."""
    said = dict(
        zip(fields[c.KEY], zip(fields[c.COMPOUND], fields[c.CONCENTRATION], strict=True), strict=True)
    )
    places: dict[str, dict[str, str]] = {}
    for file in files.values():
        for row in range(len(file.columns["site"])):
            where = f"{storage.url}/{file.path} row {row}"
            key = _key(file, row, where)
            if key not in said or key in places:
                raise InputError(f"{where}: {key} stands {'there twice' if key in places else 'in no table'}")
            _check_treatment(file, row, said[key], where)
            places[key] = _location_columns(file.path, row)
    names = [file_column(channel) for channel in CHANNELS]
    return fields.assign(
        **{name: [places.get(key, {}).get(name, "") for key in fields[c.KEY]] for name in names}
    )


def _key(file: PlateFile, row: int, where: str) -> str:
    columns = file.columns
    return c.field_key(columns["plate"][row], padded_well(columns["well"][row], where), columns["site"][row])


def _check_treatment(file: PlateFile, row: int, said: tuple[str, float], where: str) -> None:
    compound, concentration = file.columns["compound"][row], file.columns["concentration"][row]
    if compound != said[0] or np.float16(concentration) != np.float16(said[1]):
        raise InputError(f"{where}: {compound} {concentration} uM; the tables say {said[0]} {said[1]} uM")


def _one_scale(files: dict[str, PlateFile], storage: Storage) -> bool:
    """Whether all plates are scaled (as all that show nothing are taken to be) or all raw."""
    kinds = {file.scaled: plate for plate, file in files.items() if file.scaled is not None}
    if len(kinds) > 1:
        raise InputError(
            f"{storage.url}: plate {kinds[True]} is scaled to 0 .. 1, plate {kinds[False]} holds raw values; "
            "choose plates of one kind with screen.plates"
        )
    return next(iter(kinds), True)


def _absent(fields: pd.DataFrame, listed: set[str], storage: Storage) -> dict[str, str]:
    gone = fields[~fields[file_column(CHANNELS[0])].isin(listed)]
    return {
        key: f"{storage.url}/{plate}.h5: has no row for {key}"
        for key, plate in zip(gone[c.KEY], gone[c.PLATE], strict=True)
    }


class PybbbcSource:
    """Reads fields from pybbbc's files. Picklable; shared between threads, which take turns in HDF5.

    Args:
        storage: The screen's folder.
        channels: Names of the planes to return, of `PLANES`.
        scaled: Whether the files are scaled (see `hcs_ray.screen.float16`); a field that is not is refused.
    """

    def __init__(self, storage: Storage, channels: tuple[str, ...], scaled: bool) -> None:
        self.storage, self.channels, self.scaled = storage, channels, scaled
        self._lock = threading.Lock()
        self._path, self._closing = "", ExitStack()
        self._images: Any = None

    def __reduce__(self) -> tuple[type[PybbbcSource], tuple[Storage, tuple[str, ...], bool]]:
        return PybbbcSource, (self.storage, self.channels, self.scaled)

    def read(self, row: Field) -> RawField:
        """All channels of one field; each digest is of the plane's float16 bytes as the file has them.

        Raises:
            BadImageError: names file, row and channel, and why it is not read.
        """
        planes = [self._plane(row, channel) for channel in self.channels]
        pixels = np.empty((len(planes), *planes[0].shape), np.uint16)
        for target, values, channel in zip(pixels, planes, self.channels, strict=True):
            try:
                target[...] = to_integers(values, self.scaled)
            except Float16Error as error:
                location = row[file_column(channel)]
                raise BadImageError(f"{self.storage.url}/{location}: {channel}: {error}") from None
        return RawField(pixels, tuple(xxhash.xxh3_128_hexdigest(values.data) for values in planes))

    def _plane(self, row: Field, channel: str) -> Half:
        location = row[file_column(channel)]
        match = _LOCATION.fullmatch(location)
        if match is None:
            raise BadImageError(f"{row[c.KEY]}: has no image of {channel}")
        path, number, plane = match.group(1), int(match.group(2)), int(match.group(3))
        with self._lock:
            try:
                return np.asarray(self._dataset(path)[number, plane])
            except InputError as error:
                raise BadImageError(str(error)) from None
            except (OSError, ValueError, IndexError) as error:
                raise BadImageError(str(damaged(self.storage, f"{path} row {number}", error))) from None

    def _dataset(self, path: str) -> Any:
        """The images of a file, which stays open until another one is wanted."""
        if path != self._path:
            self._closing.close()
            self._path, self._closing = "", ExitStack()
            file = self._closing.enter_context(opened(self.storage, path))
            self._path, self._images = path, file["images"]
        return self._images
