"""How long 100,000 fields take to load in the browser, and to answer a selection.

    python -m benchmarks.explorer --rounds 5

A drawn study of so many fields is served by ``hcs-ray explore``, and a headless Chromium on the same machine
looks at it. Load: from the navigation to the map's points and the first thumbnail being there. Selection:
from the mouse button going up at the end of a lasso to the gallery showing other fields, measured inside the
page.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.explorer_server import Visit, chromium, explorer
from tests.large_study import make_large_study

_WARM_UP_S: Final = 15
_SIDES: Final = ((-14.0, -6.0), (-6.0, 2.0), (0.0, 8.0), (4.0, 12.0), (-10.0, 0.0))
# Told by the page itself: when the mouse went up, and when the gallery first changed after that.
_WATCH: Final = """() => {
  const all = (root) => [...root.querySelectorAll('*')].flatMap(
    (one) => [one, ...(one.shadowRoot ? all(one.shadowRoot) : [])]);
  const list = all(document).find((one) => one.getAttribute('aria-label') === 'Fields shown');
  window.seen = null;
  let up = null;
  addEventListener('pointerup', () => { up = performance.now(); }, { once: true, capture: true });
  const watcher = new MutationObserver(() => {
    if (up === null) return;
    watcher.disconnect();
    window.seen = performance.now() - up;
  });
  watcher.observe(list, { childList: true });
}"""


def main() -> None:
    """Print medians and all rounds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fields", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--study", type=Path, help="a study drawn before; by default one is drawn")
    parser.add_argument("--picture", type=Path, help="draw this PNG of --study instead: that of the docs")
    options = parser.parse_args()
    if options.picture is not None:
        picture(options.study, options.picture)
        return
    with tempfile.TemporaryDirectory() as folder:
        root = options.study or Path(folder) / "study"
        if options.study is None:
            make_large_study(root, options.fields)
        load, select = measure(root, options.rounds)
    _print("load", load)
    _print("selection", select)
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")


def measure(root: Path, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of every load and of every selection."""
    load, select = [], []
    started = time.perf_counter()
    with explorer(root, "--user", "benchmark") as running, chromium() as browser:
        print(f"the server is there after {time.perf_counter() - started:.1f} s")
        time.sleep(_WARM_UP_S)  # numba compiles at the start of a server
        for number in range(rounds):
            started = time.perf_counter()
            visit = Visit(browser, running.url)
            load.append(time.perf_counter() - started)
            left, right = _SIDES[number % len(_SIDES)]
            visit.settle()
            visit.page.evaluate(_WATCH)
            visit.lasso([(left, -6), (right, -6), (right, 6), (left, 6)])
            visit.until("() => window.seen")
            select.append(float(visit.page.evaluate("window.seen")) / 1000)
            visit.leave()
    return load, select


def picture(root: Path, file: Path) -> None:
    """The page with a selection, as docs/explorer.md shows it, in few colours."""
    import io

    from PIL import Image

    with explorer(root, "--user", "ada") as running, chromium() as browser:
        visit = Visit(browser, running.url, 1440, 920)
        visit.settle()
        visit.lasso([(-4, -1), (5, -1), (6, -9), (-4, -9)])
        visit.page.get_by_text("selected: lasso on the map").wait_for()
        for _ in range(2):
            visit.page.keyboard.press("ArrowRight")
        time.sleep(5)  # the pictures of the gallery
        image = Image.open(io.BytesIO(visit.page.screenshot())).convert("RGB")
    few = image.quantize(256, Image.Quantize.MEDIANCUT, kmeans=4, dither=Image.Dither.NONE)
    few.save(file, optimize=True)


def _print(name: str, seconds: list[float]) -> None:
    listed = ", ".join(f"{one:.2f}" for one in seconds)
    print(f"{name}: median {statistics.median(seconds):.2f} s ({listed})")


if __name__ == "__main__":
    main()
