"""The null space of retain texts' layer inputs: the adapter is zero on them (GPM).

An adapted layer adds s B A x to its output. Where every row of A is orthogonal to some directions, that is 0 for all x
in their span: to all orders, under any optimizer, momentum and weight decay, whatever B is (methods.md 5.3). So A is
what is projected, where a run begins and in every update. B is free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from unlearn_core.guard_rails.base import Gauge, GuardRail, RailFacts, RailMemory, Rule, RunContext, Tensor, knob, torch
from unlearn_core.guard_rails.shared.settings import RetainSampleSettings
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


NEEDS_ADAPTER = Rule(
    when=lambda run: run.where.kind == "full",
    fields=("guard_rail.kind", "where.kind"),
    because="this guard rail constrains the inputs that an adapter reads, and there is no adapter",
    fix={"where.kind": "lora"},
    or_else="choose another guard rail",
)


@dataclass(frozen=True)
class NullSpaceSettings(RetainSampleSettings):
    """Settings of the null space of retain texts' inputs."""

    energy: float = knob(0.97, 0.01, 1.0, "Protected share of the energy of the layer inputs of retain texts.")
    rules: ClassVar[tuple[Rule, ...]] = (NEEDS_ADAPTER,)

    def memory(self) -> RailMemory:
        return RailMemory(input_moments=True)


class NullSpaceRail(GuardRail):
    """Keeps the rows of each layer's A orthogonal to the directions that `fit` finds, once, before the first step.

    A fresh adapter begins projected, so that A M = 0 throughout. With model.adapter, and in a branch that begins to use
    this rail, only the change of A is projected orthogonally to M: the component that A has along M stays.
    """

    facts: ClassVar[RailFacts] = RailFacts(
        "activation null space (GPM)",
        "the adapter is zero on the layer inputs of retain texts",
        NullSpaceSettings,
        gauges=PROTECTED,
    )

    def __init__(self, context: RunContext) -> None:
        super().__init__(context)
        # What tells the directions of one run from those of another, where a branch changes its settings.
        self.energy = self.settings.energy if isinstance(self.settings, NullSpaceSettings) else 0.0
        self.parts = {name: part for name, part in context.adapter.parts().items() if ".lora_A." in name}
        named = dict(context.model.named_parameters())
        self.inputs = {inputs.layer_of(name): named[name].shape[1] for name in self.parts}
        self.bases: dict[str, Tensor] | None = None

    def fit(self) -> dict[str, Tensor]:
        """The directions that every layer's A is projected orthogonally to."""
        assert isinstance(self.settings, NullSpaceSettings)
        bases: dict[str, Tensor] = inputs.retain_inputs(self.context, self.settings, self.settings.energy)
        return bases

    def nothing_left(self, layer: str, width: int) -> str:
        """The sentence of the error where a layer has no free input direction."""
        return (
            f"guard_rail.energy is {self.energy:g}: retain texts then fill all {width} inputs of {layer}, and nothing "
            "is left that an adapter could read. Set it lower."
        )

    def start(self) -> None:
        """Fits the directions, and projects a fresh adapter orthogonally to them."""
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
        """`vector` (P,) with each A's rows projected off its layer's directions. Twice, down to rounding."""
        assert self.bases is not None
        off = vector.clone()
        for name, part in self.parts.items():
            if (basis := self.bases.get(inputs.layer_of(name))) is not None:
                rows = off[part].view(-1, len(basis))
                for _ in range(2):
                    rows -= (rows @ basis) @ basis.T
        return off

    def project_gradient(self, gradient: Tensor) -> Tensor:
        """The projected gradient, for its norm alone: the update is what is projected (apply_to is "update")."""
        return self._off(gradient)

    def project_out(self, update: Tensor) -> Tensor:
        """Projects the retain term's part as well: the constraint is hard."""
        return self._off(update)

    def values(self) -> dict[str, float]:
        """`protected_share`: the share of a layer's input directions that A is orthogonal to, mean over the layers."""
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
        state = {"which": torch.tensor(which), "energy": torch.tensor([self.energy], dtype=torch.float64)}
        return state | {f"basis.{place}": basis for place, basis in enumerate(distinct)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.bases = None
        if "which" in tensors and tensors["energy"].item() == self.energy:
            home = self.context.adapter.values
            distinct = [tensors[f"basis.{place}"].to(home, copy=True) for place in range(len(tensors) - 2)]
            layers = zip(self.inputs, tensors["which"].tolist(), strict=True)
            self.bases = {layer: distinct[place] for layer, place in layers if place >= 0}


GUARD_RAIL = NullSpaceRail
