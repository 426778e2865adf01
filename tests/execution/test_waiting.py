"""Those who wait for a stage, against lists of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eenet_jax.execution import waiting
from eenet_jax.execution.waiting import Rows, Waiting

SIZE, ROWS = 4, 8


def samples(numbers) -> Rows:
    """Each sample's number is in all that it consists of."""
    numbers = jnp.asarray(numbers)
    carry = {"map": numbers[:, None, None] * jnp.ones((1, 2, 3)), "mask": numbers[:, None]}
    return Rows((carry, numbers[None, :, None] * jnp.ones((2, 1, 5)), None, None), numbers)


def numbers_of(found: Rows) -> list[int]:
    """Of each sample, when everything of it agrees."""
    (carry, probs, *_), numbers = found.parts, np.asarray(found.places)
    for leaf in (carry["map"][:, 0, 0], carry["map"][:, 1, 2], carry["mask"][:, 0]):
        np.testing.assert_array_equal(leaf, numbers)
    for row in np.asarray(probs).transpose(0, 2, 1).reshape(-1, numbers.size):
        np.testing.assert_array_equal(row, numbers)
    return numbers.tolist()


def line(first: int, count: int) -> tuple[Waiting, list[int]]:
    """So many in line from a row on, and their numbers."""
    rows = np.full(ROWS, -1)
    numbers = list(range(100, 100 + count))
    rows[(first + np.arange(count)) % ROWS] = numbers
    return Waiting(samples(rows), jnp.asarray(first), jnp.asarray(count)), numbers


def in_line(found: Waiting) -> list[int]:
    rows = (int(found.first) + np.arange(int(found.count))) % ROWS
    return np.asarray(numbers_of(found.rows))[rows].tolist()


@functools.cache
def jitted(name: str, way: str):
    """A function of the module, copying as on a CPU or as elsewhere."""

    def run(*given):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax, "default_backend", lambda: way)
            return getattr(waiting, name)(*given)

    return jax.jit(run)


drawn = {
    "way": st.sampled_from(["cpu", "gpu"]),
    "first": st.integers(0, ROWS - 1),
    "count": st.integers(0, SIZE - 1),
    "stay": st.lists(st.booleans(), min_size=SIZE, max_size=SIZE),
}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(**drawn)
def test_those_who_wait_fill_the_gaps(way, first, count, stay):
    before, numbers = line(first, count)
    whole, piece, after = jitted("filled_up", way)(
        before, samples(np.arange(SIZE)), jnp.asarray(stay)
    )
    gaps = stay.count(False)
    staying = [number for number in range(SIZE) if stay[number]]
    assert bool(whole) == (count >= gaps)
    if not whole:
        assert in_line(after) == numbers + staying
        return
    # The oldest go in; where all gaps are filled, one more takes the place of one who waits then.
    taken = min(count, gaps + 1)
    swapped = staying[: taken - gaps]
    now = numbers_of(piece)
    assert in_line(after) == numbers[taken:] + swapped
    assert sorted(now) == sorted(set(staying) - set(swapped) | set(numbers[:taken]))
    # Whoever stays stays where it was.
    assert [now[number] for number in staying if number not in swapped] == [
        number for number in staying if number not in swapped
    ]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(**drawn)
def test_who_stays_comes_last(way, first, count, stay):
    before, numbers = line(first, count)
    after = jitted("joined", way)(before, samples(np.arange(SIZE)), jnp.asarray(stay))
    assert in_line(after) == numbers + [number for number in range(SIZE) if stay[number]]


@pytest.mark.parametrize("count", [0, 2, 4, 7])
@pytest.mark.parametrize("first", [0, 6])
def test_the_oldest_go_first(first, count):
    before, numbers = line(first, count)
    found, valid = waiting.oldest(before, SIZE)
    there = np.asarray(numbers_of(found))[np.asarray(valid)].tolist()
    assert there == numbers[:SIZE]
    assert in_line(waiting.without(before, SIZE)) == numbers[SIZE:]


def test_a_whole_piece_lies_together():
    before, numbers = line(4, 7)
    assert numbers_of(waiting.oldest_together(before, SIZE)) == numbers[:SIZE]


def test_nobody_waits_for_ever():
    """Where everybody always stays, those who wait go on all the same, the oldest first."""
    found, numbers = line(5, 3)
    fill = jitted("filled_up", "cpu")
    for number in numbers:
        whole, piece, found = fill(found, samples(np.arange(SIZE)), jnp.ones(SIZE, bool))
        assert bool(whole)
        assert number in numbers_of(piece)
