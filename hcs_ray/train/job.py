"""What a run is given: its fields with sides and labels, its network, and where it writes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.contracts import InputError
from hcs_ray.model.backbone import fewest_px
from hcs_ray.model.network import ModelSpec
from hcs_ray.model.targets import EXCLUDED, LABEL, NONE, targets
from hcs_ray.model.weights import resolved_weights
from hcs_ray.shards.read import ShardReader
from hcs_ray.study import Study
from hcs_ray.tables import read_index, read_split
from hcs_ray.train.left_out import check_left_out

RAY_FOLDER: Final = "ray"  # Ray Train's own, below a job's folder

Use = Literal["test", "labelled", "none"]  # what the chosen weights are used for at the end


@dataclass(frozen=True)
class TrainJob:
    """What every rank of a run is given; it travels to the workers."""

    study: Study
    spec: ModelSpec
    fields: pd.DataFrame  # with `contracts.SIDE` and the columns of `hcs_ray.model.targets`
    folder: str  # of the run, below the study
    final: Use = "test"
    group: str | None = None  # the sweep that it belongs to
    start: str | None = None  # a checkpoint's folder below the study to begin from, of another run

    @property
    def ray_folder(self) -> str:
        return f"{self.folder}/{RAY_FOLDER}"


def prepare(
    study: Study,
    folder: str,
    *,
    sides: pd.DataFrame | None = None,
    final: Use = "test",
    group: str | None = None,
    start: str | None = None,
) -> TrainJob:
    """Join index and split into the fields to learn from and be judged by, but for what labels leave out.

    Args:
        study: Its shards must be complete, and its split where no ``sides`` are given.
        folder: Of the run, below the study.
        sides: Plate, well and side of every well, instead of the study's own split.
        final: "test" tests the chosen weights; "labelled" embeds every field with a MoA and every negative
            control with them, into ``fields.parquet``.
        group: The name of the sweep.
        start: The folder of another run's checkpoint to go on from, with this study's configuration.

    Raises:
        InputError: there is nothing to learn, or nothing to choose an epoch by.
    """
    reader = ShardReader(study.storage, study.require("shard"))
    _check_size(study, reader.shape)
    table = read_split(study) if sides is None else sides
    fields = read_index(study).merge(
        table[[c.PLATE, c.WELL, c.SIDE]], on=[c.PLATE, c.WELL], validate="many_to_one"
    )
    qc = [name for name in fields if str(name).startswith(c.QC_PREFIX)]
    model, train = study.config.model, study.config.train
    try:
        excluded = study.excluded()
        found = targets(fields.drop(columns=qc), model, train, excluded.reasons.keys())
        check_left_out(found.fields, found.classes, excluded)
    except InputError as error:
        raise InputError(f"{study.storage.url}: {error}") from None
    judged = (found.fields[c.SIDE] == c.VALIDATION) & (found.fields[LABEL] != NONE)
    judged &= ~found.fields[EXCLUDED] & (found.fields[c.PERT_TYPE] != c.NEGATIVE_CONTROL)
    if not judged.any():
        raise InputError(
            f"{study.storage.url}: no compound validates; a MoA needs three compounds, or set split.folds"
        )
    model = model.model_copy(update={"weights": resolved_weights(model.weights)})
    spec = ModelSpec(
        model.model_dump(mode="json"), reader.channels, found.classes, train.downsample,
        found.treatments, found.domains,
    )  # fmt: skip
    return TrainJob(study, spec, found.fields, folder, final, group, start)


def _check_size(study: Study, shape: tuple[int, int, int]) -> None:
    """Images that are too small for the network would fail in a worker, perhaps only at a short batch."""
    train, backbone = study.config.train, study.config.model.backbone
    side = math.ceil(min(train.crop_px, *shape[1:]) / train.downsample)
    if side < fewest_px(backbone):
        raise InputError(
            f"{study.storage.url}: train.crop_px {train.crop_px} and train.downsample {train.downsample} "
            f"make images of {side} px; {backbone} takes at least {fewest_px(backbone)}"
        )
