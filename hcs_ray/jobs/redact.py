"""Secrets masked in a stream of bytes that comes bit by bit, each byte of a secret by one ``*``.

The length stays, so that a position in what was shipped is the position in the file. What can still become a
secret with the bytes that follow is held back: no secret goes out in two halves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

MASK: Final = b"*"
HELD_BYTES: Final = 4096  # the longest unfinished word that is held back; no shape below is longer

_SECRET_NAME = re.compile(
    r"SECRET|TOKEN(?!IZER)|PASSW(OR)?D|PASSPHRASE|CREDENTIAL|PRIVATE|(^|_)(API|ACCESS)?_?KEY($|_ID$)",
    re.IGNORECASE,
)
_PATH_NAME = re.compile(r"_(FILE|PATH|URL|URI|DIR|MODE)$", re.IGNORECASE)
_SHORTEST_VALUE = 6  # a shorter one stands in every second line
_SHORTEST_LINE = 16  # of a value of several lines, as a PEM key
_SHORTEST_BEGINNING = 4  # of a value that breaks off at the end of a file

# Each within one word, and bounded, so that holding a word back is enough. A group is what is masked.
_WORD = re.compile(rb"\S*\Z")
_SHAPES = re.compile(
    rb"(?:AKIA|ASIA)[A-Z0-9]{16}"  # AWS
    rb"|(?<![A-Za-z0-9])[0-9a-f]{40}(?![A-Za-z0-9])"  # W&B's older keys; git's revisions look the same
    rb"|wandb_v[0-9]{1,3}_[A-Za-z0-9_]{20,200}"
    rb"|hf_[A-Za-z0-9]{20,200}"
    rb"|eyJ[A-Za-z0-9_-]{8,800}\.eyJ[A-Za-z0-9_-]{8,2000}\.[A-Za-z0-9_-]{8,1200}"  # a web identity
    rb"|(?:SECRET|TOKEN|PASSWORD|_KEY)[A-Z0-9_]{0,60}=['\"]?([^\s'\"]{6,2000})"  # as printed by env
)


@dataclass(frozen=True)
class Redactor:
    """Masks some secrets' values, and what has the shape of a key."""

    values: tuple[bytes, ...] = ()

    def take(self, data: bytes, final: bool = False) -> bytes:
        """The masked beginning of ``data`` that may go out now: as many bytes as it is long are done with.

        The next call begins with the rest. ``final``: nothing will follow, so all of it goes out.
        """
        spans = _merged(
            [*self._values_in(data), *(found.span(found.lastindex or 0) for found in _SHAPES.finditer(data))]
        )
        begun = self._begun(data)
        if final:
            end = len(data)
            if begun >= _SHORTEST_BEGINNING:
                spans = _merged([*spans, (end - begun, end)])
        else:
            end = len(data) - max(begun, _word_at_end(data))
            end = next((first for first, last in spans if first < end < last), end)
        masked = bytearray(data[:end])
        for first, last in spans:
            if last <= end:
                masked[first:last] = MASK * (last - first)
        return bytes(masked)

    def _values_in(self, data: bytes) -> Iterable[tuple[int, int]]:
        for value in self.values:
            found = data.find(value)
            while found >= 0:
                yield found, found + len(value)
                found = data.find(value, found + 1)

    def _begun(self, data: bytes) -> int:
        """How many bytes at the end of the data begin a value."""
        return max((_beginning(data, value) for value in self.values), default=0)


def redactor(environment: Mapping[str, str]) -> Redactor:
    """One that knows the values of those variables whose names tell of secrets."""
    values: set[bytes] = set()
    for name, value in environment.items():
        if _SECRET_NAME.search(name) and not _PATH_NAME.search(name):
            whole = value.strip()
            lines = [line.strip() for line in whole.splitlines()] if "\n" in whole else []
            kept = [whole] if len(whole) >= _SHORTEST_VALUE else []
            kept += [line for line in lines if len(line) >= _SHORTEST_LINE]
            values |= {text.encode(errors="surrogateescape") for text in kept}
    return Redactor(tuple(sorted(values)))


def same_but_masked(shipped: bytes, raw: bytes) -> bool:
    """Whether shipped bytes can have been made of these."""
    return len(shipped) == len(raw) and all(
        ours in (its, MASK[0]) for ours, its in zip(shipped, raw, strict=True)
    )


def _word_at_end(data: bytes) -> int:
    found = _WORD.search(data, max(0, len(data) - HELD_BYTES))
    return len(found[0]) if found else 0


def _beginning(data: bytes, value: bytes) -> int:
    longest = min(len(value) - 1, len(data))
    return next((size for size in range(longest, 0, -1) if data.endswith(value[:size])), 0)


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Overlapping spans as one."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if found and first < found[-1][1]:
            found[-1] = found[-1][0], max(last, found[-1][1])
        else:
            found.append((first, last))
    return found
