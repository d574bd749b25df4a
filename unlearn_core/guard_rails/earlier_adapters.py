"""Input directions of earlier adapters: a new adapter is orthogonal to them (O-LoRA)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unlearn_core.guard_rails.base import GuardRailSettings, RailFacts, Rule, Tensor
from unlearn_core.guard_rails.null_space import NEEDS_ADAPTER, PROTECTED, NullSpaceRail, inputs


@dataclass(frozen=True)
class EarlierAdaptersSettings(GuardRailSettings):
    """It has no settings: the adapters are those in `model.earlier`."""

    rules: ClassVar[tuple[Rule, ...]] = (
        NEEDS_ADAPTER,
        Rule(
            when=lambda run: not run.model.earlier,
            fields=("guard_rail.kind", "model.earlier"),
            because="there are no earlier adapters to stay orthogonal to",
            fix={"guard_rail.kind": "none"},
            or_else="name the folders of earlier adapters",
        ),
    )


class EarlierAdaptersRail(NullSpaceRail):
    """Projects a new adapter orthogonally to the inputs that those in `model.earlier` read (arXiv 2310.14152)."""

    facts: ClassVar[RailFacts] = RailFacts(
        "earlier adapters (O-LoRA)",
        "the adapter is zero on what the adapters of earlier requests read",
        EarlierAdaptersSettings,
        gauges=PROTECTED,
    )

    def fit(self) -> dict[str, Tensor]:
        bases: dict[str, Tensor] = inputs.earlier_inputs(self.context)
        return bases

    def nothing_left(self, layer: str, width: int) -> str:
        return (
            f"model.earlier has adapters that together read all {width} inputs of {layer}: nothing is left for a new "
            "one. Set guard_rail.kind to another, or name fewer."
        )


GUARD_RAIL = EarlierAdaptersRail
