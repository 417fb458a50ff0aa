"""The table of a run's fields, as the loader, the network and the metrics share it: one row a field.

It is the index with the side of each field's well, and with the columns named here.
"""

from __future__ import annotations

from typing import Final

LABEL: Final = "label"  # int64, class of the MoA head; NONE where the field has none to learn
TREATMENT_LABEL: Final = "treatment_label"  # int64, class of the treatment head, or NONE
DOMAIN_LABEL: Final = "domain_label"  # int64, plate or week for the adversary, or NONE
PLATE_NUMBER: Final = "plate_number"  # int64, of the plate, by which control-anchored statistics are kept
LISTED: Final = "listed"  # bool: in the lists of fields to learn from or to be judged by
ANCHOR: Final = "anchor"  # bool: a negative control that may anchor the batches of its plate
NONE: Final = -1
