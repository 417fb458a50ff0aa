"""The LightningModule: a weighted loss, and metrics of fields and treatments."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
import torch.distributed
import torchmetrics.functional.classification as tm
from torch.nn import functional

from hcs_ray import contracts as c
from hcs_ray.config import TrainConfig
from hcs_ray.model.loader import LABEL, Batch
from hcs_ray.model.network import MoaNetwork, ModelSpec


class MoaModule(pl.LightningModule):
    """Trains a `MoaNetwork`; every rank must see the same number of batches.

    Args:
        spec: the network.
        config: how it learns.
        class_weights: (K,) float32, the loss of a field is multiplied by its class's.
        validation: the table of the fields it is judged by, with `LABEL`; batches name its rows.
        steps: optimizer steps of the whole training.
    """

    def __init__(
        self,
        spec: ModelSpec,
        config: TrainConfig,
        class_weights: torch.Tensor,
        validation: pd.DataFrame,
        steps: int,
    ) -> None:
        super().__init__()
        self.network = MoaNetwork(spec, pretrained=True)
        self.spec = spec
        self.config = config
        self.validation = validation
        self.steps = steps
        self.class_weights: torch.Tensor
        self.register_buffer("class_weights", class_weights)
        self._seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def training_step(self, batch: Batch, _: int) -> torch.Tensor:
        _, logits = self.network(batch["images"])
        losses = functional.cross_entropy(
            logits, batch["labels"], reduction="none", label_smoothing=self.config.label_smoothing
        )
        share = (losses * self.class_weights[batch["labels"]] * batch["weights"]).sum()
        # DDP takes the mean of the ranks' gradients; the loss of a global batch is the sum of their shares.
        loss = share * self.trainer.world_size
        self.log("train_loss", loss.detach(), on_step=False, on_epoch=True, sync_dist=True, batch_size=1)
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        _, logits = self.network(batch["images"])
        real = batch["weights"] > 0
        self._seen.append((batch["rows"][real].cpu(), logits[real].float().cpu()))

    def on_validation_epoch_end(self) -> None:
        rows, logits = self._gathered()
        self._seen.clear()
        for name, value in validation_metrics(self.validation, rows, logits, len(self.spec.classes)).items():
            self.log(name, value, rank_zero_only=False, sync_dist=False, batch_size=1)

    def _gathered(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows and logits of all ranks, in the order of the rows."""
        mine = (torch.cat([rows for rows, _ in self._seen]), torch.cat([logits for _, logits in self._seen]))
        everyone = [mine]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            everyone = [mine] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(everyone, mine)
        rows = torch.cat([rows for rows, _ in everyone])
        order = rows.argsort()
        return rows[order], torch.cat([logits for _, logits in everyone])[order]

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=self.config.lr, weight_decay=self.config.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.config.lr, total_steps=self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def validation_metrics(
    fields: pd.DataFrame, rows: torch.Tensor, logits: torch.Tensor, classes: int
) -> dict[str, float]:
    """Metrics of fields and, by the mean of their probabilities, of treatments.

    Balanced accuracy and F1 are means over the classes that stand among the labels.
    """
    table = fields.iloc[rows.numpy()]
    labels = torch.from_numpy(table[LABEL].to_numpy("int64").copy())
    probabilities = logits.softmax(1)
    metrics = {"validation_loss": float(functional.cross_entropy(logits, labels))}
    metrics |= _scores("validation_", probabilities, labels, classes)
    group = torch.from_numpy(table.groupby(c.TREATMENT, sort=True).ngroup().to_numpy("int64").copy())
    treatments = int(group.max()) + 1
    sums = torch.zeros(treatments, classes).index_add_(0, group, probabilities)
    treatment_labels = torch.zeros(treatments, dtype=torch.int64)
    treatment_labels[group] = labels
    return metrics | _scores("validation_treatment_", sums, treatment_labels, classes)


def _scores(prefix: str, scores: torch.Tensor, labels: torch.Tensor, classes: int) -> dict[str, float]:
    predicted = scores.argmax(1)
    present = torch.bincount(labels, minlength=classes) > 0
    recall = tm.multiclass_recall(predicted, labels, classes, average="none")[present]
    f1 = tm.multiclass_f1_score(predicted, labels, classes, average="none")[present]
    return {
        f"{prefix}accuracy": float((predicted == labels).float().mean()),
        f"{prefix}balanced_accuracy": float(recall.mean()),
        f"{prefix}macro_f1": float(f1.mean()),
        f"{prefix}mcc": float(tm.multiclass_matthews_corrcoef(predicted, labels, classes)),
    }
