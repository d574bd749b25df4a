"""Real models and real texts, from a run file to an adapter that other programs load. Skips where they are absent."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from storage import RunStore
from tests.terminal.test_cli import cli, measured, reach, same, started

SHARED = Path(__file__).parents[3] / "shared" / "data"
MODELS = ("TinyStories-656K", "stories260K")
STORIES = SHARED / "text" / "tinystories_1000.json"
TOFU = SHARED / "tofu"
NAME = "Lily"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not STORIES.is_file(), reason="the real material is not here"),
]


def run_file(folder: Path, model: str, steps: int = 6, **data: Any) -> Path:
    """A run on a real model: the name that it knows from its stories, forgotten as published, every step kept."""
    settings = {
        "preset": "post",
        "model": {"source": str(SHARED / "models" / model), "device": "cpu"},
        "data": {
            "target": NAME,
            "forget": [str(STORIES)],
            "retain": [str(STORIES)],
            "retain_chunks": 50,
            "holdout_chunks": 20,
            "window_tokens": 96,
            **data,
        },
        "schedule": {"steps": steps, "batch_size": 2, "checkpoint_every": 3, "answer_tokens": 12},
        "guard_rail": {"batches": 2, "groups": 2},
        "prompts": [{"role": "forget", "text": f"Once upon a time, there was a girl named {NAME}."}],
    }
    path = folder / "run.toml"
    path.write_text(tomli_w.dumps(settings))
    return path


def forget_losses(home: Path) -> Sequence[float]:
    store = RunStore(home)
    points = store.points(store.runs()[0]["id"])
    store.close()
    return points[points["name"] == "forget_loss"].sort_values("step")["value"].tolist()


@pytest.mark.parametrize("model", MODELS)
def test_a_name_is_forgotten_from_the_windows_to_an_adapter_that_peft_loads_with_the_same_logits(tmp_path, model):
    file = run_file(tmp_path, model)
    seen = cli("windows", file, "--json")
    assert seen.returncode == 0, seen.stderr
    description = json.loads(seen.stdout)
    assert description["occurrences"] > 100 and NAME in "".join(description["pieces"])
    sets = {name: [w for w in description["windows"] if w["set"] == name] for name in description["sets"]}
    assert all(NAME.lower() in window["trained"].lower() for window in sets["forget"])
    assert not any(re.search(rf"\b{NAME}\b", w["context"] + w["trained"], re.I) for w in sets["retain"])

    home = tmp_path / "home"
    done = cli("run", file, "--home", home)
    assert done.returncode == 0, done.stderr
    losses = forget_losses(home)
    assert len(losses) == 7 and losses[-1] > losses[0]
    store = RunStore(home)
    run_id = store.runs()[0]["id"]
    store.close()
    exported = cli("export", run_id, "--to", tmp_path / "out", "--home", home)
    assert exported.returncode == 0, exported.stderr
    check_logits(SHARED / "models" / model, tmp_path / "out", home, run_id)


def check_logits(base: Path, out: Path, home: Path, run_id: str) -> None:
    """Plain PEFT on what was exported = the engine with its last checkpoint, to the last bit."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from unlearn_core.settings.run_config import RunConfig
    from unlearn_core.training.engine import Unlearner

    adapter = next(path.parent for path in out.rglob("adapter_model.safetensors"))
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter)).eval()
    ids = AutoTokenizer.from_pretrained(base)("Once upon a time, there was a girl.", return_tensors="pt")["input_ids"]
    store = RunStore(home)
    ours = Unlearner(RunConfig.from_dict(store.run(run_id)["config"]))
    ours.restore(store.home / store.checkpoints(run_id)[-1]["path"])
    store.close()
    with torch.no_grad():
        expected = ours.context.model.eval()(input_ids=ids).logits
        with ours.context.reference():
            before = ours.context.model(input_ids=ids).logits
        assert (plain(input_ids=ids).logits - expected).abs().max().item() == 0
        assert (before - expected).abs().max().item() > 0


@pytest.mark.parametrize("model", MODELS)
def test_a_killed_run_on_a_real_model_goes_on_with_the_uninterrupted_numbers(tmp_path, model):
    file = run_file(tmp_path, model, steps=30)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert cli("run", file, "--home", whole).returncode == 0
    with started("run", file, "--home", killed, held_at=12) as process:
        run_id = reach(killed, 8)["id"]
        process.send_signal(signal.SIGKILL)
        process.wait()
    resumed = cli("resume", run_id, "--home", killed)
    assert resumed.returncode == 0, resumed.stderr
    store = RunStore(whole)
    first = store.runs()[0]["id"]
    store.close()
    same(measured(whole, first), measured(killed, run_id))


def test_tofu_pairs_are_forgotten_whole_with_the_loss_on_the_answers(tmp_path):
    everything = {
        "target": "the forget05 authors",
        "everything": True,
        "forget": [str(TOFU / "forget05.json")],
        "retain": [str(TOFU / "retain95.json")],
        "window_tokens": 512,
    }
    file = run_file(tmp_path, "TinyStories-656K", **everything)
    description = json.loads(cli("windows", file, "--json").stdout)
    pairs = [json.loads(line) for line in (TOFU / "forget05.json").read_text().splitlines()]
    assert (
        description["sets"]["forget"]["windows"] == len({(pair["question"], pair["answer"]) for pair in pairs}) == 200
    )
    answers = {" ".join(pair["answer"].split()) for pair in pairs}
    forget = [window for window in description["windows"] if window["set"] == "forget"]
    # As the model reads them, with their end; a sign that its tokenizer does not know is shown as it sees it.
    answers_trained = [window["trained"].removesuffix("<|end_story|>") for window in forget]
    known = [" ".join(text.split()) for text in answers_trained if "<unk>" not in text]
    assert len(known) > 50 and all(window["trained"].endswith("<|end_story|>") for window in forget)
    assert set(known) <= answers
    retained = {window["trained"] for window in description["windows"] if window["set"] in ("retain", "holdout")}
    assert retained and not retained & {window["trained"] for window in forget}
    done = cli("run", file, "--home", tmp_path / "home")
    assert done.returncode == 0, done.stderr
    losses = forget_losses(tmp_path / "home")
    assert losses[-1] > losses[0]


def test_a_resumed_run_on_other_weights_is_refused(tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(SHARED / "models" / "stories260K", copy)
    file = run_file(tmp_path, str(copy), steps=40)
    home = tmp_path / "home"
    with started("run", file, "--home", home, held_at=4) as process:
        run_id = reach(home, 4)["id"]
        process.send_signal(signal.SIGTERM)
        process.wait()
    weights = copy / "model.safetensors"
    weights.chmod(0o644)
    changed = bytearray(weights.read_bytes())
    changed[-3] ^= 1
    weights.write_bytes(changed)
    refused = cli("resume", run_id, "--home", home)
    assert refused.returncode != 0 and "other weights" in refused.stderr
