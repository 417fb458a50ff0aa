"""The settings of a generated screen, and its seeded sources of chance."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from hcs_ray.screen.synthetic.assays import ASSAYS, Assay, LayoutName
from hcs_ray.screen.synthetic.phenotypes import MOA_EFFECTS, POSITIVE_CONTROL_MOA

Preset = Literal["demo", "smallest", "bbbc021", "cellpainting"]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Severity = Annotated[float, Field(gt=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]


class SyntheticConfig(BaseModel):
    """What to draw. The defaults are nearly the demo; every field of the screen follows from these values.

    ``layout`` is BBBC021's, or that of a Cell Painting screen: five channels, 384 wells, ``load_data.csv``.
    A week is a batch of plates, whatever the layout calls it.
    ``plates_per_week`` and ``compounds_per_moa`` are one number for all, or one for each week or MoA. A
    week's plates are layouts of ``replicates`` plates each; the last layout may have fewer. Of a compound's
    ``doses`` the ``active_doses`` highest act. ``artefact_rate`` is a share of the fields,
    ``mislabelled_rate`` one of the labelled wells (at least one where above 0). ``nuisance_strength`` 0
    leaves out plate and week effects.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: Count = 0
    layout: LayoutName = "bbbc021"
    weeks: Positive = 3
    plates_per_week: Positive | tuple[Positive, ...] = 3
    replicates: Positive = 3
    moas: tuple[str, ...] = (
        "Actin disruptors",
        "Aurora kinase inhibitors",
        "Eg5 inhibitors",
        "Epithelial",
        "Microtubule destabilizers",
        "Microtubule stabilizers",
    )
    compounds_per_moa: Positive | tuple[Positive, ...] = 3
    one_week_moas: tuple[str, ...] = ()  # all compounds in one week, as two classes of BBBC021 are
    doses: Annotated[int, Field(ge=1, le=8)] = 3
    active_doses: Annotated[int, Field(ge=1, le=4)] = 2
    novel_compounds: Count = 2
    toxic_compounds: Count = 1
    inert_compounds: Count = 0
    unlabelled_doses: Annotated[int, Field(ge=1, le=8)] = 1  # doses of each of those three
    dmso_wells: Annotated[int, Field(ge=1, le=6)] = 4
    taxol_wells: Annotated[int, Field(ge=1, le=6)] = 1
    sites: Annotated[int, Field(ge=1, le=4)] = 2
    height_px: Annotated[int, Field(ge=64, le=4096)] = 256
    width_px: Annotated[int, Field(ge=64, le=4096)] = 256
    cell_diameter_px: Annotated[float, Field(ge=24.0, le=200.0)] = 58.0
    compound_variation: Annotated[float, Field(ge=0.0, le=2.0)] = 1.0
    nuisance_strength: Annotated[float, Field(ge=0.0, le=3.0)] = 1.0
    artefact_rate: Share = 0.04
    artefact_severity: tuple[Severity, Severity] = (0.2, 1.0)  # drawn evenly from this range
    mislabelled_rate: Share = 0.02

    @classmethod
    def preset(cls, name: Preset, *, seed: int = 0) -> Self:
        """The settings of a name.

        They are "demo"; "smallest", for tests; "bbbc021", of the real screen's size; "cellpainting", nearly
        as small as the smallest and as unlike BBBC021 as screens are.
        """
        return cls.model_validate({"seed": seed, **_PRESETS[name]})

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        unknown = sorted(set(self.moas + self.one_week_moas) - set(MOA_EFFECTS))
        if unknown:
            raise ValueError(f"unknown MoA {unknown[0]!r}; known: {', '.join(MOA_EFFECTS)}")
        if len(set(self.moas)) != len(self.moas) or POSITIVE_CONTROL_MOA not in self.moas:
            raise ValueError(f"moas must be distinct, with the positive control's {POSITIVE_CONTROL_MOA!r}")
        if len(self.plate_counts) != self.weeks:
            raise ValueError(f"plates_per_week has {len(self.plate_counts)} numbers for {self.weeks} weeks")
        if len(self.compound_counts) != len(self.moas):
            counts = len(self.compound_counts)
            raise ValueError(f"compounds_per_moa has {counts} numbers for {len(self.moas)} moas")
        if self.active_doses > self.doses:
            raise ValueError(f"active_doses {self.active_doses} exceeds doses {self.doses}")
        if self.artefact_severity[0] > self.artefact_severity[1]:
            raise ValueError("artefact_severity must be a range from low to high")
        return self

    @property
    def assay(self) -> Assay:
        """Stains, camera and wells of the layout."""
        return ASSAYS[self.layout]

    @property
    def plate_counts(self) -> tuple[int, ...]:
        """The number of plates of each week."""
        counts = self.plates_per_week
        return (counts,) * self.weeks if isinstance(counts, int) else counts

    @property
    def compound_counts(self) -> tuple[int, ...]:
        """The number of compounds of each MoA."""
        counts = self.compounds_per_moa
        return (counts,) * len(self.moas) if isinstance(counts, int) else counts


_PRESETS: dict[Preset, dict[str, object]] = {
    "demo": {"compounds_per_moa": 4},
    "smallest": {
        "plates_per_week": 2,
        "moas": ("Actin disruptors", "Aurora kinase inhibitors", "Eg5 inhibitors", "Microtubule stabilizers"),
        "dmso_wells": 3,
        "sites": 1,
        "height_px": 128,
        "width_px": 128,
        "cell_diameter_px": 36.0,
    },
    "bbbc021": {
        "weeks": 10,
        "plates_per_week": (6, 6, 6, 6, 6, 6, 5, 5, 6, 3),
        "moas": tuple(MOA_EFFECTS),
        "compounds_per_moa": (3, 3, 2, 4, 4, 2, 3, 3, 4, 3, 4, 3),
        "one_week_moas": ("Cholesterol-lowering", "Kinase inhibitors"),
        "doses": 8,
        "active_doses": 3,
        "novel_compounds": 6,
        "toxic_compounds": 6,
        "inert_compounds": 64,
        "unlabelled_doses": 8,
        "dmso_wells": 6,
        "taxol_wells": 6,
        "sites": 4,
        "height_px": 1024,
        "width_px": 1280,
        "cell_diameter_px": 104.0,
    },
    "cellpainting": {
        "layout": "cellpainting",
        "weeks": 2,
        "plates_per_week": 2,
        "moas": ("Actin disruptors", "Eg5 inhibitors", "Microtubule stabilizers"),
        "doses": 2,
        "toxic_compounds": 0,
        "dmso_wells": 3,
        "height_px": 112,
        "width_px": 144,
        "cell_diameter_px": 36.0,
    },
}


def digest(seed: int, *names: str) -> bytes:
    """32 bytes that depend on the seed and the names alone."""
    return hashlib.sha256("\0".join([str(seed), *names]).encode()).digest()


def source_of_chance(seed: int, *names: str) -> np.random.Generator:
    """A generator for one purpose: the same for the same seed and names, whoever asks, in whatever order."""
    return np.random.default_rng(np.random.SeedSequence(int.from_bytes(digest(seed, *names), "big")))
