"""`hcs-ray download` as its user meets it: the whole screen or some plates, stopped, resumed, run again."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import signal
import subprocess
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from hcs_ray.contracts import HcsError, InputError
from hcs_ray.screen.download import Request, download
from tests import published
from tests.command import HCS_RAY, hcs_ray, refused
from tests.http_server import Fault, Site, wait_until
from tests.published import FIRST, IMAGE, MOA, ONE, PLATES, QUICK, Fetch, damaged, with_member, zip_of

files, site, fetch = published.files, published.site, published.fetch


# --- As its user runs it -----------------------------------------------------------------------------


def test_the_whole_screen_comes_and_is_known_the_next_time(tmp_path: Path, site: Site) -> None:
    folder = tmp_path / "study" / "raw"
    first = hcs_ray("download", folder, "--from", site.url)
    assert first.returncode == 0, first.stderr
    assert all((folder / name).read_bytes() == content for name, content in site.files.items())
    assert "Fetched 6 files" in first.stderr
    assert f"hcs-ray run {tmp_path / 'study'}" in first.stderr
    assert "plates:" not in first.stderr, "the whole screen needs no choice of plates"
    site.requests.clear()
    again = hcs_ray("download", folder, "--from", site.url)
    assert "Fetched 0 files (0 bytes); 6 were here already; 0 were renamed" in again.stderr
    assert "complete" in again.stderr
    assert {seen.method for seen in site.requests} == {"HEAD"}, "no byte comes twice"


def test_a_subset_ends_with_the_lines_that_a_study_needs(tmp_path: Path, site: Site) -> None:
    folder = tmp_path / "study" / "images"
    done = hcs_ray(
        "download", folder, "--from", site.url, "--plates", f"{PLATES[1]}, {PLATES[2]}", "--plates", PLATES[1]
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.glob("*.zip")) == [zip_of(PLATES[2]), zip_of(PLATES[1])]
    lines = done.stderr.splitlines()
    begin = next(n for n, line in enumerate(lines) if line.endswith("study.yaml:"))
    end = next(n for n, line in enumerate(lines) if line.startswith("hcs-ray run"))
    screen = yaml.safe_load("\n".join(lines[begin + 1 : end]))["screen"]
    assert screen == {"folder": "images", "plates": [PLATES[2], PLATES[1]]}
    assert "2 of 3 plates" in done.stderr


def test_what_cannot_be_meant_is_named(tmp_path: Path, site: Site) -> None:
    line = refused("download", tmp_path / "raw", "--from", site.url, "--plates", "Week1_22132")
    assert "--plates Week1_22132" in line
    assert "Week1_22123" in line
    assert "download into a local folder" in refused("download", "s3://bucket/raw")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("raw", address="ftp://host/x"), "http:// or https://"),
        (Request("raw", address="http:///x"), "http:// or https://"),
        (Request("raw", address="http://host/x?key=1"), "without [?] and #"),
        (Request("raw", address="http://host:port/x"), "a port that is no number"),
        (Request("raw", jobs=0), "--jobs 0"),
    ],
)
def test_no_request_is_sent_for_what_cannot_be_meant(request_: Request, message: str) -> None:
    with pytest.raises(InputError, match=message):
        download(request_, lambda *_: nullcontext(lambda *_: None), lambda _: None)
    assert not Path("raw").exists()


def test_a_folder_that_cannot_be_written_is_named(fetch: Fetch) -> None:
    fetch.folder.write_text("in the way")
    with pytest.raises(HcsError, match=str(fetch.folder)):
        fetch()


def started(folder: Path, site: Site, half: int) -> subprocess.Popen[str]:
    """A download that hangs after so many bytes of the first zip, all of which are on disk."""
    site.fail(FIRST, Fault(stall_after=half))
    command = [HCS_RAY, "download", str(folder), "--from", site.url, "--plates", PLATES[0]]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    part = folder / f"{FIRST}.part"
    wait_until(lambda: part.exists() and part.stat().st_size == half, 20)
    return process


def test_after_a_kill_only_the_rest_is_fetched(tmp_path: Path, site: Site) -> None:
    folder, half = tmp_path / "raw", len(site.files[FIRST]) // 2
    process = started(folder, site, half)
    second = refused("download", folder, "--from", site.url, code=1)
    assert f"process {process.pid}" in second, "one download at a time writes into a folder"
    process.kill()
    process.communicate()
    site.released.set()
    assert not (folder / FIRST).exists()
    done = hcs_ray("download", folder, "--from", site.url, "--plates", PLATES[0])
    assert done.returncode == 0, done.stderr
    assert (folder / FIRST).read_bytes() == site.files[FIRST]
    assert site.asked(FIRST)[-1].range == f"bytes={half}-"
    assert site.sent(FIRST) == len(site.files[FIRST])
    assert not list(folder.glob("*.part*"))


def test_ctrl_c_ends_it_at_once_and_keeps_what_came(tmp_path: Path, site: Site) -> None:
    folder, half = tmp_path / "raw", len(site.files[FIRST]) // 3
    process = started(folder, site, half)
    process.send_signal(signal.SIGINT)
    asked = time.monotonic()
    _, stderr = process.communicate(timeout=20)
    assert time.monotonic() - asked < 8
    assert process.returncode == 130
    assert "run the same command again to go on" in stderr
    assert (folder / f"{FIRST}.part").stat().st_size == half


def test_a_full_disk_is_one_line(tmp_path: Path, site: Site) -> None:
    """The limit on a file's size stands for a full disk: the same failure of the same write."""
    folder, kib = tmp_path / "raw", len(site.files[FIRST]) // 2048
    command = f"ulimit -f {kib}; exec {HCS_RAY} download {folder} --from {site.url} --plates {PLATES[0]}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "no room for more" in done.stderr.splitlines()[-1]
    assert (folder / f"{FIRST}.part").stat().st_size == kib * 1024
    assert hcs_ray("download", folder, "--from", site.url, "--plates", PLATES[0]).returncode == 0
    assert site.sent(FIRST) < 1.6 * len(site.files[FIRST]), "what came before the disk was full is used"


# --- Files that are here already ---------------------------------------------------------------------


def test_files_that_others_fetched_are_checked_and_kept(fetch: Fetch) -> None:
    fetch.folder.mkdir()
    for name in ONE:
        (fetch.folder / name).write_bytes(fetch.site.files[name])
    done = fetch(PLATES[0])
    assert sorted(done.kept) == sorted(ONE)
    assert not done.fetched
    assert not fetch.site.asked(FIRST)
    assert done.plates == (PLATES[0],)
    assert fetch.holds(ONE)


@pytest.mark.parametrize("kind", ["damaged", "short", "other"])
def test_a_file_that_is_not_the_servers_is_renamed_aloud(fetch: Fetch, kind: str) -> None:
    fetch.folder.mkdir()
    right = fetch.site.files[FIRST]
    wrong = {"damaged": damaged(right), "short": right[:-1], "other": b"my thesis"}[kind]
    (fetch.folder / FIRST).write_bytes(wrong)
    (fetch.folder / f"{FIRST}.corrupt-1").write_bytes(b"an older one")
    done = fetch(PLATES[0])
    assert fetch.holds(ONE)
    assert done.renamed == (f"{FIRST}.corrupt-2",)
    assert f"kept as {FIRST}.corrupt-2" in fetch.text()
    assert (fetch.folder / f"{FIRST}.corrupt-1").read_bytes() == b"an older one"
    assert (fetch.folder / f"{FIRST}.corrupt-2").read_bytes() == wrong


def test_a_table_that_was_edited_is_renamed_aloud(fetch: Fetch) -> None:
    fetch(PLATES[0])
    edited = fetch.site.files[MOA].replace(b"0.3", b"0.9")
    (fetch.folder / MOA).write_bytes(edited)
    done = fetch(PLATES[0])
    assert done.renamed == (f"{MOA}.corrupt-1",)
    assert (fetch.folder / f"{MOA}.corrupt-1").read_bytes() == edited
    assert fetch.holds(ONE)


def test_a_table_that_changed_on_the_server_is_fetched_anew(fetch: Fetch) -> None:
    fetch(PLATES[0])
    fetch.site.change(MOA, fetch.site.files[MOA].replace(b"0.3", b"0.9"))
    assert fetch(PLATES[0]).fetched == (MOA,)
    assert fetch.holds(ONE)


def test_rot_is_found_where_it_is_looked_for(fetch: Fetch) -> None:
    fetch(PLATES[0])
    path = fetch.folder / FIRST
    before = path.stat()
    path.write_bytes(damaged(path.read_bytes()))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not fetch(PLATES[0]).fetched, "nobody reads what was checked, unless asked"
    done = fetch(PLATES[0], check=True)
    assert done.fetched == (FIRST,)
    assert done.renamed == (f"{FIRST}.corrupt-1",)
    assert len(fetch(PLATES[0], check=True).kept) == len(ONE)


def test_a_killed_rename_leaves_two_names_and_both_are_safe(fetch: Fetch) -> None:
    fetch(PLATES[0])
    os.link(fetch.folder / FIRST, fetch.folder / f"{FIRST}.part")
    (fetch.folder / "download.json").write_text("{")
    done = fetch(PLATES[0])
    assert not done.fetched
    assert done.renamed == ("download.json.corrupt-1",)
    assert fetch.holds(ONE)


def test_the_record_says_what_was_checked(fetch: Fetch) -> None:
    fetch(PLATES[0])
    record = json.loads((fetch.folder / "download.json").read_text())
    assert sorted(record["files"]) == sorted(ONE)
    assert record["files"][FIRST]["size"] == len(fetch.site.files[FIRST])
    (fetch.folder / "download.json").write_text(json.dumps(record | {"format": 2}))
    with pytest.raises(InputError, match="format 2; this version reads 1"):
        fetch(PLATES[0])


def test_too_little_room_is_said_before_a_byte_comes(fetch: Fetch) -> None:
    huge = {"Content-Length": str(10**17)}
    fetch.site.fail(FIRST, Fault(headers=huge), method="HEAD")
    with pytest.raises(HcsError, match=r"100\.0 PB are to come and .* are free"):
        fetch(PLATES[0])
    assert not fetch.site.asked(FIRST)


# --- The real table, and chance ----------------------------------------------------------------------


def test_the_real_table_names_fifty_five_plates(shared: Path, fetch: Fetch) -> None:
    table = gzip.decompress((shared / "data/bbbc021/BBBC021_v1_image.csv.gz").read_bytes())
    fetch.site.files[IMAGE] = table
    with pytest.raises(InputError, match="near it: Week1_22123"):
        fetch("Week1_2212")
    rows = csv.DictReader(io.StringIO(table.decode()))
    zips = {zip_of(row["Image_Metadata_Plate_DAPI"]) for row in rows}
    fetch.site.files |= dict.fromkeys(zips, with_member("a/x.tif"))
    done = fetch()
    assert done.plates_in_table == len(done.plates) == 55
    assert fetch.holds(sorted(zips))


@pytest.mark.parametrize("seed", range(4))
def test_whatever_fails_the_bytes_are_right(fetch: Fetch, seed: int) -> None:
    draw = random.Random(seed)
    fetch.site.ranges = draw.choice(["honoured", "ignored", "blind"])
    fetch.site.validators = draw.choice(["etag", "date", "none"])
    for name in fetch.site.files:
        for _ in range(draw.randint(0, 3)):
            drop = draw.randint(0, len(fetch.site.files[name]) - 1)
            fetch.site.fail(name, draw.choice([Fault(status=503), Fault(drop_after=drop)]))
    # Three faults, and the connections that they close while others are about to use them again.
    outcome = fetch(patience=replace(QUICK, tries=12))
    assert not outcome.failed
    assert outcome.plates_in_table == len(outcome.plates) == len(PLATES)
    assert fetch.holds(list(fetch.site.files))
    assert fetch.counted[-1][0] == fetch.counted[-1][1]


@pytest.mark.soak
def test_killed_at_any_moment_it_ends_the_same(tmp_path: Path, site: Site) -> None:
    folder, draw, kills = tmp_path / "raw", random.Random(0), 0
    for name in site.files:
        site.fail(name, Fault(drop_after=len(site.files[name]) // 3), times=2)
    while True:
        process = subprocess.Popen([HCS_RAY, "download", str(folder), "--from", site.url])
        try:
            assert process.wait(draw.uniform(0.5, 3.0 + kills / 5)) == 0
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        present = [path for path in folder.glob("BBBC021*") if path.name in site.files]
        assert all(path.read_bytes() == site.files[path.name] for path in present), "a name means: whole"
    assert kills > 2
    assert {path.name for path in folder.iterdir()} == {*site.files, "download.json", ".download.lock"}
    assert all((folder / name).read_bytes() == content for name, content in site.files.items())
