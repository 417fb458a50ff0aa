"""Outliers of drawn screens against what was planted in them, and the speed of the stage's parts.

    python benchmarks/outliers.py truth STUDY ...        finished demos (hcs-ray demo STUDY --seed N)
    python benchmarks/outliers.py speed --rows 1000000   embeddings drawn here, of 512 features

``truth`` reads ``raw/truth.parquet``, which no stage does, and prints the tables of docs/outliers.md: pooled
over the studies, each with its own network. ``speed`` writes and reads a study of that many fields in a
temporary folder, and prints time and the highest resident memory of each part.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.config import OutliersConfig
from hcs_ray.outliers import score_screen
from hcs_ray.outliers.levels import ARTEFACT, MISLABELLED, NOVEL, REASON
from hcs_ray.outliers.nearest import Candidates, reference_rows
from hcs_ray.outliers.older import map_distance
from hcs_ray.outliers.read import Screen, read_screen
from hcs_ray.outliers.space import Reduction
from hcs_ray.profiles.aggregate import Floats
from hcs_ray.study import open_study

BINS = ((0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 1.01))
KINDS = ("out_of_focus", "saturation", "empty", "debris", "bubble")
OLDER = "map_distance"
T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    truth = commands.add_parser("truth")
    truth.add_argument("studies", type=Path, nargs="+")
    truth.add_argument("--json", action="store_true", help="the headline figures only")
    speed = commands.add_parser("speed")
    speed.add_argument("--rows", type=int, default=100_000)
    speed.add_argument("--features", type=int, default=512)
    arguments = parser.parse_args()
    if arguments.command == "truth":
        print_truth(arguments.studies, arguments.json)
    else:
        print_speed(arguments.rows, arguments.features)


# --- Against the planted truth ------------------------------------------------------------------------


def print_truth(studies: list[Path], as_json: bool) -> None:
    judged = [judge(path) for path in studies]
    fields = pd.concat([fields for fields, _, _ in judged], ignore_index=True)
    wells = pd.concat([wells for _, wells, _ in judged], ignore_index=True)
    treatments = pd.concat([treatments for _, _, treatments in judged], ignore_index=True)
    if as_json:
        called = alarm_table(fields)["called artefacts"]
        figures = {
            "artefact_auroc": [_auroc(_planted(fields, "all", b), fields[ARTEFACT], fields) for b in BINS],
            "false_alarms": called["clean"],
            "recall": called["spoilt, severity 0.5 and more"],
            "mislabelled_auroc": well_table(wells)["AUROC"].iloc[0],
            "novel_average_precision": treatment_table(treatments)["average precision, pooled"].iloc[0],
        }
        print(json.dumps(figures, default=float))
        return
    print(f"{len(studies)} screens, {len(fields)} fields")
    print(artefact_table(fields).to_string())
    print(alarm_table(fields).to_string())
    print(well_table(wells).to_string(index=False))
    print(treatment_table(treatments).to_string(index=False))


def judge(path: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The stage's three tables of a study, each beside its truth."""
    study = open_study(str(path))
    config = study.config.outliers
    screen = read_screen(study, config, with_map=(path / "maps/main_stage.json").exists())
    return judged_tables(screen, pd.read_parquet(path / "raw/truth.parquet"), config, str(path))


def judged_tables(
    screen: Screen, truth: pd.DataFrame, config: OutliersConfig, name: str
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """See `judge`."""
    tables = score_screen(screen, config)
    known = truth.set_index(c.KEY).loc[tables["field"][c.KEY]].reset_index()
    field = tables["field"].assign(
        kind=known["Artefact_Kind"],
        severity=known["Artefact_Severity"],
        toxic=known["Toxic"],
        acts=known["Dose_Acts"],
        screen=name,
    )
    quality = screen.index.set_index(c.KEY).loc[field[c.KEY]].reset_index(drop=True)
    single = {str(column): quality[column] for column in quality if not str(column).startswith("QC_Flag")}
    field = pd.concat([field, pd.DataFrame(single)], axis=1)
    field[OLDER] = map_distance(field, screen.places)
    by_well = known.assign(well=field["well"]).drop_duplicates("well").set_index("well")
    well = tables["well"]
    well = well.assign(wrong=by_well["Mislabelled"].loc[well["well"]].to_numpy(), screen=name)
    far = field.groupby("well")[OLDER].mean()
    well = well.assign(**{OLDER: far.loc[well["well"]].to_numpy()})
    by_treatment = (
        known.assign(treatment=field[c.TREATMENT]).drop_duplicates("treatment").set_index("treatment")
    )
    treatment = tables["treatment"]
    names = treatment[c.TREATMENT]
    treatment = treatment.assign(new=by_treatment["Novel"].loc[names].to_numpy(), screen=name)
    far = field.groupby(c.TREATMENT)[OLDER].mean()
    return field, well, treatment.assign(**{OLDER: far.loc[names].to_numpy()})


def artefact_table(fields: pd.DataFrame) -> pd.DataFrame:
    """AUROC by kind and severity against all fields without an artefact; then the single numbers' best."""
    rows = {}
    for name in (*KINDS, "all"):
        rows[name] = [_area(fields, ARTEFACT, _planted(fields, name, bounds)) for bounds in BINS]
    columns = {column: _both_sides(fields, str(column)) for column in fields if str(column).startswith("QC_")}
    overall = _planted(fields, "all", (0.4, 1.01))
    best = max(columns, key=lambda column: _auroc(overall, columns[column], fields))
    scored = fields.assign(best=columns[best])
    rows[f"single best: {best}"] = [_area(scored, "best", _planted(fields, "all", b)) for b in BINS]
    rows["7 neighbours in the map"] = [_area(fields, OLDER, _planted(fields, "all", b)) for b in BINS]
    for name in ("unusual", "detector_knn", "detector_lof", "detector_ecod", "detector_iforest"):
        rows[name] = [_area(fields, name, _planted(fields, "all", b)) for b in BINS]
    return pd.DataFrame(rows, index=[f"{low:.1f}-{min(high, 1):.1f}" for low, high in BINS]).T


def alarm_table(fields: pd.DataFrame) -> pd.DataFrame:
    """Shares called artefacts: of clean fields by what they hold, of spoilt ones by severity."""
    called = (fields[REASON] == ARTEFACT).fillna(False).astype(bool)
    clean, control = fields["kind"].isna(), fields[c.PERT_TYPE] == c.NEGATIVE_CONTROL
    groups = {
        "clean": clean,
        "clean, controls": clean & control,
        "clean, acting": clean & fields["acts"],
        "clean, toxic": clean & fields["toxic"],
        "spoilt": ~clean,
        "spoilt, severity 0.4 and more": ~clean & (fields["severity"] >= 0.4),
        "spoilt, severity 0.5 and more": ~clean & (fields["severity"] >= 0.5),
        "spoilt, severity 0.6 and more": ~clean & (fields["severity"] >= 0.6),
    }
    rows = {name: (int(rows.sum()), round(float(called[rows].mean()), 3)) for name, rows in groups.items()}
    for name, part in fields[clean].groupby("screen"):
        rows[f"clean, {Path(str(name)).name}"] = (len(part), round(float(called[part.index].mean()), 3))
    return pd.DataFrame(rows, index=["fields", "called artefacts"]).T


def well_table(wells: pd.DataFrame) -> pd.DataFrame:
    """Mislabelled wells among those with a MoA that are no controls: their label's dose acts."""
    labelled = wells[wells[c.MOA].notna() & (wells[c.PERT_TYPE] == c.TREATED)]
    rows = []
    for name, part in {
        "all": labelled,
        "label learned": labelled[labelled["trained"]],
        "label not learned": labelled[~labelled["trained"]],
    }.items():
        called = part[REASON] == MISLABELLED
        rows.append(
            {
                "mislabelled wells": name,
                "wells": len(part),
                "planted": int(part["wrong"].sum()),
                "AUROC": _roc(part["wrong"], part[MISLABELLED]),
                "older score": _roc(part["wrong"], part[OLDER]),
                "called": int(called.sum()),
                "of them planted": int((called & part["wrong"]).sum()),
            }
        )
    return pd.DataFrame(rows)


def treatment_table(treatments: pd.DataFrame) -> pd.DataFrame:
    """Novel treatments among those without a MoA: average precision pooled, and the mean of the screens'."""
    from sklearn.metrics import average_precision_score

    judged = treatments[treatments[NOVEL].notna()]
    called = judged[REASON] == NOVEL
    row: dict[str, object] = {
        "treatments": len(judged),
        "novel": int(judged["new"].sum()),
        "called": int(called.sum()),
        "of them novel": int((called & judged["new"]).sum()),
    }
    for name, column in (("precision", NOVEL), ("older score", OLDER)):
        there = judged[judged[column].notna()]
        if len(there):
            each = [average_precision_score(part["new"], part[column]) for _, part in there.groupby("screen")]
            row[f"average {name}, pooled"] = round(average_precision_score(there["new"], there[column]), 3)
            row[f"average {name}, mean of screens"] = round(float(np.mean(each)), 3)
    return pd.DataFrame([row])


def _planted(fields: pd.DataFrame, kind: str, bounds: tuple[float, float]) -> pd.Series[bool]:
    inside = (fields["severity"] >= bounds[0]) & (fields["severity"] < bounds[1])
    return inside & (fields["kind"].notna() if kind == "all" else fields["kind"] == kind)


def _area(fields: pd.DataFrame, column: str, planted: pd.Series[bool]) -> str:
    return f"{_auroc(planted, fields[column], fields):.3f} ({int(planted.sum())})"


def _auroc(planted: pd.Series[bool], score: pd.Series[float], fields: pd.DataFrame) -> float:
    asked = (planted | fields["kind"].isna()) & score.notna()
    return _roc(planted[asked], score[asked])


def _roc(truth: pd.Series[bool], score: pd.Series[float]) -> float:
    from sklearn.metrics import roc_auc_score

    known = score.notna()
    if truth[known].nunique() < 2:
        return float("nan")
    return round(float(roc_auc_score(truth[known], score[known])), 3)


def _both_sides(fields: pd.DataFrame, column: str) -> pd.Series[float]:
    """A number as it is, or how far it is from its plate's median, whichever finds more: the rival's due."""
    plate = fields.groupby(["screen", c.PLATE])[column]
    away = fields[column] - plate.transform("median")
    away /= plate.transform("std").replace(0, np.nan)
    overall = _planted(fields, "all", (0.4, 1.01))
    return max((away, -away, away.abs()), key=lambda score: _auroc(overall, score, fields))


# --- Speed ----------------------------------------------------------------------------------------------


def print_speed(rows: int, features: int) -> None:
    config = OutliersConfig()
    fields = drawn_fields(rows)
    print(f"{rows} fields, {fields[c.PLATE].nunique()} plates, {features} features")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "embeddings.raw"
        _timed("drawn and written", lambda: _draw(path, fields, features))
        reduction = Reduction(config.components)
        _timed("components", lambda: reduction.fit(_plates(path, fields, features)))
        reduced = _timed(
            "reduced",
            lambda: np.concatenate([reduction.apply(block) for block in _plates(path, fields, features)]),
        )
        _recall(reduced, fields, config)
        screen = Screen(fields, reduced, drawn_quality(fields))
        tables = _timed("scored: all three tables", lambda: score_screen(screen, config))
        print({name: len(table) for name, table in tables.items()})


def drawn_fields(rows: int) -> pd.DataFrame:
    """Plates of 384 wells of 4 fields, 32 of them controls; a compound has 4 wells on as many plates."""
    number = np.arange(rows)
    plate, place = np.divmod(number, 384 * 4)
    well, site = np.divmod(place, 4)
    layout = plate // 4  # four replicate plates of each
    control = well % 12 == 0
    compound = layout * 384 + well
    names = np.where(control, "DMSO", np.char.add("C", compound.astype(str)))
    moa = pd.Series(np.char.add("MoA ", (compound % 60).astype(str))).where(~control & (compound % 3 == 0))
    plates = np.char.add("P", np.char.zfill(plate.astype(str), 5))
    wells = np.char.add("W", np.char.zfill(well.astype(str), 3))
    key = np.char.add(np.char.add(np.char.add(plates, "_"), wells), np.char.add("_s", (site + 1).astype(str)))
    return pd.DataFrame(
        {
            c.KEY: key, c.BATCH: np.char.add("B", (layout // 4).astype(str)), c.PLATE: plates, c.WELL: wells,
            c.SITE: site + 1, c.COMPOUND: names, c.CONCENTRATION: 1.0, c.TREATMENT: np.char.add(names, "@1"),
            c.MOA: moa, c.PERT_TYPE: np.where(control, c.NEGATIVE_CONTROL, c.TREATED), "trained": False,
        }
    )  # fmt: skip


def drawn_quality(fields: pd.DataFrame) -> pd.DataFrame:
    """30 quality columns of noise."""
    chance = np.random.default_rng(1)
    names = [
        f"QC_{m}_C{i}" for m in ("FocusScore", "Mean", "SD", "P01", "P99", "Background") for i in range(5)
    ]
    noise = np.exp(0.1 * chance.standard_normal((len(fields), len(names)), dtype=np.float32))
    return pd.concat([fields[[c.KEY]], pd.DataFrame(noise, columns=names)], axis=1)


def _starts(fields: pd.DataFrame) -> list[tuple[int, int]]:
    begins = np.flatnonzero(
        np.append(True, fields[c.PLATE].to_numpy()[1:] != fields[c.PLATE].to_numpy()[:-1])
    )
    return list(zip(begins.tolist(), [*begins[1:].tolist(), len(fields)], strict=True))


def _draw(path: Path, fields: pd.DataFrame, features: int) -> None:
    """Embeddings of 40 directions and noise, a plate at a time, as a network's mostly are."""
    chance = np.random.default_rng(0)
    directions = chance.standard_normal((40, features), dtype=np.float32)
    codes = pd.factorize(fields[c.COMPOUND])[0]
    with path.open("wb") as file:
        for start, stop in _starts(fields):
            own = np.stack([np.random.default_rng(code).standard_normal(40) for code in codes[start:stop]])
            own += 0.5 * chance.standard_normal(own.shape)
            block = own.astype(np.float32) @ directions
            block += 0.3 * chance.standard_normal(block.shape, dtype=np.float32)
            file.write(block.tobytes())


def _plates(path: Path, fields: pd.DataFrame, features: int) -> Iterator[Floats]:
    """The embeddings of each plate, read when they are asked for."""
    for start, stop in _starts(fields):
        values = np.fromfile(path, np.float32, (stop - start) * features, offset=4 * start * features)
        yield values.reshape(stop - start, features)


def _recall(reduced: Floats, fields: pd.DataFrame, config: OutliersConfig) -> None:
    """How many of the true nearest the search over plate and reference finds, for 500 fields."""
    from sklearn.neighbors import NearestNeighbors

    asked = reference_rows(len(reduced), 500)
    plate = pd.factorize(fields[c.PLATE])[0]
    k = config.neighbors
    near, found = (
        NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(reduced).kneighbors(reduced[asked])
    )
    reference = reference_rows(len(reduced), config.reference_rows)
    candidates = Candidates(plate, pd.factorize(fields[c.TREATMENT])[0], reference)
    hits, ratio = [], []
    for row, true, distances in zip(asked, found, near, strict=True):
        there = np.setdiff1d(candidates.of(np.flatnonzero(plate == plate[row])), [row])
        away = np.linalg.norm(reduced[there] - reduced[row], axis=1)
        ours = np.argsort(away)[:k]
        hits.append(np.isin(there[ours], true).mean())
        ratio.append(away[ours].mean() / distances[1:].mean())
    print(f"recall of the {k} nearest {np.mean(hits):.2f}, {np.mean(ratio):.2f} times as far on average")


def _timed(what: str, work: Callable[[], T]) -> T:
    start, cpu = time.perf_counter(), time.process_time()
    result = work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    spent = f"{time.perf_counter() - start:.1f} s, {time.process_time() - cpu:.1f} s of CPU"
    print(f"{what}: {spent}, highest resident so far {peak:.0f} MB", flush=True)
    return result


if __name__ == "__main__":
    main()
