"""What every section of a configuration is made of."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A part of the configuration: frozen, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ExecutionSection(Section):
    """A section with keys that do not change the result, and so do not make it stale.

    Keys ``since`` came later: left at their default, all is as it was before them, so what was made before
    them is not stale either.
    """

    execution: ClassVar[frozenset[str]] = frozenset()
    since: ClassVar[frozenset[str]] = frozenset()
