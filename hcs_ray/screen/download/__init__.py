"""BBBC021 from its public address into a local folder: resumed, retried, checked, and nothing lost."""

from __future__ import annotations

from hcs_ray.screen.download.farewell import farewell
from hcs_ray.screen.download.run import ADDRESS, Outcome, Request, download

__all__ = ["ADDRESS", "Outcome", "Request", "download", "farewell"]
