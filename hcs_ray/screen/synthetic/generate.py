"""Writing a screen: plates drawn by several processes, kept over a kill, the tables last."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hcs_ray.contracts import HcsError, InputError
from hcs_ray.screen.synthetic.draw import draw_field
from hcs_ray.screen.synthetic.layout import Screen, plan
from hcs_ray.screen.synthetic.settings import SyntheticConfig
from hcs_ray.screen.synthetic.tables import (
    COMPOUND_TABLE,
    IMAGE_TABLE,
    MOA_TABLE,
    TRUTH_TABLE,
    compound_table,
    fields_of,
    file_names,
    image_table,
    moa_table,
    truth_rows,
    write_truth,
)

SETTINGS_FILE: Final = "generate.json"
DRAWING: Final = 1  # raised when the same settings draw other pixels
FIELDS_A_TASK: Final = 16
Progress = Callable[[int, int], None]
Truth = list[dict[str, object]]


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


def _complete(screen: Screen, folder: Path, workers: int, progress: Progress) -> None:
    """Draws what a folder with the right settings still lacks."""
    missing = [number for number, plate in enumerate(screen.plates) if not (folder / plate.name).is_dir()]
    if not missing and (folder / IMAGE_TABLE).is_file():
        progress(screen.fields, screen.fields)
        return
    (folder / IMAGE_TABLE).unlink(missing_ok=True)
    _sweep(folder)
    truth = _draw(screen, folder, missing, workers, progress)
    _write_tables(screen, folder, truth)


def _sweep(folder: Path) -> None:
    """Removes what a killed run left half-written."""
    for plate in folder.glob(".*.partial"):
        shutil.rmtree(plate, ignore_errors=True)
    for name in (SETTINGS_FILE, TRUTH_TABLE, MOA_TABLE, COMPOUND_TABLE, IMAGE_TABLE):
        for file in folder.glob(f".{name}.*.tmp"):
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
    _write_atomically(path, json.dumps(settings, indent=1) + "\n")


def _refuse_other_settings(path: Path, settings: dict[str, object]) -> None:
    try:
        begun = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); name an empty folder") from error
    if not isinstance(begun, dict):
        raise InputError(f"{path} does not hold the settings of a screen; name an empty folder")
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
            partial.rename(folder / screen.plates[number].name)
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
        names = file_names(config.seed, field.plate, field.well, field.site)
        for name, image in zip(names, draw_field(field), strict=True):
            _write_tiff(Path(str(partial)) / name, image)
    return truth_rows(fields)


def _write_tiff(path: Path, image: NDArray[np.uint16]) -> None:
    import tifffile

    tifffile.imwrite(path, image, photometric="minisblack", metadata=None, software=False)


def _write_tables(screen: Screen, folder: Path, truth: Truth) -> None:
    """The truth, the small tables and, as the sign that the screen is whole, the image table."""
    temporary = folder / f".{TRUTH_TABLE}.{os.getpid()}.tmp"
    write_truth(truth, temporary)
    os.replace(temporary, folder / TRUTH_TABLE)
    for name, text in (
        (MOA_TABLE, moa_table(screen)),
        (COMPOUND_TABLE, compound_table(screen)),
        (IMAGE_TABLE, image_table(screen)),
    ):
        _write_atomically(folder / name, text)


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
