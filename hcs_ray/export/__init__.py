"""`hcs-ray export`: embeddings and profiles as other tools want them, ``exports/NAME/<format>/``.

An export follows from finished stages: from the embeddings, and from the map or the profiles where they are
complete. It has a record like a stage's, so a finished one is not made again, and one that no longer follows
from them is refused until ``--force``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from hcs_ray.config import StudyConfig
from hcs_ray.contracts import InputError, Progress
from hcs_ray.export import anndata_file, atlas, gallery
from hcs_ray.export.sources import Sources
from hcs_ray.stage import (
    Claim,
    Place,
    StageWriter,
    StaleStageError,
    read_record,
    record_digest,
    stale_message,
    stale_reasons,
    writing_stage,
)
from hcs_ray.study import Study

__all__ = ["FORMATS", "export"]


@dataclass(frozen=True)
class _Format:
    """What writes it, the stages that it takes along where they are complete, and what it depends on.

    ``required`` stages are needed beside the embeddings.
    """

    write: Callable[[Sources, StageWriter, Progress], None]
    optional: tuple[str, ...]
    config: Callable[[StudyConfig], dict[str, Any]]
    required: tuple[str, ...] = ()


_FORMATS: Final[Mapping[str, _Format]] = {
    "anndata": _Format(anndata_file.write, ("map",), lambda _: {}),
    "gallery": _Format(gallery.write, ("profile",), gallery.config_of),
    "atlas": _Format(atlas.write, ("split", "outliers"), atlas.config_of, required=("map",)),
}
FORMATS: Final = tuple(_FORMATS)


def export(study: Study, formats: Sequence[str], progress: Progress, force: bool = False) -> dict[str, Any]:
    """Write each of some formats where it is not complete.

    Returns:
        Where each lies, and which stages it could not take along, and why.

    Raises:
        InputError: an unknown format, incomplete or stale embeddings, or an export that is stale.
    """
    if unknown := [name for name in formats if name not in _FORMATS]:
        raise InputError(f"no export to {unknown[0]}; there are {', '.join(FORMATS)}")
    run = study.require("embed").config.get("run")
    figures: dict[str, Any] = {}
    for name in dict.fromkeys(formats):
        figures |= _export(replace(study, run=run), name, progress, force)
    return figures


def _export(study: Study, name: str, progress: Progress, force: bool) -> dict[str, Any]:
    form = _FORMATS[name]
    place = study.export_place(name)
    for stage in form.required:
        study.require(stage)
    whole, left_out = _optional(study, form.optional)
    whole += form.required
    claim = Claim(
        inputs={
            study.place(stage).record: record_digest(study.storage, study.place(stage)) or ""
            for stage in ("embed", *whole)
        },
        config={"format": name, **form.config(study.config)},
    )
    if force or not _is_complete(study, place, claim):
        kept = study.keep_config()
        with writing_stage(study.storage, place, claim, study_config=kept, force=force) as writer:
            form.write(Sources(study, frozenset(whole)), writer, progress)
            writer.prune(lambda _: True)
    figures: dict[str, Any] = {name: {"text": f"{study.storage.url}/{place.folder}"}}
    return figures | {f"{name}, WITHOUT {stage}": {"text": why} for stage, why in left_out.items()}


def _optional(study: Study, stages: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Those of some stages that are complete, and why others that were begun are not taken along."""
    whole, left_out = [], {}
    for stage in stages:
        if read_record(study.storage, study.place(stage)) is None:
            left_out[stage] = f"not complete; run hcs-ray {stage} and export again"
            continue
        try:
            study.require(stage)
            whole.append(stage)
        except InputError as error:
            left_out[stage] = str(error)
    return whole, left_out


def _is_complete(study: Study, place: Place, claim: Claim) -> bool:
    reasons = stale_reasons(study.storage, place, claim)
    if reasons:
        raise StaleStageError(f"{place.folder} is {stale_message(place, reasons)}")
    return reasons is not None
