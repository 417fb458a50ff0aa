"""What differs between the two layouts in numbers: stains, camera, and which wells of a plate are used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

LayoutName = Literal["bbbc021", "cellpainting"]


@dataclass(frozen=True)
class Stain:
    """A channel: counts of the camera for a unit of drawn light, of an average background, of bright dust."""

    channel: str
    light: float
    background: float
    dust: float


@dataclass(frozen=True)
class Assay:
    """A kind of screen.

    The camera's values are multiples of ``step`` up to the largest that 16 bits hold. A screen with fewer
    controls than there are wells for takes the first of each.
    """

    stains: tuple[Stain, ...]
    step: int
    wells: tuple[str, ...]
    dmso_wells: tuple[str, ...]
    taxol_wells: tuple[str, ...]

    @property
    def channels(self) -> tuple[str, ...]:
        """The names of the stains, in the order in which they are drawn."""
        return tuple(stain.channel for stain in self.stains)

    @property
    def columns(self) -> tuple[float, float]:
        """The middle of the columns in use, and how far the outermost are from it."""
        columns = [int(name[1:]) for name in self.wells]
        first, last = min(columns), max(columns)
        return (first + last) / 2.0, (last - first) / 2.0


def _wells(rows: str, first: int, last: int) -> tuple[str, ...]:
    return tuple(f"{row}{column:02d}" for row in rows for column in range(first, last + 1))


ASSAYS: Final[Mapping[LayoutName, Assay]] = {
    # Backgrounds near the 1st percentiles of BBBC021, its 12 bits as multiples of 16, its 60 wells. A screen
    # with fewer controls takes them alternately from either side of the plate.
    "bbbc021": Assay(
        stains=(
            Stain("DAPI", 8900.0, 880.0, 28_000.0),
            Stain("Tubulin", 6300.0, 1200.0, 20_000.0),
            Stain("Actin", 2800.0, 930.0, 22_000.0),
        ),
        step=16,
        wells=_wells("BCDEFG", 2, 11),
        dmso_wells=("B02", "E11", "C02", "F11", "D02", "G11"),
        taxol_wells=("B11", "E02", "C11", "F02", "D11", "G02"),
    ),
    # Cell Painting (Bray et al., Nat Protoc 2016) with all 16 bits, on 384 wells up to their edge.
    "cellpainting": Assay(
        stains=(
            Stain("DNA", 5200.0, 310.0, 12_000.0),
            Stain("ER", 3900.0, 420.0, 9000.0),
            Stain("RNA", 4400.0, 650.0, 11_000.0),
            Stain("AGP", 1500.0, 540.0, 10_000.0),
            Stain("Mito", 2600.0, 270.0, 8000.0),
        ),
        step=1,
        wells=_wells("ABCDEFGHIJKLMNOP", 1, 24),
        dmso_wells=("A01", "P24", "D19", "M06", "H12", "I13"),
        taxol_wells=("P01", "A24", "M19", "D06", "I12", "H13"),
    ),
}
