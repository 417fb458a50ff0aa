"""Every job, example and setup renders to the whole YAML that was last looked at (tests/golden/k8s/)."""

from __future__ import annotations

import difflib

import pytest

from tests.k8s_golden import FOLDER, FOLDERS, golden_file, text_of


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_renders_to_its_golden_file(folder: str) -> None:
    golden, text = golden_file(folder).read_text().splitlines(), text_of(folder).splitlines()
    difference = list(difflib.unified_diff(golden, text, "golden", "rendered", lineterm="", n=1))
    assert difference == [], "if it is meant: python -m tests.k8s_golden"


def test_there_is_no_other_golden_file() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {golden_file(folder).name for folder in FOLDERS}
