"""Pictures over HTTP: a browser asks for those it needs, several at once, and keeps them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final

from panel.io.resources import COMPONENT_PATH
from panel.io.server import ComponentResourceHandler
from tornado.web import HTTPError, RequestHandler

from hcs_ray.contracts import HcsError
from hcs_ray.explore.access import Gate
from hcs_ray.explore.drawing import draw, parse_drawing, values_at
from hcs_ray.explore.shared import Explorer
from hcs_ray.explore.thumbnails import MEDIA_TYPE

_KEPT: Final = "private, max-age=86400, immutable"  # its address names the server's run
_MOST_QUERY: Final = 20_000

Patterns = list[tuple[str, type[RequestHandler], dict[str, Any]]]


class _Guarded(RequestHandler):
    """Refused to those who are not let in."""

    gate: Gate

    def prepare(self) -> None:
        if not self.gate.admits(self):
            self.gate.refuse(self)


class _Answer(_Guarded):
    """One answer, made off the event loop."""

    def initialize(self, explorer: Explorer, gate: Gate) -> None:
        self.explorer = explorer
        self.gate = gate

    def painted(self, make: Callable[[], bytes]) -> Awaitable[bytes]:
        """What ``make`` gives, on a thread of those that read whole fields."""
        return asyncio.get_running_loop().run_in_executor(self.explorer.painter, make)

    async def answer(
        self, media_type: str, made: Awaitable[bytes], is_final: Callable[[], bool] = lambda: True
    ) -> None:
        """Send what is being made, for the browser to keep where it is final; a failure is 404 and a line."""
        try:
            data = await made
        except HcsError as error:
            self.set_status(404)
            self.set_header("Content-Type", "text/plain; charset=utf-8")
            self.finish(f"{error}\n")
            return
        self.set_header("Content-Type", media_type)
        self.set_header("Cache-Control", _KEPT if is_final() else "no-store")
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
            thumbnails, key = self.explorer.thumbnails, str(self.explorer.scene.keys[row])
            drawn = asyncio.wrap_future(thumbnails.future(row))
            # A notice is no picture: once the shard is mended, the field is to be seen.
            await self.answer(MEDIA_TYPE, drawn, lambda: key not in thumbnails.problems)


class FieldHandler(_Answer):
    async def get(self, text: str) -> None:
        row = self.row(text)
        if row is None:
            return
        scene, asked = self.explorer.scene, self.get_query_argument("d", "")[:_MOST_QUERY]
        made = self.painted(lambda: draw(scene, row, parse_drawing(asked, scene.channels)))
        await self.answer("image/png", made)


class ValuesHandler(_Answer):
    async def get(self, text: str) -> None:
        row = self.row(text)
        if row is None:
            return
        corrected, x, y = self.number("corrected") == 1, self.number("x"), self.number("y")
        scene = self.explorer.scene
        told = self.painted(lambda: json.dumps({"text": values_at(scene, row, corrected, x, y)}).encode())
        await self.answer("application/json", told)


class PartHandler(_Guarded, ComponentResourceHandler):
    """Files of Panel's parts, which Panel gives to anybody, importing whatever module an address names.

    This one asks the gate first, and knows no module but those that the server has imported itself.
    """

    def initialize(self, gate: Gate) -> None:  # type: ignore[override]
        super().initialize()
        self.gate = gate

    def parse_url_path(self, url_path: str) -> str:
        name, _, rest = url_path.partition("/")
        module, part = sys.modules.get(name), rest.partition("/")[0]
        if module is None or part not in vars(module):  # a module's own __getattr__ may import, too
            raise HTTPError(404)
        return str(super().parse_url_path(url_path))


def patterns(explorer: Explorer, gate: Gate) -> Patterns:
    """What answers which address, before Panel's own patterns are asked."""
    needs = {"explorer": explorer, "gate": gate}
    return [
        (rf"/{COMPONENT_PATH}(.*)", PartHandler, {"gate": gate}),
        (r"/thumb/(\d{1,9})\.jpg", ThumbnailHandler, needs),
        (r"/field/(\d{1,9})\.png", FieldHandler, needs),
        (r"/values/(\d{1,9})\.json", ValuesHandler, needs),
    ]
