"""What travels with the package beside its code: the job set, the sweeps, the report's templates."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from hcs_ray.packaged import JOB_SET, SWEEPS

REPOSITORY = Path(__file__).resolve().parents[1]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("packaged", "folder"), [(JOB_SET, "k8s"), (SWEEPS, "tune_configs")])
def test_a_checkout_reads_what_is_edited(packaged: Path, folder: str) -> None:
    assert packaged.resolve() == REPOSITORY / folder
    assert files(packaged)


def test_a_wheel_holds_every_file_of_the_job_set_and_the_sweeps(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name: archive.read(name) for name in archive.namelist()}
    for folder in ("k8s", "tune_configs"):
        start = f"hcs_ray/packaged/{folder}/"
        found = {name.removeprefix(start): data for name, data in packed.items() if name.startswith(start)}
        assert found == files(REPOSITORY / folder)
    modules = {f"hcs_ray/{name}" for name in files(REPOSITORY / "hcs_ray") if name.endswith(".py")}
    assert modules <= set(packed)
    templates = files(REPOSITORY / "hcs_ray/report/templates")
    assert {f"hcs_ray/report/templates/{name}" for name in templates} <= set(packed)
    assert {name.split("/")[0] for name in packed} == {
        "hcs_ray",
        f"{wheel.name.rpartition('-py3')[0]}.dist-info",
    }
