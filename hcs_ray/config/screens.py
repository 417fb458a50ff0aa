"""Where the raw screen comes from, one model a kind, and where the study lies."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from hcs_ray.config.base import ExecutionSection, Section

Folder = Annotated[
    str, Field(description="raw images and tables: below the study's root, absolute, or s3://")
]
CameraMaximum = Annotated[
    int | None,
    Field(ge=1, le=65535, description="a pixel at or above it is saturated; none: at its field's maximum"),
]


class StorageConfig(Section):
    """How the study's store is reached; credentials come from botocore's chain, never from here."""

    endpoint: str | None = Field(None, description="URL of an S3 store that is not AWS")
    region: str | None = None
    ca_bundle: str | None = Field(None, description="file with the certificates of a private authority")


class PositiveControl(Section):
    """The treatment that stands on the plates as positive control."""

    compound: str = "taxol"
    concentration_um: Annotated[float, Field(gt=0)] = 0.3


class ScreenSection(ExecutionSection):
    """What every kind of screen has. Plates are no part of its claim: each is an input of its own."""

    execution: ClassVar[frozenset[str]] = frozenset({"plates"})

    plates: tuple[str, ...] | None = Field(None, description="only these plates; none: all in the tables")
    negative_control: str = "DMSO"
    positive_control: PositiveControl | None = None


class Bbbc021Screen(ScreenSection):
    """A screen in the layout of BBBC021 version 1, real or generated; folders or unopened zips."""

    kind: Literal["bbbc021"] = "bbbc021"
    folder: Folder = "raw"
    image_table: str = "BBBC021_v1_image.csv"
    moa_table: str = "BBBC021_v1_moa.csv"
    compound_table: str = "BBBC021_v1_compound.csv"
    positive_control: PositiveControl | None = PositiveControl()
    source: str = "BBBC021"
    nuclear_channel: str | None = "DAPI"
    camera_maximum: CameraMaximum = 4095 << 4  # 12 bits, as BBBC021 stores them


class PybbbcScreen(ScreenSection):
    """The per-plate float16 HDF5 files that pybbbc made of BBBC021, and the three tables."""

    kind: Literal["pybbbc"] = "pybbbc"
    folder: Folder = "raw"
    image_table: str = "BBBC021_v1_image.csv"
    moa_table: str = "BBBC021_v1_moa.csv"
    compound_table: str = "BBBC021_v1_compound.csv"
    positive_control: PositiveControl | None = PositiveControl()
    source: str = "BBBC021"
    nuclear_channel: str | None = "DAPI"
    camera_maximum: CameraMaximum = 4095 << 4


class LoadDataColumns(Section):
    """Which columns of the joined tables say what. A name that is not there is an error; none: not known."""

    batch: str | None = None
    plate: str = "Metadata_Plate"
    well: str = "Metadata_Well"
    site: str = "Metadata_Site"
    replicate: str | None = None
    compound: str = "Metadata_Compound"
    concentration: str | None = None
    moa: str | None = None
    smiles: str | None = None
    pert_type: str | None = None


class LoadDataScreen(ScreenSection):
    """Any screen with a CellProfiler or JUMP ``load_data.csv``."""

    kind: Literal["load_data"] = "load_data"
    folder: Folder = "raw"
    load_data: tuple[str, ...] = Field(
        ("load_data.csv",), description="tables below folder; * may stand for names"
    )
    channels: tuple[str, ...] | None = Field(
        None, description="none: every FileName_ or URL_ column but Illum"
    )
    barcode_platemap: str | None = Field(
        None, description="plate -> plate map, as JUMP's barcode_platemap.csv"
    )
    platemaps: str = Field("platemap", description="folder of plate maps below folder: <map>.txt or .csv")
    treatments: str | None = Field(
        None, description="a table joined by the columns that it shares: well, compound ..."
    )
    columns: LoadDataColumns = LoadDataColumns()
    concentration_unit: Literal["nM", "uM", "mM", "M"] = "uM"
    path_prefixes: dict[str, str] = Field(
        default_factory=dict, description="how PathName_ and URL_ columns begin -> where that lies here"
    )
    anonymous: bool = Field(
        False, description="read s3:// images without credentials, as from a public bucket"
    )
    source: str = "load_data"
    nuclear_channel: str | None = Field(None, description="none: a channel called DNA, DAPI or Hoechst")
    camera_maximum: CameraMaximum = None


SCREEN_KINDS = ("bbbc021", "load_data", "pybbbc")


def _kind(value: Any) -> str:
    """The kind of a screen; a section that names none is BBBC021's."""
    kind = value.get("kind", "bbbc021") if isinstance(value, dict) else getattr(value, "kind", "bbbc021")
    return str(kind)


ScreenConfig = Annotated[
    Annotated[Bbbc021Screen, Tag("bbbc021")]
    | Annotated[LoadDataScreen, Tag("load_data")]
    | Annotated[PybbbcScreen, Tag("pybbbc")],
    Discriminator(_kind),
]
