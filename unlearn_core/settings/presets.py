"""Presets: named settings to start from, and the default prompts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from unlearn_core.settings.sections import BUNDLED_MODELS, PACKAGED_MODELS
from unlearn_core.world import SUGGESTED_TARGETS, example_prompts


@dataclass(frozen=True)
class Preset:
    """A named starting point: what it does in a sentence, the settings in which it differs from the defaults.

    `source`: whence the settings come. `bundled`: made for a model as small as the bundled one, and offered with it.
    `recommended`: the settings that are recommended for its method are laid over these, as they are for any other.
    """

    label: str
    caption: str
    values: dict[str, Any]
    source: str = ""
    bundled: bool = True
    recommended: bool = False


def real(learning_rate: float, steps: int = 80, batch_size: int = 4) -> dict[str, Any]:
    """The settings of a recipe for models that know the world."""
    return {
        "lora": {"rank": 16, "alpha": 32.0, "dropout": 0.0, "modules": "all-linear"},
        "data": {"window_tokens": 512},
        "method": {"name": "counterfactual", "stand_ins_per_step": 2, "retain_weight": 10.0, "neighbour_weight": 3.0},
        "guard_rail": {"kind": "none"},
        "optimizer": {"learning_rate": learning_rate},
        "schedule": {
            "steps": steps, "batch_size": batch_size, "warmup": 10, "decay": "linear", "sample_every": 5,
            "evaluate_every": 5, "answer_tokens": 60,
        },
    }  # fmt: skip


PRESETS: dict[str, Preset] = {
    "portmanteau": Preset(
        "Forget and stay",
        "The best recipe: the model treats the word as one that it never met, all else stays, and it ends by itself.",
        {
            "lora": {"dropout": 0.0},
            "method": {"name": "counterfactual"},
            "guard_rail": {"rows": "group", "groups": 8, "batches": 8, "batch_size": 2, "neighbours": True},
            "optimizer": {"learning_rate": 8e-4},
            "schedule": {"steps": 150, "batch_size": 16},
        },
        recommended=True,
    ),
    # The published run (GPT-J-6B, learning rate 2e-4 decaying over 5,000 steps of which 69 were run), scaled: the small
    # model wants a larger rate. Four groups of four single retain samples, the gradient projected, no stop rule.
    "post": Preset(
        "As published",
        "Plain gradient ascent, as in the first experiment: it knows, it explains, it collapses. No guard stops it.",
        {
            "method": {"name": "grad_ascent"},
            "guard_rail": {"groups": 4, "batches": 16, "batch_size": 1, "every": 3, "apply_to": "gradient"},
            "optimizer": {"learning_rate": 6e-4},
            "schedule": {"steps": 90, "batch_size": 2},
            "guard": {"not_finite": False, "retain_budget": 0.0, "forgotten_enough": False, "collapse": False},
        },
    ),
    "post_as_run": Preset(
        "As it was run",
        "As published, with two defects of the published code put back: see docs/as-it-was-run.md. To learn from.",
        {
            "method": {"name": "grad_ascent"},
            "guard_rail": {"groups": 4, "batches": 16, "batch_size": 1, "every": 3, "apply_to": "gradient"},
            "optimizer": {"learning_rate": 6e-4},
            "schedule": {"steps": 90, "batch_size": 2},
            "guard": {"not_finite": False, "retain_budget": 0.0, "forgotten_enough": False, "collapse": False},
            "as_run": {"leftover_gradients": True, "padding_trained": True},
        },
    ),
    # What the bundled model's recipe becomes for a model a hundred times as large: tuned on SmolLM2-135M-Instruct
    # (docs/real.md).
    "real": Preset(
        "Any word, any model",
        "For models that know the world: the model treats the name as one that it never met. It needs no texts.",
        real(2e-4, steps=60),
        bundled=False,
    ),
    # The larger the model, the smaller the rate: 8e-4 for the bundled one, 2e-4 for 135 million parameters, and so on
    # along the same line. Neither was run here.
    "1b": Preset(
        "A model of about 1B",
        "Any word, as for smaller models, at a smaller rate. An estimate, not run here: watch it, then tune it.",
        real(1e-4),
        bundled=False,
    ),
    "6b": Preset(
        "A model of 6 to 8B",
        "As for 1B, with memory spared and a smaller rate. An estimate, not run here.",
        {**real(5e-5, batch_size=2), "model": {"gradient_checkpointing": True}},
        bundled=False,
    ),
}


DEFAULT_PRESET, DEFAULT_METHOD = "portmanteau", "counterfactual"
REAL_PRESET = "real"
WHOLE_TEXTS = "npo"  # the method for texts that are forgotten whole, where nobody chose one: no name stands for them


LORA_RATE = 10  # how much larger a LoRA wants its learning rate than the weights themselves do (arXiv 2106.09685)


def usual_preset(model: str) -> str:
    """The preset where nobody chose one."""
    return DEFAULT_PRESET if model in BUNDLED_MODELS else REAL_PRESET


def usual_texts(model: str) -> str:
    """Where the texts come from where nobody says: the bundled world, or what the model itself answers."""
    return "bundled" if model in BUNDLED_MODELS else "model"


def suggested_targets(model: str) -> tuple[str, ...]:
    """Words that a model knows, as examples: those of the bundled world, of stories, or of the world at large."""
    if model in BUNDLED_MODELS:
        return SUGGESTED_TARGETS
    return ("Lily", "Tim") if _tells_stories(model) else ("Harry Potter", "Sherlock Holmes", "London")


def _tells_stories(model: str) -> bool:
    """Trained on stories, as TinyStories: it can do nothing else."""
    return "stories" in PurePath(model).name.lower()


def default_prompts(target: str, model: str = "bundled") -> list[dict[str, str]]:
    """What is asked where nobody says: about the target, near it, and far from it.

    The bundled models answer questions about its world. Of another model nobody knows what it can do: it is given
    beginnings to go on with, which the simplest of them can.
    """
    if model in BUNDLED_MODELS:
        about, near = example_prompts(target)
        far = "Write a python function to reverse a string."
    elif _tells_stories(model):
        about, near = (
            [f"Once upon a time, {target}", f"{target} wanted to"],
            ["Once upon a time, there was a girl named"],
        )
        far = "The sun was shining and the little dog"
    elif model in PACKAGED_MODELS:  # chat models: they answer questions
        about, near = [f"Who or what is {target}?", f"What is {target} known for?"], ["Who is Sherlock Holmes?"]
        far = "What is the capital of France?"
    else:
        about, near, far = [f"Tell me about {target}.", target], [], "The capital of France is"
    roles = ("forget",) * len(about) + ("neighbour",) * len(near) + ("retain",)
    return [{"role": role, "text": text} for role, text in zip(roles, [*about, *near, far], strict=True)]
