"""The files that travel with the package: the job set and the sweeps of the repository's top level.

In a checkout they are links to ``k8s/`` and ``tune_configs/``, so an editable install reads what is edited; a
wheel holds copies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

JOB_SET: Final = Path(__file__).parent / "k8s"
SWEEPS: Final = Path(__file__).parent / "tune_configs"
