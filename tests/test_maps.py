"""Maps: fields that are alike lie together, a seed gives one map, and what cannot be mapped says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hcs_ray import contracts as c
from hcs_ray.config import MapConfig
from hcs_ray.contracts import InputError
from hcs_ray.maps import make_map, umap_layout
from hcs_ray.study import Study, open_study
from hcs_ray.tables import Features

CONFIG = MapConfig()


def clusters(centres: int, each: int, features: int = 16, seed: int = 0) -> tuple[Features, np.ndarray]:
    """Rows around well-separated centres, and the centre of each row."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(centres), each)
    middle = 12 * rng.standard_normal((centres, features))
    rows = middle[labels] + rng.standard_normal((len(labels), features))
    return rows.astype(np.float32), labels


def test_a_seed_gives_one_map_and_another_seed_another() -> None:
    rows, _ = clusters(3, 30)
    first = umap_layout(rows, CONFIG)
    assert first.shape == (90, 2)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, umap_layout(rows, CONFIG))
    assert not np.allclose(first, umap_layout(rows, MapConfig(seed=7)))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neighbours_stay_neighbours_and_clusters_apart(metric: str) -> None:
    from sklearn.manifold import trustworthiness
    from sklearn.neighbors import NearestNeighbors

    config = MapConfig.model_validate({"metric": metric})
    rows, labels = clusters(2, 60)
    layout = umap_layout(rows, config)
    nearest = NearestNeighbors(n_neighbors=5).fit(layout).kneighbors(return_distance=False)
    assert (labels[nearest] == labels[:, None]).all()
    # The noise in a cluster has 16 dimensions and the map two: the rows' order shuffled would give 0.5.
    assert trustworthiness(rows, layout, n_neighbors=10, metric=metric) > 0.85


def test_few_fields_and_duplicates_are_mapped() -> None:
    rows, _ = clusters(2, 3)
    assert np.isfinite(umap_layout(rows, CONFIG)).all()  # fewer than the 15 neighbours asked for
    assert np.isfinite(umap_layout(rows[:4], CONFIG)).all()
    twins = np.repeat(clusters(4, 5)[0], 6, axis=0)
    assert np.isfinite(umap_layout(twins, CONFIG)).all()
    flat = rows.copy()
    flat[:, 1:] = 1.0  # constant features beside one that varies
    assert np.isfinite(umap_layout(flat, MapConfig(metric="euclidean"))).all()


def test_what_cannot_be_mapped_is_said_in_one_line() -> None:
    rows, _ = clusters(2, 10)
    with pytest.raises(InputError, match="at least 4 fields, and there are 3"):
        umap_layout(rows[:3], CONFIG)
    with pytest.raises(InputError, match="all 20 embeddings are equal"):
        umap_layout(np.ones_like(rows), CONFIG)
    rows[6, 2] = np.nan
    with pytest.raises(InputError, match="row 6 is not finite"):
        umap_layout(rows, CONFIG)


def test_a_fresh_process_maps_without_compiling_the_neighbour_search(tmp_path: Path) -> None:
    program = (
        "import numpy as np, numba; from hcs_ray.config import MapConfig; from hcs_ray import maps;"
        "maps.umap_layout(np.random.default_rng(0).random((30, 4), np.float32), MapConfig());"
        "from umap.layouts import rdist; assert hasattr(rdist, 'py_func'), 'umap itself is compiled';"
        "assert not numba.config.DISABLE_JIT"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], env=environment, check=True)
    compiled = {path.parent.name.split("_")[0] for path in tmp_path.rglob("*.nbc")}
    assert compiled == {"umap"}


def write_upstream(study: Study, stage: str, files: dict[str, pd.DataFrame]) -> None:
    """Let a stage before have written some tables, under its own claim."""
    with study.writing(stage, study.claim(stage)) as writer:
        for name, table in files.items():
            writer.write_table(name, table)


def test_the_stage_writes_one_row_a_field_and_is_then_complete(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("map: {seed: 3}\n")
    study = open_study(str(tmp_path))
    rows, labels = clusters(2, 8)
    keys = [f"P1_B{i:02d}_s1" for i in range(16)]
    table = pd.DataFrame(
        {c.KEY: keys, c.MOA: labels.astype(str), c.EMBEDDING: list(rows), "Probability_a": 1}
    )
    for stage in ("shard", "split", "train"):
        write_upstream(study, stage, {})
    write_upstream(study, "embed", {"0-8.parquet": table[8:], "8-16.parquet": table[:8]})
    seen: list[tuple[int, int]] = []
    assert make_map(study, lambda *step: seen.append(step)) == {"fields": 16, "neighbors": 15}
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    written = (tmp_path / "maps/main.parquet").read_bytes()
    mapped = pd.read_parquet(tmp_path / "maps/main.parquet")
    assert list(mapped.columns) == [c.KEY, c.MOA, "x", "y"]
    assert mapped[c.KEY].tolist() == keys
    np.testing.assert_array_equal(mapped[["x", "y"]], umap_layout(rows, MapConfig(seed=3)))
    seen.clear()
    make_map(study, lambda *step: seen.append(step))
    assert not seen
    assert (tmp_path / "maps/main.parquet").read_bytes() == written
