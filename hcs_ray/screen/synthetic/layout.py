"""Which compound lies where: weeks, plates, wells, doses, labels and their errors, nested as in BBBC021."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date, timedelta
from decimal import Decimal
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from hcs_ray.contracts import InputError
from hcs_ray.screen.synthetic.assays import LayoutName
from hcs_ray.screen.synthetic.phenotypes import (
    COMPOUND_NAMES,
    MOA_EFFECTS,
    NAMES,
    NOVEL_EFFECTS,
    POSITIVE_CONTROL_COMPOUND,
    TOXIC_EFFECT,
    effect_vector,
    spreads,
)
from hcs_ray.screen.synthetic.settings import SyntheticConfig, source_of_chance

CONTROL_CONCENTRATION: Final = Decimal("0.3")
DOSES: Final = tuple(Decimal(digit).scaleb(power) for power in range(-4, 3) for digit in (1, 3))
HILL_SLOPE: Final = 3.0

Kind = Literal["dmso", "labelled", "novel", "toxic", "inert"]


@dataclass(frozen=True)
class Compound:
    """A compound: its effect at a saturating dose (n_shapes,), the first of ``DOSES`` that acts, its week."""

    name: str
    kind: Kind
    moa: str | None
    week: int
    effect: NDArray[np.float64]
    penetrance: float
    first_active: int
    doses: tuple[Decimal, ...]


@dataclass(frozen=True)
class Treatment:
    """A compound at a concentration in micromolar; ``strength`` is the share of the full effect."""

    compound: Compound
    concentration_um: Decimal
    strength: float
    acts: bool


@dataclass(frozen=True)
class Well:
    """A well: what the tables say is in it, and what really is."""

    name: str
    said: Treatment
    true: Treatment


@dataclass(frozen=True)
class Plate:
    """A plate of a week (both counted from 1), with its wells in order of their names.

    ``batch`` is what the screen calls the week; the replicates of one ``layout`` (from 0) hold the same.
    """

    name: str
    batch: str
    week: int
    number: int
    layout: int
    replicate: int
    wells: tuple[Well, ...]


@dataclass(frozen=True)
class Screen:
    """The whole plan of a screen: everything but the cells."""

    config: SyntheticConfig
    compounds: tuple[Compound, ...]
    plates: tuple[Plate, ...]

    @property
    def fields(self) -> int:
        """The number of fields."""
        return sum(len(plate.wells) for plate in self.plates) * self.config.sites


def plan(config: SyntheticConfig) -> Screen:
    """The screen that these settings describe.

    Raises InputError where a week's treatments do not fit on its plates.
    """
    compounds = tuple(_compounds(config))
    plates = [plate for week in range(1, config.weeks + 1) for plate in _week_plates(config, week, compounds)]
    return Screen(config, compounds, tuple(_mislabel(config, plates)))


def treatment(compound: Compound, concentration_um: Decimal) -> Treatment:
    """A dose of a compound: a Hill curve whose half-maximal dose lies just below the first that acts."""
    if compound.kind in ("dmso", "inert"):
        return Treatment(compound, concentration_um, 0.0, False)
    first = DOSES[compound.first_active]
    ratio = float(concentration_um / first) * 1.4
    strength = ratio**HILL_SLOPE / (1.0 + ratio**HILL_SLOPE)
    return Treatment(compound, concentration_um, strength, concentration_um >= first)


def dmso() -> Treatment:
    """The negative control."""
    none = Compound("DMSO", "dmso", "DMSO", 0, np.zeros(len(NAMES)), 0.0, 0, (Decimal(0),))
    return treatment(none, Decimal(0))


def _compounds(config: SyntheticConfig) -> Iterator[Compound]:
    """Labelled compounds first, each MoA's in different weeks; the rest fill the emptier weeks."""
    load = np.zeros(config.weeks)
    layouts = np.array([-(-plates // config.replicates) for plates in config.plate_counts])
    for number, moa in enumerate(config.moas):
        taken: set[int] = set()
        for order in range(config.compound_counts[number]):
            week = _emptiest(load / layouts, number, set() if moa in config.one_week_moas else taken)
            week = next(iter(taken)) if taken and moa in config.one_week_moas else week
            taken.add(week)
            load[week] += config.doses
            name = _compound_name(moa, order)
            yield _compound(config, name, "labelled", moa, week + 1, MOA_EFFECTS[moa])
    for order, (kind, effect) in enumerate(_unlabelled(config)):
        week = _emptiest(load / layouts, 0, set())
        load[week] += config.unlabelled_doses
        yield _compound(config, f"HCS-{order + 1:03d}", kind, None, week + 1, effect)


def _emptiest(load: NDArray[np.float64], first: int, avoid: set[int]) -> int:
    """The least loaded week, those in ``avoid`` only where no other is left; ties go round from ``first``."""
    weeks = len(load)
    free = [week for week in range(weeks) if week not in avoid] or list(range(weeks))
    return min(free, key=lambda week: (load[week], (week - first) % weeks))


def _compound_name(moa: str, order: int) -> str:
    names = COMPOUND_NAMES[moa]
    return names[order] if order < len(names) else f"{moa} {order + 1:02d}"


def _unlabelled(config: SyntheticConfig) -> Iterator[tuple[Kind, Mapping[str, float]]]:
    novel = list(NOVEL_EFFECTS.values())
    for number in range(config.novel_compounds):
        yield "novel", novel[number % len(novel)]
    for _ in range(config.toxic_compounds):
        yield "toxic", TOXIC_EFFECT
    for _ in range(config.inert_compounds):
        yield "inert", {}


def _compound(
    config: SyntheticConfig, name: str, kind: Kind, moa: str | None, week: int, effect: Mapping[str, float]
) -> Compound:
    """A compound with its own variation of the effect, potency and penetrance."""
    chance = source_of_chance(config.seed, "compound", name)
    size = config.compound_variation
    spread = 0.08 * chance.normal() + 0.18 * chance.normal(size=len(NAMES))
    vector = effect_vector(effect) * np.exp(size * spread)
    if kind != "inert":
        vector += size * 0.35 * spreads() * chance.normal(size=len(NAMES))
    count, active = _dose_counts(config, kind)
    low, high = max(count - active, 4), min(len(DOSES) - active, 10)
    first = int(chance.integers(low, high + 1))
    if name == POSITIVE_CONTROL_COMPOUND:
        first = DOSES.index(CONTROL_CONCENTRATION)
    doses = DOSES[first + active - count : first + active]
    return Compound(name, kind, moa, week, vector, float(chance.uniform(0.7, 0.95)), first, doses)


def _dose_counts(config: SyntheticConfig, kind: Kind) -> tuple[int, int]:
    """The number of doses of a compound and how many of them act."""
    if kind == "labelled":
        return config.doses, config.active_doses
    return config.unlabelled_doses, min(config.unlabelled_doses, config.active_doses)


def _week_plates(config: SyntheticConfig, week: int, compounds: tuple[Compound, ...]) -> Iterator[Plate]:
    """The plates of a week: layouts with their own treatments, each on its replicate plates."""
    plates = config.plate_counts[week - 1]
    layouts = -(-plates // config.replicates)
    treatments: list[list[Treatment]] = [[] for _ in range(layouts)]
    for compound in (compound for compound in compounds if compound.week == week):
        emptiest = min(treatments, key=len)
        emptiest.extend(treatment(compound, dose) for dose in compound.doses)
    taxol = next(compound for compound in compounds if compound.name == POSITIVE_CONTROL_COMPOUND)
    control = treatment(taxol, CONTROL_CONCENTRATION)
    wells = [_layout(config, week, layout, items, control) for layout, items in enumerate(treatments)]
    for number in range(plates):
        layout, replicate = divmod(number, config.replicates)
        batch, name = _NAMING[config.layout](week, layout, replicate)
        yield Plate(name, batch, week, number + 1, layout, replicate + 1, wells[layout])


def _by_week(week: int, layout: int, replicate: int) -> tuple[str, str]:
    """Batch and plate as BBBC021 calls them."""
    return f"Week{week}", f"Week{week}_{20_121 + 2000 * week + 240 * layout + 20 * replicate}"


def _by_barcode(week: int, layout: int, replicate: int) -> tuple[str, str]:
    """A batch named for its day, and a barcode that says nothing."""
    return f"{day_of(week):%Y_%m_%d}_Batch{week}", f"BR{116_835 + 200 * week + 12 * layout + replicate:08d}"


def day_of(week: int) -> date:
    """The day on which a week's plates were photographed."""
    return date(2021, 4, 19) + timedelta(weeks=week)


_NAMING: Final[Mapping[LayoutName, Callable[[int, int, int], tuple[str, str]]]] = {
    "bbbc021": _by_week,
    "cellpainting": _by_barcode,
}


def _layout(
    config: SyntheticConfig, week: int, layout: int, treatments: list[Treatment], control: Treatment
) -> tuple[Well, ...]:
    """Controls at their fixed wells, treatments at wells drawn once for the layout."""
    assay = config.assay
    content = {well: dmso() for well in assay.dmso_wells[: config.dmso_wells]}
    content |= dict.fromkeys(assay.taxol_wells[: config.taxol_wells], control)
    free = [well for well in assay.wells if well not in assay.dmso_wells + assay.taxol_wells]
    if len(treatments) > len(free):
        raise InputError(
            f"synthetic screen: week {week} needs {len(treatments)} treated wells on a plate and a plate has "
            f"{len(free)}; draw fewer compounds or doses, or more weeks or plates_per_week"
        )
    order = source_of_chance(config.seed, "layout", str(week), str(layout)).permutation(len(free))
    content |= {free[place]: item for place, item in zip(order, treatments, strict=False)}
    return tuple(Well(name, content[name], content[name]) for name in sorted(content))


def _mislabel(config: SyntheticConfig, plates: list[Plate]) -> list[Plate]:
    """Some wells hold an acting treatment of another MoA than the tables say."""
    places = [
        (number, place)
        for number, plate in enumerate(plates)
        for place, well in enumerate(plate.wells)
        if _labelled(well.said) and well.name not in config.assay.taxol_wells and _others(plate, well)
    ]
    if not places or config.mislabelled_rate == 0.0:
        return plates
    wanted = max(1, round(config.mislabelled_rate * len(places)))
    chance = source_of_chance(config.seed, "mislabelled")
    for choice in sorted(chance.choice(len(places), wanted, replace=False).tolist()):
        number, place = places[choice]
        wells = list(plates[number].wells)
        others = _others(plates[number], wells[place])
        wells[place] = replace(wells[place], true=others[int(chance.integers(len(others)))])
        plates[number] = replace(plates[number], wells=tuple(wells))
    return plates


def _others(plate: Plate, well: Well) -> list[Treatment]:
    """The plate's acting treatments of other MoAs than the well's."""
    said = (other.said for other in plate.wells)
    return [item for item in said if _labelled(item) and item.compound.moa != well.said.compound.moa]


def _labelled(item: Treatment) -> bool:
    return item.compound.kind == "labelled" and item.acts


def has_moa_label(item: Treatment) -> bool:
    """Whether the screen's table of mechanisms has a row for this treatment: only acting doses have one."""
    return item.compound.kind == "dmso" or _labelled(item)
