"""evaluate(): every metric on the evaluation windows of a run."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from unlearn_core.metrics import METRICS
from unlearn_core.metrics.base import Evaluation, Measurement
from unlearn_core.metrics.shared.windows import EvaluationWindows
from unlearn_core.model.losses import LanguageModel
from unlearn_core.model.reference import Reference


@torch.no_grad()
def evaluate(
    model: nn.Module, windows: EvaluationWindows, reference: Reference | None = None
) -> dict[str, Measurement]:
    """Every metric on every set that it measures, by the name of its point (`forget_loss`); dropout is off."""
    was_training = model.training
    model.eval()
    evaluation = Evaluation(LanguageModel(model), windows, reference)
    measured = {
        metric.point(name): measurement
        for metric in METRICS.values()
        for name, measurement in metric.of_windows(evaluation).items()
        if name in metric.facts.sets
    }
    model.train(was_training)
    return measured


def values_of(measured: Mapping[str, Measurement]) -> dict[str, float]:
    """The aggregates alone."""
    return {name: measurement.value for name, measurement in measured.items()}
