"""Drawing a field: the stains of its cells, then the microscope and what goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from hcs_ray.screen.synthetic.assays import LayoutName
from hcs_ray.screen.synthetic.canvas import Canvas, Territory, canvas, territory
from hcs_ray.screen.synthetic.cells import Cells, FieldPlan, sample_cells
from hcs_ray.screen.synthetic.nuclei import Nuclei, draw_nuclei
from hcs_ray.screen.synthetic.nuisance import Image, Pixels, expose, spoil
from hcs_ray.screen.synthetic.painting import painted
from hcs_ray.screen.synthetic.settings import source_of_chance
from hcs_ray.screen.synthetic.stains import actin, tubulin


def draw_field(field: FieldPlan) -> list[Pixels]:
    """The images of a field, a channel each: (height, width) uint16, as the assay's camera records them."""
    config, nuisance = field.config, field.nuisance
    chance = source_of_chance(config.seed, "draw", field.key)
    plane = canvas((config.height_px, config.width_px), config.cell_diameter_px, chance)
    light = [
        _hazed(part * np.float32(stain.light), haze, plane)
        for part, stain, haze in zip(_stains(field, plane), config.assay.stains, nuisance.haze, strict=True)
    ]
    if field.artefact is not None:
        light = spoil(light, field.artefact, config.assay, chance, plane.diameter)
    return expose(light, nuisance, config.assay, chance)


def _stains(field: FieldPlan, plane: Canvas) -> list[Image]:
    """The stains in focus, blurred by the optics."""
    from scipy.ndimage import gaussian_filter

    cells = sample_cells(field)
    if len(cells) == 0:
        return [np.zeros(plane.size, np.float32) for _ in field.config.assay.stains]
    ground = territory(cells, plane)
    stains = _STAINING[field.config.layout](cells, ground, draw_nuclei(cells, plane), plane)
    return [gaussian_filter(stain, 0.015 * plane.diameter * field.nuisance.blur) for stain in stains]


def _dapi_tubulin_actin(cells: Cells, ground: Territory, nuclei: Nuclei, plane: Canvas) -> tuple[Image, ...]:
    return (
        nuclei.dna,
        tubulin(cells, ground, nuclei.hole, plane),
        actin(cells, ground, nuclei.hole, plane),
    )


_STAINING: Final[Mapping[LayoutName, Callable[[Cells, Territory, Nuclei, Canvas], tuple[Image, ...]]]] = {
    "bbbc021": _dapi_tubulin_actin,
    "cellpainting": painted,
}


def _hazed(light: Image, share: float, plane: Canvas) -> Image:
    """Part of the light scattered over about a cell: taken on a coarse grid, since it is smooth."""
    from scipy.ndimage import gaussian_filter, zoom

    step = max(1, int(plane.diameter / 8))
    coarse = gaussian_filter(np.ascontiguousarray(light[::step, ::step]), 0.8 * plane.diameter / step)
    scale = [full / part for full, part in zip(light.shape, coarse.shape, strict=True)]
    scattered = zoom(coarse, scale, order=1)
    return np.asarray(light * np.float32(1.0 - share) + scattered * np.float32(share), np.float32)
