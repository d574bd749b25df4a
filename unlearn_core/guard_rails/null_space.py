"""The inputs of retain texts: an adapter that cannot read them (GPM).

An adapted layer adds s B A x to its output. Where every row of A is orthogonal to some directions, that is 0 for all x
in their span: to all orders, under any optimizer, momentum and weight decay, whatever B is (methods.md 5.3). So A is
what is projected, where a run begins and in every update. B is free.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from unlearn_core.guard_rails.base import (
    Gauge,
    GuardRail,
    GuardRailSettings,
    RailFacts,
    RailMemory,
    RunContext,
    Tensor,
    torch,
)
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.imports import Lazy

inputs = Lazy("unlearn_core.guard_rails.shared.input_projection")

PROTECTED = {
    "protected_share": Gauge(
        "protected directions",
        "The share of a layer's input directions that the adapter may not read, mean over the layers.",
        "%",
    )
}


class NullSpaceRail(GuardRail):
    """Keeps the rows of each layer's A orthogonal to the directions that `fit` finds, once, before the first step.

    A fresh adapter begins projected, so that A M = 0 throughout. Of one that the run goes on from (model.adapter), and
    in a branch that takes this rail up later, only the change of A is held off M: what A read of it, it still reads.
    """

    facts: ClassVar[RailFacts] = RailFacts(
        "activation null space (GPM)",
        "the adapter is zero on what retain texts put into its layers",
        settings=("batches", "batch_size", "neighbours", "energy"),
        gauges=PROTECTED,
    )

    @classmethod
    def memory(cls, settings: GuardRailSettings) -> RailMemory:
        return RailMemory(input_moments=True)

    def __init__(self, context: RunContext) -> None:
        super().__init__(context)
        # What tells the directions of one run from those of another, where a branch changes its settings.
        self.energy = self.energy_of(context)
        self.parts = {name: part for name, part in context.adapter.parts().items() if ".lora_A." in name}
        named = dict(context.model.named_parameters())
        self.inputs = {inputs.layer_of(name): named[name].shape[1] for name in self.parts}
        self.bases: dict[str, Tensor] | None = None

    def fit(self) -> dict[str, Tensor]:
        """The directions that every layer's A is kept orthogonal to."""
        return inputs.retain_inputs(self.context)

    @staticmethod
    def energy_of(context: RunContext) -> float:
        return context.config.guard_rail.energy

    def nothing_left(self, layer: str, width: int) -> str:
        """Why a fresh adapter could not learn anything on a layer."""
        return (
            f"guard_rail.energy is {self.energy:g}: retain texts then fill all {width} inputs of {layer}, and nothing "
            "is left that an adapter could read. Set it lower."
        )

    def start(self) -> None:
        """Fits the directions, and takes them out of a fresh adapter."""
        self.bases = self.fit()
        if self.context.config.model.adapter:
            return
        for layer, basis in self.bases.items():
            if basis.shape[1] >= self.inputs[layer] - 1:  # what comes from a LayerNorm may have one direction less
                short = layer.removeprefix("base_model.model.")
                raise ConfigError(self.nothing_left(short, self.inputs[layer]))
        with torch.no_grad():
            self.context.adapter.values.copy_(self._off(self.context.adapter.values.detach()))
        self.context.adapter.scatter()

    def refresh(self, step: int) -> int:
        """Nothing: the directions stay. A branch from a run without this rail makes its own here."""
        if self.bases is None:
            self.bases = self.fit()
        return 0

    def _off(self, vector: Tensor) -> Tensor:
        """`vector` (P,) with each A's rows off its layer's directions. Twice, down to rounding."""
        assert self.bases is not None
        off = vector.clone()
        for name, part in self.parts.items():
            if (basis := self.bases.get(inputs.layer_of(name))) is not None:
                rows = off[part].view(-1, len(basis))
                for _ in range(2):
                    rows -= (rows @ basis) @ basis.T
        return off

    def project_gradient(self, gradient: Tensor) -> Tensor:
        """What is left of a gradient; only to be shown, since it holds for weights (apply_to is "update")."""
        return self._off(gradient)

    def project_out(self, update: Tensor, retain_gradient: Tensor | None, gain: float) -> Tensor:
        """The retain term's part as well: the constraint is hard."""
        return self._off(update)

    def values(self) -> dict[str, float]:
        """`protected_share`: the share of a layer's input directions that A is held off, mean over the layers."""
        bases = self.bases or {}
        shares = [bases[layer].shape[1] / width if layer in bases else 0.0 for layer, width in self.inputs.items()]
        return {"protected_share": sum(shares) / len(shares)}

    def tensors(self) -> dict[str, Tensor]:
        """Each basis once, however many layers share it; and which of them each layer has (-1: none)."""
        if self.bases is None:
            return {}
        distinct = list({id(basis): basis for basis in self.bases.values()}.values())
        places = {id(basis): place for place, basis in enumerate(distinct)}
        which = [places[id(self.bases[layer])] if layer in self.bases else -1 for layer in self.inputs]
        found = {"which": torch.tensor(which), "energy": torch.tensor([self.energy], dtype=torch.float64)}
        return found | {f"basis.{place}": basis for place, basis in enumerate(distinct)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.bases = None
        if "which" in tensors and tensors["energy"].item() == self.energy:
            home = self.context.adapter.values
            distinct = [tensors[f"basis.{place}"].to(home, copy=True) for place in range(len(tensors) - 2)]
            layers = zip(self.inputs, tensors["which"].tolist(), strict=True)
            self.bases = {layer: distinct[place] for layer, place in layers if place >= 0}


GUARD_RAIL = NullSpaceRail
