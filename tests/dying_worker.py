"""What kills the actors of `hcs-ray embed`; a module of its own, so that they load no torch for it."""

from __future__ import annotations

import os

from hcs_ray.study import Study


class Dying:
    """Kills its own process at every chunk, as the system does where memory is short."""

    def __init__(self, study: Study, digest: str) -> None:
        pass

    def write(self, first: int, last: int) -> None:
        os._exit(1)
