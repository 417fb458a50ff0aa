"""What the points of the map are coloured by, and the legend that says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.name_order import name_key
from hcs_ray.palette import (
    CONTROL_COLOUR,
    MARKS,
    NO_LABEL,
    OKABE_ITO,
    QUIET_COLOUR,
    Style,
    mechanism_labels,
    ordered_styles,
    scale_colours,
    tints,
)

NOT_KNOWN: Final = "not known"
VERDICT_STYLES: Final = {
    "good": Style(OKABE_ITO[2], "o"), "bad": Style(OKABE_ITO[1], "^"), "unsure": Style(OKABE_ITO[5], "s"),
}  # fmt: skip
_REASON_STYLES: Final = {
    "novel": Style(OKABE_ITO[2]), "mislabelled": Style(OKABE_ITO[3], "D"),
    "artefact": Style(OKABE_ITO[1], "^"),
}  # fmt: skip
_SIDE_STYLES: Final = {
    c.TEST: Style(OKABE_ITO[1]), c.VALIDATION: Style(OKABE_ITO[5]), c.TRAIN: Style(OKABE_ITO[0]),
}  # fmt: skip
_TRUTH_STYLES: Final = {"True": Style(OKABE_ITO[0]), "False": Style(OKABE_ITO[1], "^")}
_FIXED: Final = {"outlier_reason": _REASON_STYLES, "side": _SIDE_STYLES, "verdict": VERDICT_STYLES}
_OTHERS: Final = "others"
_CLIP: Final = (0.02, 0.98)  # of fields: a few extremes must not take the whole scale
_MOST: Final = len(OKABE_ITO) * len(MARKS)  # categories with a style of their own
_RAMP_STEPS: Final = 24

Codes = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Entry:
    """A category in the legend."""

    name: str
    style: Style
    fields: int


@dataclass(frozen=True)
class Colouring:
    """A column as colours, row-aligned with the scene's fields.

    Of categories: ``codes`` (N,) number the ``entries``, of which the first is drawn first. Of numbers:
    ``values`` (N,), NaN where not known, on a scale from ``low`` to ``high`` (what lies outside has the
    colour of the end).
    """

    name: str
    title: str
    kind: Literal["category", "number"]
    codes: Codes
    values: Values
    entries: tuple[Entry, ...] = ()
    low: float = 0.0
    high: float = 1.0

    @property
    def ramp(self) -> list[str]:
        """Colours of the scale, low to high."""
        return scale_colours(np.linspace(0, 1, _RAMP_STEPS))

    def colours(self, rows: Codes) -> list[str]:
        """A hex colour for each row."""
        if self.kind == "category":
            return [self.entries[code].style.colour for code in self.codes[rows]]
        values = self.values[rows]
        shares = (np.nan_to_num(values) - self.low) / ((self.high - self.low) or 1)
        known = np.isfinite(values)
        return [
            colour if there else QUIET_COLOUR
            for colour, there in zip(scale_colours(shares), known, strict=True)
        ]

    def words(self, rows: Codes) -> list[str]:
        """What each row's colour stands for."""
        if self.kind == "category":
            return [self.entries[code].name for code in self.codes[rows]]
        return [f"{value:.4g}" if np.isfinite(value) else NOT_KNOWN for value in self.values[rows]]

    def marks(self, rows: Codes) -> list[str]:
        """A mark for each row, in the palette's names."""
        if self.kind == "number":
            return ["o"] * len(rows)
        return [self.entries[code].style.mark for code in self.codes[rows]]


def number_colouring(name: str, title: str, column: pd.Series[Any]) -> Colouring:
    """A column of numbers on the sequential scale."""
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    known = values[np.isfinite(values)]
    low, high = (float(np.quantile(known, q)) for q in _CLIP) if len(known) else (0.0, 1.0)
    return Colouring(name, title, "number", np.empty(0, np.int64), values, low=low, high=high)


def category_colouring(name: str, title: str, fields: pd.DataFrame) -> Colouring:
    """A column of categories; what is not known, and what is too rare for a style of its own, is grey."""
    names = (
        mechanism_labels(fields)
        if name == c.MOA
        else fields[name].astype(object).where(fields[name].notna(), NOT_KNOWN).astype(str)
    )
    counts = names.value_counts()
    kept = {str(label) for label in counts.index[: _MOST + 1]}
    if len(counts) > len(kept):
        rest = f"{len(counts) - len(kept):,} {_OTHERS}"
        names = names.where(names.isin(kept), rest)
        counts = names.value_counts()
    styles = _styles(name, [str(label) for label in counts.index], fields)
    numbers = {label: number for number, label in enumerate(styles)}
    codes = np.asarray(names.map(numbers), np.int64)
    entries = tuple(Entry(label, style, int(counts[label])) for label, style in styles.items())
    return Colouring(name, title, "category", codes, np.empty(0), entries)


def _styles(name: str, labels: list[str], fields: pd.DataFrame) -> dict[str, Style]:
    """What is drawn first comes first: what is not known, the rest, controls, then the others by name."""
    grey = [label for label in labels if label in (NOT_KNOWN, NO_LABEL) or label.endswith(f" {_OTHERS}")]
    controls = {str(one) for one in fields[fields[c.PERT_TYPE] == c.NEGATIVE_CONTROL][c.COMPOUND].unique()}
    shown = sorted(set(labels) - set(grey), key=name_key)
    found = {label: Style(QUIET_COLOUR) for label in grey}
    if name in (c.MOA, c.COMPOUND):
        found |= {label: Style(CONTROL_COLOUR) for label in shown if label in controls}
        shown = [label for label in shown if label not in controls]
    if name in _FIXED:
        fixed = _FIXED[name]
        return found | {label: fixed.get(label, Style(CONTROL_COLOUR)) for label in shown}
    if set(shown) <= set(_TRUTH_STYLES):
        return found | {label: _TRUTH_STYLES[label] for label in shown}
    if name == c.BATCH:
        return found | ordered_styles(shown)
    return found | toned_styles(shown)


def toned_styles(names: list[str]) -> dict[str, Style]:
    """All hues with one mark and tone, then all with the next: also told apart where no marks are drawn."""
    rounds = -(-len(names) // len(OKABE_ITO))
    tones = {colour: tints(colour, rounds) for colour in OKABE_ITO}
    return {
        name: Style(tones[OKABE_ITO[i % len(OKABE_ITO)]][i // len(OKABE_ITO)], MARKS[i // len(OKABE_ITO) % 4])
        for i, name in enumerate(names)
    }
