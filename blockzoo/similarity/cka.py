"""Debiased linear CKA of standardised features: how alike two sets of activations are.

Centered kernel alignment (Kornblith et al. 2019, arXiv 1905.00414) compares what two layers make
of the same tokens, whatever their widths and rotations. Two corrections make it usable here:

* The plain estimator is near 1 for *any* two layers where tokens are few against dimensions.
  The unbiased estimator of HSIC (Song et al. 2012, JMLR 13; for CKA see Nguyen et al. 2021,
  arXiv 2010.15327) is 0 on average for unrelated ones, however few the tokens.
* A language model's activations have a few dimensions hundreds of times larger than the rest,
  shared by layers that have nothing else in common. So dimensions are brought to one variance.

A layer is kept as one vector, its U-centred Gram matrix (Székely & Rizzo 2014): the unbiased HSIC
of two layers is the inner product of their vectors. It takes n²/2 numbers, whatever the width:
the matrix is symmetric, and its diagonal is 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32] | NDArray[np.float64]

_CONSTANT = 1e-6  # of its largest value: a dimension that changes by less does so by rounding

#: tokens that are needed for the estimator to exist
LEAST = 4


def standardised(features: Floats) -> Floats:
    """Each dimension with mean 0 and variance 1 over tokens; one that never changes is 0.

    Parameters
    ----------
    features : numpy.ndarray
        (tokens, width).
    """
    centred: Floats = features - features.mean(0)
    deviation = centred.std(0)
    changes = deviation > _CONSTANT * np.abs(features).max(0)
    scaled: Floats = np.divide(centred, deviation, out=np.zeros_like(centred), where=changes)
    return scaled


def layer_vector(features: Floats) -> NDArray[np.float32]:
    """A layer's standardised features as a vector of length 1; `cka` takes two.

    Parameters
    ----------
    features : numpy.ndarray
        (tokens, width), at least `LEAST` tokens.

    Returns
    -------
    numpy.ndarray
        float32, (tokens · (tokens − 1) / 2,). All NaN where the tokens show no structure at all.
    """
    if len(features) < LEAST:
        raise ValueError(f"{len(features)} tokens are too few for CKA")
    scaled = standardised(features)
    gram = scaled @ scaled.T
    np.fill_diagonal(gram, 0)
    n = len(gram)
    sums = gram.sum(0)
    gram -= sums[:, None] / (n - 2)
    gram -= sums[None, :] / (n - 2)
    gram += sums.sum() / ((n - 1) * (n - 2))
    vector = gram[np.tri(n, n, -1, dtype=np.bool_)].astype(np.float32)
    norm = float(np.linalg.norm(vector))
    scaled_vector: NDArray[np.float32] = vector / np.float32(norm if norm > 0 else np.nan)
    return scaled_vector


def cka(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Debiased CKA of two layers' vectors: 1 for the same up to rotation, about 0 for unrelated.

    It may be a little below 0.
    """
    return float(first @ second)


def cka_matrix(layers: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
    """CKA of all with all, (layers, layers)."""
    found = np.ones((len(layers), len(layers)))
    for i, layer in enumerate(layers):
        for j in range(i + 1):
            found[i, j] = found[j, i] = cka(layer, layers[j])
    return found
