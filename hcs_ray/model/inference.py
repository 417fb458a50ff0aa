"""A network over a table of fields, shared out among the ranks: to judge it, and to use it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch

from hcs_ray.config import TrainConfig
from hcs_ray.model import ranks
from hcs_ray.model.loader import Batch, FieldSource, plain_batches
from hcs_ray.model.network import MoaNetwork, Outputs
from hcs_ray.model.parts import parts_of
from hcs_ray.model.targets import PLATE_NUMBER


class Inferred(NamedTuple):
    """Of every listed field, in the order of the table; float32 on the CPU, the same on all ranks."""

    rows: torch.Tensor  # (N,) int64
    embeddings: torch.Tensor  # (N, F); where they were not asked for, (N, 0)
    logits: torch.Tensor  # (N, K) of the MoA classes


def infer(
    network: MoaNetwork,
    source: FieldSource,
    config: TrainConfig,
    rank: int,
    anchor_fields: int,
    *,
    use: bool = False,
) -> Inferred:
    """All listed fields in evaluation mode; every rank must call it.

    To be judged, their middle crops, and what is left of them are logits; for ``use``, whole fields, as
    `hcs-ray embed` takes them, with their embeddings.
    """
    device = next(network.parameters()).device
    plates = torch.from_numpy(source.fields[PLATE_NUMBER].to_numpy("int64").copy())
    loader = plain_batches(source, config, rank, ranks.world_size(), anchor_fields, whole=use)
    mine = []
    with _evaluating(network), torch.inference_mode(), contextlib.closing(loader):
        for batch in loader:
            for part in parts_of(batch, plates, config.device_batch):
                outputs = forward(network, part, plates, config, device)
                real = part["weights"] > 0
                keep = real.to(device)
                kept = outputs.embeddings[keep] if use else outputs.embeddings[keep][:, :0]
                mine.append((part["rows"][real], kept.float().cpu(), outputs.moa[keep].float().cpu()))
    everyone = ranks.gathered(mine)
    rows, embeddings, logits = (
        torch.cat([part[i] for parts in everyone for part in parts]) for i in range(3)
    )
    order = rows.argsort()
    return Inferred(rows[order], embeddings[order], logits[order])


def forward(
    network: MoaNetwork, batch: Batch, plates: torch.Tensor, config: TrainConfig, device: torch.device
) -> Outputs:
    """One batch through the network, in the training's precision; ``plates`` numbers the rows' plates."""
    images = batch["images"].to(device, non_blocking=True)
    if config.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    with autocast(config, device):
        outputs: Outputs = network(
            images,
            plates[batch["rows"].cpu()].to(device, non_blocking=True),
            batch["anchors"].to(device, non_blocking=True),
        )
    return outputs


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """The reduced precision of a configuration, or none."""
    kind = torch.float16 if config.precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=kind, enabled=config.precision != "32")


@contextlib.contextmanager
def _evaluating(network: MoaNetwork) -> Iterator[None]:
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)
