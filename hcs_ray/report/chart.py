"""A figure of the report: inside the page as SVG, beside it as SVG and PNG."""

from __future__ import annotations

import base64
from dataclasses import dataclass


@dataclass(frozen=True)
class Chart:
    """A drawn figure, the text that stands for it, and its name as a file (without an ending)."""

    name: str
    alt: str
    svg: bytes
    png: bytes | None = None

    @property
    def source(self) -> str:
        """The figure as a data URI."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg).decode()}"
