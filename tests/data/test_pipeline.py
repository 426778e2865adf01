"""Batches: complete, shuffled, resumable."""

import grain
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from eenet_jax.data import datasets, pipeline
from eenet_jax.errors import InputError


@pytest.fixture(scope="module")
def split():
    return datasets.open_split("digits", "test")


def ids_of(batches, count: int) -> list[list[int]]:
    return [next(batches)["id"].tolist() for _ in range(count)]


def test_every_sample_comes_once_an_epoch_in_a_new_order(split):
    assert pipeline.steps_per_epoch(split, 40) == 9
    batches = pipeline.train_batches(split, batch_size=40, seed=3)
    first, second = (np.concatenate(ids_of(batches, 9)) for _ in range(2))
    for epoch in (first, second):
        np.testing.assert_array_equal(np.sort(epoch), split.ids)
    # Two permutations at random agree in one place on average.
    assert (first == second).sum() < 10
    assert (first == split.ids).sum() < 10


def test_the_remainder_of_an_epoch_is_dropped(split):
    assert pipeline.steps_per_epoch(split, 100) == 3
    batches = pipeline.train_batches(split, batch_size=100, seed=0)
    for _ in range(2):
        epoch = np.concatenate(ids_of(batches, 3))
        assert len(np.unique(epoch)) == 300


def test_the_seed_fixes_the_order(split):
    orders = [
        ids_of(pipeline.train_batches(split, batch_size=50, seed=seed), 8) for seed in (1, 1, 2)
    ]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


def test_training_batches_are_the_splits_own_images(split):
    batch = next(pipeline.train_batches(split, batch_size=16, seed=0))
    positions = np.searchsorted(split.ids, batch["id"])
    np.testing.assert_array_equal(batch["image"], split.images[positions])
    np.testing.assert_array_equal(batch["label"], split.labels[positions])


@pytest.mark.parametrize("taken", [0, 4, 9, 23])
def test_a_saved_state_gives_exactly_the_batches_that_would_have_followed(split, taken):
    batches = pipeline.train_batches(split, batch_size=40, seed=7)
    ids_of(batches, taken)
    state = batches.get_state()
    expected = ids_of(batches, 12)
    resumed = pipeline.train_batches(split, batch_size=40, seed=7)
    ids_of(resumed, 2)
    resumed.set_state(state)
    assert ids_of(resumed, 12) == expected


def test_orbax_saves_the_iterator_as_it_is(split, tmp_path):
    batches = pipeline.train_batches(split, batch_size=40, seed=7)
    assert isinstance(batches, grain.DatasetIterator)
    ids_of(batches, 5)
    ocp.save_checkpointables(tmp_path / "saved", {"batches": batches})
    expected = ids_of(batches, 6)
    resumed = pipeline.train_batches(split, batch_size=40, seed=7)
    ocp.load_checkpointables(tmp_path / "saved", {"batches": resumed})
    assert ids_of(resumed, 6) == expected


@pytest.mark.parametrize("batch_size", [1, 90, 100, 360, 500])
def test_evaluation_sees_every_sample_once_and_in_order(split, batch_size):
    batches = list(pipeline.eval_batches(split, batch_size=batch_size))
    assert {len(batch["id"]) for batch in batches} == {batch_size}
    assert len(batches) == -(-360 // batch_size)
    kept = {
        name: np.concatenate([batch[name][batch["mask"]] for batch in batches])
        for name in ("image", "label", "id")
    }
    np.testing.assert_array_equal(kept["id"], split.ids)
    np.testing.assert_array_equal(kept["image"], split.images)
    np.testing.assert_array_equal(kept["label"], split.labels)
    assert all(batch["mask"].all() for batch in batches[:-1])


@pytest.mark.parametrize("batch_size", [0, 361])
def test_a_batch_size_that_makes_no_batch_is_refused(split, batch_size):
    with pytest.raises(InputError, match=f"batch_size {batch_size} of 360 test samples"):
        pipeline.train_batches(split, batch_size=batch_size, seed=0)


def test_evaluation_refuses_an_empty_batch_at_once(split):
    with pytest.raises(InputError, match="batch_size 0"):
        pipeline.eval_batches(split, batch_size=0)
