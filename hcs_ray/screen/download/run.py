"""What `hcs-ray download` does: look at the server's files, check what is here, fetch the rest.

The zips stay zipped: `hcs-ray shard` reads images straight from them. A file has its published name only
when it is whole and checked. No file is overwritten or deleted: one that is damaged, or differs from the
server's, becomes ``<name>.corrupt-<n>``.
"""

from __future__ import annotations

import difflib
import errno
import re
import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from rich.filesize import decimal as in_words

from hcs_ray.contracts import HcsError, InputError, Progress
from hcs_ray.screen.download.archive import UnsafeZipError, check_zip
from hcs_ray.screen.download.folder import Folder, digest_of
from hcs_ray.screen.download.server import Patience, Remote, Say, Server, StoppedError
from hcs_ray.screen.download.transfer import PartFile, fetch
from hcs_ray.screen.download.workers import in_parallel
from hcs_ray.screen.tables import read_table

ADDRESS: Final = "https://data.broadinstitute.org/bbbc/BBBC021/"
IMAGE_TABLE: Final = "BBBC021_v1_image.csv"
_PLATE: Final = "Image_Metadata_Plate_DAPI"
_TABLES: Final = {  # with the columns that tell it from a web page
    IMAGE_TABLE: (_PLATE, "Image_FileName_DAPI"),
    "BBBC021_v1_moa.csv": ("compound", "concentration", "moa"),
    "BBBC021_v1_compound.csv": ("compound", "smiles"),
}
_PLATE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

T = TypeVar("T")
Bars = Callable[[str, str], AbstractContextManager[Progress]]  # (what is done, unit) -> its progress


@dataclass(frozen=True)
class Request:
    """What is wanted.

    Attributes:
        folder: A local folder; made where it is missing.
        plates: These only; none: all that the image table has.
        address: Where the zips and tables lie.
        jobs: Files at a time.
        check: Read every file that is here already, also those that were checked before.
        patience: With the server.
    """

    folder: str
    plates: tuple[str, ...] = ()
    address: str = ADDRESS
    jobs: int = 4
    check: bool = False
    patience: Patience = field(default_factory=Patience)


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        fetched: Names of files, and how many bytes came for them in this run.
        kept: Names of files that were here already, and right.
        renamed: New names of files that were damaged or differed.
        failed: One line for each file that could not be had.
        plates: Those whose zip is in the folder and was checked, now or earlier.
        plates_in_table: All that the screen has.
    """

    fetched: tuple[str, ...]
    bytes_fetched: int
    kept: tuple[str, ...]
    renamed: tuple[str, ...]
    failed: tuple[str, ...]
    plates: tuple[str, ...]
    plates_in_table: int


def download(request: Request, bar: Bars, say: Say) -> Outcome:
    """Fetch the tables and zips of BBBC021 that are not in a folder yet, and check all of them.

    A file that fails does not keep the others from being fetched, unless it is the image table or the
    server does not have it at all.

    Raises:
        InputError: an unknown plate (with the nearest names), an address or folder of another kind.
        HcsError: one line: a file that the server does not have, a full disk, another download at work.
    """
    if "://" in request.folder:
        raise InputError(
            f"{request.folder}: download into a local folder; hcs-ray shard writes its shards to s3://"
        )
    if request.jobs < 1:
        raise InputError(f"--jobs {request.jobs}: at least 1")
    job = _Job(request, bar, say)
    try:
        with job.folder.held():
            job.bring([IMAGE_TABLE], lambda what, unit: nullcontext(lambda done, total: None))
            plates = _plates(job.folder.path / IMAGE_TABLE)
            zips = [zip_name(plate) for plate in _chosen(plates, request.plates)]
            job.bring([*list(_TABLES)[1:], *zips], bar)
            return job.outcome(plates)
    except OSError as error:
        raise _disk_error(error, job.folder.path) from None


def zip_name(plate: str) -> str:
    """The published name of a plate's zip."""
    return f"BBBC021_v1_images_{plate}.zip"


class _Job:
    """One download into one folder."""

    def __init__(self, request: Request, bar: Bars, say: Say) -> None:
        self.request = request
        self.bar = bar
        self.say = _in_turn(say)
        self.stop = threading.Event()
        self.server = Server(request.address, request.jobs, request.patience, self.stop, self.say)
        self.folder = Folder(Path(request.folder), self.say)
        self.remotes: dict[str, Remote] = {}
        self.here: set[str] = set()  # whole and checked
        self.fetched: list[str] = []
        self.failed: list[str] = []
        self.bytes_fetched = 0

    def bring(self, names: Sequence[str], bar: Bars) -> None:
        """Have these files here, whole and checked."""
        self._each(self.server.look, names, self.remotes.__setitem__)
        self.here |= {name for name in names if self._is_known(name)}
        self._check_zips([name for name in names if name not in self.here and self._is_zip_here(name)])
        wanted = [name for name in names if name not in self.here]
        with bar("download", "bytes") as progress:
            if wanted:
                self._fetch_all(wanted, len(names), progress)
        if IMAGE_TABLE in wanted and self.failed:
            raise HcsError(self.failed[0])

    def outcome(self, plates: Sequence[str]) -> Outcome:
        """The end's figures."""
        here = [plate for plate in plates if self.folder.checked(zip_name(plate))]
        kept = sorted(self.here - set(self.fetched))
        return Outcome(
            tuple(self.fetched), self.bytes_fetched, tuple(kept), tuple(self.folder.renamed),
            tuple(self.failed), tuple(here), len(plates),
        )  # fmt: skip

    def _is_known(self, name: str) -> bool:
        """Whether the file is as it was checked, and as large as the server's; a table also as old."""
        checked = self.folder.checked(name)
        if not checked or checked.size != self.remotes[name].size or self.request.check:
            return False
        return name not in _TABLES or checked.remote.is_same(self.remotes[name])

    def _is_zip_here(self, name: str) -> bool:
        return name not in _TABLES and (self.folder.path / name).is_file()

    def _check_zips(self, names: Sequence[str]) -> None:
        """Read zips that are here but not known to be right."""
        if not names:
            return
        with self.bar("check", "bytes") as progress:
            tally = _Tally(progress, 0, sum((self.folder.path / name).stat().st_size for name in names))
            self._each(lambda name: self._check_zip(name, tally), names, lambda name, _: None)
            tally.finish()

    def _check_zip(self, name: str, tally: _Tally) -> None:
        path, remote = self.folder.path / name, self.remotes[name]
        size = path.stat().st_size
        if size != remote.size:
            wrong: HcsError | None = HcsError(f"{size} bytes here, {remote.size} on the server")
        else:
            wrong = self._wrong(path, name, tally)
        if wrong:
            self.say(f"{name}: {wrong}; kept as {self.folder.set_aside(path, name)}")
            return
        self._has(name, digest_of(path), remote)
        PartFile(path).drop_twin(path)

    def _fetch_all(self, wanted: Sequence[str], of: int, progress: Progress) -> None:
        total = sum(self.remotes[name].size for name in wanted)
        have = sum(PartFile(self.folder.path / name).resumable(self.remotes[name]) for name in wanted)
        free = shutil.disk_usage(self.folder.path).free
        self._require_space(total - have, free)
        if of > 1:
            here = f", of which {in_words(have)} are here" if have else ""
            self.say(f"{len(wanted)} of {of} files to fetch: {in_words(total)}{here}; {in_words(free)} free")
        tally = _Tally(progress, have, total)
        self._each(lambda name: self._fetch_or_tell(name, tally), wanted, lambda name, _: None)
        self.bytes_fetched += tally.came

    def _require_space(self, needed: int, free: int) -> None:
        if needed > free:
            raise HcsError(
                f"{self.folder.path}: {in_words(needed)} are to come and {in_words(free)} are free; "
                "make room, name a folder on a larger disk, or fetch some --plates"
            )

    def _fetch_or_tell(self, name: str, tally: _Tally) -> None:
        try:
            self._fetch(name, tally)
        except HcsError as error:
            self.failed.append(str(error))
            self.say(f"NOT FETCHED: {error}")

    def _fetch(self, name: str, tally: _Tally) -> None:
        """A file under its own name; one that is damaged is fetched once more."""
        part, remote, before = PartFile(self.folder.path / name), self.remotes[name], ""
        while True:
            fetch(self.server, name, part, remote, tally.add)
            remote = part.remote or remote
            digest, wrong = digest_of(part.path), self._wrong(part.path, name, None)
            if wrong is None:
                return self._keep(part, name, digest, remote)
            part.forget()
            kept = self.folder.set_aside(part.path, name)
            same = "the same bytes came twice, so the server's file is damaged; " if digest == before else ""
            if before or isinstance(wrong, UnsafeZipError):
                raise HcsError(f"{self.server.url(name)}: {wrong}; {same}kept as {kept}")
            self.say(f"{name}: {wrong}; kept as {kept}, and fetched again")
            tally.add(-remote.size, 0)
            before = digest

    def _keep(self, part: PartFile, name: str, digest: str, remote: Remote) -> None:
        """Give a right file its name, unless the same bytes stand there already."""
        path = self.folder.path / name
        if path.is_file() and path.stat().st_size == remote.size and digest_of(path) == digest:
            part.path.unlink()
        else:
            self.folder.place(part.path, name)
            self.fetched.append(name)
        part.forget()
        self._has(name, digest, remote)

    def _has(self, name: str, digest: str, remote: Remote) -> None:
        self.folder.note(name, digest, remote)
        self.here.add(name)

    def _wrong(self, path: Path, name: str, tally: _Tally | None) -> HcsError | None:
        """What is wrong with a file, read to its end; None where it is right."""

        def advance(read: int) -> None:
            if self.stop.is_set():
                raise StoppedError
            if tally:
                tally.add(read, 0)

        try:
            if name in _TABLES:
                read_table(path.read_bytes(), name, _TABLES[name])
            else:
                check_zip(path, advance)
        except HcsError as error:
            return type(error)(str(error).removeprefix(f"{name}: "))
        return None

    def _each(self, work: Callable[[str], T], names: Sequence[str], take: Callable[[str, T], None]) -> None:
        def outcome(name: str, result: T | Exception) -> None:
            if isinstance(result, Exception):
                raise result
            take(name, result)

        in_parallel(work, names, self.request.jobs, self.stop, outcome)


class _Tally:
    """The bytes of all files together."""

    def __init__(self, progress: Progress, done: int, total: int) -> None:
        self._progress = progress
        self._guard = threading.Lock()
        self._done, self._total = done, total
        self.came = 0
        progress(done, total)

    def add(self, done: int, total: int) -> None:
        """More (or fewer) bytes here, more (or fewer) in all."""
        with self._guard:
            self._done += done
            self._total += total
            self.came += max(0, done)
            self._progress(self._done, self._total)

    def finish(self) -> None:
        """All is read, also what belongs to no member of a zip."""
        self._progress(self._total, self._total)


def _in_turn(say: Say) -> Say:
    guard = threading.Lock()

    def one(line: str) -> None:
        with guard:
            say(line)

    return one


def _plates(path: Path) -> list[str]:
    """All plates of the image table, sorted; each becomes part of an address and of a file's name."""
    table = read_table(path.read_bytes(), path.name, _TABLES[IMAGE_TABLE])
    for row, plate in table[_PLATE].drop_duplicates().items():
        if not _PLATE_NAME.fullmatch(plate):
            raise InputError(f"{path} row {row}: plate {plate!r} is not a name of letters, digits, _ and -")
    return sorted(table[_PLATE].unique())


def _chosen(plates: Sequence[str], asked: Sequence[str]) -> list[str]:
    """The plates that are asked for: each a name, or several with commas between; none means all."""
    names = [name.strip() for text in asked for name in text.split(",") if name.strip()]
    if asked and not names:
        raise InputError(f"--plates {asked[0]!r}: names no plate, as {plates[0]} is one")
    for name in names:
        if name not in plates:
            near = difflib.get_close_matches(name, plates, n=3, cutoff=0.5) or [plates[0], "...", plates[-1]]
            raise InputError(f"--plates {name}: {IMAGE_TABLE} has no such plate; near it: {', '.join(near)}")
    return sorted(set(names)) if asked else list(plates)


def _disk_error(error: OSError, folder: Path) -> HcsError:
    if error.errno in _FULL:
        return HcsError(
            f"{folder}: no room for more ({error.strerror}); make room and run the same command again, "
            "it goes on from there"
        )
    return HcsError(f"{error.filename or folder}: {error.strerror or error}")
