"""A bounded buffer between the thread that reads a source and the one that works on it."""

import collections
import threading
from typing import Any


class Inbox:
    """First in, first out; one thread puts, another takes.

    Unlike `queue.Queue` it wakes the other thread when that waits and not for every item: whoever
    puts is woken once half of the room is free.

    Args:
      room: Items that it holds.
    """

    def __init__(self, room: int):
        self.room = room
        self._items: collections.deque[Any] = collections.deque()
        self._some, self._free = threading.Event(), threading.Event()
        self._closed = False

    def put(self, item: Any) -> bool:
        """Wait for room; False where nobody takes any more."""
        while len(self._items) >= self.room and not self._closed:
            # Looked at again once it is clear, for the other may have made room just before.
            self._free.clear()
            if len(self._items) >= self.room and not self._closed:
                self._free.wait()
        if self._closed:
            return False
        self._items.append(item)
        if not self._some.is_set():
            self._some.set()
        return True

    def take(self) -> Any:
        """The next item.

        Raises:
          IndexError: there is none.
        """
        item = self._items.popleft()
        if not self._free.is_set() and len(self._items) <= self.room // 2:
            self._free.set()
        return item

    def wait(self, seconds: float | None) -> bool:
        """Wait for an item as long as that; None: however long. Whether there is one."""
        self._some.clear()
        return bool(self._items) or self._some.wait(seconds)

    def close(self) -> None:
        """Nobody takes any more."""
        self._closed = True
        self._free.set()
