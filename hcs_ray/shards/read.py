"""Reading fields back by the index: a ranged read, a check, a decode, and the recorded corrections.

numpy only; reading and decoding release the GIL, so a pool of threads is enough.
"""

from __future__ import annotations

import functools
import hashlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hcs_ray import contracts as c
from hcs_ray.contracts import HcsError, InputError
from hcs_ray.shards import codec
from hcs_ray.shards.codec import Pixels
from hcs_ray.shards.illumination import FloatArray
from hcs_ray.stage import StageRecord
from hcs_ray.storage import Storage

MANIFEST = "shards/manifest.json"
_CORRECTIONS_BYTES = 2**30  # of plates whose corrections are kept in memory


@dataclass(frozen=True)
class Plate:
    """What the pixels of a plate are corrected with: ``(x / illumination - low) / (high - low)``."""

    gain: FloatArray  # (C, H, W): 1 / illumination / (high - low)
    bias: FloatArray  # (C, 1, 1): -low / (high - low)


class ShardReader:
    """The shards of a study. Safe to share between threads."""

    def __init__(self, storage: Storage, record: StageRecord) -> None:
        self._storage = storage
        self._record = record
        self.manifest: dict[str, Any] = read_manifest(storage, record)
        self.channels: tuple[str, ...] = tuple(self.manifest["channels"])
        self.shape: tuple[int, int, int] = (len(self.channels), *self.manifest["field_px"])
        plate_bytes = 4 * int(np.prod(self.shape))
        self._plate = functools.lru_cache(max(1, _CORRECTIONS_BYTES // plate_bytes))(self._load_plate)

    def pixels(self, shard: str, offset: int, size: int, sha256: str, out: Pixels | None = None) -> Pixels:
        """The raw pixels of one member, (C, H, W) uint16.

        Raises:
            HcsError: the bytes are not those that were written; names shard and offset.
        """
        path = f"shards/{shard}"
        data = self._storage.read_range(path, offset, size)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise HcsError(
                f"{self._storage.url}/{path}: the member at byte {offset} is damaged "
                f"({len(data)} of {size} bytes, another hash); "
                "copy the shard again or run hcs-ray shard --force"
            )
        target = np.empty(self.shape, np.uint16) if out is None else out
        return codec.decode(data, target)

    def plate(self, name: str, site: int | None = None) -> Plate:
        """The corrections of a plate, for a site where they differ by site; the last few plates are kept."""
        if name not in self.manifest["plates"]:
            raise InputError(f"{self._storage.url}/{MANIFEST}: has no plate {name}")
        sites = self.manifest["plates"][name]["sites"]
        return self._plate(name, None if sites is None else sites.index(site))

    def _load_plate(self, name: str, number: int | None) -> Plate:
        plate = self.manifest["plates"][name]
        low, high = (np.asarray(plate[key], np.float32)[:, None, None] for key in ("low", "high"))
        spread = np.maximum(high - low, 1)
        functions = [
            np.load(io.BytesIO(self._record.read(self._storage, f"shards/{path}")), allow_pickle=False)
            for path in plate["illumination"]
        ]
        if number is not None:
            functions = [function[number] for function in functions]
        return Plate(gain=(1 / (np.stack(functions) * spread)).astype(np.float32), bias=-low / spread)


def read_manifest(storage: Storage, record: StageRecord) -> dict[str, Any]:
    """``manifest.json``, of a format that this version reads."""
    manifest: dict[str, Any] = record.read_json(storage, MANIFEST)
    if manifest.get("format") != c.MANIFEST_FORMAT:
        raise InputError(
            f"{storage.url}/{MANIFEST}: format {manifest.get('format')}; "
            f"this version reads {c.MANIFEST_FORMAT}"
        )
    return manifest


def corrected(pixels: Pixels, plate: Plate, rows: slice, columns: slice) -> npt.NDArray[np.float32]:
    """A crop of a field with illumination and scale corrected: about 0 (background) to 1 (bright)."""
    crop = pixels[:, rows, columns] * plate.gain[:, rows, columns]
    crop += plate.bias
    return crop
