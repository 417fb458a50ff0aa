"""`hcs-ray profile --compare`: the bake-off of normalisations, its files, and the table that it prints."""

from __future__ import annotations

import json
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from hcs_ray.contracts import COMPOUND, KEY, Progress, rows_of
from hcs_ray.profiles.aggregate import Float64
from hcs_ray.profiles.bake_off import (
    CANDIDATE,
    CHOSEN,
    METHOD,
    REPLICATE_MAP,
    SKIPPED,
    WEEK_EXCESS,
    bake_off,
)
from hcs_ray.profiles.compare_picture import picture
from hcs_ray.profiles.fold_stage import exclusions
from hcs_ray.profiles.stream import stream_wells
from hcs_ray.profiles.tracks import provenance
from hcs_ray.study import Study

TABLE: Final = "comparison.parquet"
DOCUMENT: Final = "comparison.json"
PICTURE: Final = "comparison.svg"


def compare(study: Study, progress: Progress, force: bool = False) -> dict[str, Any]:
    """Write ``profiles/NAME/comparison.parquet`` (a row a normalisation), ``.json`` and ``.svg``.

    Raises:
        InputError: as `bake_off`, or the embeddings are not complete.
    """
    study = study.with_labels_of("compare", force)
    claim = study.claim("compare")
    if force or not study.is_complete("compare", claim):
        with study.writing("compare", claim, force) as writer:
            wells, features = _wells(study)
            leaked = set(provenance(study).used) & set(wells[COMPOUND])
            found = bake_off(wells, features, study.config.profile, leaked, progress)
            writer.write_table(TABLE, found.table)
            writer.write(DOCUMENT, (json.dumps(found.to_dict(), indent=1, sort_keys=True) + "\n").encode())
            writer.write(PICTURE, picture(found.table))
    return headline(study)


def read_comparison(study: Study) -> tuple[pd.DataFrame, dict[str, Any]]:
    """``comparison.parquet`` and ``comparison.json`` of this run."""
    record, folder = study.require("compare"), study.place("compare").folder
    table = record.read_table(study.storage, f"{folder}/{TABLE}")
    return table, record.read_json(study.storage, f"{folder}/{DOCUMENT}")


def headline(study: Study) -> dict[str, Any]:
    """The normalisation that the rule chooses, and the one that is configured."""
    return {
        "chosen": read_comparison(study)[1]["chosen"],
        "configured": study.config.profile.normalization,
    }


def next_step(study: Study) -> str:
    """What to do with the choice."""
    chosen = headline(study)["chosen"]
    if chosen == study.config.profile.normalization:
        return f"The configuration has it: profile.normalization {chosen}."
    return (
        f"Next: hcs-ray profile {study.storage.url} --name {study.name} "
        f"--set profile.normalization={chosen} --force, or write it into study.yaml"
    )


def show_comparison(study: Study) -> None:
    """Print the table on standard error, with the rule and where the files lie."""
    from rich.console import Console
    from rich.table import Table

    table, document = read_comparison(study)
    scores = "nsc_held_out" if document["leaked_compounds"] else "nsc"
    shown = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    for head in ("", "mAP", "null", "week", "plate", "LISI", "same", "NSC", "NSCB"):
        shown.add_column(head, no_wrap=True, justify="right" if head else "left")
    for row in rows_of(table):
        if isinstance(row[SKIPPED], str):
            continue
        style = "bold" if row[CHOSEN] else "" if row[CANDIDATE] else "dim"
        shown.add_row(f"{'*' if row[CHOSEN] else ' '} {row[METHOD]}", *_cells(row, scores), style=style)
    console = Console(stderr=True, highlight=False)
    console.print(shown)
    for row in rows_of(table):
        if isinstance(row[SKIPPED], str):
            console.print(f"  {row[METHOD]}: {row[SKIPPED]}", style="dim", soft_wrap=True, markup=False)
    console.print(_legend(table, document), soft_wrap=True, markup=False)
    place = f"{study.storage.url}/{study.place('compare').folder}"
    console.print(f"Table: {place}/{TABLE}, its picture: {place}/{PICTURE}", soft_wrap=True, markup=False)


def _wells(study: Study) -> tuple[pd.DataFrame, Float64]:
    """The wells that ``hcs-ray profile`` makes profiles of."""
    config = study.config.profile
    if not config.drop_excluded:
        return stream_wells(study, config.well_aggregate)
    left_out = exclusions(study).reasons.keys()

    def keep(meta: pd.DataFrame) -> npt.NDArray[np.bool_]:
        return ~meta[KEY].isin(left_out).to_numpy(dtype=bool)

    return stream_wells(study, config.well_aggregate, config.minimum_fields, keep)


def _cells(row: dict[str, Any], scores: str) -> list[str]:
    gauges = [
        *(_number(row[name], ".3f") for name in (REPLICATE_MAP, "position_map_normalized")),
        *(_number(row[name], "+.2f") for name in (WEEK_EXCESS, "plate_excess")),
        _number(row["lisi_weeks"], ".2f"),
    ]
    if "nsc_total" not in row:
        return [*gauges, "", "", ""]
    share = _number(row["same_week_share"], ".0%")
    return [*gauges, share, _hits(row, scores), _hits(row, scores.replace("nsc", "nscb"))]


def _hits(row: dict[str, Any], name: str) -> str:
    found = f"{row[f'{name}_correct']:.0f}/{row[f'{name}_total']:.0f}"
    low, high = (100 * row[f"{name}_{end}"] for end in ("low", "high"))
    return found if low != low else f"{found} {low:.0f}-{high:.0f}%"


def _number(value: float, form: str) -> str:
    return "" if value != value else format(value, form)


def _legend(table: pd.DataFrame, document: dict[str, Any]) -> str:
    made = table[table[SKIPPED].isna()].iloc[0]
    whose = "compounds whose labels were not used" if document["leaked_compounds"] else "all compounds"
    mixed = f"{made['lisi_weeks_mixed']:.1f}"
    lines = [
        "* chosen by the rule; dim: controls tell more of their week than under none. "
        "mAP: do replicates find one another (0 random order, 1 perfect); null: of the position alone. "
        "week, plate: what a probe tells of control wells above chance. "
        f"LISI: weeks near a control, {mixed} where mixed.",
    ]
    if "nsc_total" in table:
        chance = f"{made['same_week_expected']:.0%}"
        lines.append(
            f"same: nearest neighbours of the same week, {chance} by chance. "
            f"NSC, NSCB: of {whose}, with 95 % intervals; the rule does not see them."
        )
    return "\n".join(lines)
