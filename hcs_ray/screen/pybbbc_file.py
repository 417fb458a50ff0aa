"""What one HDF5 file of a pybbbc preparation holds besides its pixels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from hcs_ray.contracts import InputError
from hcs_ray.screen.float16 import is_scaled
from hcs_ray.storage import Storage

if TYPE_CHECKING:
    import h5py

PLANES: Final = ("Actin", "Tubulin", "DAPI")  # of ``images``, in this order
UNKNOWN: Final = "null"  # how pybbbc writes a missing mechanism
_NUMBERS: Final = ("site", "replicate", "concentration")
_TEXTS: Final = ("well", "plate", "compound", "moa")
_LOOKED_AT: Final = 16  # rows of pixels that tell scaled values from raw ones


class PlateFile(NamedTuple):
    """A plate's file.

    Attributes:
        path: Below the screen's folder.
        columns: The metadata by name, each of length N: str, int, or float16 (concentration).
        scaled: As `float16.is_scaled`, over the file.
        made: When pybbbc made it, as it says.
    """

    path: str
    columns: dict[str, list[Any]]
    scaled: bool | None
    made: str

    def concentration(self, row: int) -> Decimal:
        """The shortest decimal that float16 tells from its neighbours, in micromolar."""
        return Decimal(str(np.float16(self.columns["concentration"][row])))


@contextmanager
def opened(storage: Storage, path: str) -> Iterator[h5py.File]:
    """A file for reading; what HDF5 makes of a damaged one is an `InputError` that names it."""
    import h5py

    with storage.open(path) as raw:
        try:
            with h5py.File(raw, "r") as file:
                yield file
        except (OSError, RuntimeError) as error:
            raise damaged(storage, path, error) from None


def damaged(storage: Storage, path: str, error: Exception) -> InputError:
    """A file that HDF5 cannot read, in one line."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(f"{storage.url}/{path}: not a readable HDF5 file ({reason}); prepare the plate again")


def read_plate_file(storage: Storage, path: str) -> PlateFile:
    """The metadata of a plate's file.

    Raises:
        InputError: names the file and the data set that is missing or of another kind.
    """
    where = f"{storage.url}/{path}"
    with opened(storage, path) as file:
        images = _images(file, where)
        columns = {name: _column(file, name, images.shape[0], where) for name in (*_NUMBERS, *_TEXTS)}
        scaled = next((found for found in _looks(images) if found is not None), None)
        made = str(file.attrs.get("timestamp", ""))
    plate = path.rpartition("/")[2].removesuffix(".h5")
    if other := next((name for name in columns["plate"] if name != plate), None):
        raise InputError(f"{where}: holds plate {other}, its name says {plate}")
    return PlateFile(path, columns, scaled, made)


def _images(file: h5py.File, where: str) -> h5py.Dataset:
    images = _dataset(file, "images", where)
    if images.dtype != np.float16 or images.ndim != 4 or images.shape[1] != len(PLANES) or 0 in images.shape:
        raise InputError(f"{where}: images is {images.dtype} {images.shape}, not float16 (N, 3, H, W)")
    return images


def _dataset(file: h5py.File, name: str, where: str) -> h5py.Dataset:
    import h5py

    dataset = file.get(name)
    if not isinstance(dataset, h5py.Dataset):
        raise InputError(f"{where}: has no data set {name}; is it one of pybbbc's plates?")
    return dataset


def _column(file: h5py.File, name: str, length: int, where: str) -> list[Any]:
    dataset = _dataset(file, name, where)
    if dataset.shape != (length,):
        raise InputError(f"{where}: {name} has shape {dataset.shape}, there are {length} images")
    try:
        values = dataset.asstr()[:] if name in _TEXTS else dataset[:]
    except (TypeError, UnicodeDecodeError):
        raise InputError(f"{where}: {name} is no UTF-8 text") from None
    if name in _NUMBERS and values.dtype.kind not in ("uif" if name == "concentration" else "ui"):
        raise InputError(f"{where}: {name} is {values.dtype}, not a number")
    return list(values) if name == "concentration" else list(values.tolist())


def _looks(images: h5py.Dataset) -> Iterator[bool | None]:
    """What field after field shows of its values."""
    return (is_scaled(images[row, :, :_LOOKED_AT]) for row in range(images.shape[0]))
