"""A tiny drawn screen: three plates of two sites, enough for everything but science."""

from __future__ import annotations

from pathlib import Path

from hcs_ray.screen.synthetic import SyntheticConfig, generate

PLATES = ("Week1_22121", "Week1_22141", "Week1_22161")
STUDY_YAML = """
screen: {kind: bbbc021}
shards: {max_shard_mb: 1}
"""


def draw_tiny(folder: Path, **settings: object) -> None:
    """Draw the raw screen into ``folder``."""
    config = SyntheticConfig.model_validate(
        {
            "weeks": 1, "plates_per_week": 3, "replicates": 3, "moas": ["Microtubule stabilizers"],
            "compounds_per_moa": 2, "doses": 1, "active_doses": 1, "novel_compounds": 0, "toxic_compounds": 0,
            "sites": 2, "height_px": 96, "width_px": 112, "cell_diameter_px": 30.0, "dmso_wells": 3,
            **settings,
        }
    )  # fmt: skip
    generate(config, folder, workers=1)
