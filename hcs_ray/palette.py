"""Colours that readers of any colour vision tell apart (Okabe and Ito 2008), and marks where they run out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from hcs_ray import contracts as c

if TYPE_CHECKING:
    import pandas as pd

# Okabe and Ito's colours without yellow, which is too faint on white, and black, which is the text's.
OKABE_ITO: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKS: Final = ("o", "^", "s", "D")  # in matplotlib's names
CONTROL_COLOUR: Final = "#7b828c"
QUIET_COLOUR: Final = "#c5cad1"  # no label, not used, nothing found
SEQUENTIAL: Final = "viridis"
NO_LABEL: Final = "no label"
_ORDERED_LIMIT: Final = len(OKABE_ITO)


@dataclass(frozen=True)
class Style:
    """How the members of a category are drawn."""

    colour: str
    mark: str = "o"


def category_styles(names: Iterable[str]) -> dict[str, Style]:
    """A style for each name, in order: all colours with one mark, then all with the next."""
    return {
        name: Style(OKABE_ITO[i % len(OKABE_ITO)], MARKS[i // len(OKABE_ITO) % len(MARKS)])
        for i, name in enumerate(names)
    }


def ordered_styles(names: Iterable[str]) -> dict[str, Style]:
    """Styles of ordered categories, as batches: hues while they last, then steps of a sequential scale."""
    listed = list(names)
    if len(listed) <= _ORDERED_LIMIT:
        return category_styles(listed)
    steps = np.linspace(0, 0.95, len(listed))
    return {name: Style(colour) for name, colour in zip(listed, scale_colours(steps), strict=True)}


def tints(colour: str, count: int) -> list[str]:
    """``count`` tones of a colour, from itself towards white."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    shares = np.linspace(0, 0.6, count) if count > 1 else [0.0]
    return [
        "#" + "".join(f"{round(value + (255 - value) * share):02x}" for value in (red, green, blue))
        for share in shares
    ]


def scale_colours(shares: npt.ArrayLike) -> list[str]:
    """Hex colours of the sequential scale at shares of its length, 0 to 1 (outside: its ends)."""
    import matplotlib
    from matplotlib.colors import to_hex

    colours = matplotlib.colormaps[SEQUENTIAL](np.clip(np.asarray(shares, dtype=float), 0, 1))
    return [to_hex(colour) for colour in colours]


def mechanism_labels(fields: pd.DataFrame) -> pd.Series[Any]:
    """What a field is called: its MoA, the name of a negative control, or that it has no label."""
    control = fields[c.PERT_TYPE] == c.NEGATIVE_CONTROL
    labels = fields[c.MOA].astype(object).where(fields[c.MOA].notna(), NO_LABEL)
    return labels.where(~control, fields[c.COMPOUND]).astype(str)


def mechanism_styles(fields: pd.DataFrame) -> dict[str, Style]:
    """Styles of `mechanism_labels`; what is drawn first comes first: no label, controls, mechanisms."""
    moas = sorted({str(moa) for moa in fields[c.MOA].dropna()})
    controls = sorted({str(name) for name in fields[fields[c.PERT_TYPE] == c.NEGATIVE_CONTROL][c.COMPOUND]})
    return {
        NO_LABEL: Style(QUIET_COLOUR),
        **{name: Style(CONTROL_COLOUR) for name in controls},
        **category_styles(moas),
    }
