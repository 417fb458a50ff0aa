"""What a cell looks like, as numbers, and how each mechanism of action moves them.

A cell is a vector of shape parameters (``SHAPES``). A mechanism is an effect: what is added to the parameters
of a responding cell at a saturating dose. The phenotypes follow the descriptions of BBBC021's twelve classes
(Ljosa et al., J Biomol Screen 2013); the numbers are made up so that the drawn cells look like them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Shape:
    """A shape parameter: its value in an untreated cell, its spread between cells, its limits."""

    base: float
    spread: float
    low: float
    high: float


SHAPES: Final[Mapping[str, Shape]] = {
    "cell_size": Shape(0.0, 0.10, -0.8, 0.6),  # log of the radius, relative to an untreated cell
    "elongation": Shape(0.25, 0.15, 0.0, 1.5),  # log of the aspect ratio
    "protrusion": Shape(0.10, 0.04, 0.0, 0.5),  # how far the outline departs from an ellipse
    "nucleus_size": Shape(0.0, 0.09, -0.6, 0.7),  # log of the radius
    "nucleus_brightness": Shape(0.0, 0.10, -0.7, 1.0),  # log
    "nucleus_texture": Shape(0.12, 0.04, 0.0, 1.0),  # contrast of the speckles
    "nucleoli": Shape(0.35, 0.10, 0.0, 1.0),  # depth of the dark holes in DAPI
    "nucleus_ring": Shape(0.0, 0.03, 0.0, 1.0),  # a hollow nucleus
    "lobes": Shape(0.06, 0.0, 0.0, 6.0),  # expected number of nuclei beyond the first
    "micronuclei": Shape(0.03, 0.0, 0.0, 8.0),  # expected number
    "mitotic": Shape(0.05, 0.0, 0.0, 0.95),  # chance to be rounded up
    "monoastral": Shape(0.0, 0.0, 0.0, 1.0),  # chance that a rounded cell has one aster in a ring of DNA
    "scattered": Shape(0.05, 0.0, 0.0, 1.0),  # chance that a rounded cell has its DNA scattered
    "tubulin_level": Shape(0.0, 0.15, -1.2, 1.2),  # log of the diffuse signal
    "tubulin_fibre": Shape(1.0, 0.15, 0.0, 2.5),  # strength of the microtubules
    "tubulin_bundle": Shape(0.05, 0.04, 0.0, 1.0),  # how far they gather in few thick bundles
    "tubulin_aggregate": Shape(0.0, 0.03, 0.0, 1.5),  # a bright body beside the nucleus
    "actin_level": Shape(0.0, 0.15, -1.2, 1.2),  # log of the diffuse signal
    "actin_fibre": Shape(0.8, 0.20, 0.0, 2.5),  # strength of the stress fibres
    "actin_cortex": Shape(0.7, 0.12, 0.0, 2.0),  # strength of the rim
    "actin_foci": Shape(0.05, 0.04, 0.0, 1.5),  # bright lumps instead of fibres
    "cohesion": Shape(0.15, 0.05, 0.0, 1.0),  # islands of cells with actin at their junctions
    "vacuoles": Shape(0.0, 0.02, 0.0, 1.0),  # dark holes in the cytoplasm
    "spikes": Shape(0.0, 0.02, 0.0, 1.0),  # thin straight actin needles beyond the rim
    "count": Shape(0.0, 0.0, -2.5, 0.5),  # log of the number of cells, relative to untreated wells
}
NAMES: Final = tuple(SHAPES)
INDEX: Final[Mapping[str, int]] = {name: number for number, name in enumerate(NAMES)}

MOA_EFFECTS: Final[Mapping[str, Mapping[str, float]]] = {
    "Actin disruptors": {
        "actin_fibre": -0.8, "actin_cortex": -0.45, "actin_foci": 1.0, "protrusion": 0.22, "lobes": 0.5,
        "cell_size": -0.15, "count": -0.3,
    },
    "Aurora kinase inhibitors": {
        "lobes": 2.4, "nucleus_size": 0.42, "cell_size": 0.28, "count": -0.55, "mitotic": -0.04,
        "tubulin_level": -0.2,
    },
    "Cholesterol-lowering": {
        "elongation": 0.85, "cell_size": -0.22, "protrusion": 0.12, "actin_fibre": -0.5, "actin_level": -0.3,
        "tubulin_level": 0.25, "count": -0.35,
    },
    "DNA damage": {
        "nucleus_size": 0.38, "cell_size": 0.22, "nucleus_brightness": -0.3, "nucleoli": 0.3, "count": -0.7,
        "actin_fibre": 0.4, "mitotic": -0.05,
    },
    "DNA replication": {
        "nucleus_size": 0.24, "nucleus_texture": 0.45, "elongation": 0.3, "count": -0.6, "micronuclei": 0.3,
        "mitotic": -0.05, "actin_level": -0.15,
    },
    "Eg5 inhibitors": {
        "mitotic": 0.6, "monoastral": 0.95, "count": -0.35, "lobes": 0.3, "micronuclei": 0.3,
    },
    "Epithelial": {
        "cohesion": 0.8, "cell_size": -0.08, "elongation": -0.15, "protrusion": -0.05, "actin_cortex": 0.5,
        "actin_fibre": -0.45, "nucleus_size": -0.06,
    },
    "Kinase inhibitors": {
        "actin_fibre": 1.0, "actin_level": 0.2, "nucleus_size": -0.18, "elongation": 0.4, "cell_size": 0.12,
        "cohesion": -0.15, "count": -0.3, "tubulin_level": -0.15,
    },
    "Microtubule destabilizers": {
        "tubulin_fibre": -0.95, "tubulin_level": -0.15, "mitotic": 0.35, "scattered": 0.85, "lobes": 0.7,
        "micronuclei": 1.5, "elongation": -0.15, "cell_size": -0.12, "count": -0.4,
    },
    "Microtubule stabilizers": {
        "tubulin_bundle": 0.85, "tubulin_fibre": 1.0, "lobes": 1.0, "micronuclei": 3.0, "mitotic": 0.15,
        "scattered": 0.5, "nucleus_size": 0.05, "count": -0.45,
    },
    "Protein degradation": {
        "tubulin_aggregate": 1.1, "cell_size": -0.30, "nucleus_size": -0.18, "nucleus_brightness": 0.25,
        "tubulin_fibre": -0.35, "protrusion": 0.08, "nucleoli": -0.25, "count": -0.6,
    },
    "Protein synthesis": {
        "nucleoli": 0.6, "nucleus_size": -0.15, "tubulin_level": -0.55, "tubulin_fibre": -0.35,
        "actin_level": -0.3, "cell_size": -0.12, "nucleus_texture": -0.06, "count": -0.5, "mitotic": -0.05,
    },
}  # fmt: skip

NOVEL_EFFECTS: Final[Mapping[str, Mapping[str, float]]] = {
    "vacuolated": {"vacuoles": 0.95, "cell_size": 0.12, "tubulin_fibre": -0.3},
    "hollow nuclei": {"nucleus_ring": 0.95, "nucleus_size": 0.15, "count": -0.2},
    "needles": {"spikes": 0.95, "cell_size": -0.1, "actin_fibre": -0.3},
}
TOXIC_EFFECT: Final[Mapping[str, float]] = {
    "count": -1.7, "cell_size": -0.65, "nucleus_size": -0.42, "nucleus_brightness": 0.7,
    "tubulin_fibre": -0.9, "actin_fibre": -0.7, "protrusion": 0.15, "tubulin_level": 0.3,
    "actin_level": 0.3, "micronuclei": 0.8,
}  # fmt: skip

POSITIVE_CONTROL_MOA: Final = "Microtubule stabilizers"
POSITIVE_CONTROL_COMPOUND: Final = "taxol"
COMPOUND_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "Actin disruptors": ("cytochalasin B", "cytochalasin D", "latrunculin B"),
    "Aurora kinase inhibitors": ("AZ-A", "AZ258", "AZ841"),
    "Cholesterol-lowering": ("mevinolin/lovastatin", "simvastatin", "atorvastatin"),
    "DNA damage": ("chlorambucil", "cisplatin", "etoposide", "mitomycin C"),
    "DNA replication": ("camptothecin", "floxuridine", "methotrexate", "mitoxantrone"),
    "Eg5 inhibitors": ("AZ-C", "AZ138", "monastrol"),
    "Epithelial": ("AZ-J", "AZ-U", "PP-2"),
    "Kinase inhibitors": ("alsterpaullone", "bryostatin", "PD-169316"),
    "Microtubule destabilizers": ("colchicine", "demecolcine", "nocodazole", "vincristine"),
    "Microtubule stabilizers": ("taxol", "docetaxel", "epothilone B"),
    "Protein degradation": ("ALLN", "lactacystin", "MG-132", "proteasome inhibitor I"),
    "Protein synthesis": ("anisomycin", "cyclohexamide", "emetine"),
}


def bases() -> NDArray[np.float64]:
    """The parameters of an untreated cell: (n_shapes,), in the order of ``NAMES``."""
    return np.array([shape.base for shape in SHAPES.values()])


def spreads() -> NDArray[np.float64]:
    """The standard deviation between the cells of a well: (n_shapes,)."""
    return np.array([shape.spread for shape in SHAPES.values()])


def clip(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values (..., n_shapes) within the limits of each parameter."""
    low = np.array([shape.low for shape in SHAPES.values()])
    high = np.array([shape.high for shape in SHAPES.values()])
    return np.clip(values, low, high)


def effect_vector(effect: Mapping[str, float]) -> NDArray[np.float64]:
    """An effect given by names as a vector (n_shapes,)."""
    vector = np.zeros(len(NAMES))
    for name, delta in effect.items():
        vector[INDEX[name]] = delta
    return vector
