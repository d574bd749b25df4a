from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from unlearn_core.methods.base import (
    Batch,
    Facts,
    Gauge,
    LanguageModel,
    Method,
    Objective,
    PreTrainedModel,
    Reference,
    RunContext,
    Tensor,
    knob,
    torch,
)
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.sections import NO_MASK, Rule

WIDTHS = ("intermediate_size", "n_inner", "ffn_dim")  # how configs call the width inside of the feed-forward part
LARGEST = 20_000_000  # weights of a model that is trained from its first step here
ELSEWHERE, OLD, NEW = 0, 1, 2  # places: outside of the widened matrices, in their old part, in their new part


@dataclass(frozen=True)
class ERA(Method):
    """Expand, route, ablate: forget texts are learned into new dimensions, which are then ablated.

    `begin` makes a model of the base's kind with `expand` more dimensions inside of every feed-forward layer and
    weights drawn from the seed; the base's own weights are not used. For `learn_steps` it learns the forget text and
    the retain texts. The forget gradient is multiplied elementwise by 1 in the new dimensions, by
    `forget_to_old` in the old part of the widened matrices and by `forget_elsewhere` in all the rest; that of the
    retain texts is not scaled. Then the new dimensions are set to zero, biases too, which is the model without them;
    the remaining steps are fine-tuning on the retain texts (Cloud et al. 2024, arXiv 2410.04332). Step 0 is a model
    that has learned nothing: the guard's rules, which compare with it, are off.

    As published (`route_at` activations, `forget_to_old` -0.75, `old_alone` 0) the gradient is multiplied at the
    activations inside: m h + (1 - m) stop_gradient(h); attention, embeddings and the matrices behind them still learn
    the forget texts, and on the bundled world what was ablated comes back in the last steps, on retain texts alone.
    Hence the gradients of parameters are routed here, by 0 and not less, and the share `old_alone` of the retain texts
    goes through the old dimensions only, so that these work alone (docs/log.md has the figures). The authors' L1 on
    activations is left out. All forget text counts as labelled; what happens where only a part of it is (their curve
    over 0 to 100 %) is not measured here.
    """

    facts: ClassVar[Facts] = Facts(
        label="Expand, route, ablate (ERA, from scratch)",
        formula=(
            r"g = m \odot \nabla\,\mathrm{NLL}_f + \nabla(\alpha\,\mathrm{NLL}_r + \nu\,\mathrm{NLL}_n),\quad"
            r" m = 1\ \text{on new dimensions},\ m_o\ \text{on old},\ m_e\ \text{elsewhere};\qquad"
            r" \theta_{\mathrm{new}} \leftarrow 0\ \text{after}\ k\ \text{steps}"
        ),
        passes="forget 1 F + 1 B while it learns, then none; retain windows 1 F + 1 B; all weights have gradients",
        data="forget windows, all of them known as such, and enough retain texts to train a model on",
        memory="all weights, their start, their gradient and their optimizer's state, and a byte for each weight",
        fails=(
            "a new model, not one that has learned already; with parameters routed it learns the forget texts slower "
            "and all else a little worse than it would, and as published what is cut out comes back"
        ),
        settings={
            "where": {"kind": "full"},
            "guard_rail": {"kind": "none"},
            "optimizer": {"learning_rate": 2e-3, "weight_decay": 0.05},
            "schedule": {
                "steps": 480, "batch_size": 32, "decay": "linear", "warmup": 30,
                "sample_every": 60, "evaluate_every": 20, "checkpoint_every": 120,
            },
            # Beside a model that answers noise, any answer repeats itself, and the ablation passes every level.
            "guard": {"forgotten_enough": False, "retain_budget": 0.0, "collapse": False},
        },
        where=("full",),
        rails=("none",),
        gauges={
            "new_dimensions": Gauge(
                "new dimensions", "Dimensions of every layer that the forget text trains; 0 after the ablation."
            )
        },
    )  # fmt: skip

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            when=lambda run: run.where.kind == "lora",
            fields=("method.name", "where.kind"),
            because="the method trains a model from its first step, and not an adapter beside one",
            fix={"where.kind": "full"},
            automatic=True,
        ),
        NO_MASK,
        Rule(
            when=lambda run: run.model.gradient_checkpointing,
            fields=("method.name", "model.gradient_checkpointing"),
            because="the routed forward pass cannot be computed a second time",
            fix={"model.gradient_checkpointing": False},
        ),
    )

    learn_steps: int = knob(420, 1, 1_000_000, "Learning steps, before the new dimensions are ablated.")
    expand: int = knob(64, 1, 4096, "New dimensions in every feed-forward layer.")
    route_at: str = knob(
        "numbers",
        choices=("numbers", "activations"),
        help="Whether the gradients of parameters or of activations are scaled.",
    )
    forget_to_old: float = knob(0.0, -1.0, 1.0, "Factor of the forget gradient in the old dimensions; 1 = not routed.")
    forget_elsewhere: float = knob(
        0.0, -1.0, 1.0, "Factor of the forget gradient in attention, embeddings and norms, where parameters are routed."
    )
    old_alone: float = knob(0.5, 0.0, 1.0, "Share of the retain texts that go through the old dimensions alone.")
    few: int = knob(8, 1, 1024, "Forget windows in a step, and as many neighbour windows.")
    forget_weight: float = knob(3.0, 0.01, 100.0, "Weight of the forget loss.")
    retain_weight: float = knob(1.0, 0.01, 100.0, "Weight of the retain loss.")
    neighbour_weight: float = knob(0.3, 0.0, 100.0, "Weight of the neighbour loss.")

    def build_model(self, base: PreTrainedModel, seed: int) -> PreTrainedModel:
        """A wider model of the base's kind with weights drawn from `seed`. Raises ConfigError where that cannot be."""
        from transformers import AutoModelForCausalLM

        count = sum(p.numel() for p in base.parameters())
        if count > LARGEST:
            raise ConfigError(
                f"method.name is 'era' and the model has {count:,} weights; it is trained from its first step, which "
                f"takes too long beyond {LARGEST:,}. Set model.source to 'bundled', or take another method."
            )
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(widened(base.config, self.expand), dtype=torch.float32)
        places_of(model, self.expand)
        model.generation_config = base.generation_config
        placed: PreTrainedModel = model.to(base.device).eval()
        return placed

    def prepare(self, context: RunContext) -> dict[str, Tensor]:
        """Where every parameter lies, (P,) bytes, in the order of the run's one vector."""
        places = places_of(context.model, self.expand)
        return {"places": torch.cat([places[name].reshape(-1) for name in context.adapter.parts()]).to(context.device)}

    def loss(self, model: LanguageModel, batch: Batch, reference: Reference) -> Objective:
        learning = batch.step <= self.learn_steps
        neighbours = batch.neighbour and batch.neighbour.rows(slice(self.few), batch.pad_id)
        weighted = ((self.retain_weight, batch.retain), (self.neighbour_weight, neighbours))
        alone = self.old_alone if learning else 0.0
        terms = [
            weight * self.nll_of_retain(model, tokens, alone, batch.pad_id) for weight, tokens in weighted if tokens
        ]
        keep = sum(terms[1:], terms[0])
        if not learning:
            return Objective(keep.new_zeros(()).requires_grad_(), keep)
        gain = self.forget_to_old if self.route_at == "activations" else 1.0
        with inside(model.module, self.expand, 1.0, gain):
            losses = model.nll(batch.forget.rows(slice(self.few), batch.pad_id))
        return Objective(self.forget_weight * losses.token_mean, keep)

    def nll_of_retain(self, model: LanguageModel, tokens: Any, alone: float, pad_id: int) -> Tensor:
        """NLL per token of retain texts, the share `alone` of which goes through the old dimensions only."""
        cut, losses = round(alone * len(tokens.windows)), []
        if cut:
            with inside(model.module, self.expand, 1.0, 1.0, new=0.0):
                losses.append(model.nll(tokens.rows(slice(cut), pad_id)))
        if cut < len(tokens.windows):
            losses.append(model.nll(tokens.rows(slice(cut, None), pad_id)))
        return torch.stack([each.sum.sum() for each in losses]).sum() / sum(int(each.count.sum()) for each in losses)

    def forget_gradient_scale(self, context: RunContext) -> Tensor:
        """By what the forget gradient is multiplied, (P,); where activations are routed, that has been done."""
        if self.route_at == "activations":
            return torch.ones_like(context.adapter.gradient)
        by_place = torch.tensor([self.forget_elsewhere, self.forget_to_old, 1.0], device=context.device)
        return by_place[context.method_state["places"].int()]

    def apply_step(self, context: RunContext, step: int) -> dict[str, float]:
        """Sets the new dimensions to zero after every step from `learn_steps` on."""
        if step < self.learn_steps:
            return {"new_dimensions": float(self.expand)}
        context.adapter.values.data[context.method_state["places"] == NEW] = 0.0
        return {"new_dimensions": 0.0}


def width_of(config: Any) -> tuple[Any, str, int]:
    """The part of a config that says how wide the feed-forward layers are inside, the setting's name, the width."""
    text = config.get_text_config()
    name = next((name for name in WIDTHS if hasattr(text, name)), None)
    if name is None:
        raise ConfigError(
            f"method.name is 'era' and the model is of the kind {config.model_type!r}: its config has no width of the "
            "feed-forward layers that could be enlarged. Set model.source to 'bundled', or take another method."
        )
    return text, name, getattr(text, name) or 4 * text.hidden_size


def widened(config: Any, by: int) -> Any:
    """A copy of a model's config, its feed-forward layers wider. Raises ConfigError where it has no such setting."""
    changed = copy.deepcopy(config)
    text, name, width = width_of(changed)
    setattr(text, name, width + by)
    return changed


def places_of(model: Any, expand: int) -> dict[str, Tensor]:
    """For every parameter of a widened model a tensor of its shape (uint8): which of its entries are new.

    New are the last ones along a dimension. Raises ConfigError where a matrix holds two widened ones side by side.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        before = dict(AutoModelForCausalLM.from_config(widened(model.config, -expand)).named_parameters())
    places = {}
    for name, parameter in model.named_parameters():
        old, now = before[name].shape, parameter.shape
        more = [wide - narrow for wide, narrow in zip(now, old, strict=True) if wide != narrow]
        if more not in ([], [expand]):
            raise ConfigError(
                f"method.name is 'era' and {name} of this model grows by {max(more)} for {expand} new dimensions: it "
                "holds several matrices in one, which are not taken apart here. Set model.source to 'bundled'."
            )
        places[name] = torch.full(now, NEW if more else ELSEWHERE, dtype=torch.uint8)
        if more:
            places[name][tuple(slice(size) for size in old)] = OLD
    return places


@contextmanager
def inside(model: Any, expand: int, old: float, gain: float, new: float = 1.0) -> Iterator[None]:
    """Within: every feed-forward layer has its inner activations times `old` and `new` in its two parts.

    The gradient through the old part is multiplied by `gain` instead: m h + (f - m) stop_gradient(h).
    """

    from unlearn_core.model.adapters import linear_layers

    width = width_of(model.config)[2]
    if (old, gain, new) == (1.0, 1.0, 1.0):
        yield
        return
    forward = torch.cat([torch.full((width - expand,), old), torch.full((expand,), new)]).to(model.device)
    backward = torch.cat([torch.full((width - expand,), gain), torch.full((expand,), new)]).to(model.device)

    def scaled(layer: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (backward * arguments[0] + (forward - backward) * arguments[0].detach(), *arguments[1:])

    def inputs(layer: Any) -> int:
        return int(layer.weight.shape[1 if isinstance(layer, torch.nn.Linear) else 0])

    hooks = [
        layer.register_forward_pre_hook(scaled) for layer in linear_layers(model).values() if inputs(layer) == width
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


METHOD = ERA
