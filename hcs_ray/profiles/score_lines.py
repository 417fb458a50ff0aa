"""What `hcs-ray score` prints on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hcs_ray.profiles.fold_stage import hits_text

_WIDTH = 26


def score_lines(told: Mapping[str, Any]) -> str:
    """The answer of `score_table` as text: figures first, then mechanisms, then the rules."""
    return "\n".join([*_figures(told), "", *_mechanisms(told), "", *_rules(told)])


def _line(name: str, text: str) -> str:
    return f"{name:<{_WIDTH}}{text}"


def _figures(told: Mapping[str, Any]) -> Iterator[str]:
    yield _line("Table", told["table"])
    yield _line("Track", told["track"]["title"])
    yield ""
    for guard in ("nsc", "nscb"):
        score = told[guard]
        yield _line(guard.upper(), told["nscb_impossible"] if score is None else _score(score))
    share, expected = told["same_batch_share"], told["same_batch_expected"]
    if share is not None:
        interval = told["same_batch_interval"]
        spread = f" (95 % interval {_percent(interval[0])} to {_percent(interval[1])})" if interval else ""
        yield _line("Neighbour of same batch", f"{_percent(share)}{spread}; {_percent(expected)} by chance")


def _score(score: Mapping[str, Any]) -> str:
    text = hits_text(score)
    null = score["null_correct"]
    if null is None:
        return text
    verdict = "above chance" if score["above_chance"] else "NOT above chance"
    return f"{text}; {verdict}, permuted labels give {null['interval'][0]:.0f} to {null['interval'][1]:.0f}"


def _mechanisms(told: Mapping[str, Any]) -> Iterator[str]:
    names = sorted({*told["nsc"]["by_moa"], *(told["nscb"] or told["nsc"])["by_moa"]})
    width = max([len(name) for name in names] + [_WIDTH - 2]) + 2
    yield f"{'Mechanism':<{width}}{'NSC':>9}" + (f"{'NSCB':>9}" if told["nscb"] else "")
    for name in names:
        cells = [_hits(told[guard]["by_moa"].get(name)) for guard in ("nsc", "nscb") if told[guard]]
        yield f"{name:<{width}}" + "".join(f"{cell:>9}" for cell in cells)


def _hits(found: Mapping[str, int] | None) -> str:
    return f"{found['correct']}/{found['total']}" if found else "-"


def _rules(told: Mapping[str, Any]) -> Iterator[str]:
    counts, features, rules = told["counts"], told["features"], told["rules"]
    yield "Rules"
    yield _line("  rows", ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items()))
    yield _line("  features", _feature_words(features))
    yield _line("  normalisation", _normalisation_words(rules["normalization"]))
    yield _line("  fields to wells", rules["well_from_fields"])
    yield _line(
        "  wells to treatments", f"{rules['treatment_from_wells']}; control wells are left out before"
    )
    for name, words in (
        ("scored_by_other_wells", "scored by their other wells"),
        ("only_control_wells", "not scored"),
    ):
        if rules.get(name):
            yield _line("  controls", f"{', '.join(rules[name])}: {words}")
    yield _line("  in several batches", ", ".join(rules["in_several_batches"]) or "no treatment")
    yield _line("  same batch", rules["same_batch"])
    yield _line("  distance", rules["distance"])
    yield _line("  denominator", rules["denominator"])
    for guard in ("nsc", "nscb"):
        yield from _dropped(told[guard], guard.upper()) if told[guard] else ()
    yield _line("  candidates", rules["candidates"])
    if rules["missing_values"]["rows_dropped"]:
        yield _line("  rows dropped", _missing_words(rules["missing_values"]))
    for column, source in rules["columns"].items():
        yield _line(f"  {column.removeprefix('Metadata_')}", source)


def _normalisation_words(told: Mapping[str, Any]) -> str:
    """Of ComBat and Harmony, which are libraries', also what they were told of all wells."""
    if told["method"] == "none":
        return "none: as they stand"
    words = f"{told['method']}, on negative controls"
    if "library" in told:
        words += f", then on all wells; told {told['told']}"
    shares = [f"{told[name]:.2g}" for name in ("shrinkage", "batch_shrinkage") if name in told]
    return words + (f"; shrinkage {', of batches '.join(shares)}" if shares else "")


def _missing_words(missing: Mapping[str, Any]) -> str:
    words, lost = f"{missing['rows_dropped']}, with missing values", missing["treatments_lost"]
    if not lost:
        return words
    return f"{words}; so {len(lost)} labelled treatments are in no denominator: {_shown(lost)}"


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


def _group_words(groups: Mapping[str, int]) -> str:
    """The most common beginnings of features' names and the rarest, which may be no features at all."""
    told = [f"{name} {count}" for name, count in sorted(groups.items(), key=lambda group: -group[1])]
    return ", ".join(told if len(told) <= 6 else [*told[:3], "...", *told[-3:]])


def _feature_words(features: Mapping[str, Any]) -> str:
    words = [f"{features['used']} of {features['read']} ({_group_words(features['groups'])})"]
    for name, why in (
        ("dropped_without_spread", "dropped, without spread among the negative controls of a plate"),
        ("dropped_missing", "dropped, with missing values"),
        ("numeric_but_ignored", "numeric but not taken for features"),
        ("text_but_no_metadata", "not taken for features, since not every row is a number"),
    ):
        if features[name]:
            words.append(f"{len(features[name])} {why}: {_shown(features[name])}")
    return "; ".join(words)


def _dropped(score: Mapping[str, Any], guard: str) -> Iterator[str]:
    lost = score["dropped"]
    if not lost:
        yield _line(f"  {guard} drops", "no treatment")
        return
    moas = "; ".join(f"{name} ({why})" for name, why in score["dropped_moas"].items())
    plural = "s" if len(lost) != 1 else ""
    yield _line(
        f"  {guard} drops",
        f"{len(lost)} treatment{plural}" + (f": {moas}" if moas else f": {', '.join(lost)}"),
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
