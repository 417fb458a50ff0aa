"""What is not biology: the microscope, the day, the plate, and what goes wrong in single fields."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hcs_ray.screen.synthetic.assays import Assay
from hcs_ray.screen.synthetic.settings import SyntheticConfig, source_of_chance

Image = NDArray[np.float32]
Pixels = NDArray[np.uint16]
ArtefactKind = Literal["out_of_focus", "saturation", "debris", "empty", "bubble"]
ARTEFACTS: Final[tuple[ArtefactKind, ...]] = get_args(ArtefactKind)
_WEEK_SPREAD: Final = {
    "gain": 0.25, "background": 0.17, "density": 0.15, "haze": 0.4, "vignette": 0.3, "blur": 0.12,
}  # fmt: skip
_PLATE_SHARE: Final = 0.28  # a plate's own deviation, as a share of a week's


@dataclass(frozen=True)
class Nuisance:
    """The nuisance of one well; the first four hold one number a channel, gain 1 being an average plate."""

    gain: tuple[float, ...]
    background: tuple[float, ...]  # counts
    haze: tuple[float, ...]  # share of the light that is scattered over tens of pixels
    vignette: tuple[float, ...]  # loss of light in the corners
    centre_y: float  # of the illumination, relative to the field's half height
    centre_x: float
    density: float  # cells relative to an average plate
    blur: float  # of the optics, relative

    def columns(self, channels: tuple[str, ...]) -> dict[str, float]:
        """One number a column, for the truth: ``Nuisance_gain_DAPI`` ..."""
        columns: dict[str, float] = {}
        for name, value in asdict(self).items():
            if isinstance(value, tuple):
                parts = zip(channels, value, strict=True)
                columns |= {f"Nuisance_{name}_{channel}": part for channel, part in parts}
            else:
                columns[f"Nuisance_{name}"] = value
        return columns


def nuisance_of(config: SyntheticConfig, week: int, plate: str, well: str) -> Nuisance:
    """The nuisance in force in a well: the week's, the plate's, a tilt across the plate, the well's own."""
    size, number = config.nuisance_strength, len(config.assay.stains)
    middle, reach = config.assay.columns
    plate_chance = source_of_chance(config.seed, "plate", plate)
    well_chance = source_of_chance(config.seed, "well", plate, well)
    tilt = plate_chance.normal(size=number) * 0.05 * (int(well[1:]) - middle) / reach

    def channelwise(name: str) -> NDArray[np.float64]:
        own = _PLATE_SHARE * plate_chance.normal(size=number)
        return np.asarray(size * _WEEK_SPREAD[name] * (_week_levels(config, name, number)[week - 1] + own))

    def single(name: str) -> float:
        own = _PLATE_SHARE * plate_chance.normal()
        return size * _WEEK_SPREAD[name] * float(_week_levels(config, name, 1)[week - 1, 0] + own)

    gain = channelwise("gain") + size * (tilt + 0.04 * well_chance.normal(size=number))
    background = np.array([stain.background for stain in config.assay.stains])
    centre_y, centre_x = size * 0.25 * plate_chance.normal(size=2)
    return Nuisance(
        gain=tuple(np.exp(gain).tolist()),
        background=tuple((background * np.exp(channelwise("background"))).tolist()),
        haze=tuple((0.10 * np.exp(channelwise("haze"))).tolist()),
        vignette=tuple((0.22 * size * np.exp(channelwise("vignette"))).tolist()),
        centre_y=float(centre_y),
        centre_x=float(centre_x),
        density=float(np.exp(single("density") + size * 0.08 * well_chance.normal())),
        blur=float(np.exp(single("blur"))),
    )


def _week_levels(config: SyntheticConfig, name: str, columns: int) -> NDArray[np.float64]:
    """Standardised levels (weeks, columns): each column a permutation of evenly spaced ones.

    A Latin hypercube rather than free draws, so that no seed gives weeks that happen to look alike.
    """
    if config.weeks == 1:
        return np.zeros((1, columns))
    even = np.linspace(-1.0, 1.0, config.weeks)
    chance = source_of_chance(config.seed, "week", name)
    return np.stack([chance.permutation(even / even.std()) for _ in range(columns)], axis=1)


@dataclass(frozen=True)
class Artefact:
    """What is wrong with a field and how badly: severity in (0, 1], from barely visible to gross."""

    kind: ArtefactKind
    severity: float


def artefact_of(config: SyntheticConfig, key: str) -> Artefact | None:
    """The artefact planted in a field, if any."""
    chance = source_of_chance(config.seed, "artefact", key)
    if chance.random() >= config.artefact_rate:
        return None
    kind = ARTEFACTS[int(chance.integers(len(ARTEFACTS)))]
    return Artefact(kind, float(chance.uniform(*config.artefact_severity)))


def spoil(
    light: list[Image], artefact: Artefact, assay: Assay, chance: np.random.Generator, diameter: float
) -> list[Image]:
    """The channels' light (height, width), in counts over background, with an artefact in it.

    ``diameter`` is a cell's in pixels. ``empty`` changes nothing here: the cells are left out before drawing.
    """
    if artefact.kind == "out_of_focus":
        return _defocus(light, artefact.severity * 0.13 * diameter)
    if artefact.kind == "saturation":
        channel = int(chance.integers(len(light)))
        gain = np.float32(1.0 + 14.0 * artefact.severity**1.5)
        return [part * gain if number == channel else part for number, part in enumerate(light)]
    if artefact.kind == "debris":
        return _debris(light, artefact.severity, assay, chance, diameter)
    if artefact.kind == "bubble":
        return _bubble(light, artefact.severity, chance)
    return light


def _defocus(light: list[Image], sigma: float) -> list[Image]:
    from scipy.ndimage import gaussian_filter

    return [gaussian_filter(part, sigma, mode="reflect") for part in light]


def _debris(
    light: list[Image], severity: float, assay: Assay, chance: np.random.Generator, diameter: float
) -> list[Image]:
    """Bright out-of-focus lumps and fibres of dust, in all channels at the same places."""
    height, width = light[0].shape
    y, x = np.ogrid[:height, :width]
    dirt = np.zeros((height, width), np.float32)
    for _ in range(6):
        centre_y, centre_x, angle = chance.random(3) * (height, width, np.pi)
        long, short = diameter * chance.uniform((0.3, 0.08), (1.0, 0.25)) * (0.5 + 0.5 * severity)
        u = (x - centre_x) * np.cos(angle) + (y - centre_y) * np.sin(angle)
        v = (y - centre_y) * np.cos(angle) - (x - centre_x) * np.sin(angle)
        dirt += np.exp(-np.minimum((u / long) ** 2 + (v / short) ** 2, 50.0)).astype(np.float32)
    dust = [stain.dust for stain in assay.stains]
    peaks = chance.uniform(0.4, 1.0, len(dust)) * dust * severity
    return [part + np.float32(peak) * dirt for part, peak in zip(light, peaks, strict=True)]


def _bubble(light: list[Image], severity: float, chance: np.random.Generator) -> list[Image]:
    """A round patch that dims what is below it, with a bright rim."""
    height, width = light[0].shape
    y, x = np.ogrid[:height, :width]
    centre_y, centre_x = chance.uniform(0.25, 0.75, 2) * (height, width)
    radius = min(height, width) * (0.12 + 0.38 * severity)
    distance = (np.hypot(y - centre_y, x - centre_x) / radius).astype(np.float32)
    inside = 1.0 / (1.0 + np.exp(np.clip((distance - 1.0) * 25.0, -40.0, 40.0)))
    rim = np.exp(-np.minimum(((distance - 1.0) / 0.05) ** 2, 50.0))
    dim = (1.0 - (0.15 + 0.75 * severity) * inside).astype(np.float32)
    return [part * dim + (np.float32(3000.0 * severity) * rim).astype(np.float32) for part in light]


def expose(light: list[Image], nuisance: Nuisance, assay: Assay, chance: np.random.Generator) -> list[Pixels]:
    """What the camera records: illumination, background, shot and read noise, in the camera's steps."""
    height, width = light[0].shape
    y = np.linspace(-1.0, 1.0, height, dtype=np.float32)[:, None] - np.float32(nuisance.centre_y)
    x = np.linspace(-1.0, 1.0, width, dtype=np.float32)[None, :] - np.float32(nuisance.centre_x)
    square = (y * y + x * x) * np.float32(0.5)
    images = []
    for channel, part in enumerate(light):
        shade = np.exp(-np.float32(nuisance.vignette[channel]) * square)
        counts = part * (shade * np.float32(nuisance.gain[channel]))
        counts += np.float32(nuisance.background[channel]) * (np.float32(0.55) + np.float32(0.45) * shade)
        counts += chance.standard_normal(counts.shape, dtype=np.float32) * np.sqrt(counts * 6.0 + 900.0)
        steps = np.clip(counts / float(assay.step) + 0.5, 0, 0xFFFF // assay.step)
        images.append(steps.astype(np.uint16) * np.uint16(assay.step))
    return images
