"""Raw screens: their tables joined into one field table, generated ones, and splits by compound."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from hcs_ray.storage import Storage


@dataclass(frozen=True)
class Screen:
    """A raw screen, ready to be sharded.

    Attributes:
        fields: One row a field, sorted by key: `contracts.KEY`, the ``Metadata_*`` columns of
            `contracts.FIELD_COLUMNS`, and ``FileName_Orig<Channel>``, a path below ``storage``.
        channels: Channel names in the order of the image planes.
        storage: Where the raw images lie.
        fingerprint: What the screen consists of: table or listing -> SHA-256.
    """

    fields: pd.DataFrame
    channels: tuple[str, ...]
    storage: Storage
    fingerprint: dict[str, str]


def file_column(channel: str) -> str:
    """The column with a channel's image file, as JUMP's ``load_data.csv`` names it."""
    return f"FileName_Orig{channel}"
