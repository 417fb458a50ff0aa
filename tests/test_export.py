"""Embeddings and profiles in the hands of other tools: pycytominer, anndata, scanpy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pycytominer
import pytest
import scanpy

from hcs_ray import contracts as c
from hcs_ray.contracts import InputError
from hcs_ray.embed import embed
from hcs_ray.export import export
from hcs_ray.maps import make_map
from hcs_ray.outliers import find_outliers, read_outliers
from hcs_ray.profiles.build import profile
from hcs_ray.stage import StaleStageError
from hcs_ray.storage import LocalStorage
from hcs_ray.study import Study, open_study
from hcs_ray.tables import read_embeddings, read_index
from hcs_ray.verify import verify
from tests.command import hcs_ray, refused
from tests.embedding_study import idle, sharded_study, trained
from tests.stored_fields import flip

pytestmark = pytest.mark.timeout(300)

MORE = (
    "embed: {chunk_fields: 7, cpus_per_worker: 0.5}\n"
    "profile: {normalization: standardize, resamples: 20}\n"
    "map: {threads: 1}\n"
)
H5AD = "exports/main/anndata/main.h5ad"
GALLERY = "exports/main/gallery/hcs_ray/BBBC021/workspace_dl"


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory, cluster: str) -> Path:
    """A study as far as its embeddings."""
    folder = sharded_study(
        tmp_path_factory.mktemp("export") / "study", MORE,
        moas=["Microtubule stabilizers", "Actin disruptors"], dmso_wells=4,
    )  # fmt: skip
    embed(trained(folder)[0], idle)
    return folder


@pytest.fixture(scope="module")
def finished(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With its map and profiles, exported to everything."""
    folder = Path(shutil.copytree(embedded, tmp_path_factory.mktemp("finished") / "study"))
    study = open_study(str(folder))
    profile(study, idle)
    make_map(study, idle)
    export(study, ["anndata", "gallery"], idle)
    return folder


@pytest.fixture
def own(embedded: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(embedded, tmp_path / "study"))


def features_of(study: Path) -> list[str]:
    """As a user would read them."""
    found: list[str] = json.loads((study / "embeddings/main/features.json").read_text())["features"]
    return found


def test_the_sidecar_names_the_features_for_pycytominer(finished: Path) -> None:
    """The lines of docs/embeddings.md."""
    names = features_of(finished)
    parts = [pd.read_parquet(path) for path in sorted((finished / "embeddings/main").glob("0*.parquet"))]
    table = pd.concat(parts, ignore_index=True)
    vectors = pd.DataFrame(np.stack(table.pop("embedding").tolist()), columns=names)
    fields = pd.concat([table, vectors], axis=1)

    wells = pycytominer.aggregate(fields, features=names, operation="mean")
    normalized = pycytominer.normalize(
        fields,
        features=names,
        meta_features=c.metadata_columns(fields),
        samples="Metadata_pert_type == 'negcon'",
    )
    meta, features = read_embeddings(open_study(str(finished)))
    assert names == [f"Embedding_{number:04d}" for number in range(64)]
    first = (meta[c.PLATE] == wells[c.PLATE][0]) & (meta[c.WELL] == wells[c.WELL][0])
    np.testing.assert_allclose(wells[names].to_numpy()[0], features[first].mean(0), rtol=1e-4)
    controls = (normalized[c.PERT_TYPE] == c.NEGATIVE_CONTROL).to_numpy()
    np.testing.assert_allclose(normalized[names].to_numpy()[controls].mean(0), 0, atol=1e-3)


def test_the_sidecar_says_what_computed_them(finished: Path) -> None:
    about = json.loads((finished / "embeddings/main/features.json").read_text())
    record = json.loads((finished / "runs/main/_stage.json").read_text())
    assert about["model"] == "runs/main/model.pt"
    assert about["model_sha256"] == record["outputs"]["runs/main/model.pt"]["sha256"]
    assert about["network"] == "tiny"
    assert about["tiles"] == "full"
    assert about["probabilities"] == ["Probability_DMSO", "Probability_Microtubule stabilizers"]


def test_scanpy_takes_the_file(finished: Path) -> None:
    study = open_study(str(finished))
    meta, features = read_embeddings(study)
    data = anndata.read_h5ad(finished / H5AD)
    assert data.X.dtype == np.float32
    np.testing.assert_array_equal(data.X, features)
    assert data.var_names.tolist() == features_of(finished)
    assert data.obs_names.tolist() == meta[c.KEY].tolist()
    for name in meta.columns.drop(c.KEY):
        found, wanted = data.obs[name].astype(object), meta[name].astype(object)
        assert found.isna().tolist() == wanted.isna().tolist(), name
        assert found[found.notna()].tolist() == wanted[wanted.notna()].tolist(), name
    layout = pd.read_parquet(finished / "maps/main.parquet").set_index(c.KEY).loc[data.obs_names]
    np.testing.assert_array_equal(data.obsm["X_umap"], layout[["x", "y"]].to_numpy())
    scanpy.pp.neighbors(data, n_neighbors=5, use_rep="X")
    assert data.obsp["distances"].shape == (len(meta), len(meta))
    found = scanpy.get.obs_df(data, [c.MOA, "Embedding_0003"])
    np.testing.assert_array_equal(found["Embedding_0003"], features[:, 3])


def test_the_file_tells_what_it_follows_from(finished: Path) -> None:
    lineage = anndata.read_h5ad(finished / H5AD).uns["hcs_ray"]
    record = json.loads((finished / "embeddings/main/_stage.json").read_text())
    del record["outputs"]
    assert json.loads(lineage["record"]) == record
    assert lineage["study_config"] == (finished / record["study_config"]).read_text()


def test_the_same_study_gives_the_same_bytes(finished: Path) -> None:
    before = {path: LocalStorage(finished).read(path) for path in LocalStorage(finished).sizes("exports")}
    export(open_study(str(finished)), ["anndata", "gallery"], idle, force=True)
    after = {path: LocalStorage(finished).read(path) for path in LocalStorage(finished).sizes("exports")}
    assert before.keys() == after.keys()
    assert [path for path in before if before[path] != after[path] and not path.endswith("_stage.json")] == []


def test_the_gallerys_folders_hold_every_field_well_and_treatment(finished: Path) -> None:
    index = read_index(open_study(str(finished)))
    sha = json.loads((finished / "runs/main/_stage.json").read_text())["outputs"]["runs/main/model.pt"][
        "sha256"
    ]
    network = f"tiny_{sha[:7]}"
    wanted = {
        f"embeddings/{network}/{row[c.BATCH]}/{row[c.PLATE]}/{row[c.WELL]}-{row[c.SITE]}/embedding.parquet"
        for row in c.rows_of(index)
    }
    for plate in index[c.PLATE].unique():
        folder = f"profiles/{network}/Week1/{plate}"
        wanted |= {f"{folder}/{plate}{end}.parquet" for end in ("", "_augmented", "_normalized_negcon")}
    wanted |= {f"collated/{network}/collated.parquet", f"consensus/{network}/consensus.parquet"}
    top = finished / GALLERY
    assert {path.relative_to(top).as_posix() for path in top.rglob("*.parquet")} == wanted
    row = index.iloc[7]
    place = f"{row[c.PLATE]}/{row[c.WELL]}-{row[c.SITE]}"
    one = pd.read_parquet(top / f"embeddings/{network}/Week1/{place}/embedding.parquet")
    features = read_embeddings(open_study(str(finished)))[1]
    np.testing.assert_array_equal(one[features_of(finished)].to_numpy(), features[7:8])
    assert one[c.COMPOUND].tolist() == [row[c.COMPOUND]]


def test_pycytominer_normalises_the_gallerys_wells_as_we_do(finished: Path) -> None:
    """Its own recipe, from the file with all metadata to the one normalised by the plate's controls."""
    names = features_of(finished)
    for augmented in sorted((finished / GALLERY).glob("profiles/*/*/*/*_augmented.parquet")):
        normalized = pycytominer.normalize(
            str(augmented), features=names, samples="Metadata_pert_type == 'negcon'", method="standardize"
        )
        ours = pd.read_parquet(str(augmented).replace("_augmented", "_normalized_negcon"))
        assert ours[c.WELL].tolist() == normalized[c.WELL].tolist()
        kept = [name for name in names if name in ours.columns]
        assert len(kept) > 10
        assert kept == [name for name in ours.columns if name not in c.metadata_columns(ours)]
        np.testing.assert_allclose(ours[kept], normalized[kept], rtol=1e-3, atol=1e-3)
        bare = pd.read_parquet(str(augmented).replace("_augmented", ""))
        assert bare.columns.tolist() == [c.PLATE, c.WELL, *names]
        pd.testing.assert_frame_equal(bare, pd.read_parquet(augmented)[bare.columns])


def test_an_export_without_the_other_stages_says_what_it_lacks(own: Path) -> None:
    study = open_study(str(own))
    figures = export(study, ["anndata", "gallery"], idle)
    assert "hcs-ray map" in figures["anndata, WITHOUT map"]["text"]
    assert "hcs-ray profile" in figures["gallery, WITHOUT profile"]["text"]
    assert "X_umap" not in anndata.read_h5ad(own / H5AD).obsm
    assert not list((own / GALLERY).rglob("*normalized*"))
    assert len(list((own / GALLERY).rglob("*_augmented.parquet"))) == 3


def test_a_finished_export_is_left_alone_and_one_that_is_stale_is_refused(own: Path) -> None:
    study = open_study(str(own))
    export(study, ["gallery"], idle)
    files = {path: path.stat().st_mtime_ns for path in (own / "exports").rglob("*") if path.is_file()}
    export(study, ["gallery"], idle)
    assert files == {path: path.stat().st_mtime_ns for path in (own / "exports").rglob("*") if path.is_file()}
    other = open_study(str(own), overrides=["export.field_files=false"])
    with pytest.raises(StaleStageError, match=r"export.field_files changed from True to False"):
        export(other, ["gallery"], idle)
    export(other, ["gallery"], idle, force=True)
    assert not list((own / GALLERY).rglob("embedding.parquet"))


def test_verify_reads_exports_too(own: Path) -> None:
    study = open_study(str(own))
    before, flaws = verify(study, idle)
    assert flaws == []
    export(study, ["anndata", "gallery"], idle)
    listed = [*(own / "exports").rglob("*.parquet"), own / H5AD]
    assert verify(study, idle) == (before + len(listed), [])
    flip(own / H5AD, (own / H5AD).stat().st_size // 2)
    listed[0].unlink()
    _, flaws = verify(study, idle)
    assert {(flaw.stage, str(flaw)) for flaw in flaws} == {
        ("export anndata", f"{H5AD}: damaged: other content than was written"),
        ("export gallery", f"{listed[0].relative_to(own)}: missing"),
    }
    done = hcs_ray("verify", own)
    assert "hcs-ray export STUDY --to anndata --force, then hcs-ray export STUDY --to gallery" in done.stderr


def test_what_cannot_be_exported_is_one_line(own: Path) -> None:
    assert "no export to csv; there are anndata, gallery" in refused("export", own, "--to", "csv")
    assert "embed other is not complete" in refused("export", own, "--to", "anndata", "--name", "other")
    with pytest.raises(InputError, match=r"export.project"):
        open_study(str(own), overrides=["export.project=../../x"])


def test_stages_go_on_without_unreadable_fields(own: Path) -> None:
    shutil.rmtree(own / "embeddings")
    index = read_index(open_study(str(own)))
    for row in (0, 20):
        place = index.iloc[row]
        flip(own / "shards" / place[c.SHARD], int(place[c.OFFSET]) + int(place[c.SIZE]) // 2)
    study = open_study(str(own), overrides=["embed.on_error=quarantine"])
    figures: dict[str, Any] = embed(study, idle)
    assert figures["fields"] == len(index) - 2
    assert figures["UNREADABLE"].startswith("2 fields left out")
    assert embed(study, idle) == figures, "complete"
    profile(study, idle)
    export(study, ["gallery", "anndata"], idle)
    assert len(list((own / GALLERY).rglob("embedding.parquet"))) == len(index) - 2
    assert anndata.read_h5ad(own / H5AD).n_obs == len(index) - 2
    wells = pd.read_parquet(own / "profiles/main/well.parquet")
    assert wells["Metadata_Fields"].sum() == len(index) - 2
    assert make_map(study, idle)["fields"] == len(index) - 2
    find_outliers(study, idle)
    assert len(read_outliers(study)["field"]) == len(index) - 2


def test_an_export_of_half_precision_is_float32(own: Path) -> None:
    study, _ = trained(own, "embed.dtype=float16", name="half")
    embed(study, idle)
    export(study, ["anndata"], idle)
    data = anndata.read_h5ad(own / "exports/half/anndata/half.h5ad")
    exact = read_embeddings(open_study(str(own)))[1]
    assert data.X.dtype == np.float32
    np.testing.assert_allclose(data.X, exact, rtol=1e-3, atol=1e-5)
    assert isinstance(study, Study)
