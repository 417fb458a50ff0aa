"""What a trial tries: from a sweep's ``space`` to what Ray Tune draws, and from a draw to keys of the study.

Ray Tune sees numbers only: a listed value is drawn as its position in the list, so that lists, names and
none are values like any other, and all grid keys together are one grid of combinations.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hcs_ray.config import LEAVE_OUT, SearchSpace, StudyConfig, SweepConfig, with_values
from hcs_ray.config.sweep import LISTED
from hcs_ray.contracts import InputError

GRID: Final = "grid"  # Tune's name of the crossed keys: a tuple of positions
Values = dict[str, Any]


@dataclass(frozen=True)
class Space:
    """A sweep's space over one study, with its compounds known."""

    sweep: SweepConfig
    config: StudyConfig  # of the study, with what the sweep fixes

    @classmethod
    def of(cls, sweep: SweepConfig, config: StudyConfig, compounds: Sequence[str], source: str) -> Space:
        """The space, checked.

        Args:
            compounds: those that could be left out, each once.
            source: the sweep's file, for messages.

        Raises:
            InputError: a value that the study would not take, or a compound that it does not have.
        """
        sweep = _with_compounds(sweep, compounds, source)
        fold = {LEAVE_OUT: sweep.compounds.ends[0]} if sweep.compounds else {}
        made = cls(sweep, with_values(config, {**sweep.fixed, **_resources(sweep), **fold}, source))
        made._check(source)
        return made

    @property
    def crossed(self) -> list[str]:
        """The keys of which every combination is tried."""
        kinds = LISTED if self.sweep.searcher.kind == "grid" else ("grid", "compounds")
        return [name for name, space in self.sweep.space.items() if space.kind in kinds]

    @property
    def drawn(self) -> dict[str, SearchSpace]:
        """The keys that a searcher draws."""
        crossed = self.crossed
        return {name: space for name, space in self.sweep.space.items() if name not in crossed}

    def combinations(self) -> list[tuple[int, ...]]:
        """Positions of the crossed keys' values; each combination of keys that are active once."""
        if not self.crossed:
            return []
        spaces = [self.sweep.space[name] for name in self.crossed]
        every = itertools.product(*(range(len(space.ends)) for space in spaces))
        once: dict[str, tuple[int, ...]] = {}
        for positions in every:
            once.setdefault(repr(self._crossed_values(positions)), positions)
        return list(once.values())

    @property
    def trials(self) -> int:
        """How many trials there will be."""
        return self.sweep.samples * max(len(self.combinations()), 1)

    @property
    def longest(self) -> int:
        """Epochs of the longest trial."""
        if self.sweep.objective == "map":
            return 1
        swept = self.sweep.space.get("train.epochs")
        always = swept is not None and not swept.when
        ends = [*map(int, swept.ends)] if swept else []
        return max(ends if always else [*ends, self.config.train.epochs])

    def values(self, draw: Mapping[str, Any]) -> Values:
        """The study's keys that one draw of Tune sets: those that are active, in the order of the file."""
        plain = dict(zip(self.crossed, draw.get(GRID, ()), strict=True))
        return self._active({**plain, **{name: draw[name] for name in self.drawn}})

    def study_config(self, values: Mapping[str, Any]) -> StudyConfig:
        """The configuration of a trial with these values."""
        return with_values(self.config, dict(values), "sweep")

    def _crossed_values(self, positions: tuple[int, ...]) -> Values:
        """As `values`, where a drawn key stands for any of its values."""
        return self._active(dict(zip(self.crossed, positions, strict=True)))

    def _active(self, draw: Mapping[str, Any]) -> Values:
        values: Values = {}
        for name, space in self.sweep.space.items():
            conditions = space.when.items()
            if name in draw and all(self._holds(other, wanted, draw, values) for other, wanted in conditions):
                values[name] = _decoded(space, draw[name])
        return values

    def _holds(self, other: str, wanted: Any, draw: Mapping[str, Any], values: Values) -> bool:
        if other in self.sweep.space and other not in values:
            return other not in draw  # it may come to hold; one that was drawn is inactive
        found = values[other] if other in values else _lookup(self.config, other)
        return found in wanted if isinstance(wanted, list | tuple) else bool(found == wanted)

    def _check(self, source: str) -> None:
        """Every listed value, and both ends of every range, must make a valid study, the others at an end."""
        spaces = {name: space for name, space in self.sweep.space.items() if name != LEAVE_OUT}
        for end in (0, -1):
            base = {name: space.ends[end] for name, space in spaces.items() if not space.when}
            for name, space in spaces.items():
                for value in (*space.ends, *_inside(space)):
                    with_values(self.config, {**base, name: value}, source)
        for name, space in self.sweep.space.items():
            self._check_conditions(name, space, source)

    def _check_conditions(self, name: str, space: SearchSpace, source: str) -> None:
        """A condition names values that its key may have; else it would never hold."""
        for other, wanted in space.when.items():
            for value in wanted if isinstance(wanted, list | tuple) else (wanted,):
                swept = self.sweep.space.get(other)
                if swept is None:
                    with_values(self.config, {other: value}, f"{source}: space.{name}.when")
                elif swept.kind in LISTED and value not in swept.ends:
                    there = ", ".join(map(str, swept.ends))
                    raise InputError(
                        f"{source}: space.{name}.when: {other} is never {value}; it is one of: {there}"
                    )


def _inside(space: SearchSpace) -> tuple[float, ...]:
    """A value of a continuous range that is no whole number, which an integer key would not take."""
    if space.kind not in ("uniform", "loguniform"):
        return ()
    low, high = space.ends
    return (low + (high - low) * 0.382,)


def _decoded(space: SearchSpace, drawn: Any) -> Any:
    if space.kind in LISTED:
        return space.ends[int(drawn)]
    low, high = space.ends  # a population's steps may lead out of a range
    within = min(max(drawn, low), high)
    return int(within) if space.kind == "randint" else float(within)


def _with_compounds(sweep: SweepConfig, compounds: Sequence[str], source: str) -> SweepConfig:
    space = sweep.compounds
    if space is None:
        return sweep
    chosen = tuple(compounds) if space.values == "all" else tuple(map(str, space.values or ()))
    unknown = [name for name in chosen if name not in compounds]
    if unknown or not chosen:
        there = ", ".join(compounds) or "none"
        missing = ", ".join(unknown) or "at all"
        raise InputError(f"{source}: {LEAVE_OUT}: no compound {missing} with a MoA; there are: {there}")
    spaces = {**sweep.space, LEAVE_OUT: space.model_copy(update={"values": chosen})}
    return sweep.model_copy(update={"space": spaces})


def _resources(sweep: SweepConfig) -> Values:
    given = sweep.resources.model_dump(mode="json")
    return {f"train.{key}": value for key, value in given.items() if value is not None}


def _lookup(config: StudyConfig, name: str) -> Any:
    found: Any = config.model_dump(mode="json")
    for part in name.split("."):
        found = found[part]
    return found
