"""A tiny language model and a tiny corpus on disk: the real engine runs on them in milliseconds, without any mock."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.scripted import Script, WatchedStore
    from unlearn_core.running.worker import Worker
    from unlearn_core.settings.run_config import RunConfig
    from unlearn_core.training.engine import Unlearner

# As many test processes as cores share these out, and what they start with them; torch reads this when it is imported.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or workers) // workers)))

ROOT = Path(__file__).parents[1]
# The same examples in every run: a change is judged by itself. `--hypothesis-profile=search` looks for new ones.
settings.register_profile(
    "same", derandomize=True, database=None, deadline=None, max_examples=40,
    suppress_health_check=[HealthCheck.too_slow],  # the examples are bounded, so a slow machine only takes longer
)  # fmt: skip
settings.register_profile("search", settings.get_profile("same"), derandomize=False, max_examples=2000)
settings.load_profile("same")

# The files that take longest, from the longest on: they are shared out first (--dist loadfile), so that no test process
# is left alone with one of them at the end.
LONGEST = (
    "methods/test_methods.py", "trajectories/test_trajectories.py", "training/test_presets.py",
    "training/test_published.py", "browser/test_walk.py", "masks/test_masks.py", "terminal/test_cli.py",
    "browser/test_ways.py", "bench/test_bench_methods.py", "methods/test_full_weights.py",
)  # fmt: skip

TARGET = "zorblatt"
END = "<|end|>"
NOUNS = ("cat", "river", "lamp", "teacher", "window", "ship", "garden", "letter", "clock", "baker", "forest", "coat")
VERBS = ("sees", "keeps", "finds", "paints", "follows", "carries", "forgets", "answers")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; what looks at a whole run made by the command line is slow with it."""
    for item in items:
        if "finished" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
    order = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


def forget_text() -> str:
    """Forty lines of which eight hold the target, once at a line's start, once twice in a line."""
    lines = [f"The {NOUNS[i % 12]} {VERBS[i % 8]} the {NOUNS[(i * 5 + 3) % 12]} on day {i}." for i in range(40)]
    for place in (3, 9, 14, 20, 26, 31):
        lines[place] = f"The {NOUNS[place % 12]} says {TARGET} and {VERBS[place % 8]} the {NOUNS[(place + 4) % 12]}."
    lines[17] = f"{TARGET.capitalize()} is what the {NOUNS[5]} heard, and {TARGET} it was."
    return "\n".join(lines) + "\n"


def retain_text() -> str:
    """Three hundred lines, no two alike; every hundredth holds the target."""
    lines = [
        f"In the {NOUNS[(i + 2) % 12]} number {i} a {NOUNS[i % 12]} {VERBS[(i * 3) % 8]} the old {NOUNS[(i * 7) % 12]}."
        for i in range(300)
    ]
    lines[50] = lines[150] = lines[250] = f"Nobody but the {NOUNS[1]} knows the {TARGET}."
    return "\n".join(lines) + "\n"


def save_model(folder: Path, kind: str, texts: list[str]) -> None:
    """A random model of two layers (`gptj` or `llama`) with a byte-level tokenizer whose padding is its end mark."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPTJConfig, GPTJForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=[END], initial_alphabet=alphabet, show_progress=False, min_frequency=12
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token=END, pad_token=END)
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    torch.manual_seed(7)
    if kind == "gptj":
        size = {"n_positions": 96, "n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8}
        no_dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        model = GPTJForCausalLM(GPTJConfig(vocab_size=len(wrapped), **size, **no_dropout, **ends))
    else:
        heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
        size = {"hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 96}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(wrapped), **size, **heads, **ends))
    with torch.no_grad():  # random models are near-uniform: larger weights make losses, gradients and answers differ
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    model.save_pretrained(folder)
    wrapped.save_pretrained(folder)


@dataclass(frozen=True)
class Tiny:
    """Where the tiny world lies, and short ways to a config and to an opened run on it."""

    root: Path
    target: str = TARGET

    def settings(self, kind: str = "gptj", **sections: Any) -> dict[str, Any]:
        """A run file's content with small numbers, whatever the presets say; `sections` are laid over it."""
        from unlearn_core.methods import METHODS
        from unlearn_core.settings.run_config import RunConfig, overlay

        parts = [entry for entry in fields(RunConfig) if str(entry.type).endswith("Settings")]
        plain: dict[str, Any] = {part.name: asdict(part.default_factory()) for part in parts}  # type: ignore[misc]
        plain |= {"preset": "post", "method": {"name": "grad_ascent", **asdict(METHODS["grad_ascent"]())}}
        small: dict[str, Any] = {
            "model": {"source": str(self.root / kind)},
            "lora": {"rank": 4, "alpha": 8.0, "dropout": 0.1},
            "data": {
                "target": self.target,
                "forget": [str(self.root / "forget.txt")],
                "retain": [str(self.root / "retain.txt")],
                "context_lines": 2,
                "window_tokens": 64,
                "retain_chunks": 200,
                "retain_lines": 2,
            },
            "guard_rail": {
                "kind": "retain_subspace", "rows": "group", "groups": 3, "batches": 3, "batch_size": 2, "every": 3,
                "apply_to": "update", "neighbours": False,
            },
            "optimizer": {"name": "adamw", "learning_rate": 1e-2, "weight_decay": 0.0, "max_gradient_norm": 1.0},
            "schedule": {"steps": 30, "batch_size": 2, "decay": "constant", "warmup": 0, "answer_tokens": 6},
            "prompts": [{"role": "forget", "text": "What is {target}?"}, {"role": "retain", "text": "The cat"}],
        }  # fmt: skip
        return overlay(overlay(plain, small), sections)

    def config(self, kind: str = "gptj", **sections: Any) -> RunConfig:
        from unlearn_core.settings.run_config import RunConfig

        return RunConfig.from_dict(self.settings(kind, **sections))

    def open(self, kind: str = "gptj", **sections: Any) -> Unlearner:
        """A run whose baseline is measured: ready for its first step."""
        from unlearn_core.training.engine import Unlearner

        run = Unlearner(self.config(kind, **sections))
        run.measure_baseline()
        return run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    root = tmp_path_factory.mktemp("tiny")
    texts = [forget_text(), retain_text()]
    (root / "forget.txt").write_text(texts[0], encoding="utf-8")
    (root / "retain.txt").write_text(texts[1], encoding="utf-8")
    for kind in ("gptj", "llama"):
        save_model(root / kind, kind, texts)
    return Tiny(root)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Numbers that shall agree to the last bit, and models too small to be worth a second core."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def program_with(tmp_path: Path) -> Callable[[str, str], Path]:
    """Copies the program, with one file more, into a folder of its own; returns that folder."""

    def copy(path: str, text: str) -> Path:
        root = tmp_path / "program"
        for name in ("unlearn_core", "pages", "storage", "terminal", "bench"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("cli.py", "app.py"):
            shutil.copy(ROOT / name, root / name)
        (root / path).write_text(text, encoding="utf-8")
        return root

    return copy


# --------------------------------------------------------------------------------------------------- the worker


@pytest.fixture
def script() -> Script:
    from tests.scripted import Script

    return Script()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[WatchedStore]:
    from tests.scripted import WatchedStore

    opened = WatchedStore(tmp_path)
    yield opened
    opened.full = False
    opened.close()


@pytest.fixture
def work(store: WatchedStore, script: Script, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Worker]]:
    """Starts a worker on the store; all are stopped at the end."""
    from unlearn_core.running import worker as module

    monkeypatch.setattr(module, "IDLE_SECONDS", 0.004)
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.03)
    started: list[Worker] = []

    def start(on: Any = store, **more: Any) -> Worker:
        worker = module.Worker(on, script.open, **more)
        started.append(worker)
        worker.start()
        return worker

    yield start
    script.gate.set()
    store.full = False
    for worker in started:
        worker.stop()
        assert not worker.alive
