"""Writing a screen: plates drawn by several processes, kept over a kill, the tables last."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Final, Protocol

from hcs_ray.contracts import HcsError, InputError
from hcs_ray.screen.synthetic.assays import LayoutName
from hcs_ray.screen.synthetic.bbbc021_files import Bbbc021Files
from hcs_ray.screen.synthetic.cells import FieldPlan
from hcs_ray.screen.synthetic.draw import draw_field
from hcs_ray.screen.synthetic.layout import Plate, Screen, plan
from hcs_ray.screen.synthetic.nuisance import Pixels
from hcs_ray.screen.synthetic.painting_files import PaintingFiles
from hcs_ray.screen.synthetic.settings import SyntheticConfig
from hcs_ray.screen.synthetic.truth import TRUTH_TABLE, fields_of, truth_rows, write_truth

SETTINGS_FILE: Final = "generate.json"
DRAWING: Final = 1  # raised when the same settings draw other pixels
_UNSAID: Final = {"layout": "bbbc021"}  # as in folders that were drawn before there was another
FIELDS_A_TASK: Final = 16
Progress = Callable[[int, int], None]
Truth = list[dict[str, object]]


class Files(Protocol):
    """How a layout lies in a folder."""

    def folder(self, plate: Plate) -> str:
        """The plate's folder, below the screen's."""

    def write(self, folder: Path, field: FieldPlan, images: Sequence[Pixels]) -> None:
        """A field's images into its plate's folder."""

    def tables(self, screen: Screen) -> dict[str, Callable[[], str]]:
        """Path -> text of each table; where the last one stands, the screen is whole."""

    def section(self, folder: str) -> dict[str, Any]:
        """The section ``screen`` of a study that reads the screen from a folder."""


_FILES: Final[Mapping[LayoutName, Files]] = {"bbbc021": Bbbc021Files(), "cellpainting": PaintingFiles()}


def generate(
    config: SyntheticConfig, folder: Path, *, workers: int | None = None, progress: Progress | None = None
) -> None:
    """Draws the screen that ``config`` describes into ``folder``, with the truth in ``truth.parquet``.

    The files depend on ``config`` alone, byte for byte on one kind of machine with one set of libraries,
    whatever the number of ``workers`` (default: every core this process may use). Killed at any moment and
    called again, it keeps whole plates and ends with the same files; the image table is written last, so
    where it stands the screen is whole. ``progress`` gets (fields done, all fields).
    Raises InputError where the folder holds other things or a screen with other settings, or cannot be
    written; HcsError where drawing fails on the way (a full disk, a killed process).
    """
    folder = Path(folder)
    screen = plan(config)
    try:
        _claim(config, folder)
    except OSError as error:
        raise InputError(f"cannot write the screen to {folder}: {error.strerror or error}") from error
    try:
        _complete(screen, folder, workers or _cores(), progress or (lambda done, total: None))
    except BrokenProcessPool as error:
        message = f"a process that drew {folder} was killed (out of memory?); run it again to go on"
        raise HcsError(message) from error
    except OSError as error:
        raise HcsError(f"drawing the screen in {folder} failed: {error}") from error


def screen_section(config: SyntheticConfig, folder: str) -> dict[str, Any]:
    """The section ``screen`` of a study that reads what `generate` drew into a folder."""
    return _FILES[config.layout].section(folder)


def _complete(screen: Screen, folder: Path, workers: int, progress: Progress) -> None:
    """Draws what a folder with the right settings still lacks."""
    files = _FILES[screen.config.layout]
    plates = [folder / files.folder(plate) for plate in screen.plates]
    missing = [number for number, plate in enumerate(plates) if not plate.is_dir()]
    tables = [folder / name for name in files.tables(screen)]
    if not missing and tables[-1].is_file():
        progress(screen.fields, screen.fields)
        return
    tables[-1].unlink(missing_ok=True)
    _sweep(folder, tables)
    truth = _draw(screen, folder, missing, workers, progress)
    _write_tables(screen, folder, truth)


def _sweep(folder: Path, tables: list[Path]) -> None:
    """Removes what a killed run left half-written."""
    for plate in folder.glob(".*.partial"):
        shutil.rmtree(plate, ignore_errors=True)
    for path in (folder / SETTINGS_FILE, folder / TRUTH_TABLE, *tables):
        for file in path.parent.glob(f".{path.name}.*.tmp"):
            file.unlink()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _claim(config: SyntheticConfig, folder: Path) -> None:
    """Writes the settings into an empty folder, or checks that a folder begun earlier has the same."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"drawing": DRAWING, **config.model_dump(mode="json")}
    path = folder / SETTINGS_FILE
    if path.exists():
        _refuse_other_settings(path, settings)
        return
    foreign = sorted(item.name for item in folder.iterdir() if not item.name.startswith((".", "_")))
    if foreign:
        raise InputError(f"{folder} holds {foreign[0]!r}, which generate did not write; name an empty folder")
    said = {name: value for name, value in settings.items() if (name, value) not in _UNSAID.items()}
    _write_atomically(path, json.dumps(said, indent=1) + "\n")


def _refuse_other_settings(path: Path, settings: dict[str, object]) -> None:
    try:
        begun = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); name an empty folder") from error
    if not isinstance(begun, dict):
        raise InputError(f"{path} does not hold the settings of a screen; name an empty folder")
    begun = _UNSAID | begun
    for name in dict.fromkeys([*settings, *begun]):
        if begun.get(name) != settings.get(name):
            raise InputError(
                f"{path.parent} was begun with {name}={json.dumps(begun.get(name))}, not "
                f"{json.dumps(settings.get(name))}; use the same settings or an empty folder"
            )


def _draw(screen: Screen, folder: Path, missing: list[int], workers: int, progress: Progress) -> Truth:
    """Draws the missing plates; the truth of all fields in order."""
    tasks = list(_tasks(screen, folder, missing))
    left = {number: sum(task[2] == number and task[1] is not None for task in tasks) for number in missing}
    done = sum(task[4] - task[3] for task in tasks if task[1] is None)
    progress(done, screen.fields)
    truth: dict[tuple[int, int], Truth] = {}
    for task, rows in _results(tasks, min(workers, len(tasks))):
        _, partial, number, start, stop = task
        truth[number, start] = rows
        if partial is None:
            continue
        done += stop - start
        left[number] -= 1
        if left[number] == 0:
            whole = folder / _FILES[screen.config.layout].folder(screen.plates[number])
            whole.parent.mkdir(parents=True, exist_ok=True)
            partial.rename(whole)
        progress(done, screen.fields)
    return [row for place in sorted(truth) for row in truth[place]]


# Settings, the unfinished plate's folder (None: it is whole, only its truth is wanted), plate, start, stop.
Task = tuple[SyntheticConfig, Path | None, int, int, int]


def _tasks(screen: Screen, folder: Path, missing: list[int]) -> Iterator[Task]:
    for number, plate in enumerate(screen.plates):
        partial = folder / f".{plate.name}.{os.getpid()}.partial" if number in missing else None
        if partial is not None:
            partial.mkdir()
        fields = len(plate.wells) * screen.config.sites
        for start in range(0, fields, FIELDS_A_TASK):
            yield screen.config, partial, number, start, min(start + FIELDS_A_TASK, fields)


def _results(tasks: list[Task], workers: int) -> Iterator[tuple[Task, Truth]]:
    if workers == 1:
        yield from ((task, _work(*task)) for task in tasks)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the caller's threads' locks
    with ProcessPoolExecutor(workers, context, initializer=_end_with_parent) as pool:
        futures: dict[Future[Truth], Task] = {pool.submit(_work, *task): task for task in tasks}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for ever: it ends with it instead."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@lru_cache(maxsize=1)
def _planned(config: SyntheticConfig) -> Screen:
    return plan(config)


def _work(config: SyntheticConfig, partial: Path | None, number: int, start: int, stop: int) -> Truth:
    """Draws some fields of a plate, if wanted, and tells their truth."""
    screen = _planned(config)
    fields = fields_of(screen, screen.plates[number], start, stop)
    for field in fields if partial is not None else ():
        _FILES[config.layout].write(Path(str(partial)), field, draw_field(field))
    return truth_rows(fields)


def _write_tables(screen: Screen, folder: Path, truth: Truth) -> None:
    """The truth and the tables, the last of which is the sign that the screen is whole."""
    temporary = folder / f".{TRUTH_TABLE}.{os.getpid()}.tmp"
    write_truth(truth, temporary)
    os.replace(temporary, folder / TRUTH_TABLE)
    for name, text in _FILES[screen.config.layout].tables(screen).items():
        (folder / name).parent.mkdir(exist_ok=True)
        _write_atomically(folder / name, text())


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
