"""A batch in parts that go through a network one after another, where the whole would not fit."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hcs_ray.model.loader import Batch


def parts_of(batch: Batch, plates: torch.Tensor, most: int | None) -> list[Batch]:
    """Parts of at most ``most`` fields, each with the anchors of its plates; none: the batch as it is.

    ``plates`` numbers the plates of the rows of the table, on the device of the batch.
    """
    learned = (~batch["anchors"]).nonzero().flatten()
    if most is None or len(learned) <= most:
        return [batch]
    plate = plates[batch["rows"]]
    found = []
    for rows in torch.split(learned, most):
        anchors = (batch["anchors"] & torch.isin(plate, plate[rows])).nonzero().flatten()
        kept = torch.cat([rows, anchors])
        found.append(each_tensor(batch, lambda tensor, kept=kept: tensor[kept]))  # type: ignore[misc]
    return found


def each_tensor(batch: Batch, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
    """A batch of which every tensor is changed."""
    return Batch(
        images=change(batch["images"]),
        rows=change(batch["rows"]),
        weights=change(batch["weights"]),
        anchors=change(batch["anchors"]),
        changes=change(batch["changes"]),
    )
