"""`hcs-ray outliers`: which fields, wells and treatments stand out, and for which reason.

Up to three things are measured of a row, each as a robust z-score: the deviation from the median in MADs,
scaled to equal standard deviations of a normal distribution, so that one threshold serves all.

- distance, at every level: the mean distance to the nearest embeddings (on a logarithmic scale);
- artefact: a quality measure of the image is off for its plate and treatment (of wells and treatments, the
  median over their fields);
- mislabelled, of wells: farther from the own replicates than from a treatment of another compound and MoA,
  and than those replicates are from one another;
- novel, of treatments without MoA: every known treatment is far, and the own replicates agree.

The score is the largest of them. Embeddings are centred on the negative controls of their plate. A label that
the network was trained on pulls its wells together, so that of a well it learned by heart is not doubted.
"""

from __future__ import annotations

from hcs_ray.outliers.find import find_outliers, read_outliers, score_screen
from hcs_ray.outliers.read import Screen

__all__ = ["Screen", "find_outliers", "read_outliers", "score_screen"]
