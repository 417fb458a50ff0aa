"""Alignment of batches: CORAL and TVN by their controls, ComBat and Harmony by all their wells.

All four are told which wells lie in one batch, and no label or treatment.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from hcs_ray.contracts import BATCH, PLATE, SITE, WELL, InputError
from hcs_ray.profiles.aggregate import Float64, Floats, Ints, require_columns
from hcs_ray.profiles.controls import Normalized, center_scale, is_control, require_controls
from hcs_ray.profiles.whiten import (
    Whitening,
    best_shrinkage,
    how_chosen,
    log_likelihoods,
    plate_folds,
    whitening_of,
)

_TOLD: Final = "the batch of each well; no treatment, compound or label"
_LIKE_A_CLUSTER: Final = 30  # wells for each of Harmony's clusters, its own default
_SEED: Final = 0


def coral(meta: pd.DataFrame, features: Floats, shrinkage: float | None = None) -> Normalized:
    """``center_scale``, then the covariance of each batch's controls becomes that of all controls.

    CORAL of Sun, Feng & Saenko 2016 (https://arxiv.org/abs/1511.05547): x C_b^(-1/2) C^(1/2). Where theirs
    adds the identity to both, here C is the controls' shrunk correlation matrix, and C_b the batch's own
    covariance mixed with C, by the share under which left-out controls are most likely.
    """
    scaled = center_scale(meta, features)
    reference, stated = whitening_of(meta, scaled.features, shrinkage)
    whole = (reference.vectors * reference.values) @ reference.vectors.T
    values = (scaled.features - reference.center) / reference.spread
    share, chosen = _batch_shrinkage(meta, scaled.features, reference, shrinkage, stated)
    root = _power(whole, 0.5)
    for _, rows, controls in _batches(meta, values):
        own = np.atleast_2d(np.cov(controls, rowvar=False))
        values[rows] = values[rows] @ _power((1 - share) * own + share * whole, -0.5) @ root
    kept = scaled.kept.copy()
    kept[scaled.kept] = reference.kept
    return Normalized(values, kept, chosen)


def tvn(meta: pd.DataFrame, features: Floats, shrinkage: float | None = None) -> Normalized:
    """Typical variation normalisation, both steps (Ando, McLean & Berndl 2017,
    https://doi.org/10.1101/161422).

    First PCA whitening by all controls; plates are not centred before it, so that what differs from plate to
    plate among controls is damped. Then each batch is centred on its controls, and by CORAL their covariance
    becomes that of all, the identity.
    """
    whitening, stated = whitening_of(meta, features, shrinkage)
    values = whitening.apply(features, "PCA")
    share, chosen = _batch_shrinkage(meta, features, whitening, shrinkage, stated)
    identity = np.eye(values.shape[1])
    for _, rows, controls in _batches(meta, values):
        own = np.atleast_2d(np.cov(controls, rowvar=False))
        values[rows] -= controls.mean(axis=0)
        values[rows] = values[rows] @ _power((1 - share) * own + share * identity, -0.5)
    return Normalized(values, whitening.kept, chosen)


def combat(meta: pd.DataFrame, features: Floats) -> Normalized:
    """``center_scale``, then ComBat (Johnson, Li & Rabinovic 2007,
    https://doi.org/10.1093/biostatistics/kxj037) as scanpy has it: it knows the batch only.
    """
    scaled = center_scale(meta, features)
    for batch, rows in _rows_of_batches(meta):
        if len(rows) < 2:
            raise InputError(f"batch {batch} has one row, and combat needs two; normalise by 'center_scale'")
    import anndata
    import scanpy

    order = _order(meta)
    table = anndata.AnnData(
        np.ascontiguousarray(scaled.features[order]),
        obs=pd.DataFrame({BATCH: meta[BATCH].to_numpy(dtype=str)[order]}, index=order.astype(str)),
    )
    adjusted = scanpy.pp.combat(table, key=BATCH, inplace=False)
    return _restored(adjusted, order, scaled, {"told": _TOLD, "library": "scanpy.pp.combat"}, "combat")


def harmony(meta: pd.DataFrame, features: Floats) -> Normalized:
    """``center_scale``, then Harmony (Korsunsky et al. 2019, https://doi.org/10.1038/s41592-019-0619-0) as
    harmonypy has it, on all features: it knows the batch only.
    """
    scaled = center_scale(meta, features)
    _rows_of_batches(meta)
    from harmonypy import run_harmony

    order = _order(meta)
    clusters = int(min(max(round(len(order) / _LIKE_A_CLUSTER), 2), 100))
    fitted = run_harmony(
        scaled.features[order],
        pd.DataFrame({BATCH: meta[BATCH].to_numpy(dtype=str)[order]}),
        [BATCH],
        nclust=clusters,
        verbose=False,
        random_state=_SEED,
    )
    stated = {"told": _TOLD, "library": "harmonypy", "clusters": clusters, "seed": _SEED}
    return _restored(fitted.Z_corr, order, scaled, stated, "harmony")


def _batch_shrinkage(
    meta: pd.DataFrame,
    features: Floats,
    whitening: Whitening,
    shrinkage: float | None,
    stated: dict[str, Any],
) -> tuple[float, dict[str, Any]]:
    """How far each batch's covariance is drawn to that of all controls, one share for all batches.

    Chosen as the whitening's own is: on plates left out, of the whitening as of the batch's covariance.
    """
    for batch, _, controls in _batches(meta, features):
        require_controls(f"batch {batch}", len(controls), 2)
    if shrinkage is not None:
        return shrinkage, {**stated, "batch_shrinkage": shrinkage, "told": _TOLD}
    control = is_control(meta)
    controls = features[control].astype(np.float64)[:, whitening.kept]
    batches = meta[BATCH][control].to_numpy(dtype=str)
    folds = plate_folds(meta[PLATE][control])
    total: Float64 | int = 0
    for fold in np.unique(folds).tolist():
        out = folds == fold
        if np.count_nonzero(~out) >= 2:
            whitened = _refitted(whitening, controls, ~out, stated["shrinkage"])
            for batch in np.unique(batches[out]):
                train, test = ~out & (batches == batch), out & (batches == batch)
                if np.count_nonzero(train) >= 2:
                    total = total + log_likelihoods(whitened[train], whitened[test])
    if isinstance(total, int):
        raise InputError(
            "no batch has negative controls on two plates, which choose the batch's shrinkage; "
            "set profile.shrinkage, or normalise by 'sphere'"
        )
    share = best_shrinkage(total)
    return share, {
        **stated,
        "batch_shrinkage": share,
        "batch_shrinkage_chosen": how_chosen(folds),
        "told": _TOLD,
    }


def _refitted(
    whitening: Whitening, controls: Float64, train: npt.NDArray[np.bool_], shrinkage: float
) -> Float64:
    """All controls (n, K) whitened by those that train, in the scale of the whole whitening.

    That keeps features which vary only on the plates left out.
    """
    scaled = (controls - whitening.center) / whitening.spread
    apart = scaled[train] - scaled[train].mean(axis=0)
    values, vectors = np.linalg.eigh(apart.T @ apart / (np.count_nonzero(train) - 1))
    shrunk = (1 - shrinkage) * np.maximum(values, 0.0) + shrinkage
    return np.asarray((scaled - scaled[train].mean(axis=0)) @ (vectors / np.sqrt(shrunk)))


def _batches(meta: pd.DataFrame, values: Floats) -> Iterator[tuple[str, Ints, Float64]]:
    """Each batch's name, rows, and the controls' values (n, F) as they are before anything is changed."""
    control = is_control(meta)
    for batch, rows in _rows_of_batches(meta):
        yield batch, rows, values[rows[control[rows]]].astype(np.float64)


def _rows_of_batches(meta: pd.DataFrame) -> list[tuple[str, Ints]]:
    require_columns(meta, (BATCH,))
    groups = meta.groupby(BATCH, sort=True).indices.items()
    found: list[tuple[str, Ints]] = [(str(batch), np.asarray(rows, dtype=np.intp)) for batch, rows in groups]
    if len(found) < 2:
        raise InputError(
            f"all rows lie in batch {found[0][0] if found else 'none'}: there is nothing to align; "
            "normalise by 'sphere' or 'center_scale'"
        )
    return found


def _power(matrix: Float64, exponent: float) -> Float64:
    """A power of a symmetric positive definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    if values[0] <= 0:
        raise InputError(
            "the controls' covariance is singular: set profile.shrinkage above 0, or leave it unset"
        )
    return np.asarray((vectors * values**exponent) @ vectors.T)


def _order(meta: pd.DataFrame) -> Ints:
    """Rows by plate, well and site: what a library computes must not depend on the order of its rows."""
    columns = [name for name in (PLATE, WELL, SITE) if name in meta.columns]
    return meta[columns].reset_index(drop=True).sort_values(columns, kind="stable").index.to_numpy()


def _restored(
    adjusted: Any, order: Ints, scaled: Normalized, stated: dict[str, Any], method: str
) -> Normalized:
    """What a library returns, in the order of the rows as they came."""
    values = np.empty(scaled.features.shape)
    values[order] = np.asarray(adjusted, dtype=np.float64)
    if not np.isfinite(values).all():
        raise InputError(f"{method} gives numbers that are not finite; normalise by 'center_scale'")
    return Normalized(values, scaled.kept, stated)
