"""A screen drawn in BBBC021's own layout, with the truth beside it, for demonstrations and tests."""

from __future__ import annotations

from hcs_ray.screen.synthetic.generate import generate
from hcs_ray.screen.synthetic.settings import SyntheticConfig

__all__ = ["SyntheticConfig", "generate"]
