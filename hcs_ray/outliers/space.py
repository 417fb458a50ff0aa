"""The space in which wells are compared: controls in the middle, replicates one standard deviation apart.

Two blocks side by side, the embedding and the scaled quality columns. The second was never trained on a
label, so that a label which the network learned by heart can still be doubted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.contracts import InputError
from hcs_ray.outliers.calibrate import NORMAL_MAD, Bools
from hcs_ray.outliers.expected import quality_columns, rows_by
from hcs_ray.profiles.aggregate import Float64, Floats, Ints

SHRINKAGE: Final = 0.1  # of the covariance of replicates towards a sphere, as in regularised LDA
_CUT: Final = 4.0  # MADs at which replicates' deviations are cut: a mislabelled well must not set the scale


def scaled_quality(quality: pd.DataFrame) -> Float64:
    """The quality columns (N, Q) on the scales on which their deviations are compared; constant ones go."""
    columns = [col.measure.scaled(quality[col.name].to_numpy(np.float64)) for col in quality_columns(quality)]
    values = np.stack(columns, axis=1) if columns else np.empty((len(quality), 0))
    middle = np.nanmedian(values, axis=0) if len(values) else np.zeros(0)
    values = np.where(np.isfinite(values), values, middle)
    return values[:, np.ptp(values, axis=0) > 0] if len(values) else values


def centred(meta: pd.DataFrame, features: Floats, trusted: Bools) -> Float64:
    """Features (N, K) less the mean of the trusted negative controls of their plate.

    Where a plate has none that is trusted, all its negative controls are taken.

    Raises:
        InputError: a plate without negative controls, or controls that are all equal.
    """
    result = features.astype(np.float64)
    control = (meta[c.PERT_TYPE] == c.NEGATIVE_CONTROL).to_numpy(dtype=bool)
    number, plates = pd.factorize(meta[c.PLATE], sort=True)
    for plate, rows in zip(plates, rows_by(number), strict=True):
        own = rows[control[rows]]
        if not own.size:
            raise InputError(
                f"plate {plate} has no negative control ({c.PERT_TYPE} = {c.NEGATIVE_CONTROL}) to compare "
                "with; leave the plate out"
            )
        result[rows] -= result[own[trusted[own]] if trusted[own].any() else own].mean(axis=0)
    return result


def check_controls(meta: pd.DataFrame, features: Floats) -> None:
    """InputError where the controls' embeddings (N, K) do not differ by more than float32 rounds."""
    control = (meta[c.PERT_TYPE] == c.NEGATIVE_CONTROL).to_numpy(dtype=bool)
    spread = features[control].std(axis=0)
    if not (spread > np.finfo(np.float32).eps * np.abs(features[control]).max(axis=0)).any():
        raise InputError("the negative controls' embeddings are all equal; train and embed again")


def whitened(features: Float64, groups: Ints, blocks: Sequence[int]) -> Float64:
    """Features (N, K) in which the rows of a group deviate by one standard deviation in every direction.

    The pooled covariance within groups, which linear discriminant analysis takes, shrunk towards a sphere,
    a block of columns at a time (their widths in ``blocks``); directions without any deviation are left out.
    """
    parts, start = [], 0
    for width in blocks:
        parts.append(_whitened(features[:, start : start + width], groups))
        start += width
    return np.concatenate(parts, axis=1) if parts else features[:, :0]


def _whitened(features: Float64, groups: Ints) -> Float64:
    if not features.shape[1]:
        return features
    counts = np.bincount(groups)
    sums = np.zeros((len(counts), features.shape[1]))
    np.add.at(sums, groups, features)
    residual = (features - (sums / counts[:, None])[groups])[counts[groups] > 1]
    if not len(residual):  # no replicates: what the rows differ by
        residual = features - np.median(features, axis=0)
    limit = _CUT * np.median(np.abs(residual), axis=0) / NORMAL_MAD
    limit = np.where(limit > 0, limit, np.abs(residual).max(axis=0))
    residual = np.clip(residual, -limit, limit)
    covariance = residual.T @ residual / len(residual)
    middle = float(np.trace(covariance)) / len(covariance)
    if middle <= 0:
        return features
    values, vectors = np.linalg.eigh(
        (1 - SHRINKAGE) * covariance + SHRINKAGE * middle * np.eye(len(covariance))
    )
    return np.asarray(features @ (vectors / np.sqrt(values)))


class Reduction:
    """The first principal components of embeddings that come block by block, in bounded memory.

    The covariance is summed block by block in float64; the components are those of embeddings less the
    controls of their plate, or less all of the plate's where it has none.
    """

    def __init__(self, components: int) -> None:
        self._components = components
        self._vectors: Floats | None = None

    def fit(self, blocks: Iterable[Floats]) -> None:
        """From blocks (n, F), each of which is centred on its own mean: those of one plate, say."""
        total, rows = None, 0
        for block in blocks:
            moved = block.astype(np.float64) - block.mean(axis=0, dtype=np.float64)
            product = moved.T @ moved
            total = product if total is None else total + product
            rows += len(block)
        if total is not None and len(total) > self._components:
            _, vectors = np.linalg.eigh(total / max(rows, 1))
            self._vectors = np.ascontiguousarray(vectors[:, ::-1][:, : self._components], dtype=np.float32)

    def apply(self, block: Floats) -> Floats:
        """A block (n, F) in the components (n, K), float32; as it is where F is not more than they."""
        block = block.astype(np.float32, copy=False)
        return block if self._vectors is None else block @ self._vectors
