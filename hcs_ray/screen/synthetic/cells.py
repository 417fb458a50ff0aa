"""The cells of a field: where they lie and what shape each has. Nothing is drawn here, so this is cheap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hcs_ray.contracts import field_key, treatment_name
from hcs_ray.screen.synthetic.layout import Plate, Treatment, Well
from hcs_ray.screen.synthetic.nuisance import Artefact, Nuisance, artefact_of, nuisance_of
from hcs_ray.screen.synthetic.phenotypes import INDEX, NAMES, bases, clip, spreads
from hcs_ray.screen.synthetic.settings import SyntheticConfig, source_of_chance

INTERPHASE: Final = 0
METAPHASE: Final = 1
MONOASTRAL: Final = 2
SCATTERED: Final = 3
_RELAXATIONS: Final = 14


@dataclass(frozen=True)
class FieldPlan:
    """All that decides a field's pixels, but for the cells."""

    config: SyntheticConfig
    key: str
    plate: Plate
    well: Well
    site: int
    nuisance: Nuisance
    artefact: Artefact | None


@dataclass(frozen=True)
class Cells:
    """The cells of a field: positions in pixels (n,), angles (n,), states (n,), shapes (n, n_shapes)."""

    y: NDArray[np.float64]
    x: NDArray[np.float64]
    angle: NDArray[np.float64]
    state: NDArray[np.int64]
    shapes: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.y)

    def shape(self, name: str) -> NDArray[np.float64]:
        """One shape parameter of every cell."""
        return self.shapes[:, INDEX[name]]


def field_plan(config: SyntheticConfig, plate: Plate, well: Well, site: int) -> FieldPlan:
    """The plan of one field of a screen."""
    key = field_key(plate.name, well.name, site)
    nuisance = nuisance_of(config, plate.week, plate.name, well.name)
    return FieldPlan(config, key, plate, well, site, nuisance, artefact_of(config, key))


def sample_cells(field: FieldPlan) -> Cells:
    """The cells of a field, always the same for the same plan."""
    config = field.config
    chance = source_of_chance(config.seed, "cells", field.key)
    effect = field.well.true.strength * field.well.true.compound.effect
    margin = 0.5 * config.cell_diameter_px
    height, width = config.height_px + 2 * margin, config.width_px + 2 * margin
    expected = 0.95 * height * width / config.cell_diameter_px**2 * field.nuisance.density
    number = int(chance.poisson(expected * np.exp(clip(bases() + effect)[INDEX["count"]])))
    shapes, state = _shapes(field, effect, number, chance)
    y, x = _positions(height, width, shapes, config.cell_diameter_px, chance)
    keep = chance.random(number) >= _emptied(field.artefact)
    angle = chance.uniform(0.0, 2.0 * np.pi, number)
    return Cells(y[keep] - margin, x[keep] - margin, angle[keep], state[keep], shapes[keep])


def _emptied(artefact: Artefact | None) -> float:
    return artefact.severity if artefact is not None and artefact.kind == "empty" else 0.0


def _week_drift(config: SyntheticConfig, week: int) -> NDArray[np.float64]:
    """A week's own cells: a passage number, a serum lot."""
    drift = source_of_chance(config.seed, "drift", str(week)).normal(size=len(NAMES))
    return 0.35 * config.nuisance_strength * spreads() * drift


def _shapes(
    field: FieldPlan, effect: NDArray[np.float64], number: int, chance: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Shapes (n, n_shapes) and states (n,): the responding cells get the effect, in varying measure."""
    responds = chance.random(number) < field.well.true.compound.penetrance
    measure = responds * np.exp(0.15 * chance.normal(size=number))
    mean = bases() + _week_drift(field.config, field.plate.week) + measure[:, None] * effect
    shapes = clip(mean + spreads() * chance.normal(size=(number, len(NAMES))))
    draw = chance.random((number, 3))
    for column, name in enumerate(("mitotic", "monoastral", "scattered")):
        shapes[:, INDEX[name]] = draw[:, column] < shapes[:, INDEX[name]]
    mitotic, mono, scattered = (shapes[:, INDEX[name]] > 0 for name in ("mitotic", "monoastral", "scattered"))
    state = np.select([~mitotic, mono, scattered], [INTERPHASE, MONOASTRAL, SCATTERED], METAPHASE)
    for name in ("lobes", "micronuclei"):
        shapes[:, INDEX[name]] = np.where(mitotic, 0, np.minimum(chance.poisson(shapes[:, INDEX[name]]), 8))
    return _as_drawn(shapes, state), state


def _as_drawn(shapes: NDArray[np.float64], state: NDArray[np.int64]) -> NDArray[np.float64]:
    """A rounded cell is small, round and without stress fibres; only such cells have a kind of spindle."""
    shapes[:, INDEX["monoastral"]] = state == MONOASTRAL
    shapes[:, INDEX["scattered"]] = state == SCATTERED
    rounded = state != INTERPHASE
    for name, value in (("elongation", 0.04), ("protrusion", 0.03), ("actin_fibre", 0.0)):
        shapes[rounded, INDEX[name]] = value
    shapes[rounded, INDEX["cell_size"]] = np.minimum(shapes[rounded, INDEX["cell_size"]], 0.0) - 0.42
    return shapes


def _positions(
    height: float, width: float, shapes: NDArray[np.float64], diameter: float, chance: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cells push each other apart; cohesive ones are drawn together into islands."""
    number = len(shapes)
    place = chance.random((number, 2)) * (height, width)
    if number < 2:
        return place[:, 0], place[:, 1]
    cohesion = shapes[:, INDEX["cohesion"]][:, None]
    reach = diameter * np.exp(shapes[:, INDEX["cell_size"]]) * (0.98 - 0.22 * cohesion[:, 0])
    apart = 0.5 * (reach[:, None] + reach[None, :])
    islands = chance.random((max(1, number // 9), 2)) * (height, width)
    home = islands[np.argmin(((place[:, None] - islands[None]) ** 2).sum(axis=2), axis=1)]
    for _ in range(_RELAXATIONS):
        place = place + _push(place, apart) + 0.22 * np.maximum(cohesion - 0.2, 0.0) * (home - place)
        place = np.clip(place, 0.0, (height, width))
    return place[:, 0], place[:, 1]


def _push(place: NDArray[np.float64], apart: NDArray[np.float64]) -> NDArray[np.float64]:
    gap = place[:, None] - place[None]
    distance = np.sqrt((gap**2).sum(axis=2)) + 1e-6
    overlap = np.maximum(apart - distance, 0.0) / distance
    np.fill_diagonal(overlap, 0.0)
    return np.asarray(0.4 * (overlap[:, :, None] * gap).sum(axis=1))


def truth_of(field: FieldPlan, cells: Cells) -> dict[str, object]:
    """The row of the truth of a field; shapes are means over its cells, null where it has none."""
    said, true = field.well.said, field.well.true
    means = cells.shapes.mean(axis=0) if len(cells) else np.full(len(NAMES), np.nan)
    row: dict[str, object] = {
        "key": field.key,
        **_labels("Metadata", said),
        **_labels("True", true),
        "True_MOA": true.compound.moa,
        "Dose_Acts": true.acts,
        "Dose_Strength": true.strength,
        "Penetrance": true.compound.penetrance,
        "Novel": true.compound.kind == "novel",
        "Toxic": true.compound.kind == "toxic",
        "Mislabelled": treatment_of(said) != treatment_of(true),
        "Artefact_Kind": field.artefact.kind if field.artefact else None,
        "Artefact_Severity": field.artefact.severity if field.artefact else 0.0,
        "Cells": len(cells),
    }
    shapes = zip(NAMES, means.tolist(), strict=True)
    row |= {f"Shape_{name}": mean if len(cells) else None for name, mean in shapes}
    row["Shape_count"] = float(clip(bases() + true.strength * true.compound.effect)[INDEX["count"]])
    return row | field.nuisance.columns(field.config.assay.channels)


def _labels(prefix: str, item: Treatment) -> dict[str, object]:
    return {
        f"{prefix}_Compound": item.compound.name,
        f"{prefix}_Concentration": float(item.concentration_um),
    }


def treatment_of(item: Treatment) -> str:
    """The treatment's name, as the other stages write it."""
    return treatment_name(item.compound.name, item.concentration_um)
