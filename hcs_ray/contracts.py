"""The names that the stages of a study share: columns, file formats, roles, errors.

Every table that one stage writes and another reads uses these names, which are the conventions of
pycytominer and the Cell Painting Gallery (``Metadata_*``). This module imports nothing of hcs_ray.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import pandas as pd

# --- Columns of the field table (one row a field: plate x well x site) ---------------------------
KEY: Final = "key"  # "<plate>_<well>_s<site>", unique in a study, without dots (WebDataset's rule)
SOURCE: Final = "Metadata_Source"
BATCH: Final = "Metadata_Batch"  # the week of the experiment in BBBC021
PLATE: Final = "Metadata_Plate"
WELL: Final = "Metadata_Well"  # "B02": row letter, padded column
SITE: Final = "Metadata_Site"  # 1-based
REPLICATE: Final = "Metadata_Replicate"
COMPOUND: Final = "Metadata_Compound"
CONCENTRATION: Final = "Metadata_Concentration"  # micromolar, float64
TREATMENT: Final = "Metadata_Treatment"  # "<compound>@<concentration>", see treatment_name
MOA: Final = "Metadata_MOA"  # null where the mechanism is not known
PERT_TYPE: Final = "Metadata_pert_type"  # TREATED, NEGATIVE_CONTROL or POSITIVE_CONTROL
SMILES: Final = "Metadata_SMILES"

FIELD_COLUMNS: Final = (
    SOURCE, BATCH, PLATE, WELL, SITE, REPLICATE, COMPOUND, CONCENTRATION, TREATMENT, MOA, PERT_TYPE, SMILES,
)  # fmt: skip

TREATED: Final = "trt"
NEGATIVE_CONTROL: Final = "negcon"
POSITIVE_CONTROL: Final = "poscon"

# --- Columns of the shard index ---------------------------------------------------------------------
SHARD: Final = "shard"  # the tar's name, relative to shards/
OFFSET: Final = "offset"  # first data byte of the image member in the tar
SIZE: Final = "size"  # bytes of the image member
SHA256: Final = "sha256"  # of the image member's bytes
SAMPLE_SHA256: Final = "sample_sha256"  # of the JSON member's bytes
METADATA_PREFIX: Final = "Metadata_"
QC_PREFIX: Final = "QC_"  # QC_<Measure>_<Channel>, QC_Flag_<Name>

# --- Columns of a split ------------------------------------------------------------------------------
SIDE: Final = "side"
FOLD: Final = "fold"
SEED: Final = "seed"
TRAIN: Final = "train"
VALIDATION: Final = "validation"
TEST: Final = "test"
UNUSED: Final = "unused"  # no label, or a control left out: embedded, never trained or scored on

# --- Embeddings and what is made of them -------------------------------------------------------------
EMBEDDING: Final = "embedding"  # fixed-size list of float32 or, where embed.dtype says so, float16
FEATURE_PREFIX: Final = "Embedding_"  # Embedding_0000: a feature in a column of its own, for pycytominer
PROBABILITY_PREFIX: Final = "Probability_"  # Probability_<MoA>, sums to 1 over the classes of the checkpoint

# --- File formats: a reader takes its own major version, an older one it names in one line -------------
STAGE_FORMAT: Final = 2
MANIFEST_FORMAT: Final = 2
TRUTH_FORMAT: Final = 1


class HcsError(Exception):
    """A failure with one clear line for the user; the command ends with exit code 1."""

    exit_code = 1


class InputError(HcsError):
    """Bad input or usage (a file, a row, a key); the command ends with exit code 2."""

    exit_code = 2


# An underscore is escaped only where what follows could be read as an escape.
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]|_(?=x)|^-")
_LONGEST_NAME = 120


def safe_name(name: str) -> str:
    """A name for keys, files and objects: ASCII letters, digits, ``_`` and ``-``, another one for each name.

    What is not of these becomes ``_x<code point>_`` ("Plate 1" -> ``Plate_x20_1``), so most names stay as
    they are; one that grows too long for a file's name ends in its SHA-256 instead.
    """
    safe = _UNSAFE.sub(lambda match: f"_x{ord(match.group()):x}_", name)
    if len(safe) <= _LONGEST_NAME:
        return safe
    return f"{safe[: _LONGEST_NAME - 67]}_x_{hashlib.sha256(name.encode()).hexdigest()}"


def field_key(plate: str, well: str, site: int) -> str:
    """The key of a field: ``Week1_22123_B02_s1``."""
    return f"{safe_name(plate)}_{well}_s{site}"


def metadata_columns(names: Iterable[object]) -> list[str]:
    """Those of some column names that hold metadata, in their order."""
    return [str(name) for name in names if str(name).startswith(METADATA_PREFIX)]


def rows_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table, each as column -> value."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def format_concentration(concentration_um: Decimal) -> str:
    """A concentration as plain decimal digits without trailing zeros: ``Decimal("0.300")`` -> ``"0.3"``."""
    text = format(concentration_um, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def treatment_name(compound: str, concentration_um: Decimal) -> str:
    """The name of a treatment, exact for a decimal concentration: ``taxol@0.3``."""
    return f"{compound}@{format_concentration(concentration_um)}"


Progress = Callable[[int, int], None]  # called with (done, total) of a stage's own unit
