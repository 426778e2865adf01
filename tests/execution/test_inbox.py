"""What is put is taken, in its order, and no more lies there than there is room for."""

import threading
import time

import pytest

from eenet_jax.execution.inbox import Inbox


@pytest.mark.parametrize("room", [1, 2, 7, 64])
def test_everything_comes_through_in_order_and_in_bounded_room(room):
    count, most, box = 20_000, 0, Inbox(room)
    reader = threading.Thread(target=lambda: [box.put(i) for i in range(count)], daemon=True)
    reader.start()
    taken = []
    while len(taken) < count:
        most = max(most, len(box._items))
        try:
            taken.append(box.take())
        except IndexError:
            assert box.wait(10.0)
    assert taken == list(range(count))
    assert most <= room
    reader.join(10.0)
    assert not reader.is_alive()


def test_nobody_waits_longer_than_asked_for_what_does_not_come():
    box = Inbox(3)
    began = time.perf_counter()
    assert not box.wait(0.05)
    assert time.perf_counter() - began >= 0.05
    with pytest.raises(IndexError):
        box.take()
    assert box.put("first")
    assert box.wait(None)
    assert box.take() == "first"


def test_who_puts_is_let_go_when_nobody_takes_any_more():
    box, said = Inbox(1), []
    reader = threading.Thread(target=lambda: said.extend(map(box.put, range(5))), daemon=True)
    reader.start()
    while not box._items:
        time.sleep(0.001)
    time.sleep(0.05)
    assert said == [True]
    box.close()
    reader.join(10.0)
    assert said == [True, False, False, False, False]
    assert len(box._items) == 1
