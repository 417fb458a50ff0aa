"""A drawn screen, in BBBC021's own layout or in a very different one, with the truth beside it."""

from __future__ import annotations

from hcs_ray.screen.synthetic.generate import generate, screen_section
from hcs_ray.screen.synthetic.settings import SyntheticConfig

__all__ = ["SyntheticConfig", "generate", "screen_section"]
