"""How good predictions are: metrics of fields and treatments, confusions, and the worst of the errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torchmetrics.functional.classification as tm
from torch.nn import functional

from hcs_ray import contracts as c
from hcs_ray.model.targets import LABEL, NONE
from hcs_ray.pictures.composite import GAMMA, Image8, add_up, dimmed

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Misclassified:
    """A field whose most probable class is not its own.

    Attributes:
        image: (h, w, 3) uint8, RGB.
        probability: of the predicted class, 0 to 1.
    """

    key: str
    image: Image8
    truth: str
    predicted: str
    probability: float


def validation_metrics(
    fields: pd.DataFrame,
    rows: torch.Tensor,
    logits: torch.Tensor,
    classes: int,
    prefix: str = "validation_",
) -> dict[str, float]:
    """Metrics of fields and, by the mean of their probabilities, of treatments.

    Balanced accuracy and F1 are means over the classes that stand among the labels. Matthews' correlation
    (Gorodkin 2004) is 0 where it is not defined, as with one class alone.

    Args:
        fields: the table with `LABEL` and the treatment; fields without a label do not count.
        rows: (N,) int64, positions in it.
        logits: (N, K) float32, in the order of the rows.
        classes: K.
        prefix: of the metrics' names.

    Returns:
        ``<prefix>loss`` and the scores, of treatments as ``<prefix>treatment_<score>``; nothing where no
        field has a label.
    """
    table, labels, logits = _labelled(fields, rows, logits, classes)
    if not len(labels):
        return {}
    probabilities = logits.softmax(1)
    metrics = {f"{prefix}loss": float(functional.cross_entropy(logits, labels))}
    metrics |= _scores(prefix, probabilities, labels, classes)
    group = torch.from_numpy(table.groupby(c.TREATMENT, sort=True).ngroup().to_numpy("int64").copy())
    treatments = int(group.max()) + 1
    sums = torch.zeros(treatments, classes).index_add_(0, group, probabilities)
    treatment_labels = torch.zeros(treatments, dtype=torch.int64)
    treatment_labels[group] = labels
    return metrics | _scores(f"{prefix}treatment_", sums, treatment_labels, classes)


def _labelled(
    fields: pd.DataFrame, rows: torch.Tensor, logits: torch.Tensor, classes: int
) -> tuple[pd.DataFrame, torch.Tensor, torch.Tensor]:
    """The fields that have a label, their labels (M,) and float32 logits (M, K)."""
    if logits.shape != (len(rows), classes):
        raise ValueError(f"logits {tuple(logits.shape)} for {len(rows)} rows and {classes} classes")
    table = fields.iloc[rows.numpy()]
    labels = table[LABEL].to_numpy("int64")
    known = labels != NONE
    return table[known], torch.from_numpy(labels[known]), logits[torch.from_numpy(known)].float()


def _scores(prefix: str, scores: torch.Tensor, labels: torch.Tensor, classes: int) -> dict[str, float]:
    predicted = scores.argmax(1)
    counted = max(classes, 3)  # torchmetrics takes no single class, and has rules of its own for two
    present = torch.bincount(labels, minlength=counted) > 0
    recall = tm.multiclass_recall(predicted, labels, counted, average="none")[present]
    f1 = tm.multiclass_f1_score(predicted, labels, counted, average="none")[present]
    return {
        f"{prefix}accuracy": float((predicted == labels).float().mean()),
        f"{prefix}balanced_accuracy": float(recall.mean()),
        f"{prefix}macro_f1": float(f1.mean()),
        f"{prefix}mcc": float(tm.multiclass_matthews_corrcoef(predicted, labels, counted)),
    }


def confusion(labels: npt.ArrayLike, predicted: npt.ArrayLike, classes: int) -> Positions:
    """Counts (K, K) int64 of fields by class (rows) and predicted class (columns).

    Labels (N,) of `NONE` do not count.
    """
    truth, found = np.asarray(labels, np.int64).ravel(), np.asarray(predicted, np.int64).ravel()
    known = truth != NONE
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (truth[known], found[known]), 1)
    return counts


def pick_misclassified(
    fields: pd.DataFrame, rows: torch.Tensor, logits: torch.Tensor, classes: int, count: int
) -> Positions:
    """Positions of at most ``count`` fields that are wrong, those with the most probable error first.

    Arguments as of `validation_metrics`; equals are in the order of their keys.
    """
    known = torch.from_numpy(fields[LABEL].to_numpy("int64")[rows.numpy()] != NONE)
    table, labels, logits = _labelled(fields, rows, logits, classes)
    probability, predicted = logits.softmax(1).max(1)
    wrong = (predicted != labels).numpy()
    keys = table[c.KEY].to_numpy(str)[wrong]
    order = np.lexsort((keys, -probability.numpy()[wrong]))[:count]
    return np.asarray(rows[known].numpy()[wrong][order], np.int64)


def misclassified(
    fields: pd.DataFrame,
    rows: torch.Tensor,
    logits: torch.Tensor,
    classes: Sequence[str],
    count: int,
    picture: Callable[[int], npt.NDArray[np.float32]],
) -> list[Misclassified]:
    """The fields of `pick_misclassified` with their pictures and the names of their classes.

    ``picture`` gives the image (C, h, w) of the field at a position.
    """
    found = []
    probabilities = logits.float().softmax(1)
    for position in pick_misclassified(fields, rows, logits, len(classes), count):
        probability, predicted = probabilities[rows == int(position)][0].max(0)
        field: dict[str, Any] = fields.iloc[position].to_dict()
        found.append(
            Misclassified(
                str(field[c.KEY]),
                rgb(picture(int(position))),
                classes[int(field[LABEL])],
                classes[int(predicted)],
                float(probability),
            )
        )
    return found


def rgb(image: npt.NDArray[np.float32]) -> Image8:
    """A corrected image (C, h, w), 0 to 1 in the range of its plate, as RGB (h, w, 3).

    One channel is grey; several have hues at even distances from blue, as DNA, tubulin and actin in BBBC021
    are blue, green and red. The contrast is the plate's, so that dim fields look dim.
    """
    from matplotlib.colors import hsv_to_rgb

    channels = len(image)
    hues = (2 / 3 - np.arange(channels) / channels) % 1
    colours = hsv_to_rgb(np.stack([hues, np.full(channels, float(channels > 1)), np.ones(channels)], axis=1))
    light = np.clip(np.nan_to_num(image), 0, 1) ** GAMMA
    return add_up(light, dimmed(colours))
