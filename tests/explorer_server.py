"""`hcs-ray explore` as a process, and a browser's page of it, for tests and the benchmark."""

from __future__ import annotations

import os
import queue
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.command import HCS_RAY

_READY_S = 120
_STOP_S = 30
BROWSER_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]


@dataclass(frozen=True)
class Running:
    """A server that answers at ``url``, whose query holds the token; ``lines`` are what it has said."""

    url: str
    lines: list[str]
    process: subprocess.Popen[str]

    @property
    def address(self) -> str:
        """The address without the token."""
        return self.url.split("?")[0]

    @property
    def token(self) -> str:
        return self.url.partition("token=")[2]


@contextmanager
def explorer(root: Path | str, *options: str) -> Iterator[Running]:
    """Serve a study; at the end Ctrl-C, which must stop it cleanly."""
    command = [HCS_RAY, "explore", str(root), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ})
    lines: list[str] = []
    heard: queue.Queue[str] = queue.Queue()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line.rstrip())
            heard.put(line)
        heard.put("")

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        while True:
            line = heard.get(timeout=_READY_S)
            assert line, f"stopped at once: {lines}"
            found = re.search(r"^http://\S+token=\S+", line)
            if found:
                break
        yield Running(found.group(), lines, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(_STOP_S) == 0, lines
        reader.join(_STOP_S)
        assert lines[-1] == "Stopped."
    finally:
        process.kill()
        process.wait()


@contextmanager
def chromium() -> Iterator[Any]:
    """Chromium, driven by Playwright; skips where there is none."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=BROWSER_FLAGS)
        yield browser
        browser.close()


class Visit:
    """A page of the explorer in a context of its own, and all that it asked for and complained of."""

    def __init__(self, browser: Any, url: str, width: int = 1600, height: int = 1000) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("websocket", lambda socket: self.asked.append(socket.url))
        self.page.on(
            "console",
            lambda said: self.complaints.append(said.text) if said.type in ("error", "warning") else None,
        )
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(url)
        self.cards.first.wait_for()
        self.until("() => (window.Bokeh?.documents[0]?.get_model_by_name('marks')?.data.x.length"
                   " || Bokeh?.documents[0]?.get_model_by_name('image')?.data.x.length)")  # fmt: skip

    @property
    def cards(self) -> Any:
        """The pictures of the gallery."""
        return self.page.get_by_label("Fields shown", exact=True).locator("button")

    def until(self, condition: str, argument: Any = None) -> None:
        """Wait until a function of JavaScript gives something true."""
        self.page.wait_for_function(condition, arg=argument)

    def settle(self) -> None:
        """Wait until the map's axes stay where they are: they fit themselves to the window at first."""
        corners = [(0.0, 0.0), (1.0, 1.0)]
        before: list[tuple[float, float]] = []
        while (now := self.on_screen("map figure", corners)) != before:
            before = now
            self.page.wait_for_timeout(400)

    def column(self, source: str, name: str) -> list[Any]:
        """A column of what a plot draws."""
        found = self.page.evaluate(
            "([source, name]) => [...Bokeh.documents[0].get_model_by_name(source).data[name]]", [source, name]
        )
        return list(found)

    def on_screen(self, figure: str, places: list[tuple[float, float]]) -> list[tuple[float, float]]:
        """Where places of a plot lie in the window."""
        found = self.page.evaluate(
            """([name, places]) => {
              const view = Bokeh.index.find_one(Bokeh.documents[0].get_model_by_name(name));
              const box = view.el.getBoundingClientRect();
              return places.map(([x, y]) => [
                box.left + view.frame.x_scale.compute(x), box.top + view.frame.y_scale.compute(y)]);
            }""",
            [figure, [[float(x), float(y)] for x, y in places]],
        )
        return [(x, y) for x, y in found]

    def lasso(self, corners: list[tuple[float, float]]) -> None:
        """Draw a lasso on the map with the mouse, through corners in the map's coordinates."""
        self.settle()
        mouse = self.page.mouse
        first, *others = self.on_screen("map figure", [*corners, corners[0]])
        mouse.move(*first)
        mouse.down()
        for place in others:
            mouse.move(*place, steps=8)
        mouse.up()

    def click(self, figure: str, x: float, y: float) -> None:
        """A click at a place of a plot."""
        [place] = self.on_screen(figure, [(x, y)])
        self.page.mouse.click(*place)

    def keys(self, gallery: str = "Fields shown") -> list[str]:
        """The keys of the fields in a gallery, in order."""
        cards = self.page.get_by_label(gallery, exact=True).locator("button")
        found = cards.evaluate_all("(buttons) => buttons.map((button) => button.dataset.key)")
        return list(found)

    def leave(self) -> None:
        """Close the page and its context."""
        self.context.close()
