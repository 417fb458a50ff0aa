"""Whitening of profiles by the covariance of the negative controls, shrunk as far as the controls ask for.

With fewer control wells than features the controls' covariance is singular, and its small eigenvalues are
noise that a whitening blows up. The correlation matrix R is therefore mixed with the identity,
(1 - s) R + s I (Schäfer & Strimmer 2005, https://doi.org/10.2202/1544-6115.1175), and s is the share under
which control wells of plates that were left out are most likely. Neither treatments nor labels are looked at.
"""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from hcs_ray.contracts import PLATE, InputError
from hcs_ray.profiles.aggregate import Float64, Floats, Ints, require_columns
from hcs_ray.profiles.controls import (
    Normalized,
    is_control,
    require_controls,
    require_spread,
    without_rounding,
)

SHRINKAGES: Final = np.geomspace(1e-4, 1.0, 25)
MOST_FOLDS: Final = 10


class Whitening(NamedTuple):
    """A fitted whitening of F features, of which K vary among the controls.

    Attributes:
        kept: Bool mask (F,) of the K.
        center: The controls' mean (K,).
        spread: Their standard deviation of the population (K,).
        values: Eigenvalues (K,) of their correlation matrix, shrunk.
        vectors: Its eigenvectors (K, K), one a column.
    """

    kept: npt.NDArray[np.bool_]
    center: Float64
    spread: Float64
    values: Float64
    vectors: Float64

    def apply(self, features: Floats, kind: Literal["ZCA", "PCA"]) -> Float64:
        """Whitened features (N, K): with ZCA along the features, with PCA along the principal components."""
        scaled = (features[:, self.kept].astype(np.float64) - self.center) / self.spread
        components = scaled @ (self.vectors / np.sqrt(self.values))
        return np.asarray(components @ self.vectors.T if kind == "ZCA" else components)


def sphere(meta: pd.DataFrame, features: Floats, shrinkage: float | None = None) -> Normalized:
    """ZCA-cor whitening on all controls, as pycytominer's Spherize (Kessy et al. 2018,
    https://doi.org/10.1080/00031305.2016.1277159), with ``shrinkage`` or the one that the controls choose.

    Plates are not centred first: what varies from plate to plate among the controls is damped with the rest.
    """
    whitening, stated = whitening_of(meta, features, shrinkage)
    return Normalized(whitening.apply(features, "ZCA"), whitening.kept, stated)


def whitening_of(
    meta: pd.DataFrame, features: Floats, shrinkage: float | None
) -> tuple[Whitening, dict[str, Any]]:
    """The whitening by all controls of a table, and how its shrinkage was come by."""
    require_columns(meta, (PLATE,))
    control = is_control(meta)
    controls = features[control].astype(np.float64)
    require_controls("the screen", len(controls), 2)
    if shrinkage is not None:
        return fit(controls, shrinkage), {"shrinkage": shrinkage, "shrinkage_chosen": "set by configuration"}
    spread = spread_of(controls)
    kept = require_spread(spread)
    folds = plate_folds(meta[PLATE][control])
    chosen = choose_shrinkage((controls - controls.mean(axis=0))[:, kept] / spread[kept], folds)
    return fit(controls, chosen), {"shrinkage": chosen, "shrinkage_chosen": how_chosen(folds)}


def fit(controls: Float64, shrinkage: float) -> Whitening:
    """The whitening by some controls (n, F); 0 does not shrink, 1 only standardises each feature.

    InputError: no feature varies, or without shrinkage fewer directions than features do.
    """
    spread = spread_of(controls)
    kept = require_spread(spread)
    center = controls[:, kept].mean(axis=0)
    scaled = (controls[:, kept] - center) / spread[kept]
    values, vectors = np.linalg.eigh(scaled.T @ scaled / (len(scaled) - 1))
    rank_limit = len(values) * np.finfo(np.float64).eps * values[-1]
    shrunk = (1 - shrinkage) * np.where(values > rank_limit, values, 0.0) + shrinkage
    if not shrunk.all():
        raise InputError(
            f"{len(controls)} negative controls vary in fewer directions than there are features "
            f"({len(values)}), so profile.shrinkage 0 whitens nothing; leave it unset, or set it above 0"
        )
    return Whitening(kept, center, spread[kept], shrunk, vectors)


def spread_of(controls: Float64) -> Float64:
    """The controls' standard deviation (F,), zero where it is no more than rounding."""
    return without_rounding(controls.std(axis=0), np.abs(controls).max(axis=0))


def plate_folds(plates: pd.Series[Any]) -> Ints:
    """The fold of each control: whole plates, dealt in the order of their names to at most ten folds.

    InputError where all lie on one plate.
    """
    codes = np.unique(plates.to_numpy(dtype=str), return_inverse=True)[1]
    if codes.max() == 0:
        raise InputError(
            f"all negative controls lie on plate {plates.iloc[0]}: a shrinkage is chosen by leaving plates "
            "out; set profile.shrinkage, or normalise by 'center_scale'"
        )
    return np.asarray(codes % MOST_FOLDS, dtype=np.intp)


def how_chosen(folds: Ints) -> str:
    """In words, for the output."""
    return (
        f"from {len(SHRINKAGES)} shares between {SHRINKAGES[0]:g} and 1: the likelihood of negative controls "
        f"of plates left out ({len(folds)} controls, {len(np.unique(folds))} folds); no treatment or label"
    )


def choose_shrinkage(controls: Float64, folds: Ints) -> float:
    """The share of SHRINKAGES under which left-out controls (n, F), already scaled, are most likely.

    Equally good ones: the largest, which changes the profiles least.
    """
    return best_shrinkage(
        sum(
            log_likelihoods(controls[folds != fold], controls[folds == fold])
            for fold in np.unique(folds).tolist()
            if np.count_nonzero(folds != fold) >= 2
        )
    )


def best_shrinkage(likelihoods: Float64 | int) -> float:
    """The largest share of those that reach the maximum; InputError where nothing could be left out."""
    if isinstance(likelihoods, int):
        raise InputError(
            "too few negative controls to choose a shrinkage from: without those of one plate fewer than two "
            "are left; set profile.shrinkage, or normalise by 'center'"
        )
    return float(SHRINKAGES[np.flatnonzero(likelihoods >= likelihoods.max())[-1]])


def log_likelihoods(train: Float64, test: Float64) -> Float64:
    """Of ``test`` (m, F) under a normal distribution with the mean of ``train`` (n, F) and its covariance S
    mixed with the identity, (1 - s) S + s I, for each s of SHRINKAGES: nats, shape of SHRINKAGES.
    """
    mean = train.mean(axis=0)
    _, singular, vectors = np.linalg.svd(train - mean, full_matrices=False)
    variances = singular**2 / (len(train) - 1)
    apart = test - mean
    along = ((apart @ vectors.T) ** 2).sum(axis=0)
    across = max(float((apart**2).sum() - along.sum()), 0.0)  # outside of what the training controls span
    mixed = (1 - SHRINKAGES[:, None]) * variances + SHRINKAGES[:, None]
    outside = train.shape[1] - len(variances)
    log_determinant = np.log(mixed).sum(axis=1) + outside * np.log(SHRINKAGES)
    distance = (along / mixed).sum(axis=1) + across / SHRINKAGES
    constant = train.shape[1] * np.log(2 * np.pi)
    return np.asarray(-0.5 * (len(test) * (log_determinant + constant) + distance))
