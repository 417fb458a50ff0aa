"""All that the map can be coloured by, each made when it is first asked for and shared by all sessions."""

from __future__ import annotations

import threading
from typing import Final

import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.explore.colouring import Colouring, category_colouring, number_colouring
from hcs_ray.explore.columns import ColumnInfo
from hcs_ray.explore.scene import Scene
from hcs_ray.explore.shared import SharedLabels

VERDICT: Final = "verdict"
_VERDICT_INFO: Final = ColumnInfo(VERDICT, "Label", "category", "")
_FIRST: Final = (c.MOA, c.TREATMENT, c.COMPOUND, c.PLATE)


class Colourings:
    """Colourings of a scene's columns and of the labels; thread-safe."""

    def __init__(self, scene: Scene, labels: SharedLabels) -> None:
        self._fields = scene.fields
        self._labels = labels
        self._infos = {info.name: info for info in [*scene.columns(), _VERDICT_INFO]}
        self._made: dict[str, Colouring] = {}
        self._version = labels.version
        self._lock = threading.Lock()

    @property
    def groups(self) -> dict[str, dict[str, str]]:
        """Group -> title -> column, as a choice."""
        found: dict[str, dict[str, str]] = {"Screen": {}, "Network, outliers and labels": {}, "Quality": {}}
        for name, info in self._infos.items():
            metadata, quality = name.startswith(c.METADATA_PREFIX), name.startswith(c.QC_PREFIX)
            group = "Screen" if metadata else "Quality" if quality else "Network, outliers and labels"
            found[group][titled(info)] = name
        return {group: names for group, names in found.items() if names}

    @property
    def first(self) -> str:
        """The column that colours at first."""
        return next(name for name in (*_FIRST, *self._infos) if name in self._infos)

    def get(self, name: str) -> Colouring:
        """The colouring by a column of `groups`."""
        with self._lock:
            if name == VERDICT and self._version != self._labels.version:
                self._made.pop(VERDICT, None)
                self._version = self._labels.version
            if name not in self._made:
                self._made[name] = self._make(self._infos[name])
            return self._made[name]

    def _make(self, info: ColumnInfo) -> Colouring:
        if info.name == VERDICT:
            verdicts = pd.Series(self._labels.verdicts(), dtype=object).reindex(self._fields.index)
            return category_colouring(VERDICT, info.title, self._fields.assign(verdict=verdicts))
        if info.kind == "number":
            return number_colouring(info.name, titled(info), self._fields[info.name])
        return category_colouring(info.name, info.title, self._fields)


def titled(info: ColumnInfo) -> str:
    """A column's title with its unit."""
    return f"{info.title} ({info.unit})" if info.unit else info.title
