"""Anybody's table of profiles: CSV, Parquet or AnnData, read into metadata and features.

Metadata is text, as written, so that concentrations stay exact; features are float64.
"""

from __future__ import annotations

import gzip
import io
import re
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from csv import reader
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.contracts import InputError
from hcs_ray.profiles.aggregate import Float64
from hcs_ray.profiles.chance import Bools
from hcs_ray.profiles.foreign_columns import is_metadata, roles_of
from hcs_ray.storage import open_storage

if TYPE_CHECKING:
    import anndata

Missing = Literal["refuse", "drop-features", "drop-rows"]

_SEPARATORS: Final = (",", ";", "\t")


@dataclass(frozen=True)
class ForeignTable:
    """Rows of profiles.

    Attributes:
        name: As messages call it.
        meta: Text columns, one row a profile, missing where empty.
        values: Features (N, F).
        features: Their names.
        where: Of each row, as messages call it.
        ignored: Numeric columns that were not taken for features.
        text: Columns that are neither metadata nor numeric, as one with a word among its numbers.
    """

    name: str
    meta: pd.DataFrame
    values: Float64
    features: tuple[str, ...]
    where: tuple[str, ...]
    ignored: tuple[str, ...] = ()
    text: tuple[str, ...] = ()

    def take(self, rows: Bools, columns: Bools) -> ForeignTable:
        """Some rows and some features of it, by masks."""
        return ForeignTable(
            self.name,
            self.meta[rows].reset_index(drop=True),
            self.values[rows][:, columns],
            tuple(name for name, kept in zip(self.features, columns, strict=True) if kept),
            tuple(name for name, kept in zip(self.where, rows, strict=True) if kept),
            self.ignored,
            self.text,
        )


def read_profiles(path: str, named: Mapping[str, str], prefixes: Sequence[str] = ()) -> ForeignTable:
    """The table of a file, local or at s3://, by its ending: .csv, .tsv, .txt (also .gz), .parquet, .h5ad.

    Args:
        path: Of the file.
        named: Role (a key of `foreign_columns.ALIASES`) -> column, as the user has named them.
        prefixes: Features are the numeric columns that begin so; none: all that are no metadata.

    Raises:
        InputError: it cannot be read, a named column is missing, or there are no features.
    """
    plain = path.lower().removesuffix(".gz")
    read = next((read for ending, read in _READERS.items() if plain.endswith(ending)), None)
    if read is None:
        raise InputError(
            f"{path}: not a table that is known: its name ends in {', '.join(_READERS)} (or .gz of CSV)"
        )
    return read(path, named, tuple(prefixes))


def read_file(path: str) -> bytes:
    """A local file or one at s3://, unpacked where its name ends in .gz."""
    folder, _, file = path.rpartition("/")
    try:
        data = open_storage(folder).read(file) if "://" in path else Path(path).expanduser().read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if not path.lower().endswith(".gz"):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a readable gzip file ({error}); copy it again") from None


def without_missing(table: ForeignTable, policy: Missing) -> tuple[ForeignTable, Bools, list[str]]:
    """The table with finite features only, which of its rows are left (N,), and the features dropped for it.

    InputError: ``policy`` refuses and a value is missing or infinite, or nothing is left.
    """
    finite = np.isfinite(table.values)
    rows: Bools = np.ones(len(finite), dtype=bool)
    columns: Bools = np.ones(finite.shape[1], dtype=bool)
    if policy == "drop-features":
        columns &= finite.all(axis=0)
    elif policy == "drop-rows":
        rows &= finite.all(axis=1)
    elif not finite.all():
        row, column = (int(at) for at in np.argwhere(~finite)[0])
        what = "missing" if np.isnan(table.values[row, column]) else table.values[row, column]
        raise InputError(
            f"{table.name} {table.where[row]}: {table.features[column]} is {what}; "
            "--missing drop-features or drop-rows leaves out what has such values"
        )
    if not rows.any() or not columns.any():
        raise InputError(f"{table.name}: every {'row' if not rows.any() else 'feature'} has a missing value")
    dropped = [name for name, kept in zip(table.features, columns, strict=True) if not kept]
    return table.take(rows, columns), rows, dropped


def _split(
    source: str,
    frame: pd.DataFrame,
    named: Mapping[str, str],
    prefixes: tuple[str, ...],
    where: Sequence[str],
) -> ForeignTable:
    """Metadata and features of a table whose columns have their types."""
    if frame.empty:
        raise InputError(f"{source}: has no rows")
    columns = [str(name) for name in frame.columns]
    frame = frame.set_axis(columns, axis=1)
    roles = roles_of(columns, named, source)
    numeric = [
        name
        for name in columns
        if pd.api.types.is_numeric_dtype(frame[name]) and not pd.api.types.is_bool_dtype(frame[name])
    ]
    if prefixes:
        chosen = [name for name in columns if name.startswith(prefixes) and name not in roles]
        if wrong := next((name for name in chosen if name not in numeric), None):
            raise InputError(f"{source}: the feature {wrong} is not numeric in every row")
    else:
        chosen = [name for name in numeric if not is_metadata(name, roles)]
    if not chosen:
        asked = f" that begins with {' or '.join(prefixes)}" if prefixes else ""
        raise InputError(f"{source}: has no numeric column{asked} that could be a feature; see --features")
    others = [name for name in columns if name not in chosen]
    unknown = [name for name in others if not is_metadata(name, roles)]
    ignored = tuple(name for name in unknown if name in numeric)
    text = tuple(name for name in unknown if name not in numeric)
    values = frame[chosen].to_numpy(dtype=np.float64, na_value=np.nan)
    meta = pd.DataFrame({name: _text(frame[name]) for name in others}, index=frame.index)
    return ForeignTable(
        source, meta.reset_index(drop=True), values, tuple(chosen), tuple(where), ignored, text
    )


def _text(column: pd.Series[Any]) -> pd.Series[Any]:
    """Cells as text, whole numbers without a point; missing where empty. Lists stay what they are."""
    narrow = {"float16": "f2", "float32": "f4"}.get(str(column.dtype).lower())
    if narrow is not None:
        # As object they would be doubles, and 0.3 would be written 0.30000001192092896.
        cells = column.to_numpy(dtype=narrow, na_value=np.nan)
        return pd.Series([_cell(cell) for cell in cells], index=column.index, dtype=object)
    return column.astype(object).map(_cell)


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, list | tuple | np.ndarray):
        return tuple(str(item) for item in value)
    if value is None or value is pd.NA or value != value:
        return None
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _read_csv(path: str, named: Mapping[str, str], prefixes: tuple[str, ...]) -> ForeignTable:
    import pyarrow as pa
    from pyarrow import csv

    data = read_file(path)
    if not data.strip():
        raise InputError(f"{path}: is empty")
    try:
        header = data.split(b"\n", 1)[0].decode("utf-8-sig").rstrip("\r")
        separator = max(_SEPARATORS, key=re.sub(r'"[^"]*"', "", header).count)
        names = next(reader([header], delimiter=separator))
        _refuse_twins(names, path)
        text = {name: pa.string() for name in names if is_metadata(name, roles_of(names, named, path))}
        # One block, so that a column's type follows from all its rows. Arrow refuses rows that are too long
        # or too short, and rounds rightly: a table is the same as CSV and as Parquet.
        table = csv.read_csv(
            io.BytesIO(data),
            csv.ReadOptions(block_size=min(len(data) + 1, 2**31 - 1)),
            csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            csv.ConvertOptions(column_types=text, strings_can_be_null=True),
        )
    except (UnicodeDecodeError, pa.ArrowInvalid) as error:
        raise InputError(f"{path}: not a readable CSV table: {str(error).splitlines()[0]}") from None
    return _split(path, table.to_pandas(), named, prefixes, [f"row {row + 2}" for row in range(len(table))])


def _refuse_twins(names: Sequence[str], path: str) -> None:
    if twin := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{path}: has the column {twin!r} twice")


def _read_parquet(path: str, named: Mapping[str, str], prefixes: tuple[str, ...]) -> ForeignTable:
    import pyarrow as pa

    try:
        frame = pd.read_parquet(io.BytesIO(read_file(path)))
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file: {str(error).splitlines()[0]}") from None
    if frame.index.names != [None]:
        frame = frame.reset_index()
    if c.EMBEDDING in frame.columns:
        frame, prefixes = _unfolded(frame, path), prefixes or (f"{c.EMBEDDING}_",)
    return _split(path, frame, named, prefixes, [f"row {number + 1}" for number in range(len(frame))])


def _unfolded(frame: pd.DataFrame, path: str) -> pd.DataFrame:
    """A column of lists, as our own tables have it, as a column a feature."""
    try:
        values = np.stack(frame[c.EMBEDDING].to_list()).astype(np.float64)
    except (ValueError, TypeError):
        raise InputError(f"{path}: the lists in {c.EMBEDDING} are not all of one length") from None
    names = [f"{c.EMBEDDING}_{number:04d}" for number in range(values.shape[1])]
    wide = pd.DataFrame(values, columns=names, index=frame.index)
    return pd.concat([frame.drop(columns=c.EMBEDDING), wide], axis=1)


def _read_h5ad(path: str, named: Mapping[str, str], prefixes: tuple[str, ...]) -> ForeignTable:
    data = _anndata(path)
    if data.X is None:
        raise InputError(f"{path}: has no X")
    dense: Any = data.X.toarray() if hasattr(data.X, "toarray") else data.X
    values = np.asarray(dense, dtype=np.float64)
    names = [str(name) for name in data.var_names]
    chosen = np.array([not prefixes or name.startswith(prefixes) for name in names], dtype=bool)
    if not len(values) or not chosen.any():
        raise InputError(
            f"{path}: has no rows, or no feature{' that begins so; see --features' if prefixes else ''}"
        )
    columns = [str(name) for name in data.obs.columns]
    roles_of(columns, named, path)
    meta = pd.DataFrame({name: _text(data.obs[name]) for name in columns}).reset_index(drop=True)
    features = tuple(name for name, kept in zip(names, chosen, strict=True) if kept)
    return ForeignTable(
        path, meta, values[:, chosen], features, tuple(f"row {name}" for name in data.obs_names)
    )


def _anndata(path: str) -> anndata.AnnData:
    import warnings

    import anndata

    with tempfile.NamedTemporaryFile(suffix=".h5ad") as local:
        local.write(read_file(path))
        local.flush()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of names that are not unique and the like
                return anndata.read_h5ad(local.name)
        except (OSError, ValueError, KeyError, TypeError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{path}: not a readable AnnData file: {first}") from None


_Reader = Callable[[str, Mapping[str, str], tuple[str, ...]], ForeignTable]
_READERS: Final[Mapping[str, _Reader]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".txt": _read_csv,
    ".parquet": _read_parquet,
    ".pq": _read_parquet,
    ".h5ad": _read_h5ad,
}
