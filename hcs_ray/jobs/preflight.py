"""A look from where a job will run, before it does: its image, its store, what it reads, its GPUs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Final, TypeVar

from hcs_ray.config import parse_sweep
from hcs_ray.contracts import HcsError, InputError
from hcs_ray.lease import LEASE_SECONDS
from hcs_ray.pipeline import STAGES
from hcs_ray.stage import code_identity
from hcs_ray.storage import Storage, clock_skew
from hcs_ray.storage import preflight as prove
from hcs_ray.study import Study, open_study

T = TypeVar("T")
Look = Callable[[Study], object]

# Jobs of several stages begin with this one.
FIRST_STAGES: Final = {"study": "shard", "analyse": "profile"}
_MOST_SKEW_S = LEASE_SECONDS / 2
_TORCH_TIMEOUT_S = 180
_ASK_TORCH = (
    "import json, torch\n"
    "names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]\n"
    "print(json.dumps({'cuda': torch.version.cuda, 'names': names}))"
)


@dataclass(frozen=True)
class Request:
    """What is looked at.

    Args:
        stage: a stage, or ``study`` or ``analyse``, the jobs of several.
        hcs_ray: the version that the image should have; none: any. So ``ray``.
        gpus: how many GPUs must be visible.
    """

    target: str
    stage: str
    name: str = "main"
    overrides: Sequence[str] = ()
    run: str | None = None
    sweep: str | None = None
    hcs_ray: str | None = None
    ray: str | None = None
    gpus: int = 0


def versions() -> str:
    """``hcs_ray 0.1.0 (revision), Ray 2.60.0``."""
    code = code_identity()
    revision = f" ({code['revision']})" if code["revision"] else ""
    return f"hcs_ray {code['version']}{revision}, Ray {version('ray')}"


def preflight(request: Request, look_at_screen: Look, say: Callable[[str], None]) -> None:
    """Make every check, with a line for each.

    ``look_at_screen`` opens the raw screen of a study, or raises.

    Raises:
        HcsError: what failed first, and how much more.
        InputError: there is no such stage.
    """
    stage = FIRST_STAGES.get(request.stage, request.stage)
    if stage not in STAGES:
        raise InputError(f"--stage {request.stage}: it is one of {', '.join([*STAGES, *FIRST_STAGES])}")
    checks = _Checks(say)
    checks.check("versions", lambda: _versions(request), str)
    study = checks.check(
        "study",
        lambda: open_study(request.target, request.name, request.overrides),
        lambda found: found.storage.url,
    )
    if request.sweep is not None:
        checks.check("sweep", lambda: _sweep(str(request.sweep)), str)
    if study is not None:
        reached = checks.check("storage", lambda: _storage(study.storage), str)
        if reached:
            checks.check("clock", lambda: _clock(study.storage), str)
            checks.check("inputs", lambda: _inputs(study, stage, request.run, look_at_screen), str)
    if request.gpus:
        checks.check("gpu", lambda: _gpus(request.gpus), str)
    checks.end()


@dataclass
class _Checks:
    say: Callable[[str], None]
    failed: list[str] = field(default_factory=list)

    def check(self, name: str, look: Callable[[], T], words: Callable[[T], str]) -> T | None:
        """What was found; None where the check failed."""
        try:
            found = look()
        except HcsError as error:
            self.failed.append(f"{name}: {error}")
            self.say(f"{name:<9} failed  {error}")
            return None
        self.say(f"{name:<9} ok      {words(found)}")
        return found

    def end(self) -> None:
        if self.failed:
            more = f" (and {len(self.failed) - 1} more failed)" if len(self.failed) > 1 else ""
            raise HcsError(f"preflight: {self.failed[0]}{more}")


def _versions(request: Request) -> str:
    for package, wanted in (("hcs_ray", request.hcs_ray), ("ray", request.ray)):
        found = version(package)
        if wanted not in (None, found):
            raise HcsError(f"the image has {package} {found}, the job was made for {wanted}")
    return versions()


def _sweep(file: str) -> str:
    try:
        text = Path(file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from None
    parse_sweep(text, file)
    return file


def _storage(storage: Storage) -> str:
    prove(storage)
    return "writes, conditional puts, reads, ranges, lists and deletes"


def _clock(storage: Storage) -> str:
    """Leases and signatures compare times of machines."""
    skew = clock_skew(storage)
    if abs(skew) > _MOST_SKEW_S:
        ahead = "ahead of" if skew > 0 else "behind"
        raise HcsError(
            f"the store's clock is {abs(skew):.0f} s {ahead} this machine's; leases hold within "
            f"{_MOST_SKEW_S:.0f} s; set the clocks (NTP)"
        )
    return f"within {_MOST_SKEW_S:.0f} s of the store's"


def _inputs(study: Study, stage: str, run: str | None, look_at_screen: Look) -> str:
    if stage == "shard":
        look_at_screen(study)
        return f"the raw screen {study.config.screen.folder} can be read"
    chosen = study.with_run(run) if run else study
    return f"complete: {', '.join(chosen.claim(stage).inputs)}"


def _gpus(needed: int) -> str:
    """As torch sees them, in a process of its own: a CPU build sees none, whatever the node has."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK_TORCH],
            capture_output=True, text=True, timeout=_TORCH_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise HcsError(f"torch has not answered within {_TORCH_TIMEOUT_S} s") from None
    if done.returncode:
        raise HcsError(
            f"torch cannot be asked: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}"
        )
    found = json.loads(done.stdout.strip().splitlines()[-1])
    if found["cuda"] is None:
        raise HcsError("the image's torch is a CPU build; build the image with the CUDA wheels")
    if len(found["names"]) < needed:
        raise HcsError(f"torch (CUDA {found['cuda']}) sees {len(found['names'])} GPUs, {needed} are needed")
    return f"{', '.join(found['names'])} (CUDA {found['cuda']})"
