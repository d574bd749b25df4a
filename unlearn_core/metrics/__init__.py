"""Metrics, one file each; base.py is their contract. METRICS: name -> instance."""

from collections.abc import Collection, Mapping

from unlearn_core.metrics.base import Metric
from unlearn_core.settings.discovery import plugins

METRICS: Mapping[str, Metric] = plugins("metrics")
LOSS = METRICS["loss"]
SETS = tuple(LOSS.facts.sets)  # forget, retain, neighbour, holdout


def budgeted_set(baseline: Collection[str]) -> str:
    """The set that the retain budget is counted on: the holdout set, or the retain set where there is no holdout."""
    return "holdout" if LOSS.point("holdout") in baseline else "retain"


def budgeted(baseline: Collection[str]) -> str:
    """The loss on that set, by the name of its points. `baseline`: names of what was measured before step 1."""
    return LOSS.point(budgeted_set(baseline))
