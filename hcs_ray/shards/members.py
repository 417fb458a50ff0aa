"""Which members of a damaged tar are damaged, missing or surplus."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator

import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.contracts import HcsError
from hcs_ray.storage import Storage


def flaws_of_tar(storage: Storage, path: str, index: pd.DataFrame, extension: str) -> Iterator[str]:
    """One line a member that is not as the index says; a line on the rest where all members are.

    Args:
        path: The tar, below the study's root.
        index: The rows of the index that lie in it.
        extension: Of the image members.
    """
    expected = {f"{row[c.KEY]}.json": row[c.SAMPLE_SHA256] for row in index.to_dict("records")}
    expected |= {f"{row[c.KEY]}.{extension}": row[c.SHA256] for row in index.to_dict("records")}
    found, broken = _members(storage, path)
    lines = [
        f"member {name} is damaged" for name in expected if name in found and found[name] != expected[name]
    ]
    if broken:
        lines.append(broken)  # what follows is not missing, only out of reach
    else:
        lines += [f"member {name} is missing" for name in expected if name not in found]
    lines += [f"member {name} is surplus" for name in found if name not in expected]
    yield from lines or ["bytes outside its members are damaged (headers, padding or the end)"]


def _members(storage: Storage, path: str) -> tuple[dict[str, str], str]:
    """SHA-256 of every member that can be reached, and why no more can be."""
    found: dict[str, str] = {}
    try:
        with storage.open(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                content = tar.extractfile(member) if member.isreg() else None
                found[member.name] = hashlib.sha256(content.read() if content else b"").hexdigest()
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):  # an invalid header ends the reading, too
                return found, f"the header at byte {tar.offset} is damaged; what follows cannot be told apart"
    except (tarfile.TarError, OSError, EOFError, HcsError) as error:
        return found, f"cannot be read on after {len(found)} members ({error})"
    return found, ""
