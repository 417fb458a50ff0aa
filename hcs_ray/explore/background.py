"""Work beside the event loop, so that one session's work keeps no other waiting."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from bokeh.document import Document

from hcs_ray.contracts import HcsError

Result = TypeVar("Result")


class Background:
    """Runs a session's work on shared threads and hands each result back on the event loop.

    Work of one kind replaces what was asked before it: of several answers only the newest is handed over,
    so a slow one that comes late never overwrites it. To be used from the event loop.
    """

    def __init__(self, pool: ThreadPoolExecutor, document: Document, tell: Callable[[str], None]) -> None:
        """``tell`` is called on the event loop with one line when work fails."""
        self._pool, self._document, self._tell = pool, document, tell
        self._newest: dict[str, int] = {}
        self._gone = False
        document.on_session_destroyed(self._leave)

    def run(self, kind: str, work: Callable[[], Result], then: Callable[[Result], None]) -> None:
        """Call ``work`` on a thread and then, unless newer work of this kind was asked for, ``then``."""
        number = self._newest[kind] = self._newest.get(kind, 0) + 1

        def wanted() -> bool:
            return self._newest[kind] == number

        self._submit(self._pool, kind, lambda: work() if wanted() else None, then, wanted)

    def run_each(
        self,
        pool: ThreadPoolExecutor,
        kind: str,
        work: Callable[[], Result],
        then: Callable[[Result], None],
    ) -> None:
        """The same for work that must be done each time, in the order of a pool with one thread."""
        self._submit(pool, kind, work, then, lambda: True)

    def soon(self, then: Callable[[], None]) -> None:
        """Call ``then`` with the document's lock, which whoever changes Bokeh's models needs.

        A callback of Panel may come without it; what it changes by Panel's own means is locked there.
        """
        self._document.add_next_tick_callback(then)

    def _submit(
        self,
        pool: ThreadPoolExecutor,
        kind: str,
        work: Callable[[], Any],
        then: Callable[[Any], None],
        wanted: Callable[[], bool],
    ) -> None:
        def hand_over(future: Future[Any]) -> None:
            if wanted():
                self._hand_over(kind, future, then)

        def ready(future: Future[Any]) -> None:
            if not self._gone and not future.cancelled():
                self._document.add_next_tick_callback(partial(hand_over, future))

        pool.submit(work).add_done_callback(ready)

    def _hand_over(self, kind: str, future: Future[Any], then: Callable[[Any], None]) -> None:
        error = future.exception()
        if error is None:
            then(future.result())
        elif isinstance(error, HcsError):
            self._tell(str(error))
        else:
            logging.getLogger("hcs_ray").error("explore: %s", kind, exc_info=error)
            self._tell(f"{kind}: unexpected {type(error).__name__}: {error}")

    def _leave(self, _: Any) -> None:
        self._gone = True
