"""Places where the figures of a run go, other than W&B: tables in its folder, and TensorBoard."""

from __future__ import annotations

import csv
import io
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from typing import Final as Constant

import numpy as np
import numpy.typing as npt

from hcs_ray.storage import LocalStorage, Storage

if TYPE_CHECKING:
    from hcs_ray.model.judging import Misclassified

STEP: Constant = "optimizer_steps"
POINTS_FILE: Constant = "points.csv"
CONFUSION_FILE: Constant = "confusion.csv"
PANEL_FILE: Constant = "misclassified.png"
_EPOCH: Constant = "epoch"  # in the figures of an epoch's end
_WRITE_SECONDS: Constant = 60.0  # between two writings of the points within an epoch
_ACROSS: Constant = 4  # pictures beside one another
_PICTURE_INCHES: Constant = 2.6

Points = dict[int, dict[str, float]]  # optimizer step -> figures, in order


@dataclass(frozen=True)
class Final:
    """What is known when the training is over.

    Attributes:
        metrics: such as those of the test fields.
        confusion: (K, K) counts of fields by class (rows) and predicted class.
        model: the checkpoint as it is handed on.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    classes: Sequence[str] = ()
    confusion: npt.NDArray[np.int64] | None = None
    misclassified: Sequence[Misclassified] = ()
    model: bytes | None = None


class Sink(Protocol):
    """One place where figures go; what it raises is told once, and the training goes on."""

    name: str

    def begin(self, points: Points) -> None:
        """All points of the attempts before, at once."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures of a step, not smaller than the last; those of the same step add up."""

    def finish(self, step: int, final: Final) -> None:
        """What is known at the end, at the last step."""

    def close(self, *, failed: bool) -> None:
        """Write what is left."""


class Desk:
    """A local folder that is the run's, or is copied to it."""

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage, self._folder = storage, folder
        self._scratch: Path | None = None
        self._copied: list[str] = []  # patterns of folders that replace those of the study on S3
        if isinstance(storage, LocalStorage):
            self.path = storage.path(folder)
            self.path.mkdir(parents=True, exist_ok=True)
        else:
            self.path = self._scratch = Path(tempfile.mkdtemp(prefix="hcs-ray-tracking-"))

    def replace(self, pattern: str, mine: Path | None = None) -> None:
        """Delete the folders by a pattern that earlier attempts have left, all but ``mine``.

        On S3, that is done when this attempt's are copied.
        """
        for left in self.path.glob(pattern):
            if left != mine:
                shutil.rmtree(left)
        self._copied.append(pattern)

    def leave(self) -> None:
        """Copy to a study that is not local."""
        if self._scratch is None:
            return
        try:
            for pattern in self._copied:
                self._copy(pattern)
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    def _copy(self, pattern: str) -> None:
        files = [file for top in sorted(self.path.glob(pattern)) for file in sorted(top.rglob("*"))]
        ours = {file.relative_to(self.path).as_posix(): file for file in files if _is_plain(file)}
        for name, file in ours.items():
            self._storage.write(f"{self._folder}/{name}", file.read_bytes())
        left = re.compile(re.escape(f"{self._folder}/{pattern}/").replace(r"\*", "[^/]*"))
        for path in self._storage.sizes(self._folder):
            if left.match(path) and path.removeprefix(f"{self._folder}/") not in ours:
                self._storage.delete(path)


def _is_plain(file: Path) -> bool:
    return file.is_file() and not file.is_symlink()


class Tables:
    """CSV files and a picture in the run's folder; a failed writing is tried again with the next."""

    name = POINTS_FILE

    def __init__(self, storage: Storage, folder: str, points: Points) -> None:
        self._storage, self._folder, self._points = storage, folder, points
        self._written = time.monotonic()

    def begin(self, points: Points) -> None:
        self._write()

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        if _EPOCH in figures or time.monotonic() - self._written > _WRITE_SECONDS:
            self._write()

    def finish(self, step: int, final: Final) -> None:
        if final.confusion is not None:
            rows = zip(final.classes, final.confusion.tolist(), strict=True)
            table = [["truth", *final.classes], *([name, *counts] for name, counts in rows)]
            self._storage.write(f"{self._folder}/{CONFUSION_FILE}", _csv(table))
        if final.misclassified:
            self._storage.write(f"{self._folder}/{PANEL_FILE}", panel(final.misclassified))
        else:
            self._storage.delete(f"{self._folder}/{PANEL_FILE}")

    def close(self, *, failed: bool) -> None:
        self._write()

    def _write(self) -> None:
        if self._points:
            names = list(dict.fromkeys(name for figures in self._points.values() for name in figures))
            rows = ([step, *map(point.get, names)] for step, point in self._points.items())
            self._storage.write(f"{self._folder}/{POINTS_FILE}", _csv([[STEP, *names], *rows]))
        self._written = time.monotonic()


def _csv(rows: Iterable[Iterable[object]]) -> bytes:
    """Numbers in as many digits as bring them back; nothing where a point has no such figure."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def panel(fields: Sequence[Misclassified]) -> bytes:
    """Pictures of misclassified fields with their truth and prediction, as a PNG."""
    from matplotlib.figure import Figure

    across = min(_ACROSS, len(fields))
    down = -(-len(fields) // across)
    size = (across * _PICTURE_INCHES, down * (_PICTURE_INCHES + 0.6))
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    for number, one in enumerate(fields, start=1):
        axes = figure.add_subplot(down, across, number)
        axes.imshow(one.image)
        axes.set_axis_off()
        title = f"{one.key}\n{one.truth}\npredicted {one.predicted} ({one.probability:.2f})"
        axes.set_title(title, fontsize=7, parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


class Board:
    """Event files for TensorBoard, from the first point on."""

    name = "TensorBoard"

    def __init__(self, desk: Desk) -> None:
        from torch.utils.tensorboard import SummaryWriter

        desk.replace("tensorboard")
        self._writer: Any = SummaryWriter(str(desk.path / "tensorboard"))

    def begin(self, points: Points) -> None:
        for step, figures in points.items():
            self.log(step, figures)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        if _EPOCH in figures:
            self._writer.flush()

    def finish(self, step: int, final: Final) -> None:
        from PIL import Image

        for name, value in final.metrics.items():
            self._writer.add_scalar(name, value, step)
        if final.misclassified:
            picture = np.asarray(Image.open(io.BytesIO(panel(final.misclassified))).convert("RGB"))
            self._writer.add_image("misclassified", picture, step, dataformats="HWC")

    def close(self, *, failed: bool) -> None:
        self._writer.close()
