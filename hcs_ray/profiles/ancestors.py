"""From the weights that a training began from to the record of the network that they are of.

A network is known by its content, so a copy under another name is recognised: the stage record of a training
or a sweep lists the SHA-256 of every network that it has left.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from hcs_ray.config import StorageConfig
from hcs_ray.contracts import HcsError
from hcs_ray.stage import StageRecord, read_record
from hcs_ray.storage import Storage, open_storage
from hcs_ray.study import Study

_MODEL_FILE: Final = "model.pt"
_RECORD: Final = "_stage.json"
_FOLDERS: Final = {"runs": "train", "sweeps": "tune"}
_OURS: Final = b"dmso_class"  # a key of the configuration that each of our networks is saved with


@dataclass(frozen=True)
class Ancestor:
    """A training or a sweep, in the study (and under the name) that its record lies in."""

    study: Study
    record: StageRecord


def find_ancestor(study: Study, weights: str, digest: str) -> Ancestor | None:
    """The training or sweep that left the network of ``model.weights``, in this study or in the path's own.

    Args:
        study: Where the training lies that began from it.
        weights: As the configuration has it.
        digest: As the training's record has it (`hcs_ray.model.weights.weights_digest`).
    """
    for storage in _studies(study, weights):
        for folder, stage in _FOLDERS.items():
            for name in _names(storage, folder):
                there = replace(study, storage=storage, name=name, run=None)
                record = read_record(storage, there.place(stage))
                if record is not None and digest in _digests(record):
                    return Ancestor(there, record)
    return None


def is_ours(weights: str, options: StorageConfig) -> bool:
    """Whether a file of weights is a network that this package has saved; so too where it cannot be read.

    safetensors files are never ours.
    """
    if weights.endswith(".safetensors"):
        return False
    try:
        storage, path = _file(weights, options)
        data = storage.read(path)
    except HcsError:
        return True  # nothing shows that it is not
    return _OURS in data


def _file(weights: str, options: StorageConfig) -> tuple[Storage, str]:
    folder, _, file = _absolute(weights).rpartition("/")
    storage = open_storage(folder or "/", options)
    if storage.size(file) is not None:
        return storage, file
    return open_storage(_absolute(weights), options), _MODEL_FILE


def _absolute(weights: str) -> str:
    return weights if "://" in weights else str(Path(weights).expanduser().absolute())


def _studies(study: Study, weights: str) -> Iterator[Storage]:
    """This study, and the one whose folder of runs or sweeps the path leads through."""
    yield study.storage
    path = _absolute(weights)
    for folder in _FOLDERS:
        root, found, _ = path.rpartition(f"/{folder}/")
        if found and root != study.storage.url:
            yield open_storage(root, study.config.storage)


def _names(storage: Storage, folder: str) -> list[str]:
    files = (path.split("/") for path in storage.sizes(folder))
    return sorted(parts[1] for parts in files if len(parts) == 3 and parts[2] == _RECORD)


def _digests(record: StageRecord) -> set[str]:
    """Of the networks that a record lists, as `weights_digest` gives them for one file."""
    files = [file.sha256 for path, file in record.outputs.items() if path.endswith(f"/{_MODEL_FILE}")]
    return {hashlib.sha256(json.dumps([sha256]).encode()).hexdigest() for sha256 in files}
