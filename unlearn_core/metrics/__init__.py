"""Metrics, one file each; base.py is their contract. METRICS: name -> instance."""

from collections.abc import Collection, Mapping

from unlearn_core.metrics.base import Metric
from unlearn_core.settings.discovery import plugins

METRICS: Mapping[str, Metric] = plugins("metrics")
LOSS = METRICS["loss"]
SETS = tuple(LOSS.facts.sets)  # forget, retain, neighbour, holdout


def budgeted(baseline: Collection[str]) -> str:
    """The loss that the retain budget is counted on: on text never trained on, where there is such text."""
    holdout = LOSS.point("holdout")
    return holdout if holdout in baseline else LOSS.point("retain")
