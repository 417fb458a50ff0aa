"""The smallest demo's raw screen and its study.yaml, drawn without any stage being run."""

from __future__ import annotations

from pathlib import Path

from hcs_ray.demo import prepare_demo
from hcs_ray.storage import LocalStorage


def drawn_study(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    prepare_demo(LocalStorage(folder), "smallest", 0, lambda done, total: None)
