"""What Kubernetes takes as a name, a label's key and its value."""

from __future__ import annotations

import re
from typing import Final

DNS_1035: Final = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
DNS_1123: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_VALUE: Final = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_PREFIX: Final = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


def is_label(key: str, value: str) -> bool:
    """Whether a label has a key, with or without ``example.org/``, and a value that Kubernetes takes."""
    prefix, slash, name = key.rpartition("/")
    right = bool(name) and bool(_VALUE.fullmatch(name)) and (not slash or bool(_PREFIX.fullmatch(prefix)))
    return right and bool(_VALUE.fullmatch(value))
