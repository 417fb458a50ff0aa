"""The configuration mirrors YAML, refuses what it does not know, and says what would be right."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hcs_ray.config import (
    StudyConfig,
    canonical_digest,
    parse_study,
    stage_config,
    to_yaml,
    with_values,
)
from hcs_ray.contracts import InputError


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ("train: {lrr: 1}", [], "unknown key train.lrr; did you mean lr?"),
        ("trian: {lr: 1}", [], "unknown key trian; did you mean train?"),
        ("train: {lr: fast}", [], "train.lr: input should be a valid number"),
        ("train: {lr: -1}", [], "train.lr: input should be greater than 0"),
        ("screen: {kind: plates}", [], "screen.kind: it is one of bbbc021, load_data, pybbbc (got 'plates')"),
        ("screen: {foldr: x}", [], "unknown key screen.foldr; did you mean folder?"),
        ("screen: {kind: load_data, colums: {}}", [], "unknown key screen.colums; did you mean columns?"),
        (
            "screen: {kind: load_data, columns: {wel: x}}",
            [],
            "unknown key screen.columns.wel; did you mean well?",
        ),
        ("screen: {camera_maximum: 70000}", [], "screen.camera_maximum: input should be less than"),
        ("storage: {secret: x}", [], "unknown key storage.secret"),
        ("a: [", [], "line 1: not valid YAML"),
        ("train:\n  lr: 0.1\n  lr: 0.2\n", [], "line 3: not valid YAML: lr stands here for the second time"),
        ("- 1", [], "must hold keys and values"),
        ("", ["train.lr"], "--set train.lr: write section.key=value"),
        ("", ["train.lr={"], "not valid YAML"),
        ("train: 3", ["train.lr=1"], "train holds a value"),
        ("split: {folds: 3, test_fold: 3}", [], "test_fold 3 is not below folds 3"),
    ],
)
def test_bad_input_gets_one_line_that_names_it(text: str, overrides: list[str], words: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_study(text, "study.yaml", overrides)
    message = str(caught.value)
    assert words in message
    assert "\n" not in message


def test_overrides_are_yaml_and_come_before_validation() -> None:
    config = parse_study("train: {lr: 1}", "study.yaml", ["train.lr=3e-4", "model.backbone=tiny"])
    assert config.train.lr == 3e-4
    assert config.model.backbone == "tiny"


def test_a_written_configuration_is_read_back() -> None:
    config = parse_study("split: {seed: 7}", "study.yaml")
    assert parse_study(to_yaml(config), "again") == config


def test_what_only_says_where_to_run_makes_nothing_stale() -> None:
    before = StudyConfig()
    elsewhere = with_values(before, {"train.threads": 8, "train.use_gpu": True, "embed.threads": 9}, "test")
    other = with_values(before, {"train.lr": 0.5}, "test")
    assert stage_config(before, ("train", "embed")) == stage_config(elsewhere, ("train", "embed"))
    assert stage_config(before, ("train",)) != stage_config(other, ("train",))


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=5))
def test_a_digest_does_not_depend_on_the_order_of_keys(value: dict[str, int | str]) -> None:
    assert canonical_digest(value) == canonical_digest(dict(reversed(value.items())))


def test_the_schema_describes_every_section() -> None:
    schema = StudyConfig.model_json_schema()
    assert set(schema["properties"]) == set(yaml.safe_load(to_yaml(StudyConfig())))


def test_keys_that_came_later_make_nothing_stale_at_their_default() -> None:
    """Embeddings made before there were tiles are still those of whole fields."""
    before = stage_config(parse_study("embed: {batch: 8}", "test"), ["embed"])["embed"]
    assert before == {"chunk_fields": 512, "batch": 8, "precision": "32"}
    tiled = stage_config(parse_study("embed: {batch: 8, tiles: grid}", "test"), ["embed"])["embed"]
    assert tiled == {**before, "tiles": "grid"}
