"""Frees the places of the workers of a trial that was stopped or paused from outside.

Ray Train has an actor for that: it asks Ray's state API whether the training's controller is alive. But it
looks for the address by itself, and ends at once where more than one Ray runs on a machine; the places would
stay taken, and the sweep would wait for ever. Here the same actor is told the address.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller.placement_group_cleaner import PlacementGroupCleaner

from hcs_ray.tune.capacity import CLEANER_SHARE, HEAD


class FreesPlaces(PlacementGroupCleanerCallback):
    """As Ray Train's own, with Ray's address in the cleaner's environment."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """In the controller's process: start the cleaner, which outlives it."""
        context: Any = ray.get_runtime_context()
        self._controller_actor_id = context.get_actor_id()
        cleaner: Any = ray.remote(num_cpus=0)(PlacementGroupCleaner)
        made: Any = cleaner.options(
            lifetime="detached",
            resources={HEAD: CLEANER_SHARE},
            scheduling_strategy="DEFAULT",
            runtime_env={"env_vars": {"RAY_ADDRESS": context.gcs_address}},
        ).remote(
            controller_actor_id=self._controller_actor_id,
            check_interval_s=self._check_interval_s,
            get_actor_timeout_s=self._get_actor_timeout_s,
            stop_timeout=self._stop_timeout,
        )
        made.start_monitoring.remote()
        self._cleaner = made
