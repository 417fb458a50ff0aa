"""The commands for labels of fields: give them, take them back, count and export them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hcs_ray.cli.app import Json, Overrides, Target, app, open_target, say
from hcs_ray.cli.chosen import Keys, KeysFile, chosen_keys, login_name
from hcs_ray.contracts import KEY, InputError

if TYPE_CHECKING:
    import pandas as pd

    from hcs_ray.labels import Decision, LabelLog
    from hcs_ray.study import Study

_command = partial(app.command, rich_help_panel="Labels")
_User = Annotated[
    str | None, typer.Option("--user", metavar="NAME", help="Whose decision it is; by default your login.")
]
_NAMED = 3


@_command(epilog="Example: hcs-ray label hcs-demo Week1_22121_B02_s1 --verdict bad --tag debris")
def label(
    study: Target,
    keys: Keys = None,
    listed: KeysFile = None,
    verdict: Annotated[
        str | None, typer.Option("--verdict", help="good, bad or unsure; none: take the verdict away.")
    ] = None,
    tags: Annotated[list[str] | None, typer.Option("--tag", help="Add a tag, one option each.")] = None,
    untags: Annotated[
        list[str] | None, typer.Option("--untag", help="Take a tag away, one option each.")
    ] = None,
    undo: Annotated[
        bool, typer.Option("--undo", help="Take back your last decision that still holds.")
    ] = False,
    user: _User = None,
) -> None:
    """Label fields by their keys, or take the last decision back."""
    from hcs_ray.labels import LabelLog
    from hcs_ray.storage import preflight

    who, chosen = user or login_name(), chosen_keys(keys, listed)
    opened = open_target(study, "main", None)
    preflight(opened.storage)
    log = LabelLog(opened.storage)
    log.refresh()
    log.warn()
    if undo:
        if chosen or verdict or tags or untags:
            raise InputError("--undo takes back your last decision; it goes with no key, verdict or tag")
        say(_undone(log, who))
        return
    if not (verdict or tags or untags):
        raise InputError("nothing to say about these fields; give --verdict, --tag, --untag or --undo")
    _require_fields(opened, chosen)
    clear = verdict == "none"
    made = log.decide(
        who,
        chosen,
        verdict=None if clear else verdict,
        clear=clear,
        add_tags=tags or [],
        remove_tags=untags or [],
    )
    back = f"hcs-ray label {study} --undo" + (f" --user {shlex.quote(user)}" if user else "")
    say(f"  {_words(made)}, by {made.user}\nTake it back with: {back}")


@_command(epilog="Example: hcs-ray labels hcs-demo --csv labels.csv")
def labels(
    study: Target,
    csv: Annotated[str | None, typer.Option("--csv", metavar="FILE", help="Write the table here.")] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Count the labels of a study by verdict, tag and user; export them as CSV."""
    from hcs_ray.labels import labels_csv, read_labels
    from hcs_ray.storage import preflight

    opened = open_target(study, "main", overrides)
    preflight(opened.storage)
    table = read_labels(opened.storage)
    figures = _counts(opened, table)
    say("\n".join(f"  {name + ':':<28}{_listed(value)}" for name, value in figures.items()))
    if csv is not None:
        try:
            Path(csv).write_bytes(labels_csv(table))
        except OSError as error:
            raise InputError(f"{csv}: cannot be written: {error.strerror}") from None
        say(f"Table: {csv}")
    if as_json:
        typer.echo(json.dumps(figures))


def _undone(log: LabelLog, user: str) -> str:
    last = log.last_of(user)
    if last is None:
        raise InputError(f"{user} has made no decision that could be taken back")
    log.undo(user, last.id)
    return f"  taken back: {_words(last)}, of {last.time[:16].replace('T', ' ')} UTC"


def _words(decision: Decision) -> str:
    """What a decision says, and about how many fields."""
    parts = [decision.verdict] if decision.verdict else ["no verdict"] if decision.clear else []
    parts += [f"tag {tag}" for tag in decision.add_tags]
    parts += [f"without tag {tag}" for tag in decision.remove_tags]
    shown = ", ".join(decision.keys[:_NAMED])
    more = f" and {len(decision.keys) - _NAMED} more" if len(decision.keys) > _NAMED else ""
    return f"{', '.join(parts)}: {shown}{more}"


def _require_fields(study: Study, keys: list[str]) -> None:
    """`InputError` for a key that is not in the index of the shards."""
    known = _fields(study)
    unknown = [key for key in keys if key not in known]
    if unknown:
        raise InputError(
            f"{study.storage.url} has no field {unknown[0]}"
            + (f" (nor {len(unknown) - 1} more of these)" if len(unknown) > 1 else "")
            + f"; a key is as {min(known)}"
        )


def _fields(study: Study) -> set[str]:
    """The keys of all fields in the shards."""
    from hcs_ray.tables import read_index

    return set(read_index(study, [KEY])[KEY])


def _counts(study: Study, table: pd.DataFrame) -> dict[str, int | dict[str, int]]:
    """How many fields are labelled, and how; and what ``labels.exclude`` makes of it."""
    found: dict[str, int | dict[str, int]] = {"labelled fields": len(table)}
    there = _fields(study) if study.sound("shard") else set(table[KEY])
    if gone := len(set(table[KEY]) - there):
        found["of fields that the shards no longer have"] = gone
    verdicts = table["verdict"].dropna().value_counts()
    found["verdicts"] = {str(name): int(verdicts[name]) for name in sorted(verdicts.index)}
    found["tags"] = _tally(tag for tags in table["tags"] for tag in tags)
    found["last decided by"] = _tally(table["user"])
    if study.config.labels.exclude:
        rules = ", ".join(study.config.labels.exclude)
        found[f"left out ({rules})"] = len(study.excluded().among(there).reasons)
    return found


def _tally(names: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))


def _listed(value: int | dict[str, int]) -> str:
    if isinstance(value, int):
        return str(value)
    return ", ".join(f"{count} {name}" for name, count in value.items()) or "none"
