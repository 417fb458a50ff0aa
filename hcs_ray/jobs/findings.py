"""What a lint found: the field, the rule that it breaks, and the mend."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One broken rule.

    Args:
        path: the field, as ``RayJob/name spec.rayClusterSpec.headGroupSpec``.
        rule: what must hold.
        mend: what to do.
    """

    path: str
    rule: str
    mend: str
    severity: Severity = "error"

    def __str__(self) -> str:
        return " ".join(f"{self.severity}: {self.path}: {self.rule}; {self.mend}".split())


def errors_of(findings: Iterable[Finding]) -> list[Finding]:
    """Those findings that forbid submitting."""
    return [finding for finding in findings if finding.severity == "error"]
