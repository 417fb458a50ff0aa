"""A screen is fetched whole or not at all, from servers that fail in the ways that servers fail."""

from __future__ import annotations

import email.utils
import io
import random
import ssl
import time
import zipfile
from contextlib import nullcontext
from pathlib import Path

import pytest
import trustme

from hcs_ray.contracts import HcsError, InputError
from hcs_ray.screen.download import Request, download
from hcs_ray.screen.download.archive import check_zip
from tests import published
from tests.http_server import Fault, Site, closed_port, serving
from tests.published import (
    FIRST,
    IMAGE,
    ONE,
    PLATES,
    QUICK,
    Fetch,
    damaged,
    image_table,
    plate_zip,
    with_member,
    zip_of,
)

files, site, fetch = published.files, published.site, published.fetch


# --- Servers that fail -------------------------------------------------------------------------------


@pytest.mark.parametrize("validators", ["etag", "date"])
def test_a_dropped_connection_goes_on_where_it_was(fetch: Fetch, validators: str) -> None:
    fetch.site.validators = validators  # type: ignore[assignment]
    size = len(fetch.site.files[FIRST])
    fetch.site.fail(FIRST, Fault(drop_after=size // 3), times=2)
    done = fetch(PLATES[0])
    assert fetch.holds(ONE)
    assert fetch.site.sent(FIRST) == size
    assert "dropped" in fetch.text()
    assert done.bytes_fetched == sum(len(fetch.site.files[name]) for name in ONE)
    assert fetch.counted[-1][0] == fetch.counted[-1][1]


@pytest.mark.parametrize("reason", ["ranges", "validators"])
def test_a_server_that_cannot_resume_starts_again(fetch: Fetch, reason: str) -> None:
    if reason == "ranges":
        fetch.site.ranges = "ignored"
    else:
        fetch.site.validators = "none"
    size = len(fetch.site.files[FIRST])
    fetch.site.fail(FIRST, Fault(drop_after=size // 2))
    fetch(PLATES[0])
    assert fetch.holds(ONE)
    assert fetch.site.sent(FIRST) == size // 2 + size
    assert "it begins again" in fetch.text()
    assert fetch.counted[-1][0] == fetch.counted[-1][1], "bytes that came in vain are taken back"


@pytest.mark.parametrize("ranges", ["honoured", "ignored", "blind"])
@pytest.mark.parametrize("longer", [0, 5])
def test_two_versions_are_never_spliced(fetch: Fetch, ranges: str, longer: int) -> None:
    fetch.site.ranges = ranges  # type: ignore[assignment]
    old = plate_zip("A", 76, zipfile.ZIP_STORED)
    new = plate_zip("A" + "x" * longer, 77, zipfile.ZIP_STORED)
    assert (len(old) == len(new)) is (longer == 0)
    fetch.site.files[FIRST] = old
    fetch.site.fail(FIRST, Fault(drop_after=len(old) // 2, becomes=new))
    assert not fetch(PLATES[0]).renamed
    assert (fetch.folder / FIRST).read_bytes() == new
    assert fetch.counted[-1][0] == fetch.counted[-1][1]


def test_a_version_that_changed_between_two_runs_is_not_spliced(fetch: Fetch) -> None:
    old = fetch.site.files[FIRST]
    fetch.site.fail(FIRST, Fault(drop_after=len(old) // 2, becomes=plate_zip(PLATES[0], 78)), times=1)
    fetch.site.fail(FIRST, Fault(status=404), times=1)
    assert "404" in fetch(PLATES[0]).failed[0]
    assert (fetch.folder / f"{FIRST}.part").exists()
    assert not fetch(PLATES[0]).failed
    assert "has changed on the server" in fetch.text()
    assert fetch.holds(ONE)


def test_a_busy_server_is_left_alone_as_long_as_it_asks(fetch: Fetch) -> None:
    soon = email.utils.formatdate(time.time() + 2, usegmt=True)
    fetch.site.fail(FIRST, Fault(status=503))
    fetch.site.fail(FIRST, Fault(status=503, headers={"Retry-After": soon}))
    fetch.site.fail(FIRST, Fault(status=429, headers={"Retry-After": "1"}))
    begun = time.monotonic()
    fetch(PLATES[0])
    assert time.monotonic() - begun > 1.5
    assert fetch.holds(ONE)
    assert "503" in fetch.text()
    assert "429; try 4 of 4 in 1.0 s" in fetch.text()


def test_silence_is_not_waited_for_forever(fetch: Fetch) -> None:
    fetch.site.fail(FIRST, Fault(stall_after=1000))
    fetch(PLATES[0])
    assert "silent for 0.5 s" in fetch.text()
    assert fetch.holds(ONE)
    assert fetch.site.asked(FIRST)[-1].range == "bytes=1000-"


def test_patience_ends_with_one_line_that_names_the_url(fetch: Fetch) -> None:
    fetch.site.fail(FIRST, Fault(status=500), times=4)
    done = fetch(PLATES[0], PLATES[1])
    (line,) = done.failed
    assert f"{fetch.site.url}/{FIRST}: the server answers 500, 4 tries in a row" in line
    assert (fetch.folder / zip_of(PLATES[1])).exists(), "the others were fetched"
    assert done.plates == (PLATES[1],)


@pytest.mark.parametrize("status", [403, 404])
def test_what_the_server_does_not_give_is_not_asked_for_twice(fetch: Fetch, status: int) -> None:
    fetch.site.fail(FIRST, Fault(status=status), method="HEAD")
    with pytest.raises(HcsError, match=f"{FIRST}: .* \\({status}\\)"):
        fetch(PLATES[0])
    assert len(fetch.site.asked(FIRST, "HEAD")) == 1
    assert not fetch.site.asked(FIRST)


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    address = f"http://user:secret@127.0.0.1:{closed_port()}/x"
    with pytest.raises(HcsError, match=r"image\.csv: no connection .*Connection refused") as caught:
        download(
            Request(str(tmp_path), (), address, patience=QUICK), lambda *_: nullcontext(print), lambda _: None
        )
    assert "secret" not in str(caught.value)


def test_a_server_without_head_is_asked_otherwise(fetch: Fetch) -> None:
    for name in ONE:
        fetch.site.fail(name, Fault(status=405), method="HEAD")
    fetch(PLATES[0])
    assert fetch.holds(ONE)


# --- Files that are damaged --------------------------------------------------------------------------


def test_a_zip_that_came_damaged_is_fetched_again(fetch: Fetch) -> None:
    right, wrong = fetch.site.files[FIRST], damaged(fetch.site.files[FIRST])
    fetch.site.files[FIRST] = wrong
    fetch.site.fail(FIRST, Fault(becomes=right))
    done = fetch(PLATES[0])
    assert fetch.holds(ONE)
    assert done.renamed == (f"{FIRST}.corrupt-1",)
    assert (fetch.folder / f"{FIRST}.corrupt-1").read_bytes() == wrong
    assert "is damaged" in fetch.text()
    assert f"kept as {FIRST}.corrupt-1" in fetch.text()


def test_a_zip_that_is_always_damaged_never_gets_its_name(fetch: Fetch) -> None:
    fetch.site.files[FIRST] = damaged(fetch.site.files[FIRST])
    (line,) = fetch(PLATES[0]).failed
    assert "the same bytes came twice, so the server's file is damaged" in line
    assert not (fetch.folder / FIRST).exists()
    fetch(PLATES[0])
    assert len(list(fetch.folder.glob(f"{FIRST}.corrupt-*"))) == 4, "not one is overwritten"


def test_a_truncated_zip_never_gets_its_name(fetch: Fetch) -> None:
    fetch.site.files[FIRST] = fetch.site.files[FIRST][:-1]
    assert "not a whole zip" in fetch(PLATES[0]).failed[0]
    assert not (fetch.folder / FIRST).exists()


def checked(path: Path, content: bytes) -> str:
    """What is wrong with a zip."""
    path.write_bytes(content)
    with pytest.raises(HcsError) as caught:
        check_zip(path, lambda read: None)
    return str(caught.value)


def test_no_part_of_a_zip_passes_for_a_whole_one(tmp_path: Path, files: dict[str, bytes]) -> None:
    whole = files[FIRST]
    for end in (0, 1, 22, 5000, len(whole) // 2, len(whole) - 22, len(whole) - 1):
        assert "not a whole zip" in checked(tmp_path / "x.zip", whole[:end])


def test_no_other_bit_passes_for_the_right_one(tmp_path: Path, files: dict[str, bytes]) -> None:
    """Any one bit of the packed pixels; what lies around them holds names and dates, which have no CRC."""
    with zipfile.ZipFile(io.BytesIO(files[FIRST])) as archive:
        member = max(archive.infolist(), key=lambda member: member.compress_size)
    first = member.header_offset + 30 + len(member.filename)
    draw = random.Random(0)
    for _ in range(200):
        at = first + draw.randrange(member.compress_size)
        content = bytearray(files[FIRST])
        content[at] ^= 1 << draw.randrange(8)
        assert "is damaged" in checked(tmp_path / "x.zip", bytes(content))


def test_a_wrong_content_length_is_not_believed(fetch: Fetch) -> None:
    more = str(len(fetch.site.files[FIRST]) + 10)
    fetch.site.fail(FIRST, Fault(headers={"Content-Length": more}), times=50)
    assert "tries in a row" in fetch(PLATES[0]).failed[0]
    assert not (fetch.folder / FIRST).exists()


@pytest.mark.parametrize(
    "name", ["../x.tif", "a/../../x", "..", "/etc/x", "C:/x", "..\\x", "a\\..\\x", "\\x", "a/x\n.tif"]
)
def test_members_that_point_out_of_their_zip_are_refused(tmp_path: Path, name: str) -> None:
    assert "points out of the zip" in checked(tmp_path / "x.zip", with_member(name))


def test_a_zip_with_such_members_never_gets_its_name(fetch: Fetch) -> None:
    fetch.site.files[FIRST] = with_member("../x.tif")
    assert "points out of the zip" in fetch(PLATES[0]).failed[0]
    assert not (fetch.folder / FIRST).exists()
    assert len(fetch.site.asked(FIRST)) == 1, "the next copy would be no better"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_with_a_link_or_twins_or_without_files_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/x.tif", b"1")
        archive.writestr("a/x.tif", b"2")
    assert "twice" in checked(path, path.read_bytes())
    assert "is a link" in checked(path, with_member("a/x.tif", link=True))
    assert "the zip is empty" in checked(path, with_member("a/"))
    path.write_bytes(with_member("a/..b/x..tif"))
    check_zip(path, lambda read: None)  # dots within a name are no step up


def test_a_web_page_in_place_of_a_table_is_refused(fetch: Fetch) -> None:
    fetch.site.files[IMAGE] = b"<html>Please sign in</html>\n<p>\n"
    with pytest.raises(HcsError, match=f"{fetch.site.url}/{IMAGE}: has no column Image_Metadata_Plate_DAPI"):
        fetch()
    assert not (fetch.folder / IMAGE).exists()


def test_a_plate_that_is_no_name_becomes_no_path(fetch: Fetch) -> None:
    fetch.site.files[IMAGE] = image_table((*PLATES, "../../evil"))
    with pytest.raises(InputError, match=r"row 8: plate '\.\./\.\./evil'"):
        fetch()
    assert len(fetch.site.requests) == 2


# --- Redirects, secrets, certificates ----------------------------------------------------------------


def moved(site: Site, name: str, target: str, times: int = 1) -> None:
    for method in ("HEAD", "GET"):
        site.fail(name, Fault(status=302, headers={"Location": target}), times, method)


def test_redirects_are_followed_five_times_and_take_no_secret_along(fetch: Fetch) -> None:
    with serving(fetch.site.files) as other:
        for name in ONE:
            moved(fetch.site, name, f"{other.url}/{name}?signature=hidden")
            other.files[f"{name}?signature=hidden"] = other.files[name]
        fetch.site.url = fetch.site.url.replace("://", "://user:pass%40word@")
        fetch(PLATES[0])
        assert fetch.holds(ONE)
        assert all("authorization" in seen.headers for seen in fetch.site.requests)
        assert not any("authorization" in seen.headers for seen in other.requests)
        record = (fetch.folder / "download.json").read_text()
        assert "word" not in record + fetch.text()
        assert "hidden" not in record + fetch.text()


def test_a_circle_of_redirects_ends(fetch: Fetch) -> None:
    moved(fetch.site, IMAGE, f"{fetch.site.url}/{IMAGE}", times=20)
    with pytest.raises(HcsError, match="more than 5 redirects"):
        fetch()
    assert len(fetch.site.requests) == 6


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://host/x"])
def test_redirects_lead_to_the_web_only(fetch: Fetch, target: str) -> None:
    moved(fetch.site, IMAGE, target)
    with pytest.raises(HcsError, match="it is not followed"):
        fetch()


def test_https_wants_a_certificate_and_is_never_left(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with serving(files, context) as site, serving(files) as plain:
        fetch = Fetch(tmp_path / "raw", site)
        with pytest.raises(HcsError, match=r"(self-signed certificate|unable to get).*SSL_CERT_FILE"):
            fetch(PLATES[0])
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        fetch(PLATES[0])
        assert fetch.holds(ONE)
        moved(site, zip_of(PLATES[1]), f"{plain.url}/{zip_of(PLATES[1])}")
        with pytest.raises(HcsError, match=r"redirects to http://127\.0\.0\.1; it is not followed"):
            fetch(PLATES[1])
        assert not plain.requests


def test_a_proxy_of_the_environment_is_used(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    """The site stands for the proxy: it is sent whole addresses."""
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", fetch.site.url.replace("://", "://me:word@"))
    fetch.site.url = "http://screens.invalid/bbbc"
    fetch(PLATES[0])
    assert fetch.holds(ONE)
    assert all("proxy-authorization" in seen.headers for seen in fetch.site.requests)
    assert {seen.headers["host"] for seen in fetch.site.requests} == {"screens.invalid"}
