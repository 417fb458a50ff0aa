"""A small sharded screen with a network, without Ray and without training: for tests of embedding."""

from __future__ import annotations

from pathlib import Path

import torch

from hcs_ray.config import ModelConfig
from hcs_ray.model.network import MoaNetwork, ModelSpec
from hcs_ray.screen.sources import open_screen
from hcs_ray.screen.splits import split
from hcs_ray.shards.plate import write_plate
from hcs_ray.shards.read import ShardReader
from hcs_ray.shards.write import claim_of, plate_jobs, shard
from hcs_ray.study import Study, open_study
from hcs_ray.train import model_bytes
from tests.drawn_screen import STUDY_YAML, draw_tiny

CLASSES = ("DMSO", "Microtubule stabilizers")
DOWNSAMPLE = 2


def idle(done: int, total: int) -> None:
    """Nobody watches."""


def sharded_study(folder: Path, more: str, **screen: object) -> Path:
    """Shards and a split; plates are written here and not by tasks of Ray. ``more`` ends study.yaml."""
    draw_tiny(folder / "raw", **screen)
    (folder / "study.yaml").write_text(f"{STUDY_YAML}split: {{folds: 3}}\n{more}")
    study = open_study(str(folder))
    source = open_screen(study.config.screen, study.storage)
    for job in plate_jobs(study, source, claim_of(study, source)):
        write_plate(job, lambda _: None)
    shard(study, idle)
    split(study, idle)
    return folder


def trained(
    folder: Path, *overrides: str, name: str = "main", normalization: str = "batch", backbone: str = "tiny"
) -> tuple[Study, MoaNetwork]:
    """A run whose network has seen a few fields of noise, so that nothing of it is as it began."""
    torch.manual_seed(0)
    config = ModelConfig.model_validate({"backbone": backbone, "normalization": normalization})
    study = open_study(str(folder), name, overrides)
    channels = ShardReader(study.storage, study.require("shard")).channels
    spec = ModelSpec(config.model_dump(mode="json"), channels, CLASSES, DOWNSAMPLE)
    network = MoaNetwork(spec)
    images, plates = torch.rand(4, len(channels), 64, 64), torch.zeros(4, dtype=torch.int64)
    network(images, plates, torch.ones(4, dtype=torch.bool))
    split(study, idle)
    claim = study.claim("train")
    if not study.is_complete("train", claim):
        with study.writing("train", claim) as writer:
            writer.write("model.pt", model_bytes(spec, network.state_dict()))
    return study, network.eval()
