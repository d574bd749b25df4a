from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unlearn_core.methods.base import Batch, Facts, LanguageModel, Method, Objective, Reference, Tensor, knob


@dataclass(frozen=True)
class ACDC(Method):
    """Ascent on forget texts and descent on retain texts in turn, each with an optimizer of its own.

    One step: theta <- optimizer_1(-NLL(forget)), then theta <- optimizer_2(retain_weight * NLL(retain)
    + neighbour_weight * NLL(neighbour)), whose learning rate is `descent_rate` times the first's (AC/DC of Cognac,
    Kolipaka et al. 2024, arXiv 2412.00789). With momenta and scales of their own, neither drowns the other, which a
    summed loss does. Its authors go on for 10 to 300 such steps and keep the best on validation text; here the guard
    and the checkpoints do that. They call a search over both rates mandatory. Both halves go through the guard rail:
    the retain subspace leaves the descent as it is, the null space projects it too.
    """

    facts: ClassVar[Facts] = Facts(
        label="Ascent and descent in turn (AC/DC)",
        formula=(
            r"\theta \leftarrow \mathrm{opt}_1\big(\theta, -\nabla\,\overline{\mathrm{NLL}}_f\big),\quad"
            r" \theta \leftarrow \mathrm{opt}_2\big(\theta, \nabla(\alpha\,\mathrm{NLL}_r + \nu\,\mathrm{NLL}_n)\big),"
            r"\quad \eta_2 = \rho\,\eta_1"
        ),
        passes="forget 1 F + 1 B; retain windows 1 F + 1 B",
        data="forget windows and retain texts",
        memory="a second optimizer's state",
        fails="depends much on the ratio of the two learning rates: one of them wins in the end",
        settings={"optimizer": {"learning_rate": 6e-4}, "schedule": {"steps": 70, "batch_size": 8}},
    )

    descent_rate: float = knob(2.0, 1e-3, 1e3, "Learning rate of the descent, as a multiple of the ascent's.")
    retain_weight: float = knob(1.0, 0.01, 100.0, "Weight of the retain loss in the descent.")
    neighbour_weight: float = knob(0.0, 0.0, 100.0, "Weight of the neighbour loss in the descent.")

    def loss(self, model: LanguageModel, batch: Batch, reference: Reference) -> Objective:
        return Objective(-model.nll(batch.forget).mean_per_token.mean())

    def descent(self, model: LanguageModel, batch: Batch, reference: Reference) -> Tensor:
        """What the second optimizer steps down on; its weights scale the two sets against each other."""
        loss = self.retain_loss(model, batch, reference)
        assert loss is not None, "an alternating method draws retain windows in every step"
        return loss


METHOD = ACDC
