"""Pictures over HTTP: a browser asks for those it needs, several at once, and keeps them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, Final

from tornado.web import RequestHandler

from hcs_ray.contracts import HcsError
from hcs_ray.explore.access import Gate
from hcs_ray.explore.drawing import draw, parse_drawing, values_at
from hcs_ray.explore.shared import Explorer
from hcs_ray.explore.thumbnails import MEDIA_TYPE

_KEPT: Final = "private, max-age=86400, immutable"  # its address names the server's run
_MOST_QUERY: Final = 20_000

Patterns = list[tuple[str, type[RequestHandler], dict[str, Any]]]


class _Answer(RequestHandler):
    """One answer, made on a thread; refused to those who are not let in."""

    def initialize(self, explorer: Explorer, gate: Gate) -> None:
        self.explorer = explorer
        self.gate = gate

    def prepare(self) -> None:
        if not self.gate.admits(self):
            self.gate.refuse(self)

    async def answer(self, media_type: str, make: Callable[[], bytes]) -> None:
        """Send what ``make`` gives; a failure is 404 with its line."""
        try:
            data = await asyncio.get_running_loop().run_in_executor(self.explorer.pool, make)
        except HcsError as error:
            self.set_status(404)
            self.set_header("Content-Type", "text/plain; charset=utf-8")
            self.finish(f"{error}\n")
            return
        self.set_header("Content-Type", media_type)
        self.set_header("Cache-Control", _KEPT)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.finish(data)

    def row(self, text: str) -> int | None:
        """A row of the scene, or None after an answer that there is none."""
        if int(text) < len(self.explorer.fields):
            return int(text)
        self.send_error(404)
        return None

    def number(self, name: str) -> int:
        """A whole number of the query; what is none is -1."""
        text = self.get_query_argument(name, "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else -1


class ThumbnailHandler(_Answer):
    async def get(self, text: str) -> None:
        row = self.row(text)
        if row is not None:
            await self.answer(MEDIA_TYPE, lambda: self.explorer.thumbnails.get([row])[row])


class FieldHandler(_Answer):
    async def get(self, text: str) -> None:
        row = self.row(text)
        if row is None:
            return
        scene, asked = self.explorer.scene, self.get_query_argument("d", "")[:_MOST_QUERY]
        await self.answer("image/png", lambda: draw(scene, row, parse_drawing(asked, scene.channels)))


class ValuesHandler(_Answer):
    async def get(self, text: str) -> None:
        row = self.row(text)
        if row is None:
            return
        corrected, x, y = self.number("corrected") == 1, self.number("x"), self.number("y")
        scene = self.explorer.scene
        await self.answer(
            "application/json",
            lambda: json.dumps({"text": values_at(scene, row, corrected, x, y)}).encode(),
        )


def patterns(explorer: Explorer, gate: Gate) -> Patterns:
    """What answers which address."""
    needs = {"explorer": explorer, "gate": gate}
    return [
        (r"/thumb/(\d{1,9})\.jpg", ThumbnailHandler, needs),
        (r"/field/(\d{1,9})\.png", FieldHandler, needs),
        (r"/values/(\d{1,9})\.json", ValuesHandler, needs),
    ]
