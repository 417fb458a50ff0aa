"""Wall time and peak memory of a command and all its processes.

    python benchmarks/footprint.py hcs-ray demo /tmp/hcs-demo

Memory is the sum of the proportional set sizes (PSS), so that shared pages count once; Linux only.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time

import psutil

_INTERVAL_S = 0.5


def main() -> int:
    """Run the command of the arguments and print its footprint on standard error."""
    started = time.monotonic()
    command = subprocess.Popen(sys.argv[1:])
    peak_bytes, processes = 0, 0
    while command.poll() is None:
        used = tree_pss(command.pid)
        if sum(used) > peak_bytes:
            peak_bytes, processes = sum(used), len(used)
        time.sleep(_INTERVAL_S)
    seconds = time.monotonic() - started
    memory = f"{peak_bytes / 1e9:.2f} GB in {processes} processes"
    print(f"exit code {command.returncode}, {seconds:.1f} s, at most {memory}", file=sys.stderr)
    return command.returncode


def tree_pss(pid: int) -> list[int]:
    """PSS in bytes of a process and its descendants; those that end meanwhile are left out."""
    found: list[int] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                found.append(process.memory_full_info().pss)
    return found


if __name__ == "__main__":
    sys.exit(main())
