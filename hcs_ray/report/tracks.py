"""The rules behind the scores: the track, what was left out, and the folds where they are there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from hcs_ray.profiles.exclusions import FLAG_PREFIX
from hcs_ray.profiles.fold_stage import headline_setting, hits_text
from hcs_ray.report.answers import Answer, Gauge, batch_gauge, score_answer

_GUARDS: Final = ("nscb", "nsc")


@dataclass(frozen=True)
class Leaked:
    """A compound that is not in the headline, and why."""

    compound: str
    why: str


@dataclass(frozen=True)
class Row:
    """One of two evaluations with the same denominators: NSCB and NSC of held-out and of all compounds."""

    fields: str
    held_out: tuple[str, ...]
    overall: tuple[str, ...]


@dataclass(frozen=True)
class Beside:
    """The scores with and without excluded fields; ``note`` says what was lost, or why there is no second."""

    rows: tuple[Row, ...]
    reasons: str
    note: str
    flagged: bool  # quality flags are among the reasons


@dataclass(frozen=True)
class Setting:
    """A setting of a leave-one-compound-out sweep: its values, its answers, and what stands beside them."""

    values: str
    answers: tuple[Answer, ...]
    gauge: Gauge | None
    head: str
    figures: dict[str, str]
    without: Row | None
    missing: dict[str, str]
    failed: str | None


@dataclass(frozen=True)
class Folds:
    """Track A, where it was scored; without ``headline`` no setting may be quoted for the others."""

    sweep: str
    title: str
    leaked: tuple[Leaked, ...]
    rules: dict[str, str]
    headline: bool
    settings: tuple[Setting, ...]


def leaked_compounds(track: Mapping[str, Any]) -> tuple[Leaked, ...]:
    """All that have leaked, by name."""
    return tuple(Leaked(name, why) for name, why in sorted(track["leaked_compounds"].items()))


def side_by_side(evaluation: Mapping[str, Any]) -> Beside | None:
    """With and without the excluded fields; None where nothing was left out."""
    excluded = evaluation["excluded"]
    if not excluded["fields"] and not excluded["wells_too_small"]:
        return None
    reasons = ", ".join(
        f"{count} {name.removeprefix(FLAG_PREFIX)}" for name, count in excluded["by_reason"].items()
    )
    flagged = any(name.startswith(FLAG_PREFIX) for name in excluded["by_reason"])
    whole = _row(f"all {excluded['fields_of']}", evaluation.get("all_fields", evaluation))
    if excluded["scores"] is None:
        note = f"Without them nothing can be scored: {excluded['impossible']}."
        return Beside((whole,), reasons, note, flagged)
    rest = f"without {excluded['fields']}"
    if excluded["minimum_fields"] > 1:
        rest += f", and without {excluded['wells_too_small']} wells below {excluded['minimum_fields']} fields"
    return Beside((whole, _row(rest, excluded["scores"])), reasons, _lost(excluded), flagged)


def folds(found: Mapping[str, Any] | None) -> Folds | None:
    """What `hcs-ray profile --folds` has left; None where it was not run."""
    if found is None:
        return None
    settings = tuple(_setting(setting) for setting in found["settings"])
    first = next((setting for setting in found["settings"] if "failed" not in setting), None)
    return Folds(
        sweep=found["sweep"],
        title=found["track"]["title"],
        leaked=leaked_compounds(found["track"]),
        rules={name: _words(rule) for name, rule in first["rules"].items()} if first else {},
        headline=headline_setting(found) is not None,
        settings=settings,
    )


def _words(rule: Any) -> str:
    return (", ".join(map(str, rule)) or "none") if isinstance(rule, list) else str(rule)


def _lost(excluded: Mapping[str, Any]) -> str:
    names = excluded["treatments_lost"]
    if not names:
        return "No treatment lost all its fields."
    plural = "s" if len(names) != 1 else ""
    return f"{len(names)} treatment{plural} lost all fields and counted as wrong: {', '.join(names)}."


def _row(fields: str, scores: Mapping[str, Any]) -> Row:
    return Row(
        fields,
        tuple(hits_text(scores[guard]["held_out"]) for guard in _GUARDS),
        tuple(hits_text(scores[guard]) for guard in _GUARDS),
    )


def _setting(found: Mapping[str, Any]) -> Setting:
    values = ", ".join(f"{name} = {value}" for name, value in found["values"].items())
    if "failed" in found:
        return Setting(values, (), None, "", {}, None, {}, str(found["failed"]))
    without = found["without_excluded"]
    return Setting(
        values=values,
        answers=tuple(
            score_answer(
                found[guard]["held_out"], guard, ", each compound left out", int(found[guard]["leaked"])
            )
            for guard in _GUARDS
        ),
        gauge=batch_gauge(found),
        head=hits_text(found["moa_head"]["held_out"]),
        figures=_head_figures(found["moa_head"]["of_evaluated_folds"]),
        without=_row("without excluded fields", without) if without else None,
        missing=found["folds"]["missing"],
        failed=None,
    )


def _head_figures(head: Mapping[str, Any] | None) -> dict[str, str]:
    """The MoA heads on treatments, with intervals over compounds."""
    if head is None:
        return {}
    treatment = head["treatment"]
    names = {"balanced_accuracy": "balanced accuracy", "macro_f1": "macro-F1", "mcc": "MCC"}
    figures = {
        words: _with_interval(treatment[name], treatment["intervals"][name]) for name, words in names.items()
    }
    return figures | calibration_figures(head)


def calibration_figures(classification: Mapping[str, Any]) -> dict[str, str]:
    """Expected calibration error and Brier score of treatments and of fields, with intervals."""
    figures: dict[str, str] = {}
    for level in ("treatment", "field"):
        found = classification[level]["calibration"]
        for name, words in (("expected_error", "calibration error"), ("brier", "Brier score")):
            figures[f"{words} of {level}s"] = _with_interval(found[name], found["intervals"][name])
    return figures


def _with_interval(value: float, interval: list[float] | None) -> str:
    return f"{value:.2f}" + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else "")
