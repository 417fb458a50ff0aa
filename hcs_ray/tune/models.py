"""What a trial leaves: its history and the network that it hands on, also where it was stopped early."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ray.train import Checkpoint

from hcs_ray.model.checkpoint import RunState, read_state
from hcs_ray.storage import Storage
from hcs_ray.train import model_bytes
from hcs_ray.train.files import MODEL_FILE
from hcs_ray.train.job import RAY_FOLDER
from hcs_ray.train.snapshot import SNAPSHOT_FILE, mend_snapshot
from hcs_ray.tune.space import Values
from hcs_ray.tune.trials import Work, job_of, read_rows


def hand_on(work: Work, trial: str, values: Values, folder: str) -> list[dict[str, Any]]:
    """See that the trial's folder holds its ``model.pt``; returns the epochs that led to it.

    Args:
        folder: of the training that the trial ended in, which a population's trial changes.
    """
    storage, path = work.study.storage, f"{work.trial_folder(trial)}/{MODEL_FILE}"
    rows = read_rows(storage, folder)
    found = storage.read_versioned(f"{folder}/{MODEL_FILE}")
    if found is not None:
        if f"{folder}/{MODEL_FILE}" != path:
            storage.write(path, found[0])
        return rows
    state = newest_state(storage, f"{folder}/{RAY_FOLDER}")
    if state is None or not state.history:
        return rows
    storage.write(path, model_bytes(job_of(work, values, folder).spec, state.best))
    return state.history


def newest_state(storage: Storage, ray_folder: str) -> RunState | None:
    """Our part of the newest checkpoint that Ray Train has noted in its folder; None where there is none."""
    mend_snapshot(storage, ray_folder)
    found = storage.read_versioned(f"{ray_folder}/{SNAPSHOT_FILE}")
    newest = json.loads(found[0] if found else b"{}").get("latest_checkpoint_result")
    if not newest:
        return None
    filesystem, root = storage.arrow()
    checkpoint = Checkpoint(f"{root}/{ray_folder}/{newest['checkpoint_dir_name']}", filesystem)
    with checkpoint.as_directory() as local:
        return read_state(Path(local))
