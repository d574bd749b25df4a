"""What pages say of every number that a run records, by the name of its points in the store.

Metrics on their sets, and what steps, methods, guard rails, optimizers and masks record.
"""

from __future__ import annotations

from collections.abc import Mapping

from unlearn_core.guard_rails import GUARD_RAILS
from unlearn_core.methods import METHODS
from unlearn_core.metrics import METRICS
from unlearn_core.settings.gauge import Gauge

STEP = {
    "removed_share": Gauge(
        "removed share", "The share of the update's (or gradient's) norm that the projection removed.", "%"
    ),
    "gradient_norm": Gauge("gradient norm", "Norm of the gradient before the projection."),
    "unclipped_share": Gauge(
        "unclipped",
        "The share of entries that the optimizer does not clip: its authors want 10 to 50 %, at 0 it is a sign step.",
        "%",
    ),
    "dial": Gauge("dial", "Where the method's dial stands at this step: its strength, threshold or count."),
    "masked_share": Gauge("held fixed", "The share of the trained parameters that the mask does not let change.", "%"),
}

RECORDED: Mapping[str, Gauge] = {
    **{metric.point(name): metric.gauge(name) for metric in METRICS.values() for name in metric.facts.sets},
    **STEP,
    **{name: gauge for method in METHODS.values() for name, gauge in method.facts.gauges.items()},
    **{name: gauge for rail in GUARD_RAILS.values() for name, gauge in rail.facts.gauges.items()},
}
