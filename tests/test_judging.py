"""Metrics against scikit-learn's, confusions, and the choice of the fields that are shown."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from hcs_ray import contracts as c
from hcs_ray.model.judging import (
    confusion,
    misclassified,
    pick_misclassified,
    rgb,
    validation_metrics,
)
from hcs_ray.model.targets import LABEL, NONE

Labels = npt.NDArray[np.int64]


def field_table(labels: Labels, wells_a_label: int = 4) -> pd.DataFrame:
    keys = [f"P1_A{i:02d}_s1" for i in range(len(labels))]
    treatments = [f"t{label}-{i % wells_a_label}" for i, label in enumerate(labels)]
    return pd.DataFrame({LABEL: labels, c.TREATMENT: treatments, c.KEY: keys})


def logits_near(labels: Labels, classes: int, seed: int = 0, margin: float = 1.5) -> torch.Tensor:
    noise = np.random.default_rng(seed).normal(size=(len(labels), classes))
    return torch.from_numpy(noise + margin * np.eye(classes)[np.maximum(labels, 0)]).float()


def expected_scores(labels: Labels, predicted: Labels) -> dict[str, float]:
    """Of scikit-learn; means over the classes that stand among the labels."""
    present = sorted(set(labels.tolist()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of one class alone
        return {
            "accuracy": metrics.accuracy_score(labels, predicted),
            "balanced_accuracy": metrics.recall_score(labels, predicted, labels=present, average="macro"),
            "macro_f1": metrics.f1_score(labels, predicted, labels=present, average="macro"),
            "mcc": metrics.matthews_corrcoef(labels, predicted),
        }


@st.composite
def judged(draw: st.DrawFn) -> tuple[Labels, int, int]:
    classes = draw(st.integers(1, 5))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=40))
    return np.array(labels, np.int64), classes, draw(st.integers(0, 1000))


@settings(max_examples=40, deadline=None)
@given(judged())
def test_metrics_of_fields_and_treatments_are_those_of_scikit_learn(case: tuple[Labels, int, int]) -> None:
    """Also where classes are missing, and where there is one class or one field."""
    labels, classes, seed = case
    fields, logits = field_table(labels), logits_near(labels, classes, seed)
    found = validation_metrics(fields, torch.arange(len(labels)), logits, classes)
    for name, value in expected_scores(labels, logits.argmax(1).numpy()).items():
        assert found[f"validation_{name}"] == pytest.approx(value, abs=1e-5), name
    probabilities = pd.DataFrame(logits.softmax(1).numpy())
    means = probabilities.groupby(fields[c.TREATMENT]).mean()
    truth = np.array([int(name[1]) for name in means.index])
    for name, value in expected_scores(truth, means.to_numpy().argmax(1)).items():
        assert found[f"validation_treatment_{name}"] == pytest.approx(value, abs=1e-5), name
    loss = metrics.log_loss(labels, logits.softmax(1).numpy(), labels=range(classes)) if classes > 1 else 0.0
    assert found["validation_loss"] == pytest.approx(loss, abs=1e-5)
    assert len(found) == 9


def test_rows_say_which_fields_the_logits_belong_to() -> None:
    labels = np.arange(12) % 3
    fields, logits = field_table(labels), logits_near(labels, 3)
    order = torch.from_numpy(np.random.default_rng(1).permutation(12))
    straight = validation_metrics(fields, torch.arange(12), logits, 3, "test_")
    assert validation_metrics(fields, order, logits[order], 3, "test_") == pytest.approx(straight)
    assert all(name.startswith("test_") for name in straight)
    some = torch.tensor([2, 5, 7])
    assert validation_metrics(fields, some, logits[some], 3)["validation_accuracy"] == pytest.approx(
        float((logits[some].argmax(1) == some % 3).float().mean())
    )


def test_fields_without_a_label_do_not_count() -> None:
    labels = np.array([0, 1, NONE, 1, NONE])
    fields, logits = field_table(labels), logits_near(labels, 2)
    known = torch.tensor([0, 1, 3])
    expected = validation_metrics(fields, known, logits[known], 2)
    assert validation_metrics(fields, torch.arange(5), logits, 2) == expected
    none = torch.tensor([2, 4])
    assert validation_metrics(fields, none, logits[none], 2) == {}
    assert validation_metrics(fields.iloc[:0], torch.arange(0), torch.zeros(0, 2), 2) == {}
    assert 2 not in pick_misclassified(fields, torch.arange(5), -logits, 2, 5)


def test_reduced_precision_is_judged_in_full() -> None:
    labels = np.arange(40) % 4
    logits = logits_near(labels, 4).bfloat16()
    fields, rows = field_table(labels), torch.arange(40)
    assert validation_metrics(fields, rows, logits, 4) == validation_metrics(fields, rows, logits.float(), 4)


def test_logits_that_fit_neither_rows_nor_classes_are_refused() -> None:
    fields = field_table(np.array([0, 1]))
    with pytest.raises(ValueError, match=r"logits \(2, 3\) for 2 rows and 2 classes"):
        validation_metrics(fields, torch.arange(2), torch.zeros(2, 3), 2)


@settings(max_examples=40, deadline=None)
@given(judged())
def test_confusion_is_that_of_scikit_learn(case: tuple[Labels, int, int]) -> None:
    labels, classes, seed = case
    predicted = np.random.default_rng(seed).integers(0, classes, len(labels))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of one label alone
        expected = metrics.confusion_matrix(labels, predicted, labels=range(classes))
    np.testing.assert_array_equal(confusion(labels, predicted, classes), expected)
    more = confusion([*labels, NONE], [*predicted, 0], classes)
    np.testing.assert_array_equal(more, expected)
    assert confusion([], [], classes).tolist() == np.zeros((classes, classes)).tolist()


def test_the_most_confident_errors_are_picked() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    logits = torch.tensor([[5.0, 0], [0, 1], [0, 3], [0, 5], [2, 0], [2, 0]])
    fields, rows = field_table(labels), torch.arange(6)
    assert pick_misclassified(fields, rows, logits, 2, 10).tolist() == [2, 4, 5, 1]
    assert pick_misclassified(fields, rows, logits, 2, 2).tolist() == [2, 4]
    assert pick_misclassified(fields, rows, logits, 2, 0).tolist() == []
    flipped = rows.flip(0)
    assert pick_misclassified(fields, flipped, logits[flipped], 2, 10).tolist() == [2, 4, 5, 1]
    right = torch.nn.functional.one_hot(torch.from_numpy(labels)).float()
    assert pick_misclassified(fields, rows, right, 2, 10).tolist() == []


def test_misclassified_fields_have_names_and_pictures() -> None:
    labels = np.array([0, 0, 1])
    logits = torch.tensor([[5.0, 0], [0, 3], [2, 0]])
    rows = torch.tensor([2, 1, 0])
    found = misclassified(
        field_table(labels), rows, logits[rows], ("Actin", "DMSO"), 5,
        lambda position: np.full((3, 4, 5), position / 2, np.float32),
    )  # fmt: skip
    assert [(one.key, one.truth, one.predicted) for one in found] == [
        ("P1_A01_s1", "Actin", "DMSO"),
        ("P1_A02_s1", "DMSO", "Actin"),
    ]
    assert found[0].probability == pytest.approx(1 / (1 + np.exp(-3)))
    assert found[1].image.shape == (4, 5, 3)
    assert found[1].image.mean() > found[0].image.mean() > 0


@pytest.mark.parametrize("channels", range(1, 8))
def test_pictures_keep_the_contrast_of_the_plate(channels: int) -> None:
    levels = np.linspace(-0.5, 2, 6, dtype=np.float32)
    picture = rgb(np.broadcast_to(levels, (channels, 1, 6)).copy())
    assert picture.dtype == np.uint8
    assert picture.shape == (1, 6, 3)
    assert picture[0, 0].tolist() == [0, 0, 0], "below the plate's range is black"
    assert picture[0, -1].tolist() == picture[0, 3].tolist(), "above it no brighter than its end"
    assert np.ptp(picture[0, -1].astype(int)) < 50, "all channels together are nearly grey"
    assert picture[0, -1].min() > 100


def test_three_channels_are_blue_green_and_red() -> None:
    image = np.eye(3, dtype=np.float32)[:, :, None]
    assert rgb(image)[:, 0].argmax(1).tolist() == [2, 1, 0]
    image[0, 0, 0] = np.nan
    assert rgb(image)[0, 0].tolist() == [0, 0, 0]
