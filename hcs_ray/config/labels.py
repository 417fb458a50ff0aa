"""Which labelled fields are left out."""

from __future__ import annotations

import unicodedata
from typing import Final, Literal, get_args

import pydantic
from pydantic import Field

from hcs_ray.config.base import Section

Verdict = Literal["good", "bad", "unsure"]
VERDICTS: Final[tuple[Verdict, ...]] = get_args(Verdict)
TAG_RULE: Final = "tag:"


class LabelsConfig(Section):
    """What `hcs-ray train`, `profile`, `outliers` and `tune` make of labels."""

    exclude: tuple[str, ...] = Field(
        (), description="leave out fields with these verdicts or tags, as [bad, tag:debris]; docs/labels.md"
    )

    @pydantic.field_validator("exclude", mode="before")
    @classmethod
    def _one(cls, rules: object) -> object:
        return (rules,) if isinstance(rules, str) else rules

    @pydantic.field_validator("exclude")
    @classmethod
    def _rules(cls, rules: tuple[str, ...]) -> tuple[str, ...]:
        for rule in rules:
            if rule not in VERDICTS and not (rule.startswith(TAG_RULE) and rule != TAG_RULE):
                raise ValueError(f"{rule!r} is none of {', '.join(VERDICTS)} and {TAG_RULE}NAME")
        return tuple(unicodedata.normalize("NFC", rule) for rule in rules)  # as tags are kept
