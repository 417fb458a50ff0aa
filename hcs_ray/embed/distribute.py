"""Chunks to a pool of actors, by Ray Data.

torch is loaded in the actors, not in the driver, which only counts chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, Protocol

from hcs_ray.contracts import HcsError, InputError
from hcs_ray.embed.chunks import Chunk
from hcs_ray.session import ensure_session, hush, plainly, require_capacity
from hcs_ray.study import Study

if TYPE_CHECKING:
    from hcs_ray.embed.actor import Embedder


_RETRIES: Final = 3  # of a chunk whose worker has died; without a limit one that kills it is tried for ever


class Writes(Protocol):
    """Writes the file of a chunk; see `Embedder.write`."""

    def write(self, first: int, last: int) -> None: ...


class Maker(Protocol):
    """Makes what writes chunks, in the actor's process."""

    def __call__(self, study: Study, digest: str) -> Writes: ...


def make_embedder(study: Study, digest: str) -> Embedder:
    """The embedder of an actor, which computes with as many threads as Ray sets cores aside for it.

    So the values do not depend on how an environment has set the threads of torch.
    """
    import torch

    from hcs_ray.embed.actor import Embedder

    torch.set_num_threads(max(1, int(study.config.embed.cpus_per_worker)))
    return Embedder(study, digest)


def distribute(
    study: Study, chunks: list[Chunk], digest: str, make: Maker = make_embedder
) -> Iterator[Chunk]:
    """Have chunks written, yielding each as it is there, in any order.

    An actor or a node that dies is replaced, and what it was working on is handed out again.

    Raises:
        HcsError: the first failure of an actor, in its words; the others are stopped.
    """
    if not chunks:
        return
    ensure_session()
    import ray.data

    hush("ray.data")
    ray.data.DataContext.get_current().enable_progress_bars = False
    config = study.config.embed
    actors = min(config.workers, len(chunks))
    require_capacity(
        f"embed.workers {actors}", actors * config.cpus_per_worker, actors if config.use_gpu else 0
    )
    work = ray.data.from_items(
        [{"first": first, "last": last} for first, last in chunks], override_num_blocks=len(chunks)
    )
    written = work.map_batches(
        _Actor,
        fn_constructor_args=(study, digest, make),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=config.cpus_per_worker,
        num_gpus=1 if config.use_gpu else 0,
        ray_remote_args_fn=lambda: {"max_task_retries": _RETRIES},
    )
    with plainly("embedding"):
        for row in written.iter_rows():
            if row["error"]:
                raise (InputError if row["bad_input"] else HcsError)(row["error"])
            yield int(row["first"]), int(row["last"])


class _Actor:
    """Tells of failures in rows: Ray Data carries neither an exception's cause nor that of a constructor."""

    def __init__(self, study: Study, digest: str, make: Maker) -> None:
        self._study, self._digest, self._make = study, digest, make
        self._embedder: Writes | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        first, last = int(batch["first"][0]), int(batch["last"][0])
        error: HcsError | None = None
        try:
            if self._embedder is None:
                self._embedder = self._make(self._study, self._digest)
            self._embedder.write(first, last)
        except HcsError as found:
            error = found
        told = {"error": [str(error or "")], "bad_input": [isinstance(error, InputError)]}
        return {"first": [first], "last": [last], **told}
