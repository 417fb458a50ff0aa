"""Labels that people give to fields: good, bad or unsure, and free tags.

Each decision is one immutable file below ``labels/events`` (`Decision`); the label of a field is what follows
from all of them in the order of their ids (`LabelLog`). Two people at once write two files, so nothing is
lost, on a local folder or on S3. docs/labels.md has the rules.
"""

from __future__ import annotations

from hcs_ray.labels.decision import VERDICTS, Decision, Verdict, checked_key, checked_tag, checked_user
from hcs_ray.labels.log import LabelLog, decide, read_labels, undo
from hcs_ray.labels.table import FieldLabel, labels_csv

__all__ = [
    "VERDICTS",
    "Decision",
    "FieldLabel",
    "LabelLog",
    "Verdict",
    "checked_key",
    "checked_tag",
    "checked_user",
    "decide",
    "labels_csv",
    "read_labels",
    "undo",
]
