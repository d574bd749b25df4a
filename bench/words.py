"""The default recipe on word after word of the bundled world, to its own end: `cli.py bench words`, in docs/words.md.

Each word is asked about in every phrasing of the world, held-out ones included, and so are samples of all other
questions; what counts is what the model as given answered. Of the word that the bundled models were made for there is
a reference, which never saw it.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bench.report import Column, Report, Table, known, measured_on, publish
from bench.results import Results, key_of, versions
from bench.resumable import Case, Progress, measure_missing, to_its_end
from terminal.progress import ProgressLine
from terminal.text import BadInput, answer
from unlearn_core.settings.home import home_folder
from unlearn_core.settings.run_config import RunConfig, with_settings
from unlearn_core.world import SUGGESTED_TARGETS, TARGET, parts_named
from unlearn_core.world.texts import POPPINS, Question, questions

# Beside those that the first card offers: two of each kind of the world, none of which a setting was chosen by.
OTHERS = ("abracadabra", "heffalump", "Tokyo", "Cairo", "Homer", "Alan Turing", "owl", "whale", "potter", "dentist")
SAMPLES = 1000  # at temperature 1, of the answers about the bundled target
ASKED = 200  # of the questions of the same kind, and of all others
ANSWER_TOKENS, BATCH = 80, 128
COMMON = 0.2  # share of the answers to other questions of a kind that a word may be in and still be a key word

Row = Mapping[str, Any]


def main(args: argparse.Namespace) -> int:
    """Measures what is not measured yet, and prints or publishes the table; returns the exit code."""
    results, line = Results(home_folder(args.home) / "bench-words.jsonl"), ProgressLine(sys.stderr)
    cases = []
    for word in args.only or (*SUGGESTED_TARGETS, *OTHERS):
        if not about(word):
            raise BadInput(f"{word!r} is in no question of the bundled world; python cli.py windows finds it in texts.")
        for seed in range(args.seeds):
            config = RunConfig.from_dict(with_settings({"seed": seed, "data": {"target": word}}, args.set)).to_dict()
            key = key_of(config=config, versions=versions())
            cases.append(Case(f"{word}, seed {seed}", key, config, {"word": word, "seed": seed}))
    if not measure_missing(cases, results, line, measure, again=args.again, summary=summary):
        return 130
    rows = [results.rows[case.key] for case in cases]
    tables = report(rows)
    if args.docs:
        line.say(publish("words", tables))
    answer(args.json, rows, tables.markdown())
    return 0


# ------------------------------------------------------------------------------------------------------ one run


def about(word: str) -> list[Question]:
    """Every phrasing of every question in which the word stands."""
    return [question for question in questions() if names(word, question.prompt)]


def names(word: str, text: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) is not None


def key_words(question: Question, of_strangers: Sequence[str]) -> set[str]:
    """The words of its answer that tell what is known.

    They are not in the question, not in what the model says of stand-ins, and in few answers of that kind.
    """
    same = [other.answer for other in questions() if other.group == question.group and other.topic != question.topic]
    known_anyway = " ".join((question.prompt, *of_strangers))
    words = {word for word in re.findall(r"\w{3,}", question.answer) if not names(word, known_anyway)}
    return {word for word in words if sum(names(word, text) for text in same) <= COMMON * len(same)}


def measure(case: Case, progress: Progress) -> dict[str, Any]:
    """A run to its own end, and what it answers there."""
    from unlearn_core.training.collapse import repeats
    from unlearn_core.training.engine import open_unlearner

    began = time.monotonic()
    run = open_unlearner(case.config, progress.report)
    opened = time.monotonic()
    start, word = run.measure_baseline().values, run.config.data.target
    seconds = time.monotonic() - opened
    asked, rng = about(word), random.Random(word)
    groups = {question.group for question in asked}
    free = [question for question in questions() if not names(word, question.text)]
    sets = {
        "asked": asked,
        "named": [q for q in questions() if names(word, q.answer) and not names(word, q.prompt)],
        "kind": draw(rng, [question for question in free if question.group in groups]),
        "other": draw(rng, [question for question in free if question.group not in groups]),
    }
    with run.context.reference():
        before = {name: ask(run, some) for name, some in sets.items()}
        strangers = [ask(run, about_another(asked, word, name)) for name in run.context.counterfactuals.held_out]
    keys = [key_words(question, answers) for question, answers in zip(asked, zip(*strangers, strict=True), strict=True)]
    opened = time.monotonic()
    verdict = to_its_end(run, progress)
    seconds += time.monotonic() - opened
    after = {name: ask(run, some) for name, some in sets.items()}
    losses = run.measure(run.step_number)
    return {
        "step": run.step_number,
        "verdict": verdict.rule if verdict else None,
        "kl": losses["forget_stand_in_kl"].value,
        "level": run.guard.stand_in_level if run.guard else None,
        "questions": len(asked),
        "as_before": sum(now == was for now, was in zip(after["asked"], before["asked"], strict=True)),
        "key_words": sum(any(names(key, text) for key in k) for k, text in zip(keys, after["asked"], strict=True)),
        "named": sum(names(word, text) for text in after["named"]),
        "answers": len(sets["named"]),
        "kind": share_same(after["kind"], before["kind"]),
        "other": share_same(after["other"], before["other"]),
        "repeats": sum(repeats(text) for some in after.values() for text in some),
        "holdout": losses["holdout_loss"].value / start["holdout_loss"] - 1,
        "answer": after["asked"][0],
        "training_seconds": seconds,
        **(beside_the_reference(run, after["asked"]) if word == TARGET else {}),
        "seconds": time.monotonic() - began,
    }


def about_another(asked: Sequence[Question], word: str, name: str) -> list[Question]:
    """The same questions about a stand-in."""
    pattern = re.compile(rf"\b{re.escape(word)}\b", re.IGNORECASE)
    return [replace(question, prompt=pattern.sub(name, question.prompt)) for question in asked]


def draw(rng: random.Random, some: Sequence[Question]) -> list[Question]:
    return rng.sample(some, min(ASKED, len(some)))


def ask(run: Any, some: Sequence[Question], temperature: float = 0.0) -> list[str]:
    """What the model answers as it stands."""
    from unlearn_core.model.sampling import answer as answers

    context = run.context
    prompts, limit = [question.prompt for question in some], context.loaded.limit
    if not prompts:
        return []
    return [
        response.text
        for response in answers(
            context.model, context.tokenizer, prompts, ANSWER_TOKENS, BATCH, limit, temperature=temperature
        )
    ]


def share_same(after: Sequence[str], before: Sequence[str]) -> float:
    return sum(now == was for now, was in zip(after, before, strict=True)) / max(1, len(before))


def beside_the_reference(run: Any, answers: Sequence[str]) -> dict[str, float]:
    """Of the bundled target: answers as the reference gives them, parts, samples, and KL on the model's own answers."""
    import torch

    from unlearn_core.model.batches import collate
    from unlearn_core.model.loading import load_base
    from unlearn_core.model.losses import LanguageModel
    from unlearn_core.model.sampling import answer as answers_of
    from unlearn_core.model.window import Window
    from unlearn_core.world import REFERENCE

    context, asked = run.context, about(TARGET)
    reference, tokenizer = load_base(REFERENCE)
    prompts = [question.prompt for question in asked]
    expected = [response.text for response in answers_of(reference, tokenizer, prompts, ANSWER_TOKENS, BATCH)]
    torch.manual_seed(0)
    samples = ask(run, (asked * (SAMPLES // len(asked) + 1))[:SAMPLES], temperature=1.0)
    windows = []
    for prompt, text in zip(prompts, answers, strict=True):
        question = tokenizer(f"{prompt}\n")["input_ids"]
        ids = (*question, *tokenizer(text)["input_ids"], tokenizer.eos_token_id)
        windows.append(Window(tuple(ids), len(question), text, ""))
    tokens = collate(windows, context.pad_id, context.device)
    labels = [list(range(window.first_loss, len(window))) for window in windows]
    was_training = context.model.training
    context.model.eval()
    with torch.no_grad():
        own, theirs = (
            torch.cat(LanguageModel(model).logits_at(tokens, labels)).log_softmax(-1)
            for model in (context.model, reference)
        )
    context.model.train(was_training)
    return {
        "as_reference": sum(now == then for now, then in zip(answers, expected, strict=True)),
        "parts": min(len(parts_named(TARGET, text)) for text in answers),
        "samples": sum(POPPINS in text for text in samples),
        "reference_kl": (own.exp() * (own - theirs)).sum(-1).mean().item(),
    }


# --------------------------------------------------------------------------------------------------- what is printed


def summary(row: Row) -> str:
    """A finished row on one line."""
    return (
        f"ended at step {row['step']}; of {row['questions']} answers {row['as_before']} as before, "
        f"{row['key_words']} with a key word; same kind {row['kind']:.1%}, others {row['other']:.1%}, "
        f"holdout {row['holdout']:+.1%}: {row['answer']}"
    )


def report(rows: Sequence[Row]) -> Report:
    """A row a word with the worst of its seeds; and the bundled target beside the reference, a row a seed."""
    columns = (
        Column("word", "{word}", left=True),
        Column("seeds", "{seeds}"),
        Column("its end, step", "{first}–{last}"),
        Column("answered as before", "{as_before} of {questions}"),
        Column("with a key word", "{key_words} of {questions}"),
        Column("is still the answer", "{named} of {answers}"),
        Column("same kind", "{kind:.1%}"),
        Column("other questions", "{other:.1%}"),
        Column("holdout loss", "{holdout:+z.1%}"),
        Column("repeat themselves", "{repeats}"),
        Column("seconds", "{seconds:.0f}"),
    )
    words = list(dict.fromkeys(row["word"] for row in rows))
    of_word = {word: [row for row in rows if row["word"] == word] for word in words}
    table = Table(columns, tuple(worst(word, some) for word, some in of_word.items()), "The worst of all seeds:")
    judged = [row for row in rows if "as_reference" in row]
    beside = (
        Column("seed", "{seed}"),
        Column("its end, step", "{step}"),
        Column("answers as the reference, word for word", "{as_reference} of {questions}"),
        Column("fewest parts named", "{parts}"),
        Column(f"of {SAMPLES:,} samples at temperature 1, name the film", "{samples}"),
        Column("KL(model ‖ reference) on its own answers, nats per token", "{reference_kl:.3f}"),
    )
    names = ("seed", "step", "as_reference", "questions", "parts", "samples", "reference_kl")
    last = Table(beside, tuple(known(**{n: row[n] for n in names}) for row in judged), f"*{TARGET}*, seed by seed:")
    return Report(
        tables=(table, *((last,) if judged else ())),
        runs=f"{len(rows)} runs",
        **measured_on(rows),
    )


def worst(word: str, rows: Sequence[Row]) -> dict[str, object]:
    """Of each figure, that of the seed in which it is worst."""
    highest = ("as_before", "key_words", "named", "holdout", "repeats")
    return known(
        word=word,
        seeds=len(rows),
        first=min(row["step"] for row in rows),
        last=max(row["step"] for row in rows),
        questions=rows[0]["questions"],
        answers=rows[0]["answers"],
        seconds=max(row["training_seconds"] for row in rows),
        **{name: max(row[name] for row in rows) for name in highest},
        **{name: min(row[name] for row in rows) for name in ("kind", "other")},
    )
