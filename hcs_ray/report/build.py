"""`hcs-ray report`: one HTML file with everything inside, for the person who asked for the screen.

It shows only what the stage records list, holds no times, and so is the same for the same inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hcs_ray import contracts as c
from hcs_ray.contracts import Progress
from hcs_ray.pictures.colours import channel_colours
from hcs_ray.report import answers, fieldmap, lineage, outliers, plates, scores, screen, tracks
from hcs_ray.report.figures import by_plate
from hcs_ray.report.material import Material, gather
from hcs_ray.report.pictures import FieldPictures
from hcs_ray.report.training import SIDES, training
from hcs_ray.study import Study

FILE = "index.html"
_SHOWN_MEASURES = 2  # the others are folded away
_PARTS = 6


def report(study: Study, progress: Progress, force: bool = False) -> dict[str, Any]:
    """Write ``reports/NAME/index.html``; does nothing where it is complete."""
    claim = study.claim("report")
    path = f"{study.place('report').folder}/{FILE}"
    if force or not study.is_complete("report", claim):
        with study.writing("report", claim, force) as writer:
            writer.write(FILE, render(context(study, progress)).encode())
        progress(_PARTS, _PARTS)
    return {"file": path, "size": lineage.size_text(study.storage.size(path) or 0)}


def context(study: Study, progress: Progress) -> dict[str, Any]:
    """What the template shows, section by section."""
    progress(0, _PARTS)
    material = gather(study)
    pictures = FieldPictures(material.reader, material.index)
    progress(1, _PARTS)
    page = {"study": study, "sides": SIDES, **answer_sections(material.evaluation)}
    page["folds"] = tracks.folds(material.folds)
    page |= screen_sections(material, pictures)
    progress(2, _PARTS)
    page["training"] = training(
        material.metrics, material.history, material.index, material.split, material.classes
    )
    progress(3, _PARTS)
    page["map"] = fieldmap.field_map(material.fields, material.map_about)
    progress(4, _PARTS)
    thumbnails = study.config.report.thumbnails
    page["suspects"] = outliers.suspects(material.outliers, material.fields, pictures, thumbnails)
    progress(5, _PARTS)
    embedded, page["embedding_size"] = material.embeddings.shape
    page["unreadable"] = len(material.index) - embedded
    page["lineage"] = lineage.lineage(study, study.keep_config())
    return page


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


def answer_sections(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows of ``evaluation.json``."""
    held_out = answers.held_out_answers(evaluation)
    queries = scores.queries(evaluation)
    return {
        "held_out": held_out,
        "overall": answers.overall_answers(evaluation),
        "gauge": answers.batch_gauge(evaluation),
        "summary": answers.summary(held_out),
        "track": evaluation["track"],
        "leaked": tracks.leaked_compounds(evaluation["track"]),
        "beside": tracks.side_by_side(evaluation),
        "calibration": tracks.calibration_figures(evaluation["classification"])
        if evaluation["classification"]
        else {},
        "queries": queries,
        "mechanisms": scores.mechanisms(queries),
        "confusions": scores.confusions(evaluation["classification"]),
        "normalization": evaluation["normalization"],
        "metric": evaluation["nscb"]["metric"],
        "dropped_moas": evaluation["nscb"]["dropped_moas"],
    }


def screen_sections(material: Material, pictures: FieldPictures) -> dict[str, Any]:
    """What the template shows of the screen and the quality of its images."""
    index, channels = material.index, material.reader.channels
    listed = plates.measures(channels)
    maps = [plates.plate_maps(index, measure) for measure in listed]
    return {
        "counts": screen.counts(index, channels, material.reader.shape[1:]),
        "colours": channel_colours(channels),
        "examples": screen.examples(screen.typical_fields(material.fields, material.embeddings), pictures),
        "plate_maps": maps[:_SHOWN_MEASURES],
        "more_plate_maps": maps[_SHOWN_MEASURES:],
        "plate_quality": plates.plate_qualities(index, listed),
        "measures": listed,
        "by_plate": [
            by_plate(f"{channel}: mean intensity", index, f"{c.QC_PREFIX}Mean_{channel}")
            for channel in channels
        ],
    }
