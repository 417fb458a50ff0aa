"""The Ray session of a command keeps strangers out and cleans up after killed ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hcs_ray.contracts import HcsError, InputError
from hcs_ray.session import cause_of

PRINT_TOKEN = (
    "import os; from hcs_ray.session import prepare_environment as p; p(); p();"
    "print(os.environ['RAY_AUTH_MODE'], os.environ.get('RAY_AUTH_TOKEN'))"
)


def environment(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | more


def said(code: str, **more: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(**more), capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_every_session_has_a_token_of_its_own() -> None:
    first, second = said(PRINT_TOKEN), said(PRINT_TOKEN)
    assert first.startswith("token ")
    assert len(first) > 40
    assert first != second


def test_what_the_user_has_set_stays() -> None:
    assert said(PRINT_TOKEN, RAY_AUTH_MODE="disabled") == "disabled None"


def test_the_folder_of_a_killed_session_is_swept(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    base = Path("/tmp")  # what a long TMPDIR is replaced by
    left = base / f"hcs-ray-{dead.pid}-left"
    alive = base / f"hcs-ray-{os.getpid()}-alive"
    for folder in (left, alive):
        folder.mkdir()
    code = "from hcs_ray.session import _session_folder as f; print(f())"
    try:
        made = Path(said(code, TMPDIR=str(tmp_path)))
        made.rmdir()
        assert made.parent == base
        assert (left.exists(), alive.exists()) == (False, True)
    finally:
        alive.rmdir()


def test_a_wrapped_error_of_ours_is_found() -> None:
    ours = InputError("row 3")
    wrapped = RuntimeError("Ray says")
    wrapped.__cause__ = ours
    assert cause_of(wrapped) is ours
    assert isinstance(cause_of(ours), HcsError)
    other = ValueError("not ours")
    assert cause_of(other) is other


@pytest.mark.soak  # the stranger tries for 20 s
def test_a_session_refuses_strangers_and_what_the_machine_cannot_give() -> None:
    """A real session; the stranger is a second process that knows its address, but not its token."""
    code = (
        "import subprocess, sys, os; from hcs_ray.session import ensure_session\n"
        "from hcs_ray.session import require_capacity\n"
        "ensure_session()\n"
        "try: require_capacity('1000 workers', 1000, 0)\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "import ray\n"
        "address = ray.get_runtime_context().gcs_address\n"
        "stranger = {k: v for k, v in os.environ.items() if not k.startswith('RAY_AUTH')}\n"
        "stranger['RAY_AUTH_MODE'] = 'disabled'\n"
        "code = f'import ray; ray.init(address={address!r}, log_to_driver=False); print(ray.nodes())'\n"
        "done = subprocess.run([sys.executable, '-c', code], env=stranger, capture_output=True, timeout=60)\n"
        "print('in' if done.returncode == 0 else 'out')"
    )
    printed = said(code)
    assert "InputError 1000 workers need 1000 CPU; Ray has" in printed
    assert printed.endswith("out")
