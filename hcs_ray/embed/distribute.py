"""Chunks to a pool of actors, by Ray Data.

torch is loaded in the actors, not in the driver, which only counts chunks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, Protocol

from hcs_ray.contracts import HcsError, InputError
from hcs_ray.embed.chunks import Chunk
from hcs_ray.session import ensure_session, hush, plainly, require_capacity
from hcs_ray.study import Study

if TYPE_CHECKING:
    from hcs_ray.embed.actor import Embedder


_MOST_ATTEMPTS: Final = 4  # at a chunk whose workers die; Ray Data by itself would try for ever


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
        HcsError: the first failure of an actor, in its words, or a chunk at which actors die again and again;
            the others are stopped.
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
    attempts = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Attempts).remote()
    work = ray.data.from_items(
        [{"first": first, "last": last} for first, last in chunks], override_num_blocks=len(chunks)
    )
    written = work.map_batches(
        _Actor,
        fn_constructor_args=(study, digest, make, attempts),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=config.cpus_per_worker,
        num_gpus=1 if config.use_gpu else 0,
    )
    with plainly("embedding"):
        for row in written.iter_rows():
            if row["error"]:
                raise (InputError if row["bad_input"] else HcsError)(row["error"])
            yield int(row["first"]), int(row["last"])


class _Actor:
    """Tells of failures in rows: Ray Data carries neither an exception's cause nor that of a constructor."""

    def __init__(self, study: Study, digest: str, make: Maker, attempts: Any) -> None:
        self._study, self._digest, self._make, self._attempts = study, digest, make, attempts
        self._embedder: Writes | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        first, last = int(batch["first"][0]), int(batch["last"][0])
        error: HcsError | None = None
        try:
            self._attempt(first, last)
            if self._embedder is None:
                self._embedder = self._make(self._study, self._digest)
            self._embedder.write(first, last)
        except HcsError as found:
            error = found
        told = {"error": [str(error or "")], "bad_input": [isinstance(error, InputError)]}
        return {"first": [first], "last": [last], **told}

    def _attempt(self, first: int, last: int) -> None:
        import ray

        if ray.get(self._attempts.begin.remote(first)) > _MOST_ATTEMPTS:
            raise HcsError(
                f"the worker died {_MOST_ATTEMPTS} times at the fields {first} to {last} of the index, as it "
                "does where memory is short: take a smaller embed.batch, fewer embed.workers, or tiles"
            )


class _Attempts:
    """Outlives the actors, and counts how often each chunk was begun."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()

    def begin(self, first: int) -> int:
        self._begun[first] += 1
        return self._begun[first]
