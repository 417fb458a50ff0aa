"""`hcs-ray score TABLE`: NSC and NSCB of anybody's profiles, with every rule that was followed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, get_args

import numpy as np
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.contracts import InputError
from hcs_ray.profiles.aggregate import BATCHES, Float64, Floats, How, exclude_controls, to_wells
from hcs_ray.profiles.chance import Bools
from hcs_ray.profiles.foreign import ForeignTable, Missing, read_profiles, without_missing
from hcs_ray.profiles.neighbours import Metric
from hcs_ray.profiles.normalize import METHODS, Method, normalize
from hcs_ray.profiles.score import Evaluation, Settings, evaluate, evaluate_wells
from hcs_ray.profiles.tracks import Provenance
from hcs_ray.profiles.wells_of import Described, Description, describe

_FORMAT: Final = 1
_NO_BATCH: Final = "(not told)"
_OF_A_WELL: Final = (c.COMPOUND, c.TREATMENT, c.PERT_TYPE, c.BATCH, c.MOA)
NO_NSCB: Final = (
    "impossible: nothing tells the batch (week) of a row, so neighbours of the same batch cannot be left "
    "out; name its column in --batch"
)


@dataclass(frozen=True)
class Request:
    """What `hcs-ray score` is asked.

    Attributes:
        table: Path of the profiles.
        description: Which columns and tables say what its rows are of.
        features: Prefixes of the features' names; none: every numeric column that is no metadata.
        method: Normalisation, on the negative controls.
        how: Wells become treatments so.
        field_how: Fields become wells so, where a well has several rows.
        missing: What becomes of values that are missing or infinite.
    """

    table: str
    description: Description = field(default_factory=Description)
    features: tuple[str, ...] = ()
    method: Method = "none"
    how: How = "mean"
    field_how: How = "mean"
    missing: Missing = "refuse"
    settings: Settings = field(default_factory=Settings)


@dataclass(frozen=True)
class Answer:
    """``told`` in plain JSON types, and a row a query and guard, with its neighbour."""

    told: dict[str, Any]
    queries: pd.DataFrame

    def write_queries(self, path: str) -> None:
        """As CSV; batches are joined by a blank."""
        plain = self.queries.map(lambda cell: " ".join(cell) if isinstance(cell, tuple) else cell)
        try:
            plain.to_csv(path, index=False)
        except OSError as error:
            raise InputError(f"--neighbours {path}: cannot be written: {error.strerror}") from None


def score_table(request: Request) -> Answer:
    """Read, describe, normalise, aggregate and score a table.

    Raises:
        InputError: as `read_profiles`, `describe`, `normalize` and `find_neighbours`; an option that is none
            of its values.
    """
    _check(request)
    whole = read_profiles(request.table, request.description.columns, request.features)
    described = describe(whole, request.description)
    has_batch = described.has(c.BATCH) or described.has(BATCHES)
    meta = described.meta if has_batch else described.meta.assign(**{c.BATCH: _NO_BATCH})
    _require_batches(whole, meta)
    table, there, without = without_missing(whole, request.missing)
    dropped = _dropped(meta, there, without)
    meta = meta[there].reset_index(drop=True)
    rows = len(meta)
    meta, values, from_fields = _wells(request, meta, table.values)
    _require_controls(request, meta)
    normalized, kept, stated = normalize(meta, values, request.method)
    found = _evaluate(meta, normalized, request)
    nscb = found.nscb.figures() if has_batch else None
    told = {
        "format": _FORMAT,
        "table": request.table,
        "track": _track(),
        "nsc": found.nsc.figures(),
        "nscb": nscb,
        "nscb_impossible": None if has_batch else NO_NSCB,
        **(found.gauge.to_dict() if has_batch else dict.fromkeys(found.gauge.to_dict())),
        "counts": {"rows": rows, **_counts(meta, found, has_batch)},
        "features": _features(table, kept, dropped),
        "rules": _rules(request, described, found, from_fields, dropped, stated),
    }
    guards = [found.nsc, found.nscb] if has_batch else [found.nsc]
    queries = pd.concat([score.queries.assign(guard=score.guard) for score in guards], ignore_index=True)
    return Answer(told, queries.drop(columns="leaked"))


def _track() -> dict[str, Any]:
    """Of profiles from elsewhere: what has leaked cannot be said, so nothing is said of it."""
    told = Provenance("not known").to_dict()
    return {"track": told["track"], "title": told["title"], "leaked_compounds": None}


def _check(request: Request) -> None:
    for option, value, values in (
        ("--normalize", request.method, METHODS),
        ("--aggregate", request.how, get_args(How)),
        ("--field-aggregate", request.field_how, get_args(How)),
        ("--distance", request.settings.metric, get_args(Metric)),
        ("--missing", request.missing, get_args(Missing)),
    ):
        if value not in values:
            raise InputError(f"{option} {value}: it is one of {', '.join(values)}")


def _require_batches(table: ForeignTable, meta: pd.DataFrame) -> None:
    column = BATCHES if BATCHES in meta else c.BATCH
    if (empty := meta[column].isna()).any():
        row = table.where[int(empty.to_numpy().argmax())]
        raise InputError(f"{table.name} {row}: has no batch ({column}); give every row one, or none")


def _dropped(meta: pd.DataFrame, there: Bools, features: list[str]) -> dict[str, Any]:
    """What `--missing` leaves out; ``treatments``: labelled ones without a row, so in no denominator."""
    asked = meta[(meta[c.PERT_TYPE] == c.TREATED) & meta[c.MOA].notna()]
    lost = set(asked[c.TREATMENT]) - set(asked.loc[there[asked.index], c.TREATMENT])
    return {"rows": int((~there).sum()), "features": features, "treatments": sorted(lost)}


def _require_controls(request: Request, meta: pd.DataFrame) -> None:
    """What every normalisation but none rests on."""
    if request.method == "none":
        return
    if c.PLATE not in meta:
        raise InputError(
            f"{request.table}: --normalize {request.method} is made plate by plate, and nothing tells the "
            "plate of a row; name its column in --plate"
        )
    if not (meta[c.PERT_TYPE] == c.NEGATIVE_CONTROL).any():
        raise InputError(
            f"{request.table}: --normalize {request.method} rests on negative controls, and no row is one; "
            "name their compound in --negative-control, or the column of roles in --pert-type"
        )


def _wells(request: Request, meta: pd.DataFrame, values: Floats) -> tuple[pd.DataFrame, Float64, bool]:
    """Rows of one well (fields) as one row, and whether there were any."""
    places = [c.PLATE, c.WELL]
    if not set(places) <= set(meta.columns) or not meta.duplicated(places).any():
        return meta, np.asarray(values, dtype=np.float64), False
    wells, profiles = to_wells(meta, values, request.field_how)
    told = [name for name in _OF_A_WELL if name in meta]
    if lost := next((name for name in told if name not in wells), None):
        raise InputError(
            f"{request.table}: rows of one plate and well differ in {lost}; are --plate and --well right?"
        )
    return wells, profiles, True


def _evaluate(meta: pd.DataFrame, profiles: Floats, request: Request) -> Evaluation:
    if BATCHES not in meta:
        return evaluate_wells(meta, profiles, request.how, request.settings)
    treatments, values = exclude_controls(meta, profiles)
    if treatments[c.TREATMENT].duplicated().any():
        raise InputError(
            f"{request.table}: {BATCHES} is of treatments, and some have several rows; name --batch"
        )
    return evaluate(treatments, values, request.settings, rules={"treatment_from_wells": "a row a treatment"})


def _counts(meta: pd.DataFrame, found: Evaluation, has_batch: bool) -> dict[str, int]:
    roles = meta[c.PERT_TYPE].value_counts()
    treated = meta[meta[c.PERT_TYPE] == c.TREATED]
    unlabelled = treated.loc[treated[c.MOA].isna(), c.TREATMENT].nunique()
    queries = found.nsc.queries
    counts = {
        "profiles": len(meta),
        "negative_controls": int(roles.get(c.NEGATIVE_CONTROL, 0)),
        "positive_controls": int(roles.get(c.POSITIVE_CONTROL, 0)),
        "treatments": int(treated[c.TREATMENT].nunique()),
        "labelled_treatments": len(queries),
        "treatments_without_moa": int(unlabelled),
        "labelled_compounds": int(queries[c.COMPOUND].nunique()),
        "mechanisms": int(queries[c.MOA].nunique()),
    }
    counts |= {"plates": int(meta[c.PLATE].nunique())} if c.PLATE in meta else {}
    return counts | ({"batches": len(set(queries[BATCHES].explode()))} if has_batch else {})


def _features(table: ForeignTable, kept: Any, dropped: Mapping[str, Any]) -> dict[str, Any]:
    without_spread = []
    if len(kept) == len(table.features):
        without_spread = [name for name, there in zip(table.features, kept, strict=True) if not there]
    return {
        "read": len(table.features) + len(dropped["features"]),
        "used": int(kept.sum()),
        "groups": _groups(table.features),
        "dropped_missing": dropped["features"],
        "dropped_without_spread": without_spread,
        "numeric_but_ignored": list(table.ignored),
        "text_but_no_metadata": list(table.text),
    }


def _groups(features: Sequence[str]) -> dict[str, int]:
    """How many features there are of each beginning (``Cells``), so that one that is none catches the eye."""
    beginnings = [re.sub(r"[_\W\d].*", "", name) or name for name in features]
    return dict(sorted(Counter(beginnings).items()))


def _rules(
    request: Request,
    described: Described,
    found: Evaluation,
    from_fields: bool,
    dropped: Mapping[str, Any],
    stated: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that papers leave unsaid."""
    return {
        **found.rules,
        "distance": request.settings.metric,
        "normalization": {"method": request.method, **stated},
        "well_from_fields": _from_fields(request, described, from_fields),
        "missing_values": {
            "policy": request.missing,
            "rows_dropped": dropped["rows"],
            "treatments_lost": dropped["treatments"],
        },
        "columns": dict(sorted(described.sources.items())),
        "denominator": "every treatment with a MoA, but those that no neighbour could match (dropped)",
        "candidates": "all treatments with a MoA; dropped queries stay candidates",
        "interval": f"95 %, bootstrap over compounds, {request.settings.resamples} draws; where all or none "
        "are right, the exact one of as many compounds",
        "null": "labels permuted among compounds",
    }


def _from_fields(request: Request, described: Described, from_fields: bool) -> str:
    if from_fields:
        return request.field_how
    return "a row a well" if described.has(c.WELL) else "rows as they stand: nothing tells their well"
