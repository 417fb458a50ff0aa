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
    """What every kind of screen has.

    Its claim says neither where it lies nor which plates it has: each plate is an input of its own.
    """

    execution: ClassVar[frozenset[str]] = frozenset({"plates", "folder", "anonymous", "path_prefixes"})

    plates: tuple[str, ...] | None = Field(None, description="only these plates; none: all in the tables")
    negative_control: str = "DMSO"
    positive_control: PositiveControl | None = None


class Bbbc021Tables(ScreenSection):
    """What BBBC021's three tables say, in whatever form its images come."""

    folder: Folder = "raw"
    image_table: str = "BBBC021_v1_image.csv"
    moa_table: str = "BBBC021_v1_moa.csv"
    compound_table: str = "BBBC021_v1_compound.csv"
    positive_control: PositiveControl | None = PositiveControl()
    source: str = "BBBC021"
    nuclear_channel: str | None = "DAPI"
    camera_maximum: CameraMaximum = 4095 << 4  # 12 bits, as BBBC021 stores them


class Bbbc021Screen(Bbbc021Tables):
    """A screen in the layout of BBBC021 version 1, real or generated; folders or unopened zips."""

    kind: Literal["bbbc021"] = "bbbc021"


class PybbbcScreen(Bbbc021Tables):
    """The per-plate float16 HDF5 files that pybbbc made of BBBC021, and the three tables."""

    kind: Literal["pybbbc"] = "pybbbc"


class LoadDataColumns(Section):
    """Which columns of the joined tables say what, written with or without their ``Metadata_``.

    A name that is not there is an error; none stands for the column of our own name, where there is one.
    """

    batch: str | None = None
    plate: str = "Metadata_Plate"
    well: str = "Metadata_Well"
    site: str | None = Field("Metadata_Site", description="none: every well has one site")
    replicate: str | None = None
    compound: str = "Metadata_Compound"
    concentration: str | None = None
    moa: str | None = None
    smiles: str | None = None
    pert_type: str | None = Field(None, description="trt, negcon, poscon, or control as in control_type")
    control_type: str | None = Field(None, description="negcon, poscon_cp ... where pert_type says control")


class LoadDataScreen(ScreenSection):
    """Any screen with a CellProfiler or JUMP ``load_data.csv``; paths of tables are below ``folder``."""

    kind: Literal["load_data"] = "load_data"
    folder: Folder = "raw"
    load_data: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        ("load_data.csv",), description="tables of sites; * stands for any name or part of one"
    )
    channels: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None, description="which, and in which order; none: every FileName_ or URL_ column but Illum"
    )
    barcode_platemap: str | None = Field(
        None, description="plate -> plate map, as JUMP's barcode_platemap.csv; * stands for names"
    )
    platemaps: str = Field(
        "platemap", description="folder of plate maps beside barcode_platemap: <map>.txt, .csv or .tsv"
    )
    treatments: tuple[str, ...] = Field(
        (), description="tables joined one after the other by the columns they share: wells, compounds ..."
    )
    columns: LoadDataColumns = LoadDataColumns()
    concentration_unit: Literal["nM", "uM", "mM", "M"] = Field(
        "uM", description="of the numbers in the wells, whatever their column is called"
    )
    concentration_digits: Annotated[int, Field(ge=1, le=28)] | None = Field(
        None, description="round to so many digits, so that 9.99999999999999 is 10; none: as written"
    )
    empty_compound: str | None = Field(
        None, description="what a well without compound holds, as DMSO in JUMP; none: it is an error"
    )
    pert_types: dict[str, Literal["trt", "negcon", "poscon"]] = Field(
        default_factory=dict, description="further values of the column pert_type -> what they mean"
    )
    batch: str = Field("Batch1", description="of all plates, where no column says it")
    path_prefixes: dict[str, str] = Field(
        default_factory=dict, description="how PathName_ and URL_ columns begin -> where that lies here"
    )
    anonymous: bool = Field(
        False,
        description="read s3:// images, and a folder there, without credentials, as from a public bucket",
    )
    source: str = Field("load_data", description="of all plates, where no column Metadata_Source says it")
    nuclear_channel: str | None = Field(None, description="none: one called DNA, DAPI, Hoechst or nuclei")
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
