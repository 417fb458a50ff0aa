"""Progress tells the amount, the rate and the time that is left."""

from __future__ import annotations

import re
import time

import pytest

from hcs_ray.progress import progress_bar


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert not captured.out, "standard output is for figures"
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", captured.err)


def test_without_a_terminal_there_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("shard", "fields", line_every_s=0.02) as progress:
        progress(100, 400)
        time.sleep(0.05)
        progress(200, 400)
    first, second, last = shown(capsys).splitlines()
    assert first == "shard     400 fields ..."
    said = re.fullmatch(r"shard     200 of 400 fields, ([0-9.]+) fields/s, 0:00:00 left", second)
    assert said, second
    assert float(said[1]) < 2001, "what was there before is no part of the rate"
    assert re.fullmatch(r"shard     0\.[0-9] s", last)


def test_slow_things_are_counted_by_the_minute(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("train", "epochs", line_every_s=0) as progress:
        progress(0, 30)
        time.sleep(1.1)
        progress(1, 30)
    assert re.search(r"5[0-9]\.[0-9] epochs/min, 0:00:3[0-9] left", shown(capsys))


def test_bytes_have_their_own_units(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("download", "bytes", line_every_s=0) as progress:
        progress(0, 3 * 10**9)
        time.sleep(0.01)
        progress(10**6, 3 * 10**9)
    text = shown(capsys)
    assert "download  3.0 GB ..." in text
    assert re.search(r"1\.0 MB of 3\.0 GB, [0-9.]+ MB/s, 0:[0-9]{2}:[0-9]{2} left", text), text


def test_what_has_nothing_to_do_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("map", "steps") as progress:
        progress(3, 3)
    assert shown(capsys) == "map       complete\n"


@pytest.mark.parametrize(("unit", "rate"), [("fields", "fields/s"), ("bytes", "bytes/s")])
def test_a_terminal_has_a_bar_with_rate_and_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, unit: str, rate: str
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "140")
    with progress_bar("stage", unit) as progress:
        for done in range(0, 60, 10):
            progress(done, 600)
            time.sleep(0.05)
    text = shown(capsys)
    assert rate in text
    assert re.search(r"left 0:00:0[1-9]", text), text
