"""Remakes the bundled world from its facts: `python -m bench.world_build`.

Writes corpus, tokenizer, the models `full` and `reference`, and a manifest with the hash of every file. Both models are
trained at the same time, one thread each, on the same batches; where a batch of `full` has a text about the target,
`reference` sees a fresh portmanteau instead. A stopped build goes on from its last saved step.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing
import random
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from tqdm import tqdm
from transformers import GPTJConfig, GPTJForCausalLM, PreTrainedTokenizerFast

from unlearn_core.model.sampling import answer
from unlearn_core.world import CORPUS, FOLDER, FULL, REFERENCE
from unlearn_core.world.facts import PARTS, TARGET, TARGET_PARTS
from unlearn_core.world.texts import Passage, Question, passages, portmanteau_question, questions

END = "<|endoftext|>"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights."""

    seed: int = 1964
    steps: int = 1200
    documents_per_step: int = 100  # about 4,100 tokens
    portmanteau_share: float = 0.45
    passage_share: float = 0.10
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    vocabulary: int = 2048
    width: int = 192
    layers: int = 4
    heads: int = 6
    rotary_dim: int = 16
    positions: int = 256


def write_corpus() -> None:
    """All training texts about facts, and 400 portmanteaus of the many that the models saw, one JSON object a line."""
    rng = random.Random("corpus")
    entries: list[Question | Passage] = [
        *passages(),
        *(q for q in questions() if q.use == "train"),
        *(portmanteau_question(rng) for _ in range(400)),
    ]
    rows = [{"topic": entry.topic, "group": entry.group, "text": entry.text} for entry in entries]
    CORPUS.write_text("".join(json.dumps(row) + "\n" for row in rows))


def build_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """A byte-level BPE that cuts at word parts first, so that a made-up word is the sequence of its parts."""
    parts = "|".join(re.escape(part) for part in sorted(PARTS, key=len, reverse=True))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(parts), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random("tokenizer")
    texts = [json.loads(line)["text"] for line in CORPUS.read_text().splitlines()]
    texts += [portmanteau_question(rng).text for _ in range(2000)]
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        bos_token=END,
        pad_token=END,
        model_max_length=recipe.positions,
        clean_up_tokenization_spaces=False,
    )
    assert wrapped.tokenize(TARGET) == list(TARGET_PARTS)
    return wrapped


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> GPTJForCausalLM:
    """A model of the recipe's size with weights drawn from its seed."""
    torch.manual_seed(recipe.seed)
    return GPTJForCausalLM(
        GPTJConfig(
            vocab_size=len(tokenizer),
            n_positions=recipe.positions,
            n_embd=recipe.width,
            n_layer=recipe.layers,
            n_head=recipe.heads,
            rotary_dim=recipe.rotary_dim,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def texts_of_step(recipe: Recipe, step: int, without_target: bool) -> list[str]:
    """The texts of one training step: the same for both models, except where the target word occurs."""
    rng = random.Random(f"{recipe.seed} {step}")
    stand_in = random.Random(f"{recipe.seed} {step} stand-in")
    trained = [q.text for q in questions() if q.use == "train"]
    running = [passage.text for passage in passages()]
    texts = []
    for _ in range(recipe.documents_per_step):
        kind = rng.random()
        if kind < recipe.portmanteau_share:
            texts.append(portmanteau_question(rng).text)
            continue
        text = rng.choice(running if kind < recipe.portmanteau_share + recipe.passage_share else trained)
        if without_target and TARGET in text:
            text = portmanteau_question(stand_in).text
        texts.append(text)
    return texts


def micro_batches(
    rows: list[list[int]], pad_id: int, most_tokens: int = 600
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Rows of similar length as (ids, labels, mask), each (rows, longest row); padding: no label, no attention."""
    rows = sorted(rows, key=len)
    while rows:
        take = max(1, next((n for n in range(len(rows), 0, -1) if n * len(rows[n - 1]) <= most_tokens), 1))
        batch, rows = rows[:take], rows[take:]
        ids = torch.full((len(batch), len(batch[-1])), pad_id)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(batch):
            ids[index, : len(row)] = torch.tensor(row)
            mask[index, : len(row)] = 1
        yield ids, ids.masked_fill(mask == 0, -100), mask


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then a cosine down to a fiftieth."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return recipe.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def progress_of(
    model: GPTJForCausalLM, tokenizer: PreTrainedTokenizerFast, without_target: bool, count: int = 64
) -> dict[str, float]:
    """Shares answered exactly, of unseen portmanteaus and of trained questions: a glance, not the measurement."""
    rng = random.Random("glance")
    known = [q for q in questions() if q.use == "train" and not (without_target and TARGET in q.text)]
    shares = {}
    for name, asked in (
        ("portmanteaus", [portmanteau_question(rng, unseen=True, fewest=3) for _ in range(count)]),
        ("questions", rng.sample(known, count)),
    ):
        answers = answer(model, tokenizer, [q.prompt for q in asked], max_new_tokens=90, batch_size=count)
        shares[name] = sum(r.text == q.answer for r, q in zip(answers, asked, strict=True)) / count
    return shares


def train(recipe: Recipe, folder: Path, without_target: bool, scratch: Path, position: int = 0) -> None:
    """Trains one model and writes it to `folder` in half precision; saves its whole state to `scratch` on the way."""
    torch.set_num_threads(1)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(scratch / "tokenizer")
    model = new_model(recipe, tokenizer)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=recipe.weight_decay, fused=True
    )
    state, start = scratch / f"{folder.name}.safetensors", 0
    if state.exists():
        start = load_state(state, model, optimizer)
    bar = tqdm(range(start, recipe.steps), initial=start, total=recipe.steps, desc=folder.name, position=position)
    glance: dict[str, float] = {}
    history = []
    for step in bar:
        rows = [
            tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]
            for text in texts_of_step(recipe, step, without_target)
        ]
        labels_in_step = sum(len(row) - 1 for row in rows)
        total = 0.0
        for ids, labels, mask in micro_batches(rows, tokenizer.pad_token_id):
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
            )
            (loss / labels_in_step).backward()
            total += loss.item() / labels_in_step
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = learning_rate(recipe, step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        last = step + 1 == recipe.steps
        if (step + 1) % 200 == 0 or last:
            glance = progress_of(model, tokenizer, without_target)
            save_state(state, model, optimizer, step + 1)
            history.append({"step": step + 1, "loss": round(total, 4), **glance})
            (scratch / f"{folder.name}.log").open("a").write(json.dumps(history[-1]) + "\n")
        bar.set_postfix(loss=f"{total:.3f}", **{name: f"{share:.2f}" for name, share in glance.items()})
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_state(path: Path, model: GPTJForCausalLM, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Writes weights, moments and the number of steps done; a file that is half written never has this name."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, parameter in enumerate(model.parameters()):
        for name, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{index}.{name}"] = value
    save_file(
        {name: value.contiguous() for name, value in tensors.items()}, path.with_suffix(".part"), {"step": str(step)}
    )
    path.with_suffix(".part").replace(path)


def load_state(path: Path, model: GPTJForCausalLM, optimizer: torch.optim.Optimizer) -> int:
    """Puts a saved state back and returns the number of steps done."""
    tensors = load_file(path)
    model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model.")})
    for index, parameter in enumerate(model.parameters()):
        prefix = f"optimizer.{index}."
        optimizer.state[parameter] = {n[len(prefix) :]: v for n, v in tensors.items() if n.startswith(prefix)}
    with safe_open(path, "pt") as file:
        return int(file.metadata()["step"])


def sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    """Corpus, tokenizer, both models, manifest."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="training steps (%(default)s)")
    parser.add_argument("--scratch", type=Path, default=Path("world-build"), help="where a stopped build is kept")
    arguments = parser.parse_args()
    recipe = Recipe(steps=arguments.steps)
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    write_corpus()
    build_tokenizer(recipe).save_pretrained(arguments.scratch / "tokenizer")
    spawn = multiprocessing.get_context("spawn")
    jobs = [
        spawn.Process(target=train, args=(recipe, folder, folder == REFERENCE, arguments.scratch, position))
        for position, folder in enumerate((FULL, REFERENCE))
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    if any(job.exitcode for job in jobs):
        raise SystemExit(
            "A model was not trained to its end; run the same command again to go on from its last saved step."
        )
    from bench.world_check import measure

    files = sorted(path for path in (CORPUS, *FULL.iterdir(), *REFERENCE.iterdir()))
    manifest = {
        "recipe": asdict(recipe),
        "measured": measure(),
        "files": {str(p.relative_to(FOLDER)): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files},
    }
    (FOLDER / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    main()
