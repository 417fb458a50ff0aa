"""Running `hcs-ray` as its user does: as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HCS_RAY = str(Path(sys.executable).with_name("hcs-ray"))


LONGEST_S = 900


def hcs_ray(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with more in its environment."""
    return subprocess.run(
        [HCS_RAY, *map(str, arguments)],
        capture_output=True, text=True, timeout=LONGEST_S, env={**os.environ, **environment}, check=False,
    )  # fmt: skip


def refused(*arguments: object, code: int = 2, **environment: str) -> str:
    """The one line with which a command ends that cannot do what it was asked."""
    done = hcs_ray(*arguments, **environment)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("hcs-ray: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]
