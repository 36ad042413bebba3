"""CKA says how alike activations are, and is not fooled by few tokens or one huge dimension."""

from __future__ import annotations

import numpy as np
import pytest

from blockzoo.similarity.cka import cka, cka_matrix, layer_vector, standardised


def draw(tokens: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((tokens, width))


def told(first: np.ndarray, second: np.ndarray) -> float:
    return cka(layer_vector(first), layer_vector(second))


def plain(first: np.ndarray, second: np.ndarray) -> float:
    """CKA as first published: biased, dimensions as they are."""
    x, y = first - first.mean(0), second - second.mean(0)
    cross = np.linalg.norm(x.T @ y) ** 2
    return float(cross / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def test_it_is_the_unbiased_estimator() -> None:
    """Against the formula of Song et al., term by term."""
    x, y = standardised(draw(30, 5, 1)), standardised(draw(30, 7, 2))
    y[:, 0] += x[:, 0]
    y = standardised(y)

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        k, el = a @ a.T, b @ b.T
        np.fill_diagonal(k, 0)
        np.fill_diagonal(el, 0)
        n = len(k)
        trace = np.trace(k @ el)
        sums = k.sum() * el.sum() / ((n - 1) * (n - 2))
        return float(trace + sums - 2 / (n - 2) * (k @ el).sum()) / (n * (n - 3))

    expected = hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))
    assert told(x, y) == pytest.approx(expected, abs=1e-5)


def test_the_same_up_to_order_sign_and_scale_is_the_same() -> None:
    x = draw(200, 20, 1)
    order = np.random.default_rng(0).permutation(20)
    assert told(x, x) == pytest.approx(1, abs=1e-5)
    assert told(x, -3 * x[:, order] + 5) == pytest.approx(1, abs=1e-5)


def test_few_tokens_do_not_make_strangers_alike() -> None:
    pairs = [(draw(24, 256, i), draw(24, 256, 100 + i)) for i in range(20)]
    assert min(plain(*pair) for pair in pairs) > 0.8
    assert abs(np.mean([told(*pair) for pair in pairs])) < 0.05


def test_one_huge_dimension_in_common_does_not_make_strangers_alike() -> None:
    x, y = draw(400, 64, 1), draw(400, 64, 2)
    x[:, 3] = y[:, 9] = 300 * draw(400, 1, 3)[:, 0]
    assert plain(x, y) > 0.99
    assert abs(told(x, y)) < 0.05


def test_what_never_changes_counts_for_nothing() -> None:
    x = draw(100, 8, 1)
    still = np.hstack([x, np.full((100, 3), 1e4) + 1e-6 * draw(100, 3, 2)])
    assert told(x, still) == pytest.approx(1, abs=1e-4)
    assert np.isnan(told(x, np.ones((100, 4))))


def test_all_with_all() -> None:
    layers = [layer_vector(draw(80, 6, i)) for i in range(3)]
    matrix = cka_matrix(layers)
    assert matrix.shape == (3, 3) and np.allclose(np.diag(matrix), 1, atol=1e-5)
    assert matrix[0, 2] == pytest.approx(cka(layers[0], layers[2]), abs=1e-6)


def test_three_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        layer_vector(draw(3, 4, 1))
