"""The headline: what a study says about compounds its network never saw, and how far that can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import pandas as pd

Verdict = Literal["above chance", "not above chance", "not scored"]

_GUARDS: Final = {
    "nsc": ("NSC", "nearest neighbour is another compound"),
    "nscb": ("NSCB", "nearest neighbour is another compound, from another batch"),
}


@dataclass(frozen=True)
class Answer:
    """One figure with all that belongs beside it; shares are 0 to 1.

    ``interval`` is the 95 % interval by compounds, ``chance`` that of labels shuffled among compounds.
    """

    title: str
    question: str
    text: str
    share: float | None
    interval: tuple[float, float] | None
    chance: tuple[float, float] | None
    verdict: Verdict
    reading: str
    leaked: int = 0
    total: int = 0
    axis: tuple[str, str, str] = ("0 %", "50 %", "100 %")  # what stands at 0, 0.5 and 1


@dataclass(frozen=True)
class Gauge:
    """How often a nearest neighbour comes from the query's own batch, and what that means."""

    share: float
    chance: float
    reading: str
    title: str = "Nearest neighbours of the same batch"


def held_out_answers(evaluation: Mapping[str, Any]) -> list[Answer]:
    """NSCB, NSC and classification of compounds whose labels were not used."""
    scores = [score_answer(evaluation[guard]["held_out"], guard, ", held-out") for guard in ("nscb", "nsc")]
    return [*scores, _classification(evaluation["classification"])]


def overall_answers(evaluation: Mapping[str, Any]) -> list[Answer]:
    """NSCB and NSC of all labelled treatments, most of which have usually leaked."""
    return [
        score_answer(evaluation[guard], guard, ", all treatments", int(evaluation[guard]["leaked"]))
        for guard in ("nscb", "nsc")
    ]


def batch_gauge(evaluation: Mapping[str, Any]) -> Gauge | None:
    """The gauge of batch leak; None where no treatment has a neighbour."""
    share, expected = evaluation["same_batch_share"], evaluation["same_batch_expected"]
    if share is None or expected is None:
        return None
    return Gauge(float(share), float(expected), _read_gauge(float(share), float(expected)))


def summary(answers: list[Answer]) -> str:
    """One sentence over all held-out answers."""
    above = [answer.title for answer in answers if answer.verdict == "above chance"]
    scored = [answer for answer in answers if answer.verdict != "not scored"]
    if not scored:
        return "Nothing could be scored on held-out compounds: this run says nothing about new compounds."
    if not above:
        return (
            "Not above chance: on compounds the network never saw, no figure is better than chance "
            "gives. This run does not show that mechanisms can be told."
        )
    if len(above) == len(scored):
        return "On compounds the network never saw, every figure is above chance."
    verb = "is" if len(above) == 1 else "are"
    return (
        f"On compounds the network never saw, {len(above)} of {len(scored)} figures {verb} above chance "
        f"({'; '.join(above)}), the rest not above chance. Read this as a hint, not as proof."
    )


def answer_table(listed: Sequence[Answer]) -> pd.DataFrame:
    """Figures as numbers, a row each."""
    empty = (None, None)
    return pd.DataFrame(
        [
            {
                "figure": one.title, "text": one.text, "share": one.share,
                "low": (one.interval or empty)[0], "high": (one.interval or empty)[1],
                "chance_low": (one.chance or empty)[0], "chance_high": (one.chance or empty)[1],
                "verdict": one.verdict, "leaked": one.leaked, "total": one.total,
            }
            for one in listed
        ]
    )  # fmt: skip


def percent(share: float) -> str:
    """A share as whole percents."""
    return f"{100 * share:.0f} %"


def score_answer(tally: Mapping[str, Any], guard: str, whose: str, leaked: int = 0) -> Answer:
    """NSC or NSCB (``guard``) of some compounds, ``whose`` in words for the title."""
    short, question = _GUARDS[guard]
    total, null = int(tally["total"]), tally["null_correct"]
    title = f"{short}{whose}"
    question = f"Same mechanism, where the {question}?"
    if not total or null is None:
        return Answer(title, question, "–", None, None, None, "not scored", "No such treatment to score.")
    low, high = (float(count) for count in null["interval"])
    chance = (low / total, min(high / total, 1.0))
    shuffled = f"{low:.0f} to {high:.0f} of {total} right"
    above = bool(tally["above_chance"])
    return Answer(
        title=title,
        question=question,
        text=f"{tally['correct']}/{total}",
        share=float(tally["accuracy"]),
        interval=_pair(tally["interval"]),
        chance=chance,
        verdict=_verdict(above),
        reading=_reading(above, shuffled, null, tally["interval"], int(tally["compounds"])),
        leaked=leaked,
        total=total,
    )


def _classification(found: Mapping[str, Any] | None) -> Answer:
    title = "MoA by the network, held-out"
    question = "Does the network name the mechanism? (balanced accuracy of treatments)"
    if found is None:
        return Answer(
            title, question, "–", None, None, None, "not scored",
            "No labelled compound was held out: the split has no test side.",
        )  # fmt: skip
    treatment = found["treatment"]
    null, above = treatment["null_balanced_accuracy"], bool(treatment["above_chance"])
    low, high = (float(value) for value in null["interval"])
    return Answer(
        title=title,
        question=question,
        text=percent(treatment["balanced_accuracy"]),
        share=float(treatment["balanced_accuracy"]),
        interval=_pair(treatment["interval"]),
        chance=(low, high),
        verdict=_verdict(above),
        reading=_reading(
            above,
            f"{percent(low)} to {percent(high)}",
            null,
            treatment["interval"],
            int(treatment["compounds"]),
        ),
        total=int(treatment["count"]),
    )


def _reading(above: bool, shuffled: str, null: Mapping[str, Any], interval: Any, compounds: int) -> str:
    verdict = "Above chance" if above else "Not above chance"
    words = (
        f"{verdict}: labels shuffled among compounds give {shuffled} in 95 % of "
        f"{null['permutations']:,} tries, and this {'lies' if above else 'does not lie'} above that range "
        f"(one-sided p {_p_value(null['p_value'])})."
    )
    if interval is None:
        return f"{words} One compound alone gives no interval."
    low, high = interval
    wide = " Few compounds, so a wide interval." if compounds < 10 else ""
    return f"{words} 95 % interval over {compounds} compounds: {percent(low)} to {percent(high)}.{wide}"


def _p_value(value: float) -> str:
    return f"= {value:.2g}" if value >= 0.001 else "< 0.001"


def _pair(interval: Any) -> tuple[float, float] | None:
    return None if interval is None else (float(interval[0]), float(interval[1]))


def _verdict(above: bool) -> Verdict:
    return "above chance" if above else "not above chance"


def _read_gauge(share: float, expected: float) -> str:
    found = (
        f"{percent(share)} of nearest neighbours (of another compound) come from the same batch; "
        f"{percent(expected)} would by chance."
    )
    if expected <= 0 or share <= expected * 1.1:
        return f"{found} No sign that profiles group by batch."
    times = f"{share / expected:.1f} times chance"
    if share > expected * 1.5:
        return (
            f"{found} That is {times}: profiles group by batch, so part of what looks like biology is the "
            "batch's. Trust NSCB, whose neighbours come from other batches, more than NSC and the map."
        )
    return (
        f"{found} That is {times}: a mild batch effect, or mechanisms that were tested in few batches. "
        "Prefer NSCB to NSC."
    )
