from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from unlearn_core.methods.base import Batch, Facts, LanguageModel, Method, Objective, Reference, Tensor, knob, torch
from unlearn_core.settings.errors import ConfigError


@dataclass(frozen=True)
class RMU(Method):
    """Representation misdirection: after one layer, hidden states of forget texts are steered to one random direction.

    L = mean over forget tokens of |h - c u|^2 + retain_weight * mean over retain tokens of |h - h_ref|^2 + ...,
    h the hidden state (width,) after `layer`, u one random unit vector of entries drawn evenly from [0, 1)
    (Li et al. 2024, arXiv 2403.03218); its code takes means over the width too, which scales both terms alike. The
    direction is the same in every step and every process; a public baseline draws a new one every step, which has no
    direction to go. c must exceed the lengths that the layer itself gives: with `adaptive` it is `steering` times the
    token's own length in the reference (Dang et al. 2024, arXiv 2408.06223; their code measures one mean length, on the
    first batch, and keeps it), else `steering` itself. Both lengths are recorded. Of u, 0.87 is along the vector of
    ones, which LayerNorm (not RMSNorm) takes away again. Padding counts in the published code, and never here. Nothing
    behind `layer` is computed, and its adapters do not move.
    """

    facts: ClassVar[Facts] = Facts(
        label="Representation misdirection (RMU)",
        formula=(
            r"L = \mathbb{E}_{t \in f}\,\Vert h_\theta^{(\ell)}(t) - c\,u \Vert^2"
            r" + \alpha\,\mathbb{E}_{t \in r}\,\Vert h_\theta^{(\ell)}(t) - h_{\mathrm{ref}}^{(\ell)}(t) \Vert^2"
        ),
        passes="as far as the layer only: forget 1 F + 1 B (2 F if adaptive); retain windows 2 F + 1 B",
        data="forget windows and retain texts",
        memory="one vector of the model's width, made anew from its seed in every step",
        fails=(
            "layer and norm depend on the model; too small a norm does nothing; the damage to "
            "retain texts comes suddenly, and forget texts are soon relearned"
        ),
        settings={
            "lora": {"modules": "all-linear"},
            "optimizer": {"learning_rate": 1e-3},
            "schedule": {"steps": 60, "batch_size": 8},
        },
    )

    layer: int = knob(
        0,
        0,
        1000,
        "Layer whose output is steered; 1 = the first (the published 7 is 8 here), 0 = a third of the model's depth.",
    )
    steering: float = knob(6.0, 1e-3, 1e4, "Norm c that the hidden states of forget texts are steered to.")
    adaptive: bool = knob(
        True, help="Take c as a multiple of each token's norm in the reference model; it should then exceed 1."
    )
    direction: int = knob(0, 0, 2**31 - 1, "Seed of the random direction.")
    tokens: str = knob(
        "labelled",
        choices=("labelled", "all"),
        help="Steer the labelled tokens (from the target on), or all tokens of a forget window.",
    )
    retain_weight: float = knob(
        10.0, 0.0, 1e5, "Weight of the distance to the reference model's hidden states on retain texts."
    )
    neighbour_weight: float = knob(0.0, 0.0, 1e5, "Weight of the same distance on neighbour texts.")

    def loss(self, model: LanguageModel, batch: Batch, reference: Reference) -> Objective:
        layer = self.chosen_layer(model.module)
        now, own = _states(model.module, reference, batch.forget, layer, self.tokens == "all", self.adaptive)
        aim = self.steering * (_lengths(own) if self.adaptive else torch.ones_like(now[:, :1]))
        forget = (now - aim * self.unit_vector(now.shape[1]).to(now)).square().sum(1).mean()
        weighted = ((self.retain_weight, batch.retain), (self.neighbour_weight, batch.neighbour))
        terms = [
            weight * _moved(model.module, reference, tokens, layer) for weight, tokens in weighted if weight and tokens
        ]
        lengths = {"hidden_length": _lengths(now.detach()).mean().item(), "steered_length": aim.mean().item()}
        return Objective(forget, sum(terms[1:], terms[0]) if terms else None, lengths)

    def chosen_layer(self, model: Any) -> int:
        """Raises ConfigError where the model has fewer layers."""
        from unlearn_core.model.hidden import blocks

        depth = len(blocks(model))
        if self.layer > depth:
            raise ConfigError(
                f"method.layer is {self.layer}; this model has {depth} layers. Set it to 1 to {depth}, or 0."
            )
        return self.layer or -(-depth // 3)

    def unit_vector(self, width: int) -> Tensor:
        """The direction (width,): the same for a seed, in every process and on every device."""
        drawn = torch.rand(width, generator=torch.Generator().manual_seed(self.direction))
        unit: Tensor = drawn / drawn.norm()
        return unit


def _lengths(states: Tensor) -> Tensor:
    lengths: Tensor = states.norm(dim=1, keepdim=True)
    return lengths


def _states(
    model: Any, reference: Reference, tokens: Any, layer: int, everything: bool, before: bool
) -> tuple[Tensor, Any]:
    """Hidden states (tokens, width) after `layer`, of the labelled tokens or of all true ones; the reference's too."""

    from unlearn_core.model.hidden import hidden_after
    from unlearn_core.model.logits import by_group

    now, was = [], []
    for ids, mask, labels in by_group(tokens):
        labelled = torch.nn.functional.pad(labels != -100, (1, 0))
        chosen = mask.bool() if everything else labelled
        now.append(hidden_after(model, layer, ids, mask)[chosen])
        if before:
            with reference() as start:
                was.append(hidden_after(start, layer, ids, mask)[chosen])
    return torch.cat(now), torch.cat(was) if before else None


def _moved(model: Any, reference: Reference, tokens: Any, layer: int) -> Tensor:
    """Mean over all true tokens of the squared distance from the reference's hidden states."""
    now, was = _states(model, reference, tokens, layer, True, True)
    distance: Tensor = (now - was).square().sum(1).mean()
    return distance


METHOD = RMU
