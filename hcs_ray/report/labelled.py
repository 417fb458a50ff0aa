"""The fields that labels have left out: how many, by which label, by whom, and from which stages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from hcs_ray.contracts import KEY, InputError
from hcs_ray.labels import ExcludedFields, excluded_file
from hcs_ray.labels.excluded import parse_excluded
from hcs_ray.report.standing import Standing
from hcs_ray.stage import COMMANDS, read_record
from hcs_ray.study import Study


@dataclass(frozen=True)
class LeftOut:
    """What some stages of a run have left out, all of them the same."""

    stages: tuple[str, ...]
    found: ExcludedFields

    @property
    def rules(self) -> tuple[str, ...]:
        """``labels.exclude``."""
        return self.found.rules

    @property
    def fields(self) -> int:
        """How many."""
        return len(self.found.reasons)

    @property
    def by_label(self) -> dict[str, int]:
        """Fields of each reason, as ``label bad``; one with two counts in both."""
        return dict(sorted(Counter(one for why in self.found.reasons.values() for one in why).items()))

    @property
    def by_user(self) -> dict[str, int]:
        """Fields by who decided last about them."""
        return dict(sorted(Counter(self.found.users.values()).items()))


def left_out(study: Study, standing: Standing, keys: Collection[str]) -> tuple[LeftOut, ...]:
    """Of the stages that the report shows, from what they keep beside their outputs; ``keys``: all fields."""
    groups: list[LeftOut] = []
    for stage in standing.stages:
        kept = _excluded(study, stage)
        if kept is None:
            continue
        found = kept.among(keys)
        name = COMMANDS.get(stage, stage)
        same = next((number for number, group in enumerate(groups) if group.found == found), None)
        if same is None:
            groups.append(LeftOut((name,), found))
        else:
            groups[same] = replace(groups[same], stages=(*groups[same].stages, name))
    return tuple(groups)


def left_out_table(groups: Sequence[LeftOut]) -> pd.DataFrame:
    """A row a stage and field."""
    return pd.DataFrame(
        [
            {"stage": stage, KEY: key, "labels": "; ".join(why), "user": group.found.users.get(key, "")}
            for group in groups
            for stage in group.stages
            for key, why in sorted(group.found.reasons.items())
        ],
        columns=["stage", KEY, "labels", "user"],
    )


def _excluded(study: Study, stage: str) -> ExcludedFields | None:
    place = study.place(stage)
    path = excluded_file(place)
    record = read_record(study.storage, place)
    if record is None or path not in record.outputs:
        return None
    found = parse_excluded(record.read(study.storage, path))
    if found is None:
        raise InputError(f"{study.storage.url}/{path}: not a list of fields left out by labels")
    return found
