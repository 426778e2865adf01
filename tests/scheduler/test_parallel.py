"""Many fits at once: chunks and devices change nothing about each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eenet_jax.scheduler.parallel import chunk_size, in_chunks, over_devices, useful_devices


def test_as_many_fits_at_once_as_memory_allows_and_one_at_least():
    assert chunk_size(250e6, 1.0) == 4
    assert chunk_size(249e6, 1.0) == 4
    assert chunk_size(3e9, 1.0) == 1
    assert chunk_size(0.0, 1e-9) >= 1


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 100])
def test_chunks_of_any_size_give_each_fit_its_own_result_in_order(size):
    fits = (np.arange(7.0), np.arange(14).reshape(7, 2))
    found = in_chunks(lambda part: (part[0] * 2, part[1].sum(1)), fits, size)
    np.testing.assert_array_equal(found[0], 2 * np.arange(7.0))
    np.testing.assert_array_equal(found[1], np.arange(14).reshape(7, 2).sum(1))


def test_at_most_so_many_fits_are_computed_at_once():
    seen = []
    with jax.disable_jit():
        in_chunks(lambda part: (seen.append(len(part)), part)[1], np.arange(7.0), 3)
    assert seen == [3, 3, 3]


def test_fits_over_devices_come_back_whole_and_in_order():
    run = over_devices(lambda shared, fits: shared + fits, useful_devices())
    np.testing.assert_array_equal(run(jnp.float32(3), np.arange(5.0)), np.arange(5.0) + 3)


def test_a_processor_counts_as_one_device():
    assert len(useful_devices()) == 1
