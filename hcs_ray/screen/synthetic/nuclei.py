"""Drawing DNA: nuclei with lobes, micronuclei and nucleoli, chromosomes of rounded cells. And vacuoles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hcs_ray.screen.synthetic.canvas import Canvas, window_at
from hcs_ray.screen.synthetic.cells import INTERPHASE, METAPHASE, MONOASTRAL, Cells
from hcs_ray.screen.synthetic.nuisance import Image

NUCLEUS: Final = 0.222  # radius of a nucleus over the diameter of a cell


@dataclass(frozen=True)
class Body:
    """An ellipse: centre and half axes in pixels, its DNA, and how far it keeps the other stains out."""

    y: float
    x: float
    long: float
    short: float
    angle: float
    light: float
    edge: float = 7.0  # steepness of the outline
    hollow: float = 0.0
    hole: float = 1.0
    nucleoli: tuple[tuple[float, float], ...] = ()  # positions in half axes
    nucleolus_depth: float = 0.0


@dataclass(frozen=True)
class Nuclei:
    """Maps (height, width): DNA, where nuclei and vacuoles keep other stains out, nucleoli."""

    dna: Image
    hole: Image
    nucleoli: Image


def draw_nuclei(cells: Cells, plane: Canvas) -> Nuclei:
    """The nuclei, chromosomes, micronuclei and vacuoles of all cells."""
    dna, hole, nucleoli = (np.zeros(plane.size, np.float32) for _ in range(3))
    nuclei = Nuclei(dna, hole, nucleoli)
    for number in range(len(cells)):
        texture = float(1.2 * cells.shape("nucleus_texture")[number])
        for body in _bodies(cells, number, plane.diameter, plane.chance):
            _add(body, texture, plane.grain, nuclei)
    return nuclei


def _bodies(cells: Cells, number: int, diameter: float, chance: np.random.Generator) -> Iterator[Body]:
    y, x, angle = float(cells.y[number]), float(cells.x[number]), float(cells.angle[number])
    state = cells.state[number]
    if state == INTERPHASE:
        yield from _nuclei(cells, number, diameter, chance)
        yield from _micronuclei(cells, number, diameter, chance)
        yield from _vacuoles(cells, number, diameter, chance)
    elif state == METAPHASE:
        yield Body(y, x, 0.055 * diameter, 0.20 * diameter, angle, 1.9, hole=0.5)
    elif state == MONOASTRAL:
        yield from _chromosomes(y, x, 0.17 * diameter * (0.9 + 0.1 * chance.random(13)), diameter, chance)
    else:
        yield from _chromosomes(y, x, 0.24 * diameter * np.sqrt(chance.random(13)), diameter, chance)


def _chromosomes(
    y: float, x: float, away: NDArray[np.float64], diameter: float,
    chance: np.random.Generator,
) -> Iterator[Body]:  # fmt: skip
    """Condensed rods at these distances from the centre, pointing outwards."""
    angles = np.linspace(0.0, 2.0 * np.pi, len(away), endpoint=False) + 0.15 * chance.normal(size=len(away))
    for angle, distance in zip(angles.tolist(), away.tolist(), strict=True):
        long = 0.055 * diameter * chance.uniform(0.8, 1.2)
        yield Body(
            y + distance * np.sin(angle), x + distance * np.cos(angle), long, 0.6 * long, angle, 1.6,
            edge=4.0, hole=0.4,
        )  # fmt: skip


def _nuclei(cells: Cells, number: int, diameter: float, chance: np.random.Generator) -> Iterator[Body]:
    """One nucleus, or several of which the area together grows slowly with their number."""
    lobes = int(cells.shape("lobes")[number]) + 1
    radius = NUCLEUS * diameter * float(np.exp(cells.shape("nucleus_size")[number]))
    light = 0.8 * float(np.exp(cells.shape("nucleus_brightness")[number]))
    turn = chance.uniform(0.0, 2.0 * np.pi)
    part = radius * (1.0 if lobes == 1 else 1.02 * lobes**-0.40)
    away = 0.0 if lobes == 1 else 0.92 * radius * (1.0 - 0.2 / lobes)
    for lobe in range(lobes):
        angle = turn + 2.0 * np.pi * (lobe + 0.15 * chance.normal()) / lobes
        out = away * chance.uniform(0.45, 1.15) if lobes > 2 else away
        stretch = float(np.exp(0.12 + 0.08 * chance.normal() + 0.10 * cells.shape("elongation")[number]))
        tilt = float(cells.angle[number]) if lobes == 1 else angle + 0.5 * np.pi
        own = part * float(np.exp(0.10 * chance.normal())) if lobes > 1 else part
        yield Body(
            float(cells.y[number]) + out * np.sin(angle), float(cells.x[number]) + out * np.cos(angle),
            own * stretch, own / stretch, tilt, light,
            hollow=float(cells.shape("nucleus_ring")[number]),
            nucleoli=tuple(map(tuple, chance.uniform(-0.5, 0.5, (3, 2)).tolist())),
            nucleolus_depth=float(cells.shape("nucleoli")[number]),
        )  # fmt: skip


def _micronuclei(cells: Cells, number: int, diameter: float, chance: np.random.Generator) -> Iterator[Body]:
    radius = NUCLEUS * diameter * float(np.exp(cells.shape("nucleus_size")[number]))
    for _ in range(int(cells.shape("micronuclei")[number])):
        angle = chance.uniform(0.0, 2.0 * np.pi)
        away = radius * chance.uniform(1.15, 1.6)
        small = radius * chance.uniform(0.22, 0.42)
        y, x = float(cells.y[number]) + away * np.sin(angle), float(cells.x[number]) + away * np.cos(angle)
        yield Body(y, x, small, 0.85 * small, angle, 0.85, 5.0)


def _vacuoles(cells: Cells, number: int, diameter: float, chance: np.random.Generator) -> Iterator[Body]:
    """Round holes in the cytoplasm: bodies without DNA."""
    for _ in range(round(9.0 * max(0.0, float(cells.shape("vacuoles")[number]) - 0.1))):
        angle, away = chance.uniform(0.0, 2.0 * np.pi), diameter * chance.uniform(0.25, 0.42)
        radius = diameter * chance.uniform(0.05, 0.095)
        y, x = float(cells.y[number]) + away * np.sin(angle), float(cells.x[number]) + away * np.cos(angle)
        yield Body(y, x, radius, radius, 0.0, 0.0, 6.0, hole=1.75)


def _add(body: Body, texture: float, grain: Image, nuclei: Nuclei) -> None:
    """Adds a body to all maps."""
    dna, hole, nucleoli = nuclei.dna, nuclei.hole, nuclei.nucleoli
    window, y, x = window_at(
        body.y, body.x, 1.5 * max(body.long, body.short) + 2.0, (dna.shape[0], dna.shape[1])
    )
    cosine, sine = np.cos(body.angle), np.sin(body.angle)
    u = ((x * cosine + y * sine) / body.long).astype(np.float32)
    v = ((y * cosine - x * sine) / body.short).astype(np.float32)
    square = u * u + v * v
    mask = 1.0 / (1.0 + np.exp(np.clip((np.sqrt(square) - 1.0) * body.edge, -30.0, 30.0)))
    hole[window] = np.maximum(hole[window], np.float32(body.hole) * mask)
    if body.light == 0.0:
        return
    mask *= 1.0 - body.hollow * np.exp(-np.minimum(square / 0.45, 30.0))
    for centre_u, centre_v in body.nucleoli:
        near = (u - np.float32(centre_u)) ** 2 + (v - np.float32(centre_v)) ** 2
        spot = body.nucleolus_depth * np.exp(-np.minimum(near / 0.035, 30.0))
        nucleoli[window] = np.maximum(nucleoli[window], spot)
        mask *= 1.0 - spot
    dna[window] += np.float32(body.light) * mask * np.maximum(1.0 + texture * grain[window], 0.1)
