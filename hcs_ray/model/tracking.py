"""Figures of a run as tables in its folder, in Weights & Biases (W&B), and as event files for TensorBoard.

A run has one history, however often it was killed. What a resumed run is ``told``, the points that its
checkpoint holds, replaces what the attempt before it has left. Steps that were noted after that checkpoint
are noted again as they are done again. So it does not matter that W&B loses its last seconds in a kill.

- Tables: ``points.csv``, one row a noted optimizer step, and at the end ``confusion.csv`` and
  ``misclassified.png``.
- W&B: the run's id lies in ``wandb_run.json``. Offline, the files are below ``wandb/`` and
  ``wandb sync FOLDER/wandb/offline-run-*`` sends them; a resumed run writes them anew. Online, only points
  beyond the last step of the server are sent. The key is read from the environment, by W&B itself.
- TensorBoard: ``tensorboard/``, written anew by a resumed run.

For a study on S3, W&B and TensorBoard write to a temporary folder of this node, which is copied to the study
when the run finishes or fails; with a killed process it is lost, and its points come again from ``told``. The
checkpoint of an offline run is sent only from the folder where it was written, since W&B notes its absolute
path; from a copy the figures and pictures are sent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from hcs_ray.config import StudyConfig
from hcs_ray.contracts import HcsError
from hcs_ray.model.sinks import STEP, Board, Desk, Final, Points, Sink, Tables
from hcs_ray.model.wandb_run import Label, WandbRun, one_line, preflight, run_id
from hcs_ray.storage import Storage

__all__ = ["Final", "Tracking", "preflight"]

_log = logging.getLogger("hcs_ray")


class Tracking:
    """All places where the figures of a run go; of rank 0 alone.

    Trouble at the start of a new run is an error. Afterwards, also where a run is resumed, it is one warning
    on the log for each place.

    Args:
        storage: of the study.
        folder: of the run, below the study.
        config: noted in W&B; it holds no secret, and credentials in URLs are left out.
        group: of W&B, for the trials of a sweep.
        name: in W&B; none: that of the folder.
        told: the points that the checkpoint holds with which the run goes on, each with its `STEP`.

    Raises:
        InputError: online without a key, or a damaged `RUN_FILE`.
        HcsError: W&B cannot start, as without a network.
    """

    def __init__(
        self,
        storage: Storage,
        folder: str,
        config: StudyConfig,
        *,
        group: str | None = None,
        name: str | None = None,
        told: Sequence[Mapping[str, float]] = (),
    ) -> None:
        preflight(config.wandb)
        self._points: Points = {}
        for point in sorted(told, key=lambda point: point[STEP]):
            _add(self._points, point)
        self._warned: set[str] = set()
        self._desk = Desk(storage, folder)
        self._sinks: list[Sink] = [Tables(storage, folder, self._points)]
        if config.wandb.mode != "disabled":
            label = Label(run_id(storage, folder), name or folder.rpartition("/")[2], group)
            self._begin("W&B", lambda: WandbRun(self._desk, config, label), strict=not self._points)
        if config.train.tensorboard:
            self._begin("TensorBoard", lambda: Board(self._desk), strict=not self._points)
        if self._points:
            self._each(lambda sink: sink.begin(self._points))

    def _begin(self, name: str, make: Callable[[], Sink], *, strict: bool) -> None:
        try:
            self._sinks.append(make())
        except Exception as error:
            if not strict:
                self._warn(name, error)
                return
            self.close()
            raise error if isinstance(error, HcsError) else HcsError(f"{name}: {one_line(error)}") from None

    def log(self, figures: Mapping[str, float]) -> None:
        """Note figures at their `STEP`; those of a step before the last are known, and left out."""
        step = int(figures[STEP])
        if step >= _last(self._points):
            added = _add(self._points, figures)
            self._each(lambda sink: sink.log(step, added))

    def finish(self, final: Final | None) -> None:
        """Note what is known at the end, and close."""
        if final is not None:
            step = _last(self._points)
            self._each(lambda sink: sink.finish(step, final))
        self._end(failed=False)

    def close(self) -> None:
        """Write what there is, without an end: the run can be resumed. After `finish`, nothing."""
        self._end(failed=True)

    def _end(self, *, failed: bool) -> None:
        self._each(lambda sink: sink.close(failed=failed))
        self._sinks.clear()
        try:
            self._desk.leave()
        except Exception as error:
            self._warn("the copy to the study", error)

    def _each(self, action: Callable[[Sink], None]) -> None:
        for sink in self._sinks:
            try:
                action(sink)
            except Exception as error:
                self._warn(sink.name, error)

    def _warn(self, name: str, error: Exception) -> None:
        if name not in self._warned:
            self._warned.add(name)
            _log.warning("figures are missing in %s, and the training goes on: %s", name, one_line(error))


def _last(points: Points) -> int:
    return next(reversed(points), 0)


def _add(points: Points, figures: Mapping[str, float]) -> dict[str, float]:
    step = int(figures[STEP])
    added = {name: float(value) for name, value in figures.items() if name != STEP}
    points.setdefault(step, {}).update(added)
    return added
