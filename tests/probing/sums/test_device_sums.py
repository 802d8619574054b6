"""Sums that devices compute against numpy in float64, and against exact rational sums."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from ldmprobe_core.probing.statistics import SufficientStatistics
from ldmprobe_core.probing.sums.device_sums import DeviceSums, sliced_gram

DEVICES = [
    pytest.param("cpu", False, id="float64"),
    pytest.param("cpu", True, id="float32-slices"),
    *(
        pytest.param(
            "cuda",
            sliced,
            id=f"cuda-{name}",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        )
        for name, sliced in (("float64", False), ("float32-slices", True))
    ),
]


def tokens(count):
    """Activations with columns of very different sizes, and labels, of some tokens."""
    rng = np.random.default_rng(5)
    scale = np.array([1e-6, 1e-3, 1, 30, 3e4, 0])
    x = (rng.normal(0.5, 1, (count, 6)) * scale).clip(-6e4, 6e4).astype(np.float16)
    return x, np.stack([rng.uniform(size=count), 1e-2 * rng.normal(size=count)], 1)


@pytest.mark.parametrize(("device", "sliced"), DEVICES)
def test_gram_matrix_of_a_device_is_that_of_numpy(device, sliced):
    x, y = tokens(40_000)  # more than two blocks of any kind
    z = np.concatenate([x.astype(np.float64), np.ones((len(x), 1)), y], 1)
    device_sums = DeviceSums(torch.device(device), sliced)
    found = SufficientStatistics.from_tokens(x, y, device_sums=device_sums)
    expected = z.T @ z
    norm = np.sqrt(expected.diagonal())
    assert (np.abs(found.gram - expected) <= 1e-9 * np.outer(norm, norm)).all()
    assert (found.gram == found.gram.T).all()
    assert found.n == 40_000


@pytest.mark.parametrize(("device", "sliced"), DEVICES)
def test_sums_of_a_device_of_weighted_tokens_and_positions(device, sliced):
    x, y = tokens(300)
    rng = np.random.default_rng(0)
    weight, positions = rng.integers(0, 4, 300), rng.integers(0, 7, 300)
    plain = SufficientStatistics.from_tokens(x, y, weight, positions, 7)
    device_sums = DeviceSums(torch.device(device), sliced)
    found = SufficientStatistics.from_tokens(x, y, weight, positions, 7, device_sums)
    norm = np.sqrt(plain.gram.diagonal())
    assert (np.abs(found.gram - plain.gram) <= 1e-9 * np.outer(norm, norm)).all()
    expected = np.zeros((7, 9))
    for row, position, times in zip(np.c_[x, np.ones(300), y], positions, weight, strict=True):
        expected[position] += times * row.astype(np.float64)
    scale = np.abs(expected).max(0)
    assert (np.abs(found.by_position - expected) <= 1e-12 * scale).all()


def test_sliced_gram_is_exact_where_float32_products_are_not():
    # 2,048 rows of the largest float16 value, and of one that cancels: plain float32 sums of
    # squares have an error of 1e-8 at least.
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(2048, 3)).astype(np.float16).astype(np.float64)
    rows[:, 0] = 65504
    rows[1::2, 0] = -65503.99
    exact = [
        [sum(Fraction(a) * Fraction(b) for a, b in zip(p, q, strict=True)) for q in rows.T]
        for p in rows.T
    ]
    found = sliced_gram(rows, torch.device("cpu"))
    norm = np.sqrt([float(exact[i][i]) for i in range(3)])
    for i in range(3):
        for j in range(3):
            error = abs(Fraction(float(found[i, j])) - exact[i][j])
            assert float(error) <= 1e-11 * norm[i] * norm[j]
    single = torch.from_numpy(rows.astype(np.float32))
    plain = (single.T @ single).numpy().astype(np.float64)
    assert (np.abs(plain - np.array(exact, float)) > 1e-9 * np.outer(norm, norm)).any()
