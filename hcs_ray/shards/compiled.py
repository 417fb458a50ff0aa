"""Loops over pixels, compiled by numba: for one thread, without the GIL.

Compiled code is kept where numba may write beside this package, or else in the user's cache folder, so that
only the first process on a machine waits for the compiler; where neither can be written, each compiles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """The same function, compiled in its first call."""
    try:
        return cast(Function, numba.njit(nogil=True, cache=True)(function))
    except RuntimeError:  # no folder for the cache
        return cast(Function, numba.njit(nogil=True)(function))
