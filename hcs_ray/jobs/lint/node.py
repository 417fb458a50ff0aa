"""A place in a manifest: its path and what stands there, so that a rule can say where it was broken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from hcs_ray.contracts import InputError
from hcs_ray.jobs.findings import Finding

_FACTORS: Final = {
    "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"),
    "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9),
    "T": Decimal(10**12), "P": Decimal(10**15), "E": Decimal(10**18),
    "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30),
    "Ti": Decimal(2**40), "Pi": Decimal(2**50), "Ei": Decimal(2**60),
}  # fmt: skip


@dataclass(frozen=True)
class Node:
    """A value and the path to it. A place that is not there has the value None; so has all below it."""

    path: str
    value: Any

    def __getitem__(self, part: str | int) -> Node:
        value: Any = None
        if isinstance(part, int):
            path = f"{self.path}[{part}]"
            if isinstance(self.value, list) and part < len(self.value):
                value = self.value[part]
        else:
            path = f"{self.path}[{part}]" if "." in part or "/" in part else _joined(self.path, part)
            if isinstance(self.value, dict):
                value = self.value.get(part)
        return Node(path, value)

    def at(self, path: str) -> Node:
        """The place below by names with dots between them: ``template.spec``."""
        node = self
        for part in path.split("."):
            node = node[part]
        return node

    def __iter__(self) -> Iterator[Node]:
        """The items of a list; none where there is no list."""
        for number in range(len(self.value) if isinstance(self.value, list) else 0):
            yield self[number]

    def __bool__(self) -> bool:
        """Whether something stands there that is neither empty, false nor 0."""
        return bool(self.value)

    @property
    def keys(self) -> set[str]:
        """The keys of a mapping; none where there is no mapping."""
        return set(self.value) if isinstance(self.value, dict) else set()

    def error(self, rule: str, mend: str) -> Finding:
        return Finding(self.path, rule, mend)

    def warning(self, rule: str, mend: str) -> Finding:
        return Finding(self.path, rule, mend, "warning")


def _joined(path: str, name: str) -> str:
    return f"{path}{name}" if path.endswith(" ") or not path else f"{path}.{name}"


def quantity(value: str | int | float) -> Decimal:
    """A Kubernetes quantity as a number: ``"500m"`` -> 0.5, ``"2Gi"`` -> 2147483648, ``"1e3"`` -> 1000.

    Raises:
        InputError: it is none.
    """
    text = str(value)
    try:
        for suffix in (text[-2:], text[-1:]):
            if suffix in _FACTORS:
                return Decimal(text.removesuffix(suffix)) * _FACTORS[suffix]
        return Decimal(text)
    except InvalidOperation:
        raise InputError(f"{text}: not a quantity, as 500m, 8 or 32Gi") from None
