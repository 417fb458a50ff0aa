"""`hcs-ray tune`: a sweep over trainings, or over layouts, with Ray Tune; its leaderboard and its pictures.

Every trial is a whole Ray Train run in a folder of its own, ``sweeps/NAME/trials/t0000``, so a sweep that was
killed goes on with its trials where their checkpoints stand. Ray Tune keeps its own state as a pickle in
``sweeps/NAME/ray``: resume a sweep only from storage that you trust.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from hcs_ray.config import LEAVE_OUT, SweepConfig, parse_sweep, stage_config
from hcs_ray.contracts import HcsError, InputError, Progress, rows_of
from hcs_ray.model.tracking import preflight
from hcs_ray.model.weights import weights_digest
from hcs_ray.session import ensure_session, hush
from hcs_ray.stage import Claim, StageRecord, StageWriter, parquet_bytes, read_record
from hcs_ray.study import SWEEP_FILE, Study
from hcs_ray.train.files import FIELDS_FILE, MODEL_FILE
from hcs_ray.tune.board import ENDED, FAILED, STOPPED, Entry, curves, leaderboard
from hcs_ray.tune.capacity import capacity
from hcs_ray.tune.judging import judged
from hcs_ray.tune.map_objective import BRIEF
from hcs_ray.tune.map_words import beforehand, next_map, uses_labels
from hcs_ray.tune.models import hand_on
from hcs_ray.tune.pictures import PICTURE, picture
from hcs_ray.tune.sheet import SHEET, sheet_of
from hcs_ray.tune.space import Space
from hcs_ray.tune.sweep import run_trials
from hcs_ray.tune.terminal import show
from hcs_ray.tune.trials import MAP_FILE, Work, read_rows
from hcs_ray.tune.watching import LEADERBOARD, Watcher

__all__ = [
    "LEADERBOARD", "next_step", "read_leaderboard", "show_leaderboard", "show_standing", "tune", "written",
]  # fmt: skip

CURVES_FILE = "history.parquet"
EVALUATION_FILE = "evaluation.json"
TREATMENTS_FILE = "treatments.parquet"


def tune(
    study: Study, sweep_file: str, progress: Progress, force: bool = False, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Run the sweep of a YAML file over this study, or go on with it.

    Writes ``sweeps/NAME/leaderboard.parquet`` and its picture ``leaderboard.svg``, current while it runs, and
    at the end ``history.parquet``, ``sweep.json`` and each trial's ``model.pt``; for left-out compounds
    ``evaluation.json`` and ``treatments.parquet``, too.

    Args:
        say: takes a line for the terminal, now and then.

    Raises:
        InputError: the file is no sweep of this study, or not even one trial fits on the cluster.
        HcsError: every trial failed.
    """
    sweep = _read_sweep(sweep_file)
    study = study.with_labels_of("tune", force)
    claim = _claim(study, sweep)
    space = Space.of(sweep, study.config, _compounds(study, sweep), sweep_file)
    if force or not study.is_complete("tune", claim):
        _check_training(study, space)
        for line in beforehand(study, space) if sweep.objective == "map" else []:
            say(line)
        with study.writing("tune", claim, force) as writer:
            _Sweep(study, space, writer).run(progress, say)
    return _headline(read_leaderboard(study), sweep)


def read_leaderboard(study: Study) -> pd.DataFrame:
    """One row a trial of a finished sweep, the best first (`hcs_ray.tune.board.leaderboard`)."""
    return _record(study).read_table(study.storage, f"{study.place('tune').folder}/{LEADERBOARD}")


def show_leaderboard(study: Study) -> None:
    """Print the best trials of a finished sweep."""
    _show(read_leaderboard(study), _swept(study))


def show_standing(study: Study, sweep: SweepConfig) -> bool:
    """Print the best trials so far of a sweep that may still be running; False where no trial has ended."""
    found = study.storage.read_versioned(f"{study.place('tune').folder}/{LEADERBOARD}")
    if found is None:
        return False
    _show(pd.read_parquet(io.BytesIO(found[0])), sweep)
    return True


def _show(table: pd.DataFrame, sweep: SweepConfig) -> None:
    metrics = [goal.name for goal in sweep.metric]
    told = {name: words for name, words in BRIEF.items() if name in table and name not in metrics}
    show(table, list(sweep.space), metrics, told)


def written(study: Study) -> str:
    """Where the table and the pictures of a finished sweep lie."""
    folder = f"{study.storage.url}/{study.place('tune').folder}"
    line = f"Leaderboard: {folder}/{LEADERBOARD}, its picture: {folder}/{PICTURE}"
    drawn = f"{study.place('tune').folder}/{SHEET}" in _record(study).outputs
    return f"{line}, the maps: {folder}/{SHEET}" if drawn else line


def next_step(study: Study) -> str:
    """What to do with a finished sweep, as a command."""
    sweep, best = _swept(study), read_leaderboard(study).iloc[0]
    url, name = study.storage.url, study.name
    if sweep.compounds is not None:
        return f"Next: read {url}/{study.place('tune').folder}/{EVALUATION_FILE}"
    if sweep.objective == "map":
        return next_map(study, best, sweep)
    return f"Next: hcs-ray embed {url} --run sweep:{name}/best"


def _record(study: Study) -> StageRecord:
    record = read_record(study.storage, study.place("tune"))
    if record is None:
        raise InputError(f"{study.storage.url}: no sweep {study.name}; run hcs-ray tune first")
    return record


def _swept(study: Study) -> SweepConfig:
    """The sweep as its record has it."""
    return SweepConfig.model_validate(_record(study).config["sweep"])


def _read_sweep(file: str) -> SweepConfig:
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read: {getattr(error, 'strerror', error)}") from None
    return parse_sweep(text, file)


def _claim(study: Study, sweep: SweepConfig) -> Claim:
    """What the sweep follows from: the study's stages and configuration, and the sweep's own."""
    base = study.claim("map" if sweep.objective == "map" else "tune")
    told = sweep.model_dump(mode="json", exclude=set(sweep.execution))
    told["resources"] = sweep.resources.model_dump(mode="json", exclude=set(sweep.resources.execution))
    extra: dict[str, Any] = {"sweep": told}
    if sweep.compounds is not None:
        extra |= stage_config(study.config, ["split", "profile"])
    model = study.config.model
    weights = weights_digest(model.weights, study.config.storage) if sweep.objective == "train" else None
    inputs = base.inputs | ({f"weights {model.weights}": weights} if weights else {})
    return Claim(inputs=inputs, config=base.config | extra)


def _check_training(study: Study, space: Space) -> None:
    """What would fail every trial, said before the first."""
    if space.sweep.objective == "map":
        return
    preflight(study.config.wandb)
    if space.config.train.max_hours is not None:
        raise InputError(
            "train.max_hours ends one training; for a sweep write stop: {max_hours: ...} in its file"
        )


def _compounds(study: Study, sweep: SweepConfig) -> list[str]:
    if sweep.compounds is None:
        return []
    from hcs_ray.profiles import folds

    return folds.compounds(study)


@dataclass(frozen=True)
class _Sweep:
    """A sweep that is being written."""

    study: Study
    space: Space
    writer: StageWriter

    @property
    def work(self) -> Work:
        return Work(self.study, self.space, self.writer.place.folder)

    def run(self, progress: Progress, say: Callable[[str], None]) -> None:
        ensure_session(dashboard=True)
        hush("ray.tune")
        hush("ray.train")
        fit = capacity(self.space.sweep, self.space.config, self.space.trials)
        say(f"  {fit.words}")
        watcher = Watcher(self.work, self._write_board, progress, say)
        progress(0, self.space.trials)
        run_trials(self.work, fit, watcher)
        self._close(watcher.entries(), {name: trial.last_result for name, trial in watcher.trials.items()})

    def _write_board(self, table: pd.DataFrame, draw: bool) -> None:
        """What can be looked at while the sweep runs; the record lists what is written at its end."""
        storage = self.study.storage
        data = parquet_bytes(pa.Table.from_pandas(table, preserve_index=False))
        # A store that is away for a moment costs the board a while, not the sweep its life.
        with contextlib.suppress(HcsError):
            storage.write(self.writer.path(LEADERBOARD), data)
            if draw:
                rows = {trial: read_rows(storage, self.work.trial_folder(trial)) for trial in table["trial"]}
                storage.write(self.writer.path(PICTURE), picture(table, curves(rows), self.space.sweep))
                if (drawn := sheet_of(self.work, table)) is not None:
                    storage.write(self.writer.path(SHEET), drawn)

    def _close(self, entries: list[Entry], results: dict[str, Any]) -> None:
        """Write what the sweep leaves, from what its trials have left."""
        entries = [entry for entry in entries if entry.status in (ENDED, STOPPED) or entry.error]
        rows = {entry.trial: self._rows(entry, results[entry.trial] or {}) for entry in entries}
        entries = [self._settled(entry, rows[entry.trial]) for entry in entries]
        table = leaderboard(entries, self.space.sweep)
        if table["score"].isna().all():
            raise HcsError(
                f"every trial failed: {table['error'].dropna().iloc[0] if len(table) else 'none ran'}"
            )
        self.writer.write_table(LEADERBOARD, table)
        history = curves(rows)
        self.writer.write_table(CURVES_FILE, history)
        self.writer.write(PICTURE, picture(table, history, self.space.sweep))
        if (drawn := sheet_of(self.work, table)) is not None:
            self.writer.write(SHEET, drawn)
        failed = table[table["status"] == FAILED]
        if len(failed) and self.space.sweep.failed == "retry":
            error = failed["error"].iloc[0]
            raise HcsError(
                f"{len(failed)} of {len(table)} trials failed ({failed['trial'].iloc[0]}: {error}); "
                "run the same command to try them again, or write failed: keep into the sweep's file"
            )
        self._list_models(table)
        if self.space.sweep.compounds is not None:
            self._evaluate(entries)

    def _rows(self, entry: Entry, result: dict[str, Any]) -> list[dict[str, Any]]:
        """A trial's epochs; where it was stopped, those that its newest checkpoint holds."""
        folder = result.get("folder", self.work.trial_folder(entry.trial))
        if self.space.sweep.objective == "map" or entry.error:
            return read_rows(self.study.storage, folder)
        return hand_on(self.work, entry.trial, entry.values, folder)

    def _settled(self, entry: Entry, rows: list[dict[str, Any]]) -> Entry:
        """A trial with the score of the network that it leaves."""
        if not rows or entry.error:
            return entry
        figures = judged(rows, self.space, ended=True)
        scores = {goal.name: figures[goal.name] for goal in self.space.sweep.metric}
        return replace(
            entry, scores=scores, epochs=int(figures["epochs"]), steps=int(figures["optimizer_steps"])
        )

    def _list_models(self, table: pd.DataFrame) -> None:
        """List the networks, and, for left-out compounds, what they say; ``sweep.json`` names the best."""
        best = str(table["trial"].iloc[0])
        trials: dict[str, Any] = {}
        for row in rows_of(table):
            folder = f"trials/{row['trial']}"
            listed = [file for file in (MODEL_FILE, FIELDS_FILE, MAP_FILE) if self._list(f"{folder}/{file}")]
            trials[row["trial"]] = {
                "score": None if pd.isna(row["score"]) else float(row["score"]),
                "model": self.writer.path(f"{folder}/{MODEL_FILE}") if MODEL_FILE in listed else None,
            }
        goal = self.space.sweep.goal
        summary: dict[str, Any] = {"best": best, "metric": goal.name, "mode": goal.mode, "trials": trials}
        if self.space.sweep.objective == "map":
            summary["uses_labels"] = uses_labels(self.study, rows_of(table.head(1))[0], self.space.sweep)
        self.writer.write(SWEEP_FILE, (json.dumps(summary, indent=1) + "\n").encode())

    def _list(self, file: str) -> bool:
        found = self.study.storage.read_versioned(self.writer.path(file))
        if found is not None:
            self.writer.add(file, len(found[0]), hashlib.sha256(found[0]).hexdigest())
        return found is not None

    def _evaluate(self, entries: list[Entry]) -> None:
        """Track A of each setting: the folds that differ in nothing but the compound left out."""
        from hcs_ray.profiles import folds

        settings: dict[str, tuple[dict[str, Any], list[folds.Fold]]] = {}
        for entry in entries:
            values = {name: value for name, value in entry.values.items() if name != LEAVE_OUT}
            fold = folds.Fold(entry.values[LEAVE_OUT], entry.trial, self.work.trial_folder(entry.trial))
            settings.setdefault(json.dumps(values, sort_keys=True), (values, []))[1].append(fold)
        summaries, tables = list[dict[str, Any]](), list[pd.DataFrame]()
        for values, trials in settings.values():
            config = self.space.study_config({**values, LEAVE_OUT: trials[0].compound})
            try:
                found = folds.evaluate(replace(self.study, config=config), trials)
            except HcsError as error:  # the other settings' answers stand
                summaries.append({"values": values, "failed": str(error)})
                continue
            summaries.append({"values": values, **found.summary})
            tables.append(found.treatments.assign(setting=len(tables)))
        text = json.dumps({"settings": summaries}, indent=1, sort_keys=True)
        self.writer.write(EVALUATION_FILE, (text + "\n").encode())
        if not tables:
            raise HcsError(f"no setting could be evaluated: {summaries[0]['failed']}")
        self.writer.write_table(TREATMENTS_FILE, pd.concat(tables, ignore_index=True))


def _headline(table: pd.DataFrame, sweep: SweepConfig) -> dict[str, Any]:
    best = table.iloc[0]
    values = {name: best[name] for name in sweep.space if best[name] is not None and not pd.isna(best[name])}
    return {
        "trials": len(table),
        "best": best["trial"],
        sweep.goal.name: round(float(best["score"]), 3),
        **values,
    }
