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

# Of every visible text in the page and its shadow roots; what is disabled may be faint.
_FAINT = """() => {
  const SHOWN = { opacityProperty: true, visibilityProperty: true };
  const numbers = (colour) => {
    const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
  const up = (one) => one.assignedSlot ?? one.parentElement ?? one.getRootNode().host;
  const light = (rgb) => rgb.map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (one) => {
    if (!one) return [255, 255, 255];
    const colour = numbers(getComputedStyle(one).backgroundColor);
    return colour[3] === 1 ? colour.slice(0, 3) : over(colour, behind(up(one)));
  };
  const opacity = (one) => (one ? Number(getComputedStyle(one).opacity) * opacity(up(one)) : 1);
  const found = new Map();
  const look = (root) => {
    for (const one of root.querySelectorAll('*')) {
      if (one.shadowRoot) look(one.shadowRoot);
      const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
      const asked = one.tagName === 'INPUT' && one.placeholder && !one.value;
      if ((!own && !asked) || one.closest('script, style, :disabled')) continue;
      if (!one.checkVisibility(SHOWN)) continue;
      const style = getComputedStyle(one, asked ? '::placeholder' : null);
      const paper = behind(one), ink = numbers(style.color);
      ink[3] *= opacity(one) * (asked ? Number(style.opacity) : 1);
      const pair = [light(over(ink, paper)), light(paper)].sort((a, b) => b - a);
      const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
      const text = (asked ? one.placeholder : one.textContent).trim().slice(0, 40);
      if (ratio < 4.5) found.set(`${style.color} ${paper}`, [text, style.color, `${paper}`, ratio]);
    }
  };
  look(document);
  return [...found.values()];
}"""


@dataclass(frozen=True)
class Running:
    """A server that answers at ``url``, whose query holds the token; ``lines`` are what it has said."""

    url: str
    root: str
    lines: list[str]
    process: subprocess.Popen[str]
    reader: threading.Thread

    @property
    def address(self) -> str:
        """The address without the token."""
        return self.url.split("?")[0]

    @property
    def token(self) -> str:
        return self.url.partition("token=")[2]

    @property
    def port(self) -> str:
        return self.address.rstrip("/").rpartition(":")[2]

    def stop(self) -> None:
        """Ctrl-C, which must stop it cleanly; nothing where it was stopped before."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        assert self.process.wait(_STOP_S) == 0, self.lines
        self.reader.join(_STOP_S)
        assert self.lines[-1] == "Stopped."


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
            found = re.search(r"^http://\S+$", line.rstrip())
            if found:
                break
        running = Running(found.group(), str(root), lines, process, reader)
        yield running
        running.stop()
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

    def __init__(
        self, browser: Any, url: str, width: int = 1600, height: int = 1000, has_map: bool = True
    ) -> None:
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
        if has_map:
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
        self.until("() => Bokeh.documents[0].get_model_by_name('map figure').y_range.reset_start !== null")
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

    def faint(self) -> list[list[Any]]:
        """Texts that stand out less than 4.5 to 1 (WCAG AA): text, colour, what is behind it, the ratio."""
        return list(self.page.evaluate(_FAINT))

    def leave(self) -> None:
        """Close the page and its context."""
        self.context.close()
