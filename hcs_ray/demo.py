"""The study of a generated screen: what `hcs-ray demo` draws and how it trains on it."""

from __future__ import annotations

from typing import Any

import yaml

from hcs_ray.config import StudyConfig
from hcs_ray.contracts import Progress
from hcs_ray.screen.synthetic import SyntheticConfig, generate
from hcs_ray.storage import LocalStorage
from hcs_ray.study import STUDY_FILE

RAW = "raw"

_SECTIONS: dict[str, dict[str, Any]] = {
    "demo": {
        "model": {"backbone": "tiny"},
        "train": {
            "epochs": 25,
            "global_batch": 16,
            "crop_px": 224,
            "downsample": 2,
            "lr": 3e-3,
            "cpus_per_worker": 0.5,
        },
        "embed": {"chunk_fields": 64, "cpus_per_worker": 0.5},
    },
    "smallest": {
        "model": {"backbone": "tiny"},
        "train": {"epochs": 2, "global_batch": 16, "crop_px": 112, "lr": 3e-3, "cpus_per_worker": 0.5},
        "embed": {"chunk_fields": 32, "cpus_per_worker": 0.5},
        "profile": {"resamples": 200},
    },
}


def demo_config(size: str) -> StudyConfig:
    """The configuration of a demo of a size: "demo" or "smallest"."""
    title = {"report": {"title": "A generated screen in the layout of BBBC021"}}
    return StudyConfig.model_validate({**_SECTIONS[size], **title})


def study_yaml(size: str) -> str:
    """The same as a file for people: only what differs from the defaults."""
    keys = yaml.safe_dump(demo_config(size).model_dump(mode="json", exclude_unset=True), sort_keys=False)
    return f"# hcs-ray config show . prints every key; hcs-ray config schema explains them.\n{keys}"


def prepare_demo(storage: LocalStorage, size: str, seed: int, progress: Progress) -> None:
    """Draw the raw screen and write ``study.yaml``, each only where it is not there yet."""
    generate(SyntheticConfig.preset(size, seed=seed), storage.root / RAW, progress=progress)  # type: ignore[arg-type]
    storage.put_if_absent(STUDY_FILE, study_yaml(size).encode())
