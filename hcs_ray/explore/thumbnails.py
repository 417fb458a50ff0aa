"""Small pictures of fields: read by ranges in threads, averaged down while decoding, the last ones kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Final

from hcs_ray.contracts import HcsError, InputError
from hcs_ray.explore.scene import Scene
from hcs_ray.pictures.composite import plate_contrasts
from hcs_ray.pictures.encode import jpeg
from hcs_ray.pictures.notice import notice
from hcs_ray.pictures.thumbnail import Thumbnail

MEDIA_TYPE: Final = "image/jpeg"
_THREADS_OF_A_STORE: Final = 16  # they wait most of the time
_THREADS: Final = 4


class Thumbnails:
    """Composites of fields in the contrast of their plates, pixels as the camera gave them.

    Illumination stays as it is: its functions, 16 MB a plate, would take longer than the pictures. Safe to
    share between threads; a field that two ask for at once is read once.
    """

    def __init__(
        self, scene: Scene, size_px: int = 160, limit_bytes: int = 2**28, threads: int | None = None
    ) -> None:
        """``limit_bytes`` of JPEGs are kept; ``threads``: by default 4, or 16 where a store is waited for."""
        self._scene = scene
        self._size_px = size_px
        self._limit = limit_bytes
        self._bytes = 0
        self._kept: OrderedDict[int, bytes] = OrderedDict()  # the longest unused first
        self._waiting: dict[int, Future[bytes]] = {}
        self._lock = threading.Lock()
        contrasts = plate_contrasts(scene.fields, scene.channels)
        self._thumbnail = Thumbnail(scene.reader, contrasts, size_px, correct=False)
        count = threads or (_THREADS if scene.reader.is_local else _THREADS_OF_A_STORE)
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="thumbnails")
        self.problems: dict[str, str] = {}  # key -> why it could not be shown when it was asked for last

    @property
    def kept_bytes(self) -> int:
        """The bytes of the pictures that are kept."""
        return self._bytes

    def get(self, rows: Sequence[int]) -> dict[int, bytes]:
        """A JPEG of each field, at most ``size_px`` wide and high.

        A field whose member is damaged or whose shard is gone has a picture that says so, and a line in
        ``problems``; it is tried again when it is asked for again.
        """
        return {row: future.result() for row, future in self._futures(rows).items()}

    def future(self, row: int) -> Future[bytes]:
        """The same of one field, to be waited for without a thread; shared, so never to be cancelled."""
        with self._lock:
            if row in self._kept:
                self._kept.move_to_end(row)
                ready: Future[bytes] = Future()
                ready.set_result(self._kept[row])
                return ready
            if row not in self._waiting:
                self._waiting[row] = self._pool.submit(self._drawn, row)
            return self._waiting[row]

    def stream(self, rows: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """The same, each as soon as it is there."""
        rows_of = {future: row for row, future in self._futures(rows).items()}
        for future in as_completed(rows_of):
            yield rows_of[future], future.result()

    def close(self) -> None:
        """Give up what is still waiting to be read."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _futures(self, rows: Sequence[int]) -> dict[int, Future[bytes]]:
        return {int(row): self.future(int(row)) for row in rows}

    def _drawn(self, row: int) -> bytes:
        """A picture, kept where it shows its field; the longest unused make room for it."""
        key = str(self._scene.keys[row])
        try:
            data, problem = self._draw(row)
        except BaseException:
            with self._lock:
                del self._waiting[row]
            raise
        with self._lock:
            del self._waiting[row]
            self.problems.pop(key, None)
            if problem is not None:
                self.problems[key] = problem
                return data
            self._kept[row] = data
            self._bytes += len(data)
            while self._bytes > self._limit:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return data

    def _draw(self, row: int) -> tuple[bytes, str | None]:
        """A JPEG, and the line that says why it shows no field."""
        try:
            return self._thumbnail.draw(self._scene.about(row)), None
        except HcsError as error:
            gone = isinstance(error, InputError)
            return self._notice("no such shard" if gone else "cannot be read: damaged"), str(error)

    def _notice(self, words: str) -> bytes:
        height, width = self._scene.reader.shape[1:]
        scale = self._size_px / max(height, width)
        shape = max(1, round(width * scale)), max(1, round(height * scale))
        return jpeg(notice(words, *shape), self._size_px)
