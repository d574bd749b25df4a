"""What a run has recorded at one step: read where a page looks, not held for the whole run as the curves are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING
from weakref import proxy

if TYPE_CHECKING:
    from storage import RunStore

MOST_STEPS = 8  # that were looked at and are still known


class Readings:
    """The numbers of every name of a run, by step. Raises the store's error where it cannot be read."""

    def __init__(self, store: RunStore, run_id: str) -> None:
        self._store: RunStore = proxy(store)  # views are kept as long as their store, and must not be what keeps it
        self._run_id = run_id
        self._at: dict[int, dict[str, float]] = {}

    def at(self, step: int) -> dict[str, float]:
        """The newest value of each name at or before `step`."""
        if step not in self._at:
            if len(self._at) >= MOST_STEPS:
                self._at = {}
            self._at[step] = self._store.last_points(self._run_id, step)
        return self._at.get(step, {})

    @cached_property
    def first(self) -> dict[str, tuple[int, float]]:
        """The first step of each name and its value there."""
        return self._store.earliest_points(self._run_id)

    def since(self, name: str, after_step: int) -> Sequence[float]:
        """The values of one name at steps > `after_step`."""
        return self._store.series(self._run_id, [name], after_step).get(name, ((), ()))[1]
