"""Parts of arrays that are read, against indexing the whole array in memory."""

import numpy as np
import pytest
import zarr

from ldmprobe_core.storage.nodes import read_selection

EVERY = slice(None)


@pytest.fixture(scope="module")
def stored():
    """An array in memory and the same in a Zarr store, in chunks of 1 x 2 x 3."""
    values = np.random.default_rng(0).random((7, 4, 6))
    array = zarr.create_array(
        zarr.storage.MemoryStore(), shape=values.shape, chunks=(1, 2, 3), dtype="float64"
    )
    array[...] = values
    return values, array


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize(
    "index",
    [
        (EVERY, EVERY, EVERY),
        (3, EVERY, EVERY),
        (np.int64(3), slice(1, 3), 5),
        ([2, 3, 4], EVERY, EVERY),
        (np.array([0, 1, 4, 6]), EVERY, EVERY),
        (np.array([5, 2, 3, 3, 0]), EVERY, 2),
        (EVERY, [0, 3], EVERY),
        (EVERY, [1, 2], EVERY),
        ([0, 2], [0, 3], EVERY),
        ([0, 2, 5], [1, 2], EVERY),
        ([0, 2, 5], 1, [4, 1]),
        ([6], EVERY, EVERY),
        ([-1, 0], EVERY, EVERY),
        (np.array([True, False, True, True, False, False, True]), EVERY, EVERY),
        (np.array([], int), EVERY, EVERY),
        (2, [3, 0], EVERY),
    ],
)
def test_read_selection_is_that_of_the_array_in_memory(stored, index, in_turn):
    values, array = stored
    expected = values
    for axis in (2, 1, 0):  # from the last, as an integer removes its axis
        part = index[axis]
        expected = expected[(EVERY,) * axis + (np.asarray(part) if type(part) is list else part,)]
    found = read_selection(array, index, in_turn)
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("index", [[5, 6, 7], [0, 7], [9]])
def test_read_selection_refuses_indices_outside_the_array(stored, index):
    with pytest.raises(IndexError):
        read_selection(stored[1], (index, EVERY, EVERY), True)
