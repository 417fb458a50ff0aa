"""Pretrained weights: where ``model.weights`` points to, what they contain, and reading them without pickle.

They are a local folder or file, an ``s3://`` folder or file, or ``owner/name`` on the Hugging Face hub. In a
folder the file is ``model.safetensors``, else ``pytorch_model.bin``, else the only file of weights.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hcs_ray.config import StorageConfig
from hcs_ray.contracts import HcsError, InputError
from hcs_ray.storage import Storage, open_storage
from hcs_ray.storage.base import DEFAULTS

if TYPE_CHECKING:
    import torch

_SAFE: Final = ".safetensors"
_TENSORS: Final = (_SAFE, ".bin", ".pt", ".pth")
_PREFERRED: Final = ("model.safetensors", "pytorch_model.bin")
_SCALING: Final = "preprocessor_config.json"  # image_mean and image_std, as transformers writes them
_HUB_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Weights:
    """What a file of weights holds, and how the images were scaled that it was learned from."""

    state: dict[str, torch.Tensor]
    mean: float = 0.0  # over the colours; of images from 0 to 1
    std: float = 1.0


def resolved_weights(weights: str | None) -> str | None:
    """The weights as every process of a run finds them: a local path is made absolute.

    A relative path is taken from the working folder of the command, so the driver calls this before it hands
    the model to its workers. What is no local path is left as it is.
    """
    local = None if weights is None else _local(weights)
    return weights if local is None else str(local)


def weights_digest(weights: str | None, options: StorageConfig = DEFAULTS) -> str | None:
    """SHA-256 over the files that `read_weights` reads; None for no weights, and for a name on the hub.

    Raises:
        InputError: there are no such weights.
    """
    if weights is None or _on_hub(weights):
        return None
    storage, file = _place(weights, options)
    names = [file, *([_SCALING] if storage.size(_SCALING) is not None else [])]
    # The name of a file does not matter, so a renamed folder or file keeps its digest.
    parts = [hashlib.sha256(storage.read(name)).hexdigest() for name in names]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def read_weights(weights: str, options: StorageConfig = DEFAULTS) -> Weights:
    """The tensors by name, on the CPU.

    Args:
        weights: As in ``model.weights``.
        options: How an S3 store is reached.

    Raises:
        InputError: there are no such weights, or they cannot be read as safetensors or plain tensors.
        HcsError: the store or the hub cannot be reached.
    """
    storage, file = _place(_from_hub(weights) if _on_hub(weights) else weights, options)
    state = _tensors(storage.read(file), f"model.weights {storage.url}/{file}", file.endswith(_SAFE))
    return Weights(state, *_scaling(storage))


def _local(weights: str) -> Path | None:
    """The absolute path of local weights; None for what lies elsewhere."""
    path = Path(weights).expanduser()
    if "://" in weights or (_HUB_NAME.fullmatch(weights) and not path.exists()):
        return None
    return path.absolute()


def _on_hub(weights: str) -> bool:
    return "://" not in weights and _local(weights) is None


def _place(weights: str, options: StorageConfig) -> tuple[Storage, str]:
    """The folder of the weights and the file in it that holds them."""
    local = _local(weights)
    named = weights.endswith(_TENSORS) and not (local is not None and local.is_dir())
    folder, _, file = str(local or weights).rstrip("/").rpartition("/") if named else (weights, "", "")
    storage = open_storage(folder, options)
    if named:
        found = storage.size(file) is not None
    else:
        file = _chosen(weights, [name for name in storage.sizes() if "/" not in name])
        found = bool(file)
    if not found:
        hint = "" if local is None else " on this machine; for a cluster put them on s3://"
        raise InputError(f"model.weights {weights}: no such weights{hint} ({', '.join(_PREFERRED)})")
    return storage, file


def _chosen(weights: str, names: list[str]) -> str:
    """The file of weights among those of a folder; empty where there is none."""
    for name in _PREFERRED:
        if name in names:
            return name
    found = sorted(name for name in names if name.endswith(_TENSORS))
    if len(found) > 1:
        raise InputError(f"model.weights {weights}: {found[0]} or {found[1]}? Name the file")
    return found[0] if found else ""


def _tensors(data: bytes, source: str, safe: bool) -> dict[str, torch.Tensor]:
    import safetensors
    import safetensors.torch
    import torch

    try:
        found: Any = (
            safetensors.torch.load(data)
            if safe
            else torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        )
    except (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise InputError(
            f"{source}: neither safetensors nor plain tensors ({type(error).__name__}); pickles are not read"
        ) from None
    tensors = isinstance(found, dict) and all(isinstance(tensor, torch.Tensor) for tensor in found.values())
    if not tensors or not found:
        raise InputError(f"{source}: holds something else than tensors by name")
    return dict(found)


def _scaling(storage: Storage) -> tuple[float, float]:
    """Mean and standard deviation that images were scaled by, the mean over the colours; else 0 and 1."""
    found = storage.read_versioned(_SCALING)
    if found is None:
        return 0.0, 1.0
    try:
        settings = json.loads(found[0])
        mean, std = settings["image_mean"], settings["image_std"]
        return sum(mean) / len(mean), sum(std) / len(std)
    except (ValueError, KeyError, TypeError, ZeroDivisionError):
        raise InputError(
            f"{storage.url}/{_SCALING}: has no image_mean and image_std of one number a colour"
        ) from None


def _from_hub(name: str) -> str:
    """The local folder of a model on the hub, fetched or in its cache."""
    import huggingface_hub
    from huggingface_hub import errors

    patterns = [_SCALING, *_PREFERRED]
    try:
        return str(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except (OSError, ValueError, errors.HfHubHTTPError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise HcsError(
            f"model.weights {name}: no such local folder, and the hub cannot be asked ({reason}); "
            "fetch them where it can, and name the local or s3:// folder"
        ) from None
