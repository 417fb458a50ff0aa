"""How much of weeks and plates is left in negative controls, which are the same wherever they lie.

Treatments are nested in weeks, so only controls can tell a batch effect from biology. A normalisation makes
the very controls alike that it is fitted to; so the controls are dealt into two halves, each is gauged as the
other half normalises it, as a treatment's well would be, and the two figures are averaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from hcs_ray.contracts import BATCH, PERT_TYPE, PLATE, TREATED, WELL
from hcs_ray.profiles.aggregate import Float64, Floats, Ints
from hcs_ray.profiles.controls import is_control

Bools = npt.NDArray[np.bool_]

MOST_FOLDS: Final = 5
FEWEST_CONTROLS: Final = 4  # on a plate, for two halves that each have a spread
_PERPLEXITY: Final = 30.0  # of LISI, its authors' own; fewer where there are few wells


@dataclass(frozen=True)
class Predictability:
    """How well a linear probe tells the label of wells that it has not seen.

    Attributes:
        accuracy: Balanced over the labels.
        chance: Of guessing: one of the number of labels.
        labels: Their number; those that lie in one group only are left out.
    """

    accuracy: float
    chance: float
    labels: int

    @property
    def excess(self) -> float:
        return self.accuracy - self.chance


def halves(meta: pd.DataFrame) -> list[Bools]:
    """Two masks (N,) of negative controls: of each plate's, in the order of wells, every other one.

    One mask of all controls where a plate has fewer than four: then what is fitted to them is gauged by them.
    """
    control = is_control(meta)
    table = meta.loc[control, [PLATE, WELL]].sort_values([PLATE, WELL], kind="stable")
    if table.groupby(PLATE).size().min() < FEWEST_CONTROLS:
        return [control]
    odd = np.zeros(len(meta), dtype=bool)
    places = pd.Series(np.arange(len(meta)), index=meta.index)
    odd[places[table.index[(table.groupby(PLATE).cumcount() % 2 == 1).to_numpy()]].to_numpy()] = True
    return [control & ~odd, odd]


def hidden(meta: pd.DataFrame, half: Bools) -> pd.DataFrame:
    """The table with one half of the controls as if they were treated: no normalisation is fitted to them."""
    masked = meta.copy()
    masked.loc[half, PERT_TYPE] = TREATED
    return masked


def week_predictability(meta: pd.DataFrame, features: Floats) -> Predictability | None:
    """Of the batch, by a probe that has seen nothing of the plate; None without two weeks of two plates."""
    return predictability(features, meta[BATCH], meta[PLATE])


def plate_predictability(meta: pd.DataFrame, features: Floats) -> Predictability | None:
    """Of the plate, by a probe that has seen other wells of it: a plate cannot be held out of its own label.

    None without two plates of two wells.
    """
    return predictability(features, meta[PLATE], meta[WELL])


def predictability(features: Floats, labels: pd.Series[str], groups: pd.Series[str]) -> Predictability | None:
    """Balanced accuracy of a ridge classifier on standardised features, whole groups left out at a time.

    The penalty is the number of features, so that a feature counts alike however many there are. Each label's
    groups are dealt to at most five folds in the order of their names, so every fold's training knows every
    label. None where fewer than two labels have two groups.
    """
    folds = _folds(labels, groups)
    usable = folds >= 0
    if len(set(labels[usable])) < 2:
        return None
    values, truth = features[usable].astype(np.float64), labels[usable].to_numpy(dtype=str)
    guessed = _guessed(values, truth, folds[usable])
    names = np.unique(truth)
    recalls = [float((guessed[truth == name] == name).mean()) for name in names]
    return Predictability(float(np.mean(recalls)), 1 / len(names), len(names))


def lisi(meta: pd.DataFrame, features: Floats) -> tuple[float, float]:
    """The mean number of weeks among a well's nearest, and what that is where weeks are mixed at random.

    Local inverse Simpson's index of Korsunsky et al. 2019 (https://doi.org/10.1038/s41592-019-0619-0) as
    harmonypy computes it, with Euclidean distance.
    """
    from harmonypy import compute_lisi

    perplexity = min(_PERPLEXITY, (len(meta) - 1) / 3)
    weeks = meta[BATCH].astype(str)
    table = pd.DataFrame({BATCH: weeks.to_numpy()})
    shares = weeks.value_counts(normalize=True).to_numpy()
    found = compute_lisi(features.astype(np.float64), table, [BATCH], perplexity=perplexity)
    return float(np.mean(found)), float(1 / (shares**2).sum())


def _folds(labels: pd.Series[str], groups: pd.Series[str]) -> Ints:
    """The fold of each row; -1 for a label that lies in one group only."""
    pairs = pd.DataFrame({"label": labels.to_numpy(dtype=str), "group": groups.to_numpy(dtype=str)})
    rank = pairs.groupby("label")["group"].rank(method="dense").to_numpy().astype(np.intp) - 1
    several = pairs.groupby("label")["group"].transform("nunique").to_numpy() > 1
    return np.where(several, rank % MOST_FOLDS, -1)


def _guessed(values: Float64, truth: npt.NDArray[np.str_], folds: Ints) -> npt.NDArray[np.str_]:
    from sklearn.linear_model import RidgeClassifier
    from sklearn.preprocessing import StandardScaler

    guessed = np.empty_like(truth)
    for fold in np.unique(folds).tolist():
        train, test = folds != fold, folds == fold
        scaler = StandardScaler().fit(values[train])
        probe = RidgeClassifier(alpha=values.shape[1], class_weight="balanced")
        probe.fit(scaler.transform(values[train]), truth[train])
        guessed[test] = probe.predict(scaler.transform(values[test]))
    return guessed
