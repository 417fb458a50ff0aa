"""A few threads that work through a list; whoever waits for them can stop at any moment."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

A = TypeVar("A")
B = TypeVar("B")

_FAREWELL_S: Final = 1.0


def in_parallel(
    work: Callable[[A], B],
    items: Sequence[A],
    jobs: int,
    stop: threading.Event,
    outcome: Callable[[A, B | Exception], None],
) -> None:
    """Call ``work`` on each item in ``jobs`` threads, and ``outcome``, in this thread, as each ends.

    What ``outcome`` raises (or Ctrl-C) sets ``stop`` and ends the wait. The threads are daemons: one that
    hangs in a read does not hold up the end of the process.
    """
    waiting: queue.SimpleQueue[A] = queue.SimpleQueue()
    ended: queue.SimpleQueue[tuple[A, B | Exception]] = queue.SimpleQueue()
    for item in items:
        waiting.put(item)

    def serve() -> None:
        with contextlib.suppress(queue.Empty):
            while not stop.is_set():
                item = waiting.get_nowait()
                try:
                    ended.put((item, work(item)))
                except Exception as error:
                    ended.put((item, error))

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(min(jobs, len(items)))]
    try:
        for thread in threads:
            thread.start()
        for _ in items:
            outcome(*ended.get())
    except BaseException:
        stop.set()
        raise
    finally:
        until = time.monotonic() + _FAREWELL_S
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))
