"""Generated fields of one plate with their truth, for tests of what is measured on them."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hcs_ray.screen.synthetic import SyntheticConfig
from hcs_ray.screen.synthetic.cells import FieldPlan, sample_cells
from hcs_ray.screen.synthetic.draw import draw_field
from hcs_ray.screen.synthetic.layout import plan
from hcs_ray.screen.synthetic.nuisance import Artefact, ArtefactKind
from hcs_ray.screen.synthetic.truth import fields_of

CHANNELS = ("DAPI", "Tubulin", "Actin")
FULL_SCALE = 4095 * 16  # of the generated camera
# The real screen at half its resolution.
CONFIG = SyntheticConfig.preset("bbbc021", seed=5).model_copy(
    update={
        "height_px": 512, "width_px": 640, "cell_diameter_px": 52.0, "artefact_rate": 0.0, "sites": 1,
        "nuisance_strength": 1.5,
    }
)  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """A field (C, H, W) and what its truth says."""

    plan: FieldPlan
    pixels: NDArray[np.uint16]

    @property
    def nuclei(self) -> int:
        """The cells whose centre lies in the field."""
        cells = sample_cells(self.plan)
        inside = (cells.y >= 0) & (cells.y < CONFIG.height_px) & (cells.x >= 0) & (cells.x < CONFIG.width_px)
        return int(inside.sum())

    def shade(self, channel: int) -> NDArray[np.float64]:
        """The share of light (H, W) that the microscope's vignetting leaves, of mean 1."""
        nuisance = self.plan.nuisance
        y = np.linspace(-1, 1, CONFIG.height_px)[:, None] - nuisance.centre_y
        x = np.linspace(-1, 1, CONFIG.width_px)[None] - nuisance.centre_x
        shade = np.exp(-nuisance.vignette[channel] * (y**2 + x**2) / 2)
        return np.asarray(shade / shade.mean())


@functools.lru_cache(maxsize=1)
def drawn_plate() -> tuple[Drawn, ...]:
    """All wells of a plate without artefacts, one field each."""
    screen = plan(CONFIG)
    plate = screen.plates[2]
    return tuple(_drawn(field) for field in fields_of(screen, plate, 0, len(plate.wells)))


def spoilt(field: Drawn, kind: ArtefactKind, severity: float) -> NDArray[np.uint16]:
    """The pixels of the same field with something wrong."""
    return _drawn(dataclasses.replace(field.plan, artefact=Artefact(kind, severity))).pixels


def _drawn(field: FieldPlan) -> Drawn:
    return Drawn(field, np.stack(draw_field(field)))
