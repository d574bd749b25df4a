"""Two speeds: of a parametrized test over many members of a kind, the first cases are quick, the others slow."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest


def some_quick(cases: Collection[Any], quick: int = 1) -> list[Any]:
    """The cases for `pytest.mark.parametrize`; all but the first `quick` of them are marked as slow."""
    rest = [case if isinstance(case, tuple) else (case,) for case in list(cases)[quick:]]
    return [*list(cases)[:quick], *(pytest.param(*case, marks=pytest.mark.slow) for case in rest)]
