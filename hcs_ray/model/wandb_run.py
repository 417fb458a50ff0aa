"""A run of Weights & Biases (W&B): one id in all attempts, steps of the optimizer, nothing of the machine."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import Final as Constant

import psutil

from hcs_ray.config import StudyConfig
from hcs_ray.config.training import WandbConfig
from hcs_ray.contracts import HcsError, InputError
from hcs_ray.model.sinks import STEP, Desk, Final, Points
from hcs_ray.storage import Storage

RUN_FILE: Constant = "wandb_run.json"
_KEY: Constant = "WANDB_API_KEY"
_START_SECONDS: Constant = 60.0  # that a server has to take up a run
_FINISH_SECONDS: Constant = 600.0  # that it has to take the rest of it
_CLOSE_SECONDS: Constant = 30.0  # that an offline file may take to be written out


def preflight(config: WandbConfig) -> None:
    """Refuse an online run that has no key in this process.

    Raises:
        InputError: names the variable and the way out.
    """
    if config.mode == "online" and not os.environ.get(_KEY):
        raise InputError(
            f"wandb.mode is online, and the environment has no {_KEY}: set it, or set wandb.mode to offline"
        )


@dataclass(frozen=True)
class Label:
    """How W&B knows a run."""

    id: str
    name: str
    group: str | None


class WandbRun:
    """A run of W&B, whose steps are optimizer steps."""

    name = "W&B"

    def __init__(self, desk: Desk, config: StudyConfig, label: Label) -> None:
        self._id = label.id
        self._run = _started(desk.path, config, label)
        self._folder = Path(self._run.dir).parent
        self._staged = desk.path / "wandb" / f"artifacts-{label.id}"
        self._offline = config.wandb.mode == "offline"
        if self._offline:
            desk.replace(f"wandb/offline-run-*-{label.id}", mine=self._folder)
            shutil.rmtree(self._staged, ignore_errors=True)
        self._first = 0 if self._offline else int(self._run.starting_step)  # the server has those before
        self._run.define_metric(STEP, hidden=True)
        self._run.define_metric("*", step_metric=STEP)

    def begin(self, points: Points) -> None:
        for step, figures in points.items():
            self.log(step, figures)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        if step >= self._first:
            self._run.log({STEP: step, **figures}, step=step)

    def finish(self, step: int, final: Final) -> None:
        pictures = _pictures(final)
        self._run.summary.update(dict(final.metrics))
        with _staging(self._staged):
            if pictures:
                self._run.log({STEP: step, **pictures}, step=max(step, self._first))
            if final.model is not None:
                self._run.log_artifact(_artifact(f"model-{self._id}", final.model, final.metrics))

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
        if self._offline:
            _await_writer(self._folder / f"run-{self._id}.wandb")


def _started(folder: Path, config: StudyConfig, label: Label) -> Any:
    """A run that says nothing on the terminal and notes nothing of this machine, its code or its user."""
    # W&B reads these when its service starts: no reports of its own errors, no word about credentials, and
    # its log in no home, which in a container may not be writable.
    os.environ |= {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}
    os.environ.setdefault("WANDB_CACHE_DIR", f"{tempfile.gettempdir()}/hcs-ray-wandb-{os.getuid()}")
    import wandb

    settings = wandb.Settings(
        silent=True, console="off", disable_git=True, save_code=False, host="", symlink=False,
        x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True, x_save_requirements=False,
        init_timeout=_START_SECONDS, finish_timeout=_FINISH_SECONDS, finish_timeout_raises=True,
        reinit="create_new",
    )  # fmt: skip
    try:
        return wandb.init(
            project=config.wandb.project, entity=config.wandb.entity, mode=config.wandb.mode, dir=folder,
            id=label.id, name=label.name, group=label.group, settings=settings, config=_public(config),
            resume="allow" if config.wandb.mode == "online" else None,
        )  # fmt: skip
    except Exception as error:
        raise HcsError(
            f"W&B does not start ({one_line(error)}); set wandb.mode to "
            f"{'offline' if config.wandb.mode == 'online' else 'disabled'} to go without it"
        ) from None


def _await_writer(file: Path) -> None:
    """Wait until W&B's service, a child of this process, has closed a file, some time after a run's end."""
    deadline = time.monotonic() + _CLOSE_SECONDS
    while any(_holds(child, file.resolve()) for child in psutil.Process().children(recursive=True)):
        if time.monotonic() > deadline:
            raise HcsError(f"{file}: W&B has not closed it after {_CLOSE_SECONDS:g} s")
        time.sleep(0.02)


def _holds(process: psutil.Process, file: Path) -> bool:
    try:
        return any(Path(opened.path) == file for opened in process.open_files())
    except psutil.Error:  # it is gone
        return False


def _public(config: StudyConfig) -> dict[str, Any]:
    """The configuration without what a URL may hold before its host."""
    text = re.sub(r"(?<=://)[^/@\s\"]+@", "", config.model_dump_json())
    public: dict[str, Any] = json.loads(text)
    return public


def _pictures(final: Final) -> dict[str, Any]:
    """The confusion matrix as W&B draws it, and the misclassified fields as images with captions."""
    import wandb

    pictures: dict[str, Any] = {}
    if final.confusion is not None:
        pictures["confusion"] = _confusion_plot(final.classes, final.confusion.tolist())
    if final.misclassified:
        # As images, not in a table, which would keep no more than the word "Image".
        pictures["misclassified"] = [
            wandb.Image(
                one.image,
                caption=f"{one.key}: {one.truth}, predicted {one.predicted} ({one.probability:.2f})",
            )
            for one in final.misclassified
        ]
    return pictures


def _confusion_plot(classes: Sequence[str], counts: list[list[int]]) -> Any:
    import wandb

    columns: list[str | int] = ["Actual", "Predicted", "nPredictions"]  # that the preset asks for
    data: list[Any] = [
        [truth, predicted, counts[i][j]]
        for i, truth in enumerate(classes)
        for j, predicted in enumerate(classes)
    ]
    return wandb.plot_table(
        "wandb/confusion_matrix/v1",
        wandb.Table(columns=columns, data=data),
        {str(name): str(name) for name in columns},
        {"title": "Confusion"},
    )


@contextlib.contextmanager
def _staging(folder: Path) -> Iterator[None]:
    """Let W&B keep the files of artifacts in a folder, not in the user's home."""
    name = "WANDB_DATA_DIR"
    before = os.environ.get(name)
    os.environ[name] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _artifact(name: str, model: bytes, metrics: Mapping[str, float]) -> Any:
    import wandb

    artifact = wandb.Artifact(name, type="model", metadata=dict(metrics))
    with artifact.new_file("model.pt", mode="wb") as file:
        file.write(model)
    return artifact


def run_id(storage: Storage, folder: str) -> str:
    """The id of a run for W&B, the same in all of its attempts."""
    path = f"{folder}/{RUN_FILE}"
    storage.put_if_absent(path, json.dumps({"id": uuid.uuid4().hex[:12]}).encode())
    try:
        found = str(json.loads(storage.read(path))["id"])
    except (ValueError, KeyError, TypeError):
        found = ""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", found):
        raise InputError(f"{storage.url}/{path}: holds no W&B id; delete it, and the run gets a new one")
    return found


def one_line(error: Exception) -> str:
    """An error in one line, without the key."""
    text = (str(error).splitlines() or [""])[0] or type(error).__name__
    key = os.environ.get(_KEY)
    return text.replace(key, "***") if key else text
