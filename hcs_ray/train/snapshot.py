"""A second copy of Ray Train's list of checkpoints, without which it would begin again.

Ray Train writes that list in place: a kill, or a power cut some seconds later, can leave half of it.
"""

from __future__ import annotations

import contextlib
import json
import logging
from typing import Any, Final

from ray.train.v2._internal.execution.callback import ReportCallback

from hcs_ray.contracts import HcsError
from hcs_ray.storage import Storage

SNAPSHOT_FILE: Final = "checkpoint_manager_snapshot.json"
_COPY_FILE: Final = "checkpoints.json"


class SnapshotCopy(ReportCallback):
    """Copies the list after every checkpoint, in Ray Train's controller, which has written it by then.

    The copy is about one checkpoint behind; what was deleted since is left out when it is used.
    """

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage, self._folder = storage, folder

    def after_report(self, training_report: Any, metrics: list[dict[str, Any]]) -> None:
        # A store that is away for a moment costs a copy, not a run its life.
        with contextlib.suppress(HcsError):
            data = self._storage.read(f"{self._folder}/{SNAPSHOT_FILE}")
            self._storage.write(f"{self._folder}/{_COPY_FILE}", data)


def mend_snapshot(storage: Storage, folder: str) -> None:
    """Put the copy in the place of a list that was cut; where there is none, training begins again."""
    path = f"{folder}/{SNAPSHOT_FILE}"
    found = storage.read_versioned(path)
    if found is None or _is_whole(found[0]):
        return
    copy = storage.read_versioned(f"{folder}/{_COPY_FILE}")
    if copy is not None and _is_whole(copy[0]):
        left = _of_what_is_there(json.loads(copy[0]), storage, folder)
        if left["latest_checkpoint_result"] is not None:
            storage.write(path, json.dumps(left).encode())
            return
    message = "%s was cut by a kill; training begins again"
    logging.getLogger("hcs_ray").warning(message, f"{storage.url}/{path}")
    storage.delete(path)


def _of_what_is_there(state: dict[str, Any], storage: Storage, folder: str) -> dict[str, Any]:
    """The list without checkpoints that were deleted since; Ray Train would not start with one of those."""
    there = {path.removeprefix(f"{folder}/").partition("/")[0] for path in storage.sizes(folder)}
    pairs = zip(state["checkpoint_results"], state["checkpoint_report_indices"], strict=True)
    kept = [(found, index) for found, index in pairs if found["checkpoint_dir_name"] in there]
    latest = state["latest_checkpoint_result"]
    if latest is not None and latest["checkpoint_dir_name"] not in there:
        latest = max(kept, key=lambda pair: pair[1])[0] if kept else None
    return {
        **state,
        "checkpoint_results": [found for found, _ in kept],
        "checkpoint_report_indices": [index for _, index in kept],
        "latest_checkpoint_result": latest,
    }


def _is_whole(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True
