"""`hcs-ray outliers`: which fields, wells and treatments stand out, for which reason, and by what evidence.

Three reasons, all on one scale (`calibrate`), standard deviations of what ordinary rows show:

- artefact, of fields (`artefacts`): the image or the embedding is unlike what plate and replicates lead to
  expect (`expected`);
- mislabelled, of wells (`replicates`): nearer to a treatment of another compound and MoA than to the own
  replicates, in a space in which replicates deviate alike in all directions (`space`);
- novel, of treatments without a MoA (`replicates`): the wells agree, and are far from all that is known.

Beside them stand what pyod's detectors say (`detectors`), the nearest rows (`nearest`) and the score of
pytorch-hcs (`older`). `levels` makes the tables, `find` is the stage. docs/outliers.md has the method, and
what it finds of what is planted.
"""

from __future__ import annotations

from hcs_ray.outliers.find import find_outliers, read_outliers, score_screen
from hcs_ray.outliers.read import Screen

__all__ = ["Screen", "find_outliers", "read_outliers", "score_screen"]
