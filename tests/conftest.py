"""What several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the real BBBC021 tables and the CRDs; tests that need it are skipped without it."""
    folder = Path(os.environ.get("HCS_RAY_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no folder {folder} with the real tables; name one in HCS_RAY_SHARED")
    return folder
