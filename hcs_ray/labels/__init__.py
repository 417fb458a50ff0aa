"""Labels that people give to fields: good, bad or unsure, and free tags.

Each decision is one immutable file below ``labels/events`` (`Decision`); the label of a field is what follows
from all of them in the order of their ids (`LabelLog`). Two people at once write two files, so nothing is
lost, on a local folder or on S3. docs/labels.md has the rules.
"""

from __future__ import annotations

from hcs_ray.config import VERDICTS, Verdict
from hcs_ray.labels.decision import Decision, checked_key, checked_tag, checked_user
from hcs_ray.labels.excluded import ExcludedFields, LabelSnapshot, excluded_file, of_killed
from hcs_ray.labels.log import LabelLog, decide, read_labels, undo
from hcs_ray.labels.table import FieldLabel, LabelState, holding, label_table, labels_csv

__all__ = [
    "VERDICTS",
    "Decision",
    "ExcludedFields",
    "FieldLabel",
    "LabelLog",
    "LabelSnapshot",
    "LabelState",
    "Verdict",
    "checked_key",
    "checked_tag",
    "checked_user",
    "decide",
    "excluded_file",
    "holding",
    "label_table",
    "labels_csv",
    "of_killed",
    "read_labels",
    "undo",
]
