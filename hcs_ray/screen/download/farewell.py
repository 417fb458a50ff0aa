"""What a download tells at its end: what came, what was renamed, and what to do next."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import yaml
from rich.filesize import decimal

from hcs_ray.screen.download.run import Outcome

_DEFAULT_FOLDER: Final = "raw"  # of Bbbc021Screen


def farewell(folder: str, outcome: Outcome) -> str:
    """Lines for the user; the next step only where nothing failed."""
    lines = [
        f"Fetched {len(outcome.fetched)} files ({decimal(outcome.bytes_fetched)}); "
        f"{len(outcome.kept)} were here already; {len(outcome.renamed)} were renamed."
    ]
    lines += [f"  renamed, not deleted: {Path(folder, name)}" for name in outcome.renamed]
    if not outcome.failed:
        lines += _next(Path(folder), outcome)
    return "\n".join(lines)


def _next(folder: Path, outcome: Outcome) -> list[str]:
    study, name = folder.resolve().parent, folder.resolve().name
    keys: dict[str, object] = {} if name == _DEFAULT_FOLDER else {"folder": name}
    if len(outcome.plates) < outcome.plates_in_table:
        keys["plates"] = list(outcome.plates)
    lines = [f"{len(outcome.plates)} of {outcome.plates_in_table} plates are in {folder}. Next:"]
    if keys:
        snippet = yaml.safe_dump({"screen": keys}, sort_keys=False, default_flow_style=None, width=100)
        lines += [f"write into {study / 'study.yaml'}:", *(f"  {line}" for line in snippet.splitlines())]
    elif not (study / "study.yaml").exists():
        lines += [f"write {study / 'study.yaml'} (it may be empty)"]
    return [*lines, f"hcs-ray run {study}"]
