"""The screen that a configuration describes, of whatever kind."""

from __future__ import annotations

from hcs_ray.config import Bbbc021Screen, PybbbcScreen, ScreenConfig
from hcs_ray.screen import Screen
from hcs_ray.storage import Storage, open_storage


def open_screen(config: ScreenConfig, study: Storage) -> Screen:
    """Read the tables of a screen and find its images.

    Args:
        config: Its section of the study's configuration.
        study: The study's root, below which ``config.folder`` lies where it is not absolute or a URL.

    Raises:
        InputError: one line with the file, row or plate that is wrong.
    """
    storage = raw_storage(config.folder, study)
    if isinstance(config, Bbbc021Screen):
        from hcs_ray.screen.bbbc021 import open_bbbc021

        return open_bbbc021(config, storage)
    if isinstance(config, PybbbcScreen):
        from hcs_ray.screen.pybbbc import open_pybbbc

        return open_pybbbc(config, storage)
    from hcs_ray.screen.load_data import open_load_data

    return open_load_data(config, storage)


def raw_storage(folder: str, study: Storage) -> Storage:
    """Where the raw screen lies: below the study, or by itself and reached with the study's options."""
    if "://" in folder or folder.startswith(("/", "~")):
        return open_storage(folder, study.options)
    return study.child(folder)
