"""What the template shows, section by section; what a study has no part of is empty or None."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from hcs_ray import contracts as c
from hcs_ray.config import ProfileConfig
from hcs_ray.pictures.colours import channel_colours
from hcs_ray.report import answers as answering
from hcs_ray.report import bakeoff, fieldmap, outliers, plates, replicates, scores, tracks
from hcs_ray.report import before as comparing
from hcs_ray.report import screen as screening
from hcs_ray.report import training as trained
from hcs_ray.report.annex import Annex, file_name
from hcs_ray.report.chart import Chart
from hcs_ray.report.figures import by_plate
from hcs_ray.report.labelled import left_out_table
from hcs_ray.report.material import Material
from hcs_ray.report.pictures import FieldPictures
from hcs_ray.report.plate_figures import plates_figure
from hcs_ray.report.score_figures import Bar, confusion_figure, mechanism_bars
from hcs_ray.study import Study

_SHOWN_MEASURES: Final = 2  # the others are folded away


def answers(material: Material, annex: Annex, config: ProfileConfig) -> dict[str, Any]:
    """The headline, scores by mechanism, neighbours and confusion: of ``evaluation.json`` and the wells."""
    page: dict[str, Any] = {"folds": tracks.folds(material.folds), "evaluated": False}
    page["left_out"] = material.left_out
    if material.left_out:
        annex.table("left-out", "Fields that labels have left out", left_out_table(material.left_out))
    if material.profiled is None:
        return page
    evaluation = material.profiled.evaluation
    leaked = evaluation["track"]["leaked_compounds"]
    retrieval = replicates.replicates(material.profiled.wells, config, leaked)
    page |= answer_values(evaluation)
    page["evaluated"] = True
    page["replicates"] = None if isinstance(retrieval, str) else retrieval
    if page["replicates"]:
        page["summary"] = answering.summary([*page["held_out"], page["replicates"].held_out])
    page["no_replicates"] = retrieval if isinstance(retrieval, str) else ""
    page["mechanism_bars"] = None
    if page["mechanisms"]:
        page["mechanism_bars"] = annex.chart(_bars(page["mechanisms"], page["replicates"]))
    for confusion in page["confusions"]:
        annex.chart(confusion_figure(confusion))
    _list_scores(page, annex)
    return page


def answer_values(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows of ``evaluation.json`` alone."""
    held_out = answering.held_out_answers(evaluation)
    queries = scores.queries(evaluation)
    return {
        "held_out": held_out,
        "overall": answering.overall_answers(evaluation),
        "gauge": answering.batch_gauge(evaluation),
        "summary": answering.summary(held_out),
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


def _bars(mechanisms: list[scores.MechanismScore], retrieval: replicates.Replicates | None) -> Chart:
    names = [row.moa for row in mechanisms]
    panels = [
        (
            "NSCB: share right",
            [_bar(row.nscb_held_out) for row in mechanisms],
            [_bar(row.nscb_leaked) for row in mechanisms],
        ),
        (
            "NSC: share right",
            [_bar(row.nsc_held_out) for row in mechanisms],
            [_bar(row.nsc_leaked) for row in mechanisms],
        ),
    ]
    if retrieval is not None:
        found = replicates.by_mechanism(retrieval)
        held_out, leaked = ([_mean(found.get((name, side))) for name in names] for side in (False, True))
        panels.append(("Replicate mAP (normalised)", held_out, leaked))
    return mechanism_bars(names, panels)


def _bar(hits: scores.Hits) -> Bar:
    return hits.share, str(hits) if hits.total else ""


def _mean(found: tuple[float, int] | None) -> Bar:
    return (None, "") if found is None else (found[0], f"{found[0]:.2f}, n={found[1]}")


def _list_scores(page: Mapping[str, Any], annex: Annex) -> None:
    """The tables of the scores."""
    retrieval = page["replicates"]
    answered = [*page["held_out"], *page["overall"]]
    answered += [retrieval.held_out, retrieval.overall] if retrieval else []
    annex.table(
        "headline",
        "The headline figures with intervals and what chance gives",
        answering.answer_table(answered),
    )
    means = replicates.by_mechanism(retrieval) if retrieval else {}
    annex.table(
        "scores-by-mechanism",
        "NSCB, NSC and replicate mAP by mechanism",
        scores.mechanism_table(page["mechanisms"], means),
    )
    title = "Every labelled treatment and its nearest neighbours"
    annex.table("neighbours", title, scores.query_table(page["queries"]))
    for confusion in page["confusions"]:
        name = file_name("confusion", confusion.level)
        annex.table(name, f"Confusion of {confusion.level}: counts", scores.confusion_table(confusion))


def before(material: Material, annex: Annex, name: str) -> dict[str, Any]:
    """This run beside another."""
    if material.before is None or material.profiled is None:
        return {"before": None}
    after = comparing.Run(name, material.profiled.evaluation, material.outliers)
    found = comparing.side_by_side(material.before, after)
    annex.table(
        "before-after", f"Run {found.before} and run {name} side by side", comparing.figures_table(found)
    )
    return {"before": found}


def screen(material: Material, pictures: FieldPictures, annex: Annex) -> dict[str, Any]:
    """The screen and the quality of its images."""
    index, channels = material.index, material.reader.channels
    listed = plates.measures(channels)
    maps = [plates.plate_maps(index, measure) for measure in listed]
    for found in maps:
        annex.chart(plates_figure(file_name("plates", found.measure.column.removeprefix(c.QC_PREFIX)), found))
    charts = [
        annex.chart(
            by_plate(
                file_name("intensity by plate", channel),
                f"{channel}: mean intensity",
                index,
                f"{c.QC_PREFIX}Mean_{channel}",
            )
        )
        for channel in channels
    ]
    vectors = material.embeddings
    if vectors is None:
        vectors = screening.quality_vectors(material.fields, channels)
    quality = plates.plate_qualities(index, listed)
    annex.table(
        "plates", "Plates: fields, flags and medians of the measures", plates.quality_table(quality, listed)
    )
    return {
        "counts": screening.counts(index, channels, material.reader.shape[1:]),
        "colours": channel_colours(channels),
        "examples": screening.examples(screening.typical_fields(material.fields, vectors), pictures),
        "typical_by": "the median embedding"
        if material.embeddings is not None
        else "the median image quality",
        "plate_maps": maps[:_SHOWN_MEASURES],
        "more_plate_maps": maps[_SHOWN_MEASURES:],
        "plate_quality": quality,
        "measures": listed,
        "by_plate": charts,
    }


def training(material: Material, annex: Annex) -> dict[str, Any]:
    """How the network was trained, and on which compounds."""
    page: dict[str, Any] = {"training": None, "side_rows": [], "network": material.network}
    if material.trained is not None:
        history = material.trained.history
        page["training"] = trained.training(material.trained.metrics, history, material.classes)
        for chart in page["training"].pictures:
            annex.chart(chart)
        annex.table("training", "The training by epoch", history)
    if material.split is not None:
        page["side_rows"] = trained.side_rows(material.index, material.split)
        table = trained.sides_table(material.index, material.split)
        annex.table("split", "Wells of every compound on each side of the split", table)
    return page


def field_map(material: Material, annex: Annex) -> dict[str, Any]:
    """The map of all fields."""
    if material.map_about is None:
        return {"map": None}
    found = fieldmap.field_map(material.fields, material.map_about)
    for chart in (found.large, *found.small):
        annex.chart(chart)
    return {"map": found}


def suspects(material: Material, pictures: FieldPictures, thumbnails: int, annex: Annex) -> dict[str, Any]:
    """Outliers, with pictures of the first."""
    if material.outliers is None:
        return {"suspects": None}
    for level, table in material.outliers.items():
        annex.table(file_name("outliers", level), f"Outliers: every {level} by rank", outliers.plain(table))
    return {"suspects": outliers.suspects(material.outliers, material.fields, pictures, thumbnails)}


def normalizations(material: Material, annex: Annex, configured: str) -> dict[str, Any]:
    """The bake-off of normalisations."""
    if material.compared is None:
        return {"bake_off": None}
    compared = material.compared
    found = bakeoff.bake_off(compared.table, compared.document, compared.picture, configured)
    annex.chart(found.picture)
    annex.table("normalisations", "All normalisations side by side", compared.table)
    return {"bake_off": found}


def sweeps(material: Material, annex: Annex) -> dict[str, Any]:
    """The leaderboards of finished sweeps."""
    for board in material.sweeps:
        annex.chart(board.picture)
        title = f"Sweep {board.name}: all trials"
        annex.table(file_name("sweep", board.name), title, board.table)
    return {"boards": material.sweeps}


def story(study: Study, material: Material, page: Mapping[str, Any]) -> str:
    """What was run, in a sentence or two."""
    parts = [f"{len(material.index)} fields of view were screened."]
    if (training := page["training"]) is not None:
        apart = f" to tell {len(training.classes)} classes apart" if training.classes else ""
        parts.append(
            f"A {study.config.model.backbone} network was trained for {training.epochs} epochs on "
            f"{training.train_fields} fields{apart}; epoch {training.epoch} was chosen by "
            f"{training.validation_fields} fields of other compounds."
        )
    if material.embeddings is not None:
        embedded, size = material.embeddings.shape
        missing = len(material.index) - embedded
        fields = f"all fields but {missing} that could not be read" if missing else "every field"
        then = (
            ", from which profiles of wells and treatments were made and compared"
            if page["evaluated"]
            else ""
        )
        who = f"The network of {material.network}" if material.network else "It"
        parts.append(f"{who} turned {fields} into {size} numbers{then}.")
    also = [
        words
        for words, there in (
            ("laid out on a map", page["map"] is not None),
            ("ranked by how unusual they are", page["suspects"] is not None),
        )
        if there
    ]
    if also:
        parts.append(f"Fields were {' and '.join(also)}.")
    return " ".join(parts)
