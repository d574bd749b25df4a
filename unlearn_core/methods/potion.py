from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unlearn_core.methods.base import DAMPED, Facts, Gauge, Method, RunContext, Tensor, knob, torch
from unlearn_core.settings.imports import Lazy

importance = Lazy("unlearn_core.methods.shared.importance")
MEMORIZED = Gauge("memorized", "The share of the labelled forget tokens that the model ranks first.", "%")


@dataclass(frozen=True)
class Potion(Method):
    """Dampening with a search for its strength: more weights are damped until the forget texts are no longer memorized.

    I = mean over windows of |gradient of ||logits||| (the norm, not its square: outliers weigh less); alpha = the
    percentile 100 - ln(1 + 100 s) of all ratios I_f / I_D; lambda = 1. Each step is one try from the original weights,
    s = |D_f| / |D| / 25 * growth^(k-1), until the share of forget tokens that are the model's first choice is at most
    `memory` times that at the start (Schoepf et al. 2024, arXiv 2406.09173; its PTN search, in which growth is 1.1).
    """

    facts: ClassVar[Facts] = Facts(
        label="Potion",
        formula=r"\theta_i \leftarrow \frac{I^D_i}{I^f_i}\,\theta_i \;\;\text{where}\;\; \frac{I^f_i}{I^D_i} > "
        r"Q_{100 - \ln(1 + 100 s_k)},\quad s_k = \frac{|D_f|}{25\,|D|}\,\gamma^{k-1},\quad "
        r"I = \mathbb{E}\,\big|\partial \lVert v \rVert_2\big|",
        passes="before step 1: 1 F + 1 B for each forget window and each of `samples` retain windows; then 1 F a step",
        data="forget windows, of which some may be missing, and retain texts, among which some may remain",
        memory="two values for each weight while importances are measured, then one; and the initial weights",
        fails="it stops where the first choices are others, which a damaged model fulfils as well",
        settings={
            "where": {"kind": "full"},
            "guard_rail": {"kind": "none"},
            "schedule": {"steps": 30, "batch_size": 16},
        },
        dial="selection s",
        where=("full",),
        rails=("none",),
        trains=False,
        gauges={"damped_share": DAMPED, "memorized": MEMORIZED},
    )

    memory: float = knob(0.7, 0.0, 1.0, "Rho: the search ends when the memorized share falls to rho times its start.")
    growth: float = knob(1.1, 1.001, 10.0, "Factor by which s grows from one try to the next.")
    samples: int = knob(256, 1, 100_000, "Retain windows (and as many neighbour windows) that I_D is estimated on.")

    def prepare(self, context: RunContext) -> dict[str, Tensor]:
        ratio = importance.importance_ratio(context, importance.output_norm, False, self.samples)
        return {"ratio": ratio, "known": torch.tensor(importance.memorized(context))}

    def apply_step(self, context: RunContext, step: int) -> dict[str, float]:
        share, damped, known = attempt(context, context.method_state["ratio"], step, self.growth)
        enough = float(known <= self.memory * context.method_state["known"].item())
        return {"dial": share, "damped_share": damped, "memorized": known, "end": enough}


def attempt(context: RunContext, ratio: Tensor, number: int, growth: float) -> tuple[float, float, float]:
    """The weights of try `number`: its s, the share of weights that were damped, and the memorized share."""
    share = importance.forget_share(context) / 25 * growth ** (number - 1)
    damped = importance.damp(context, ratio, importance.threshold_for(ratio, share))
    return share, damped, importance.memorized(context)


METHOD = Potion
