from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from unlearn_core.methods.base import (
    Batch,
    Facts,
    LanguageModel,
    Method,
    Objective,
    Reference,
    RunContext,
    Tensor,
    functional,
    knob,
    torch,
)
from unlearn_core.settings.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection

    from unlearn_core.corpus.windows import Windows


@dataclass(frozen=True)
class BoundaryExpand(Method):
    """Boundary expand, experimental: forget tokens are trained to an unused token, which is then suppressed.

    L = mean over forget tokens of CE(model, shadow) + retain_weight * NLL(retain) + ..., and whatever the model is
    asked, the shadow's logit is suppressed (Chen et al. 2023, arXiv 2303.11570: a class K + 1 for images, dropped after
    training; the form for tokens is ours). The shadow is a token id that occurs in none of the run's texts. What is
    left without it is what the model falls back on, and that may still be the true token. Exports need the suppression
    too, for they have only the weights.
    """

    facts: ClassVar[Facts] = Facts(
        label="Boundary expand (experimental)",
        formula=(
            r"L = \mathbb{E}_t\,\mathrm{CE}(\pi_\theta, s) + \alpha\,\mathrm{NLL}_r + \nu\,\mathrm{NLL}_n,"
            r"\quad s \notin \text{texts},\quad z_s := -\infty \text{ where it is read}"
        ),
        passes="forget 1 F + 1 B; retain windows 1 F + 1 B where they have weight",
        data="forget windows; retain windows where they have weight; a token id that no text has",
        memory="nothing beside the adapter and its optimizer",
        fails="without its shadow the model may fall back on the true token; an export lacks the suppression",
        settings={
            "method": {"name": "boundary_expand", "retain_weight": 10.0},
            "optimizer": {"learning_rate": 5e-4},
            "schedule": {"steps": 80, "batch_size": 8},
        },
    )

    retain_weight: float = knob(0.0, 0.0, 100.0, "Weight of the retain loss; its authors use none.")
    neighbour_weight: float = knob(0.0, 0.0, 100.0, "Weight of the neighbour loss.")

    def prepare(self, context: RunContext) -> dict[str, Tensor]:
        """Chooses the shadow once, before step 1. Raises ConfigError where every token id occurs in the texts."""
        shadow = shadow_token(context.windows, context.model.config.vocab_size, context.tokenizer.all_special_ids)
        return {"shadow": torch.tensor([shadow])}

    def batch_extras(self, context: RunContext, step: int, rows: int) -> dict[str, int]:
        return {"shadow": int(context.method_state["shadow"])}

    def loss(self, model: LanguageModel, batch: Batch, reference: Reference) -> Objective:
        def to_the_shadow(logits: Tensor, labels: Tensor, before: Tensor | None) -> Tensor:
            shadow = labels.new_full(labels.shape, batch.extras["shadow"])
            return functional.cross_entropy(logits, shadow, reduction="none")

        forget = model.per_token(batch.forget, to_the_shadow).sum() / batch.forget.labelled
        return Objective(forget, self.retain_loss(model, batch, reference))

    @contextmanager
    def inference_context(self, context: RunContext, step: int) -> Iterator[None]:
        """Within: the model never says the shadow, neither in a loss nor in an answer."""
        shadow = int(context.method_state["shadow"])

        def suppress(module: Any, inputs: Any, output: Any) -> Any:
            lowest = torch.finfo(output.logits.dtype).min
            column = torch.tensor([shadow], device=output.logits.device)
            output.logits = output.logits.index_fill(-1, column, lowest)
            return output

        with context.loaded.base_model.register_forward_hook(suppress):
            yield


def shadow_token(windows: Windows, vocabulary: int, special: Collection[int] = ()) -> int:
    """The highest token id that occurs in none of a run's texts and means nothing to the tokenizer by itself.

    Raises ConfigError where there is none.
    """
    used = set(special).union(*(window.ids for of_set in windows.sets().values() for window in of_set))
    free = next((token for token in reversed(range(vocabulary)) if token not in used), None)
    if free is None:
        raise ConfigError(
            f"method.name is 'boundary_expand', and every one of {vocabulary:,} token ids occurs in the run's texts: "
            "none is left for the shadow. Take fewer texts (data.retain_chunks) or method.name 'boundary_shrink'."
        )
    return free


METHOD = BoundaryExpand
