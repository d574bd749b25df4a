"""The sections of a run file: one dataclass each, every field with its range and its meaning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from unlearn_core.settings.discovery import names
from unlearn_core.settings.knobs import knob
from unlearn_core.world import TARGET

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROLES = ("forget", "neighbour", "retain", "free")


BUNDLED_MODELS = ("bundled", "bundled-reference")  # trained with the bundled target, and without it


PROMPT_CHARACTERS, TARGET_CHARACTERS = 4_000, 200  # at most


RAILS = ("none", *names("guard_rails"))


# By their files' names: the files themselves import torch.
OWN_OPTIMIZERS = names("optimizers")


@dataclass(frozen=True)
class Facts:
    """What a person who chooses a method should know, and the settings that are recommended for it.

    `formula` is LaTeX. `passes`, `data`, `memory`, `fails`: a phrase each, for the page. `settings` are laid over the
    preset's where this method is chosen instead of the preset's own. `where` and `rails` are what it can be combined
    with; `trains`: it takes gradient steps, so that an optimizer and a schedule mean something; `unlearns`: weights (or
    what is read from them) lose something, where a control only asks otherwise. `dial`: what the steps of a method that
    does not train set, in a word or two.
    """

    label: str
    formula: str
    passes: str
    data: str
    memory: str
    fails: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    where: tuple[str, ...] = ("lora", "full")
    rails: tuple[str, ...] = RAILS
    trains: bool = True
    unlearns: bool = True
    dial: str = ""


@dataclass(frozen=True)
class ModelSettings:
    source: str = knob(
        "bundled",
        help="bundled, bundled-reference (which never saw the bundled target), a folder with a causal language model "
        "in Hugging Face's format, or a hub id",
    )
    revision: str = knob("", help="of a hub id: a branch, a tag or a commit; empty = its newest")
    adapter: str = knob("", help="a folder with a PEFT LoRA adapter to start from; empty = a fresh one")
    earlier: tuple[str, ...] = knob(
        (), help="folders with the adapters of earlier requests: they stay active and are not trained"
    )
    device: str = knob("auto", choices=("auto", "cpu", "cuda", "mps"), help="auto: a GPU where torch sees one")
    spread: bool = knob(False, help="spread the layers over all GPUs of this machine")
    dtype: str = knob(
        "auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="of the base model (auto: bfloat16 where the device has it); adapters stay in float32",
    )
    four_bit: bool = knob(False, help="load the base model in 4 bits (needs bitsandbytes and a GPU)")
    gradient_checkpointing: bool = knob(False, help="less memory for a slower step: activations are recomputed")
    chat_template: bool = knob(True, help="render prompts and pairs with the tokenizer's chat template, if any")


@dataclass(frozen=True)
class LoraSettings:
    rank: int = knob(16, 1, 512, "columns of A and rows of B in every adapted layer")
    alpha: float = knob(32.0, 0.01, 4096, "the adapter's output is scaled by alpha / rank")
    dropout: float = knob(0.1, 0.0, 0.9, "on the adapter's input, in training only")
    modules: str = knob(
        "auto", help="auto = query and value projections, all-linear, or layer names separated by commas"
    )


@dataclass(frozen=True)
class WhereSettings:
    kind: str = knob("lora", choices=("lora", "full"), help="an adapter beside the weights, or the weights themselves")
    mask: str = knob(
        "none",
        choices=("none", "saliency", "structure"),
        help="rows that may change: all; those of the largest forget gradient; heads and filters scored against retain",
    )
    share: float = knob(0.5, 0.001, 1.0, "of the rows (heads and filters) that a mask lets change")


@dataclass(frozen=True)
class DataSettings:
    target: str = knob(TARGET, help="the word, phrase or pattern that is to be forgotten")
    spellings: tuple[str, ...] = knob((), help="other spellings of the target, forgotten with it")
    match: str = knob("literal", choices=("literal", "regex"), help="the target is text, or a regular expression")
    whole_word: bool = knob(True, help="not inside other words")
    ignore_case: bool = knob(True, help="upper and lower case are the same")
    normalization: str = knob(
        "NFC", choices=("none", "NFC", "NFKC"), help="Unicode forms of a letter that count as the same"
    )
    everything: bool = knob(
        False, help="every text of data.forget is to be forgotten; the target only names it and is not looked for"
    )
    where: str = knob("", help="only rows whose field has this value, as field=value; of data.forget")
    forget: tuple[str, ...] = knob(
        ("bundled",), help="what is searched for the target: bundled, files, folders, globs, or hub data sets (hf:name)"
    )
    retain: tuple[str, ...] = knob(
        ("bundled",),
        help="where retain text is drawn from; the same kinds of sources (by default those of data.forget)",
    )
    text_field: str = knob("", help="the field of a row that holds its text; empty = found by its name")
    question_field: str = knob("", help="of question/answer rows; empty = found by its name")
    answer_field: str = knob("", help="of question/answer rows; the loss is on the answer alone")
    pair_template: str = knob(
        "{question}\n{answer}", help="how a pair is written where the tokenizer has no chat template"
    )
    excluded: tuple[str, ...] = knob((), help="ids of occurrences that are left alone, as the Data page shows them")
    neighbours: bool = knob(True, help="draw a neighbour set: texts about the same things without the target")
    context_lines: int = knob(5, 0, 100, "lines either side of an occurrence")
    window_tokens: int = knob(800, 8, 32_768, "longest window; a model with a shorter context sets the limit")
    retain_chunks: int = knob(5000, 10, 1_000_000, "retain texts drawn")
    holdout_chunks: int = knob(500, 1, 100_000, "holdout texts drawn to measure on, never trained on")
    neighbour_chunks: int = knob(200, 1, 100_000, "neighbour texts, the nearest first")
    retain_lines: int = knob(20, 1, 1000, "lines of one retain text")


@dataclass(frozen=True)
class GuardRailSettings:
    kind: str = knob(
        "retain_subspace",
        choices=RAILS,
        help="what the update is projected orthogonally to: nothing; the span of the retain gradients; the part "
        "of it that raises the retain loss; the layer inputs of retain texts (GPM); those of earlier adapters (O-LoRA)",
    )
    rows: str = knob(
        "group",
        choices=("group", "sample", "logit"),
        help="one protected direction per group of samples, per sample, or per logit of a sample's true tokens (OGD)",
    )
    groups: int = knob(4, 1, 256, "protected directions where rows are groups")
    batches: int = knob(16, 1, 1024, "fresh retain batches drawn at a refresh")
    batch_size: int = knob(2, 1, 256, "retain samples in one such batch")
    refresh: str = knob(
        "count",
        choices=("count", "drift"),
        help="when directions are refreshed: after some steps, or by drift",
    )
    every: int = knob(3, 1, 1000, "steps between refreshes by count (each of the first three steps refreshes)")
    drift: float = knob(
        0.02,
        1e-6,
        10.0,
        "refresh by drift: change of the weights since the last refresh, as a share of them",
    )
    history: int = knob(1, 1, 64, "the newest refreshes whose directions are protected together")
    scope: str = knob("global", choices=("global", "layer"), help="one span for all layers, or one in each layer")
    apply_to: str = knob(
        "update",
        choices=("update", "gradient"),
        help="project the optimizer's update, or (as published) the gradient",
    )
    neighbours: bool = knob(False, help="half of the samples come from the neighbour set")
    energy: float = knob(0.97, 0.01, 1.0, "null_space: protected share of the energy of retain texts' inputs")


@dataclass(frozen=True)
class OptimizerSettings:
    name: str = knob("adamw", choices=("adamw", "sgd", *OWN_OPTIMIZERS))
    learning_rate: float = knob(2e-4, 1e-8, 100.0, "at the start of the schedule")
    weight_decay: float = knob(0.0, 0.0, 1.0, "of the adapter's weights")
    momentum: float = knob(0.0, 0.0, 0.999, "of SGD")
    max_gradient_norm: float = knob(1.0, 0.0, 1e9, "gradients of a larger norm are clipped to it; 0 = never")


@dataclass(frozen=True)
class ScheduleSettings:
    steps: int = knob(120, 1, 1_000_000, "steps of the whole run")
    batch_size: int = knob(2, 1, 1024, "forget windows in a step, and as many retain windows")
    decay: str = knob("constant", choices=("constant", "linear"), help="learning rate after the warm-up")
    warmup: int = knob(0, 0, 100_000, "steps over which the learning rate rises from 0")
    sample_every: int = knob(1, 1, 100_000, "steps between answers to the prompts (each with an adapter checkpoint)")
    evaluate_every: int = knob(1, 1, 100_000, "steps between measurements on the evaluation windows")
    checkpoint_every: int = knob(25, 1, 100_000, "steps between checkpoints of the whole state")
    answer_tokens: int = knob(80, 1, 4096, "longest answer, in tokens")


@dataclass(frozen=True)
class GuardSettings:
    not_finite: bool = knob(True, help="pause before a step whose loss or gradient is not a number")
    retain_budget: float = knob(0.05, 0.0, 1000.0, "pause when held-out retain loss has risen by this share; 0 = never")
    forgotten_enough: bool = knob(
        True, help="pause when forget loss has reached that of a model that never saw the target"
    )
    collapse: bool = knob(True, help="pause when answers repeat themselves or the loss is beyond that of guessing")


@dataclass(frozen=True)
class AsRunSettings:
    """Two defects of the published code, for teaching: see docs/as-it-was-run.md."""

    leftover_gradients: bool = knob(
        False, help="the last retain gradient of a refresh is left in the forget gradient, as it was not cleared"
    )
    padding_trained: bool = knob(
        False, help="forget windows are filled up with end-of-text tokens that are trained on and attended to"
    )


@dataclass(frozen=True)
class Prompt:
    role: str
    text: str


# ----------------------------------------------------------------------------------- what a method says of itself


class Sections(Protocol):
    """The sections of a run that rules read. RunConfig is one."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def model(self) -> ModelSettings: ...
    @property
    def where(self) -> WhereSettings: ...
    @property
    def data(self) -> DataSettings: ...
    @property
    def method(self) -> MethodSettings: ...
    @property
    def guard_rail(self) -> GuardRailSettings: ...
    @property
    def optimizer(self) -> OptimizerSettings: ...
    @property
    def as_run(self) -> AsRunSettings: ...


@dataclass(frozen=True)
class Rule:
    """Settings that exclude each other.

    `when`: they do, in a run. `fields`: the settings that take part, by their paths in the run file. `because`: the
    reason, without the settings' names. `fix`: path -> value with which they go together, given or computed from the
    run; `or_else`: another way out, in words. `automatic`: the start form applies the fix by itself where one of the
    other fields is chosen.
    """

    when: Callable[[Sections], bool]
    fields: tuple[str, ...]
    because: str
    fix: Mapping[str, Any] | Callable[[Sections], Mapping[str, Any]]
    or_else: str = ""
    automatic: bool = False


NO_MASK = Rule(
    when=lambda run: run.where.mask != "none",
    fields=("method.name", "where.mask"),
    because="the method itself decides which weights change, and a mask could not hold them",
    fix={"where.mask": "none"},
    automatic=True,
)


@dataclass(frozen=True)
class MethodSettings:
    """The settings of an unlearning method, which are its fields, and what the other settings need to know of it.

    `rules`: what this method does not go with, beside the rules that hold for all (compatibility.py).
    """

    facts: ClassVar[Facts]
    rules: ClassVar[tuple[Rule, ...]] = ()
    extra_adapters: ClassVar[tuple[str, ...]] = ()  # names of adapters that the model has beside the run's own
    builds_model: ClassVar[bool] = False  # the run begins with another model than the base model
    prepares: ClassVar[bool] = False  # something is computed before step 1 and stays in memory
    alternates: ClassVar[bool] = False  # a second optimizer takes a step of its own

    @property
    def name(self) -> str:
        """The name of the method's file, as in the run file."""
        return type(self).__module__.rsplit(".", 1)[-1]

    @property
    def retain_weight(self) -> float:
        """Weight of the retain loss; with 0, no retain windows are drawn."""
        return 0.0

    @property
    def neighbour_weight(self) -> float:
        """Weight of the neighbour loss; with 0, no neighbour windows are drawn."""
        return 0.0

    @property
    def forget_passes(self) -> int:
        """How often the forget windows of a step go through the model."""
        return 1

    def build_model(self, base: PreTrainedModel, seed: int) -> PreTrainedModel:
        """The model that the run begins with, in place of the base model."""
        return base
