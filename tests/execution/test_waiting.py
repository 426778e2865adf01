"""Those who wait for a stage, against lists of them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eenet_jax.execution import waiting
from eenet_jax.execution.waiting import Standing, Waiting

SIZE, ROOM = 4, 8


def samples(numbers) -> Standing:
    """Each sample's number is in all that it consists of."""
    numbers = jnp.asarray(numbers)
    carry = {"map": numbers[:, None, None] * jnp.ones((1, 2, 3)), "mask": numbers[:, None]}
    return Standing((carry, numbers[None, :, None] * jnp.ones((2, 1, 5)), None, None), numbers)


def numbers_of(found: Standing) -> list[int]:
    """Of each sample, when everything of it agrees."""
    (carry, probs, *_), numbers = found.parts, np.asarray(found.places)
    for leaf in (carry["map"][:, 0, 0], carry["map"][:, 1, 2], carry["mask"][:, 0]):
        np.testing.assert_array_equal(leaf, numbers)
    for row in np.asarray(probs).transpose(0, 2, 1).reshape(-1, numbers.size):
        np.testing.assert_array_equal(row, numbers)
    return numbers.tolist()


def line(first: int, count: int) -> tuple[Waiting, list[int]]:
    """So many in line from a row on, and their numbers."""
    rows = np.full(ROOM, -1)
    numbers = list(range(100, 100 + count))
    rows[(first + np.arange(count)) % ROOM] = numbers
    return Waiting(samples(rows), jnp.asarray(first), jnp.asarray(count)), numbers


def in_line(found: Waiting) -> list[int]:
    rows = (int(found.first) + np.arange(int(found.count))) % ROOM
    return np.asarray(numbers_of(found.ring))[rows].tolist()


fill = jax.jit(waiting.filled_up, static_argnums=3)
join = jax.jit(waiting.joined, static_argnums=3)

drawn = {
    "first": st.integers(0, ROOM - 1),
    "count": st.integers(0, SIZE - 1),
    "stay": st.lists(st.booleans(), min_size=SIZE, max_size=SIZE),
}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(**drawn, soon=st.sampled_from([1, 2, 8]))
def test_those_who_wait_fill_the_gaps(first, count, stay, soon):
    before, numbers = line(first, count)
    whole, piece, after = fill(before, samples(np.arange(SIZE)), jnp.asarray(stay), soon)
    staying = [number for number in range(SIZE) if stay[number]]
    gaps = SIZE - len(staying)
    assert bool(whole) == (count >= gaps)
    if not whole:
        assert in_line(after) == numbers + staying
        return
    # A part of them goes in at least, and those whose places they take wait.
    taken = max(gaps, math.ceil(count / soon))
    swapped = staying[: taken - gaps]
    now = numbers_of(piece)
    assert in_line(after) == numbers[taken:] + swapped
    assert sorted(now) == sorted(set(staying) - set(swapped) | set(numbers[:taken]))
    stayed = [number for number in staying if number not in swapped]
    assert [now[number] for number in stayed] == stayed


@pytest.mark.parametrize("one_by_one", [True, False])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(**drawn)
def test_who_stays_comes_last(one_by_one, first, count, stay):
    before, numbers = line(first, count)
    after = join(before, samples(np.arange(SIZE)), jnp.asarray(stay), one_by_one)
    assert in_line(after) == numbers + [number for number in range(SIZE) if stay[number]]


@pytest.mark.parametrize("one_by_one", [True, False])
@pytest.mark.parametrize("count", [5, 7, 8])
@pytest.mark.parametrize("skip", [0, 1, 3])
def test_as_many_as_there_is_room_for_join(one_by_one, count, skip):
    before, numbers = line(6, count)
    after = join(before, samples(np.arange(SIZE)), jnp.ones(SIZE, bool), one_by_one, skip)
    room = min(ROOM - count, SIZE - skip)
    assert in_line(after) == numbers + list(range(skip, skip + room))


@pytest.mark.parametrize("count", [0, 2, 4, 7])
@pytest.mark.parametrize("first", [0, 6])
def test_the_oldest_go_first(first, count):
    before, numbers = line(first, count)
    found, there = waiting.oldest(before, SIZE)
    assert np.asarray(numbers_of(found))[np.asarray(there)].tolist() == numbers[:SIZE]
    assert in_line(waiting.without(before, SIZE)) == numbers[SIZE:]


@pytest.mark.parametrize("count", [0, 2, 7])
def test_more_room_changes_nobody(count):
    before, numbers = line(6, count)
    after = waiting.with_room(before, ROOM + 3)
    assert after.ring.places.shape == (ROOM + 3,)
    assert (int(after.first), int(after.count)) == (0, count)
    assert numbers_of(after.ring)[:count] == numbers


@pytest.mark.parametrize("leave", [0.0, 0.02, 0.2, 0.5])
@pytest.mark.parametrize(("size", "soon", "most"), [(8, 8, 8), (16, 4, 8), (64, 1, 3)])
def test_nobody_waits_for_long(leave, size, soon, most):
    """However few leave, those who come don't overtake for ever those who wait."""
    pieces, draw = 200, np.random.default_rng(0)
    found, since, waited = waiting.nobody(samples(np.arange(1)).parts, 2 * size), {}, []
    for number in range(pieces):
        ids = np.arange(number * size, (number + 1) * size)
        since |= dict.fromkeys(ids.tolist(), number)
        stay = draw.random(size) >= leave
        whole, piece, found = fill(found, samples(ids), jnp.asarray(stay), soon)
        if whole:
            waited += [number - since[each] for each in np.asarray(piece.places).tolist()]
    assert len(waited) > 0.4 * size * pieces * (1 - leave)
    assert max(waited) <= most
