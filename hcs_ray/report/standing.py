"""Which parts of a study a report shows: those of its claim; of the others, why not and what makes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from hcs_ray.contracts import InputError
from hcs_ray.pipeline import EXTRAS, STAGES
from hcs_ray.stage import COMMANDS, Claim, chain_of, read_record
from hcs_ray.study import COMPARED, Study

_FOLDS: Final = (
    "hcs-ray tune . tune_configs/leave_one_compound_out.yaml --name loco",
    "hcs-ray profile . --name {name} --folds loco",
)


@dataclass(frozen=True)
class Missing:
    """A part that is not shown; ``commands`` make it, one after the other, in the study's folder."""

    state: Literal["not run", "stale"]
    commands: tuple[str, ...]
    why: str = ""


@dataclass(frozen=True)
class Standing:
    """What the claim of a report lists.

    Attributes:
        stages: The stages of this run that are shown, in the pipeline's order, the extras after them.
        missing: The others.
        sweeps: The sweeps that are shown, by name.
        before: The run that this one is compared with; None where there is none, or it is stale.
        stages_before: What of that run is shown, of `hcs_ray.study.COMPARED`.
        stale_before: What of that run has changed since; empty where nothing has.
    """

    stages: tuple[str, ...]
    missing: Mapping[str, Missing]
    sweeps: tuple[str, ...]
    before: Study | None
    stages_before: tuple[str, ...] = ()
    stale_before: tuple[str, ...] = ()


def stand(study: Study, claim: Claim) -> Standing:
    """From the claim of a report.

    Raises:
        InputError: the run that this one is to be compared with has no profile.
    """
    every = ("shard", *STAGES["report"].shows)
    there = tuple(stage for stage in every if study.place(stage).record in claim.inputs)
    before, stale = _before(study, claim)
    return Standing(
        stages=there,
        missing={stage: _missing(study, stage, there) for stage in every if stage not in there},
        sweeps=tuple(
            path.split("/")[1] for path in sorted(claim.inputs) if path.startswith("sweeps/")
        ),
        before=before,
        stages_before=tuple(
            stage for stage in COMPARED if before and before.place(stage).record in claim.inputs
        ),
        stale_before=stale,
    )  # fmt: skip


def _before(study: Study, claim: Claim) -> tuple[Study | None, tuple[str, ...]]:
    name = study.config.report.before
    if name is None or name == study.name:
        return None, ()
    other = study.other(name)
    profile = other.place(COMPARED[0])
    changes = chain_of(study.storage, profile)
    if changes is None:
        raise InputError(
            f"report.before {name}: {study.storage.url} has no profile of that run; {_profiled(study)}"
        )
    return (other if profile.record in claim.inputs else None), tuple(changes)


def _profiled(study: Study) -> str:
    names = sorted({path.split("/")[1] for path in study.storage.sizes("profiles")} - {study.name})
    there = [name for name in names if read_record(study.storage, study.other(name).place(COMPARED[0]))]
    return f"there are: {', '.join(there)}" if there else "there is no other run"


def _missing(study: Study, stage: str, there: tuple[str, ...]) -> Missing:
    if read_record(study.storage, study.place(stage)) is None:
        return Missing("not run", _commands(study, stage, there))
    try:
        study.require(stage)
        why = "it was made while this report was"
    except InputError as error:
        why = str(error).removeprefix(f"{study.storage.url}: ").replace(f"{study.storage.url}/", "")
    return Missing("stale", _commands(study, stage, there, " --force"), why.partition(". Make it again")[0])


def _commands(study: Study, stage: str, there: tuple[str, ...], force: str = "") -> tuple[str, ...]:
    """What makes a stage, with what lies before it where that is not there."""
    if stage == "folds":
        return tuple(f"{command.format(name=study.name)}{force}" for command in _FOLDS)
    spec = STAGES.get(stage) or EXTRAS[stage]
    gaps = [before for before in spec.inputs if before not in there]
    command, _, option = COMMANDS.get(stage, stage).partition(" ")
    own = " ".join(filter(None, (f"hcs-ray {command} . --name {study.name}", option)))
    if not gaps:
        return (f"{own}{force}",)
    if stage in STAGES:
        return (f"hcs-ray run . --name {study.name} --to {stage}{force}",)
    last = [before for before in STAGES if before in gaps][-1]
    return f"hcs-ray run . --name {study.name} --to {last}{force}", f"{own}{force}"
