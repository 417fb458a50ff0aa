"""`hcs-ray report`: one HTML file with everything inside, for the person who asked for the screen.

It shows only what the stage records list, holds no times, and so is the same for the same inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hcs_ray.contracts import Progress
from hcs_ray.report import answers, lineage, sections
from hcs_ray.report.annex import FIGURES, TABLES, Annex
from hcs_ray.report.bakeoff import HEADS
from hcs_ray.report.before import MECHANISM_HEADS
from hcs_ray.report.material import gather
from hcs_ray.report.pictures import FieldPictures
from hcs_ray.report.standing import Standing, stand
from hcs_ray.report.training import SIDES
from hcs_ray.stage import Claim
from hcs_ray.study import Study

FILE = "index.html"
_PARTS = 6


@dataclass(frozen=True)
class Page:
    """What the template shows, and the files beside it."""

    values: dict[str, Any]
    annex: Annex


def report(study: Study, progress: Progress, force: bool = False) -> dict[str, Any]:
    """Write ``reports/NAME/index.html`` with its figures and tables; does nothing where all is complete.

    Raises:
        InputError: ``shard`` is not complete, or the run to compare with has no profile.
    """
    claim = study.claim("report")
    standing = stand(study, claim)
    path = f"{study.place('report').folder}/{FILE}"
    if force or not study.is_complete("report", claim):
        with study.writing("report", claim, force) as writer:
            page = context(study, claim, progress)
            for file, data in page.annex:
                writer.write(file, data)
            writer.write(FILE, render(page.values).encode())
            writer.prune(lambda file: file.startswith((f"{FIGURES}/", f"{TABLES}/")))
        progress(_PARTS, _PARTS)
    figures = {"file": path, "size": lineage.size_text(study.storage.size(path) or 0)}
    return figures | _not_shown(standing)


def _not_shown(standing: Standing) -> dict[str, str]:
    """For the terminal: the stages of the pipeline that the page has no part of."""
    missing = [
        f"{stage} ({missing.state})"
        for stage, missing in standing.missing.items()
        if stage not in ("folds", "compare") or missing.state == "stale"
    ]
    return {"not shown": ", ".join(missing)} if missing else {}


def context(study: Study, claim: Claim, progress: Progress) -> Page:
    """What the template shows, section by section."""
    progress(0, _PARTS)
    standing = stand(study, claim)
    material = gather(study, standing)
    pictures = FieldPictures(material.reader, material.index)
    annex = Annex()
    progress(1, _PARTS)
    page: dict[str, Any] = {"study": study, "sides": SIDES, "missing": standing.missing}
    page |= {"standing": standing, "bake_off_heads": HEADS, "mechanism_heads": MECHANISM_HEADS}
    page |= sections.answers(material, annex, study.config.profile)
    page |= sections.before(material, annex, study.name)
    progress(2, _PARTS)
    page |= sections.screen(material, pictures, annex)
    progress(3, _PARTS)
    page |= sections.training(material, annex)
    page |= sections.field_map(material, annex)
    progress(4, _PARTS)
    page |= sections.suspects(material, pictures, study.config.report.thumbnails, annex)
    page |= sections.normalizations(material, annex, study.config.profile.normalization)
    page |= sections.sweeps(material, annex)
    progress(5, _PARTS)
    page["lineage"] = lineage.lineage(study, standing, study.keep_config())
    page["files"] = {"lineage": annex.table("lineage", "The chain of stage records", page["lineage"].table())}
    page["story"] = sections.story(study, material, page)
    page["annex"] = annex.entries
    return Page(page, annex)


def render(page: Mapping[str, Any]) -> str:
    """The page as HTML; every value is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hcs_ray.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = answers.percent
    return environment.get_template("report.html.j2").render(page)
