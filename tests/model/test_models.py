"""Where models come from, and everything that can be wrong with one: a sentence each, and nothing run from a folder."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, errors
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from unlearn_core.model.batches import collate
from unlearn_core.model.loading import dtype_of, folder_of, load_base, open_tokenizer, tokenizer_and_limit
from unlearn_core.model.losses import nll
from unlearn_core.model.sampling import answer
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.sections import ModelSettings
from unlearn_core.training.engine import Unlearner

pytestmark = pytest.mark.usefixtures("one_thread")

MODELS = Path(__file__).parents[2].parent / "shared" / "data" / "models"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
needs_real_models = pytest.mark.skipif(not MODELS.is_dir(), reason="the real models are not here")


@pytest.fixture
def model(tiny, tmp_path) -> Path:
    """A copy of the tiny Llama that a test may spoil."""
    shutil.copytree(tiny.root / "llama", tmp_path / "model")
    return tmp_path / "model"


def refusal(tiny, folder: Path | str, **model) -> str:
    """What is said instead of loading; always one line that names the model."""
    with pytest.raises(ConfigError) as caught:
        Unlearner(tiny.config(model={"source": str(folder), **model}))
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith(".") and sentence.startswith("model.")
    return sentence


def edit(path: Path, **values) -> None:
    found = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


# --------------------------------------------------------------------------------------------------- the files


def test_a_folder_without_a_model_says_what_is_missing(tiny, tmp_path, model):
    assert "no folder of that name" in refusal(tiny, tmp_path / "nowhere")
    assert "name the folder that it lies in" in refusal(tiny, model / "model.safetensors")
    (model / "config.json").unlink()
    assert "config.json" in refusal(tiny, model)


def test_an_adapter_s_folder_is_not_taken_for_a_model_and_never_leads_to_another_one(tiny, model):
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tiny.root / "gptj")}))
    assert "an adapter lies beside its weights" in refusal(tiny, model)
    (model / "config.json").unlink()
    assert "name it in model.adapter" in refusal(tiny, model)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "not a table of settings"),
        ("\xff", "cannot be read as JSON"),
        ('{"model_type": "nonsense"}', "model_type 'nonsense', which this version of transformers lacks"),
        ("{}", "model_type None"),
        ('{"model_type": "vit"}', "not a causal language model"),
        ('{"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "evil.Model"}}', "code of its own"),
    ],
)
def test_a_config_that_names_no_causal_model_is_refused(tiny, model, text, said):
    (model / "config.json").write_text(text, encoding="latin-1")
    assert said in refusal(tiny, model)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_in_a_model_s_folder_is_never_run(tiny, model, tmp_path, file):
    """A model of a known architecture is loaded by transformers' own class, whatever code lies beside it."""
    trace = tmp_path / "it ran"
    (model / "evil.py").write_text(f"from pathlib import Path\nPath({str(trace)!r}).touch()\n")
    mapped = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoTokenizer": ["evil.T", "evil.T"]}
    edit(model / file, auto_map=mapped)
    run = Unlearner(tiny.config(model={"source": str(model)}))
    assert run.context.model.get_base_model().__module__.startswith("transformers.")
    edit(model / file, model_type="mine", tokenizer_class="Mine")
    if file == "config.json":
        assert "code of its own" in refusal(tiny, model)
    assert not trace.exists()


def test_a_config_that_asks_for_code_from_the_hub_is_refused(tiny, model):
    edit(model / "config.json", attn_implementation="somebody/kernel")
    assert "code from the hub (attn_implementation = somebody/kernel)" in refusal(tiny, model)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_a_pickle_is_refused_unread_with_the_way_to_convert_it(tiny, model, tmp_path, name):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "it ran",))

    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(pickle.dumps(Trap()))
    sentence = refusal(tiny, model)
    assert name in sentence and "not in safetensors format" in sentence and not (tmp_path / "it ran").exists()
    if name == "pytorch_model.bin":  # what is advised does it
        torch.save({**weights}, model / name)
        code = re.search(r'python -c "(.*?)"', sentence).group(1).replace("CONVERTED", str(tmp_path / "converted"))
        exec(code, {})
        found = load_file(tmp_path / "converted" / "model.safetensors")
        assert all(torch.equal(found[key], weights[key]) for key in weights)
        Unlearner(tiny.config(model={"source": str(tmp_path / "converted")}))


def test_weights_for_another_program_are_refused(tiny, model):
    (model / "model.safetensors").rename(model / "model.h5")
    assert "for another program" in refusal(tiny, model)


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "lfs"])
def test_damaged_weights_are_refused_before_they_are_loaded(tiny, model, damage):
    path = model / "model.safetensors"
    whole = path.read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    path.write_bytes({"cut": whole[:-10], "empty": b"", "noise": b"\xff" * 500, "lfs": pointer}[damage])
    assert ("git lfs pull" if damage == "lfs" else "model.safetensors is damaged") in refusal(tiny, model)


def test_a_model_in_several_files_is_loaded_whole_or_not_at_all(tiny, model):
    whole = load_base(model)[0].state_dict()
    loaded = AutoModelForCausalLM.from_pretrained(model)
    (model / "model.safetensors").unlink()
    loaded.save_pretrained(model, max_shard_size="40KB")
    shards = sorted(model.glob("model-*.safetensors"))
    assert len(shards) > 1
    run = Unlearner(tiny.config(model={"source": str(model)}))
    assert (
        all(torch.equal(t, whole[name]) for name, t in load_base(model)[0].state_dict().items())
        and run.context.loaded.fingerprint
    )
    shards[1].unlink()
    assert f"{shards[1].name} is missing" in refusal(tiny, model)


def test_a_file_that_an_index_names_outside_of_its_folder_is_not_read(tiny, model):
    (model / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": "../secret.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "is not a file of the folder" in refusal(tiny, model)


def test_weights_that_lack_a_tensor_are_refused_where_transformers_would_draw_it_at_random(tiny, model):
    tensors = load_file(model / "model.safetensors")
    lost = tensors.pop("model.layers.1.self_attn.v_proj.weight")
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    assert "1 of its tensors are not in the file, such as model.layers.1.self_attn.v_proj.weight" in refusal(
        tiny, model
    )
    save_file({**tensors, "model.layers.1.self_attn.v_proj.weight": lost[:-1].clone()}, model / "model.safetensors")
    assert "cannot be loaded" in refusal(tiny, model)


def test_the_fingerprint_is_of_the_weights_and_of_nothing_else(tiny, model):
    first = Unlearner(tiny.config("llama")).context.loaded.fingerprint
    (model / "notes.safetensors").write_bytes(b"beside it")
    edit(model / "generation_config.json", temperature=None)
    assert Unlearner(tiny.config(model={"source": str(model)})).context.loaded.fingerprint == first
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    assert Unlearner(tiny.config(model={"source": str(model)})).context.loaded.fingerprint != first


# ----------------------------------------------------------------------------------------------- the tokenizer


def test_a_tokenizer_with_more_pieces_than_the_model_has_rows_is_refused_and_one_with_fewer_is_not(tiny, model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["<a>", "<b>"])
    tokenizer.save_pretrained(model)
    rows = json.loads((model / "config.json").read_text())["vocab_size"]
    assert f"its tokenizer has {rows + 2} pieces, and the model rows for {rows}" in refusal(tiny, model)
    padded = AutoModelForCausalLM.from_pretrained(model)
    padded.resize_token_embeddings(rows + 29)
    padded.save_pretrained(model)
    run = Unlearner(tiny.config(model={"source": str(model)}))
    run.measure_baseline()
    assert run.step().applied


def test_a_tokenizer_without_padding_ends_or_beginnings_is_enough(model):
    edit(model / "tokenizer_config.json", pad_token=None, eos_token=None, bos_token=None)
    edit(model / "generation_config.json", eos_token_id=None, bos_token_id=None, pad_token_id=None)
    loaded, tokenizer = load_base(model)
    assert tokenizer.pad_token_id is not None and tokenizer.eos_token_id is None
    assert [r.tokens for r in answer(loaded, tokenizer, ["The cat", "a"], 5)] == [5, 5]


def test_an_answer_ends_at_any_of_the_tokens_that_end_one(tiny, model):
    loaded, tokenizer = load_base(model)
    said = answer(loaded, tokenizer, ["The cat"], 12)[0].ids
    place = next(i for i in range(2, len(said)) if said[i] not in said[:i])
    edit(model / "generation_config.json", eos_token_id=[0, said[place]])
    again = answer(*load_base(model), ["The cat"], 12)[0]
    assert again.ids == said[:place] and again.tokens == place


def test_answers_are_greedy_whatever_the_folder_asks_for(model):
    loaded, tokenizer = load_base(model)
    plain = answer(loaded, tokenizer, ["The cat"], 12)[0].ids
    asked = {
        "do_sample": True,
        "temperature": 1.7,
        "repetition_penalty": 9.0,
        "no_repeat_ngram_size": 1,
        "min_length": 50,
    }
    edit(model / "generation_config.json", **asked)
    assert answer(*load_base(model), ["The cat"], 12)[0].ids == plain
    assert len(set(plain)) < len(plain), "it repeats itself, so that a penalty would be seen"
    assert isinstance(loaded.generation_config, GenerationConfig)


# ----------------------------------------------------------------------------------------------------- the hub


@pytest.fixture
def hub(tiny, tmp_path, monkeypatch) -> Path:
    """A cache of the hub with one model in it, in the layout that huggingface_hub gives it; no connection."""
    cache = tmp_path / "hub"
    snapshot = cache / "models--somebody--small" / "snapshots" / COMMIT
    shutil.copytree(tiny.root / "llama", snapshot)
    (cache / "models--somebody--small" / "refs").mkdir()
    (cache / "models--somebody--small" / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return snapshot


@pytest.mark.slow
@pytest.mark.parametrize("revision", ["", "main", COMMIT])
def test_a_model_in_the_hub_s_cache_is_used_without_a_connection_and_its_commit_is_kept(tiny, hub, tmp_path, revision):
    run = Unlearner(tiny.config(model={"source": "somebody/small", "revision": revision}))
    assert run.context.loaded.fingerprint == Unlearner(tiny.config("llama")).context.loaded.fingerprint
    assert run.provenance()["model_origin"]["revision"] == COMMIT
    run.measure_baseline()
    run.save(tmp_path / "adapter", whole=False)
    exported = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (exported["base_model_name_or_path"], exported["revision"]) == ("somebody/small", COMMIT)


def test_a_model_that_is_not_in_the_cache_says_which_where_and_how_to_fetch_it(tiny, hub, monkeypatch):
    sentence = refusal(tiny, "somebody/large", revision="v2")
    assert "HF_HUB_OFFLINE is set" in sentence and constants.HF_HUB_CACHE in sentence
    assert "`hf download somebody/large --revision v2`" in sentence and "'v2'" in sentence
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def unreachable(*args, **more):
        raise errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("unlearn_core.model.loading.snapshot_download", unreachable)
    assert "the hub cannot be reached" in refusal(tiny, "somebody/large")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.GatedRepoError, "ask on its page at the hub: do, and set HF_TOKEN"),
        (errors.RepositoryNotFoundError, "no such model (or it is private: set HF_TOKEN)"),
        (errors.RevisionNotFoundError, "not at revision 'v2'"),
        (errors.HfHubHTTPError, "cannot be fetched at revision 'v2': it said so"),
        (OSError, "cannot be fetched at revision 'v2': it said so"),
    ],
)
def test_what_the_hub_answers_is_one_sentence(tiny, hub, monkeypatch, error, said):
    def refuses(*args, **more):
        found = error.__new__(error)  # those of the hub want a whole HTTP answer to be made
        Exception.__init__(found, "it said so\nand more")
        raise found

    monkeypatch.setattr("unlearn_core.model.loading.snapshot_download", refuses)
    assert said in refusal(tiny, "somebody/large", revision="v2")


def test_nothing_is_fetched_but_what_is_read(tiny, hub, monkeypatch):
    asked = {}
    monkeypatch.setattr(
        "unlearn_core.model.loading.snapshot_download", lambda *a, **more: asked.update(more) or str(hub)
    )
    folder_of(ModelSettings(source="somebody/small"))
    unread = {"pytorch_model.bin", "modeling_evil.py", "consolidated.safetensors"}
    read = {"config.json", "tokenizer.json", "merges.txt", "model.safetensors", "model.safetensors.index.json",
            "model-00001-of-00002.safetensors"}  # fmt: skip
    patterns = asked["allow_patterns"]
    assert set(huggingface_hub.utils.filter_repo_objects(read | unread, allow_patterns=patterns)) == read


def test_a_snapshot_without_weights_is_refused_and_a_folder_has_no_revision(tiny, hub):
    (hub / "model.safetensors").unlink()
    assert "no weights in safetensors format" in refusal(tiny, "somebody/small")
    assert "model.revision is 'v2'" in refusal(tiny, tiny.root / "llama", revision="v2")


# ------------------------------------------------------------------------------------------- device and number format


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_needs_a_gpu_is_refused_without_one_and_the_cpu_computes_in_float32(tiny):
    assert "torch sees only" in refusal(tiny, tiny.root / "llama", device="cuda")
    assert "model.spread is true: it needs several GPUs" in refusal(tiny, tiny.root / "llama", spread=True)
    assert "model.four_bit is true: it needs a CUDA GPU" in refusal(tiny, tiny.root / "llama", four_bit=True)
    assert dtype_of(ModelSettings(), "cpu") == torch.float32 == dtype_of(ModelSettings(), "mps")
    assert dtype_of(ModelSettings(dtype="bfloat16"), "cpu") == torch.bfloat16


# --------------------------------------------------------------------------------------------- an adapter to start from


@pytest.fixture
def started(tiny, tmp_path) -> Path:
    """An adapter of a run of three steps."""
    run = tiny.open("llama", lora={"rank": 3, "alpha": 12.0, "modules": "k_proj,v_proj", "dropout": 0.0})
    for _ in range(3):
        run.step()
    run.save(tmp_path / "start", whole=False)
    return tmp_path / "start"


def logits(model, windows) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=collate(windows[:2], 0).ids).logits


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grad_ascent", "npo"])
def test_a_run_goes_on_from_an_adapter_and_its_reference_is_the_model_as_it_was_given(tiny, started, tmp_path, method):
    config = {
        "model": {"source": str(tiny.root / "llama"), "adapter": str(started)},
        "lora": {"rank": 16, "dropout": 0.0},
    }
    run = tiny.open("llama", **config, method={"name": method})
    assert run.context.loaded.modules == ("k_proj", "v_proj") and run.context.model.peft_config["default"].r == 3
    plain = PeftModel.from_pretrained(load_base(tiny.root / "llama")[0], started)
    given = logits(plain, run.context.windows.forget)
    assert torch.equal(logits(run.context.model, run.context.windows.forget), given)
    before = run.answers(["The cat"])[0]
    for _ in range(2):
        assert run.step().applied
    assert not torch.equal(logits(run.context.model, run.context.windows.forget), given)
    with run.context.reference() as quiet:
        assert torch.equal(logits(quiet, run.context.windows.forget), given)
    assert run.baseline_answers(["The cat"])[0].baseline == before.baseline
    run.save(tmp_path / "export", whole=True)
    elsewhere = PeftModel.from_pretrained(load_base(tiny.root / "llama")[0], tmp_path / "export")
    assert torch.equal(
        logits(elsewhere, run.context.windows.forget), logits(run.context.model, run.context.windows.forget)
    )
    assert run.provenance()["model_origin"]["adapter"]
    resumed = Unlearner(tiny.config("llama", **config, method={"name": method}))
    resumed.restore(tmp_path / "export")
    assert resumed.step().values["objective"] == run.step().values["objective"]


def test_the_reference_may_be_asked_while_a_gradient_is_still_to_be_taken(tiny, started):
    """As NPO does: the numbers that the graph was made with are there again for the backward pass."""
    settings = {"model": {"source": str(tiny.root / "llama"), "adapter": str(started)}, "lora": {"dropout": 0.0}}
    run = tiny.open("llama", **settings)
    run.step()
    tokens = collate(run.context.windows.forget[:3], run.context.pad_id)
    alone = run.context.adapter.gradient_of(nll(run.context.model, tokens).sum.sum())
    waiting = nll(run.context.model, tokens).sum.sum()
    run.context.reference.nll(tokens)
    assert torch.equal(run.context.adapter.gradient_of(waiting), alone)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "IA3"}, "its peft_type is 'IA3'"),
        ({"use_dora": True}, "its use_dora is True, and only plain LoRA"),
        ({"modules_to_save": ["lm_head"]}, "its modules_to_save is"),
        ({"bias": "all"}, "its bias is 'all'"),
        ({"init_lora_weights": "pissa"}, "initialized by 'pissa'"),
        ({"r": 5}, "has the shape [3, 32], where the model wants [5, 32]"),
        ({"target_modules": ["q_proj", "v_proj"]}, "only the"),
        ({"target_modules": ["nothing"]}, "does not fit this model"),
    ],
)
def test_an_adapter_that_does_not_fit_or_is_of_another_kind_is_refused(tiny, started, change, said):
    edit(started / "adapter_config.json", **change)
    sentence = refusal(tiny, tiny.root / "llama", adapter=str(started))
    assert said in sentence and sentence.startswith(f"model.adapter is '{started}'")


def test_an_adapter_s_files_are_as_strictly_read_as_a_model_s(tiny, started):
    weights, config = started / "adapter_model.safetensors", started / "adapter_config.json"
    assert "does not fit" in refusal(tiny, tiny.root / "gptj", adapter=str(started))
    text = config.read_text()
    config.write_text("{")
    assert "cannot be read" in refusal(tiny, tiny.root / "llama", adapter=str(started))
    config.write_text(text)
    weights.write_bytes(weights.read_bytes()[:-9])
    assert "is damaged" in refusal(tiny, tiny.root / "llama", adapter=str(started))
    weights.rename(started / "adapter_model.bin")
    assert "adapter_model.bin, and only adapter_model.safetensors" in refusal(
        tiny, tiny.root / "llama", adapter=str(started)
    )
    config.unlink()
    assert "no folder of that name with an adapter_config.json" in refusal(
        tiny, tiny.root / "llama", adapter=str(started)
    )


def test_a_run_is_not_resumed_with_another_tokenizer_or_starting_adapter(tiny, started, model, tmp_path):
    settings = {"model": {"source": str(model), "adapter": str(started)}}
    run = tiny.open("llama", **settings)
    run.save(tmp_path / "state", whole=True)
    edit(started / "adapter_config.json", lora_alpha=99)
    with pytest.raises(ConfigError, match="made with another adapter"):
        Unlearner(tiny.config("llama", **settings)).restore(tmp_path / "state")
    edit(started / "adapter_config.json", lora_alpha=12.0)
    edit(model / "tokenizer_config.json", chat_template="{{ messages[0]['content'] }}")
    with pytest.raises(ConfigError, match="made with another tokenizer"):
        Unlearner(tiny.config("llama", **settings)).restore(tmp_path / "state")


# ------------------------------------------------------------------------------------------------- real models


@pytest.mark.slow
@needs_real_models
@pytest.mark.parametrize("name", ["TinyStories-656K", "stories260K"])
def test_an_adapter_made_on_a_real_model_is_plain_peft_with_the_same_logits(tiny, tmp_path, name):
    run = Unlearner(tiny.config(model={"source": str(MODELS / name)}, lora={"dropout": 0.0}))
    run.measure_baseline()
    for _ in range(2):
        assert run.step().applied
    run.save(tmp_path / "export", whole=False)
    base = AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=torch.float32)
    elsewhere = PeftModel.from_pretrained(base, tmp_path / "export").eval()
    run.context.model.eval()
    with torch.no_grad():
        ids = torch.tensor([run.context.windows.forget[0].ids])
        assert (run.context.model(input_ids=ids).logits - elsewhere(input_ids=ids).logits).abs().max() == 0
    assert run.context.loaded.limit == 512 and run.context.loaded.modules == ("q_proj", "v_proj")
    alone = [run.answers([prompt])[0].response.text for prompt in ("Once upon a time", "Lily")]
    assert [a.response.text for a in run.answers(["Once upon a time", "Lily"])] == alone


@needs_real_models
def test_a_real_tokenizer_loses_nothing_that_it_has_no_piece_for():
    """transformers' class for it drops the unknown token that its file has; with it, a hat would vanish."""
    tokenizer, limit = tokenizer_and_limit(ModelSettings(source=str(MODELS / "TinyStories-656K")))
    assert limit == 512 and tokenizer.unk_token_id in tokenizer("Lily 🎩 ran")["input_ids"]
    bytewise = open_tokenizer(MODELS / "stories260K")
    assert "🎩" in bytewise.decode(bytewise("Lily 🎩 ran")["input_ids"]) and bytewise.pad_token_id is not None
