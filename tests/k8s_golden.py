"""The whole rendered YAML of every job, example and setup, kept in tests/golden/k8s/.

After a change that is meant, renew the files and read their difference:

    python -m tests.k8s_golden && git diff tests/golden/k8s
"""

from __future__ import annotations

from pathlib import Path

from hcs_ray.jobs.manifests import to_yaml
from tests.k8s_manifests import EXAMPLES, JOBS, SETUPS, rendered

FOLDER = Path(__file__).parent / "golden" / "k8s"
FOLDERS = (*JOBS, *EXAMPLES, *SETUPS)


def golden_file(folder: str) -> Path:
    return FOLDER / f"{folder.replace('/', '-')}.yaml"


def text_of(folder: str) -> str:
    return to_yaml(rendered(folder))


def renew() -> None:
    """Write every file anew, and take away those of folders that are gone."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.glob("*.yaml"):
        old.unlink()
    for folder in FOLDERS:
        golden_file(folder).write_text(text_of(folder))


if __name__ == "__main__":
    renew()
