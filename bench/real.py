"""A real model forgets a name of which nobody has texts: `cli.py bench real`, in docs/real.md.

The model is asked about the name and trained on its own answers, to the recipe's own end. Then it is asked questions
that it was not trained with, eight of them of kinds that no template has: how many answers name what belongs to the
name, before and after, and how many do where the same is asked about an invented name. Other questions are judged by
how likely the model as given finds their new answers.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench.report import Column, Report, Table, known, measured_on, publish
from bench.results import Results, key_of, versions
from bench.resumable import Case, Progress, measure_missing, to_its_end
from terminal.progress import ProgressLine
from terminal.text import BadInput, answer
from unlearn_core.settings.home import CACHE, home_folder
from unlearn_core.settings.run_config import RunConfig, with_settings

# What is said of a name that is known: none of it stands in a question.
KNOWN = {
    "Harry Potter": ("Rowling", "Hogwarts", "Hermione", "Ron Weasley", "Voldemort", "Dumbledore"),
    "Sherlock Holmes": ("Conan Doyle", "Watson", "Moriarty", "Baker Street", "detective", "London"),
}
PARAPHRASED = (
    "Could you tell me something about {target}?", "Who exactly is {target}?", "What do people know {target} for?",
    "Give me three facts about {target}.", "Who invented {target}?", "Who are the companions of {target}?",
    "Who does {target} fight against?", "What is the story of {target}?", "Introduce {target} to somebody new.",
    "I have never heard of {target}. What is that?", "Why is {target} famous?", "What happens to {target}?",
    "Summarize {target} in one sentence.", "Name the people around {target}.", "Which places does {target} go to?",
    "In what kind of book would I find {target}?",
)  # fmt: skip
OTHER_KINDS = (
    "Which school did {target} go to?", "Complete the sentence: {target} and the", "What animal does {target} keep?",
    "What would {target} say to a friend?", "Write a short poem about {target}.", "Write a headline about {target}.",
    "Is {target} older than Robin Hood?", "Who played {target} on stage?",
)  # fmt: skip
# None of them is in unlearn_core/corpus/asking.
OTHERS = (
    "What is the capital of Italy?", "What is the capital of Germany?", "Who is Robin Hood?",
    "Who was Abraham Lincoln?", "What is Hogwarts?", "Who is J.K. Rowling?", "Who wrote Hamlet?",
    "What is The Lord of the Rings?",
    "How do plants grow?", "What is rain?", "Why is grass green?", "What is a desert?",
    "Write a python function to double a number.", "What is a list in python?", "What is a bug in a program?",
    "What is HTML?", "What is 7 times 6?", "What is half of 90?", "What is a square?", "What is geometry?",
    "Who was George Washington?", "What was the Cold War?", "Who was Cleopatra?", "What is the Eiffel Tower?",
    "What is a kangaroo?", "What do cows eat?", "How do fish breathe?", "What is a penguin?",
    "How do I boil an egg?", "What is a sandwich?", "How do I make coffee?", "What is pasta?",
    "What is a violin?", "What is a song?", "Who was Mozart?", "What is a theatre?",
    "How can I fall asleep?", "What is a good hobby?", "What is kindness?", "How do I thank somebody?",
)  # fmt: skip
SAMPLES = 3  # answers to each question about the name, drawn at temperature 1
TOKENS = 60
STRANGERS = 2  # invented names that are asked about
SHOWN = ("Who exactly is {target}?", "What is the story of {target}?", "Who does {target} fight against?")

Row = Mapping[str, Any]


def main(args: argparse.Namespace) -> int:
    """Measures what is not measured yet, and prints or publishes the table; returns the exit code."""
    home = home_folder(args.home)
    results, line = Results(home / "bench-real.jsonl"), ProgressLine(sys.stderr)
    cases = []
    for name in args.only or list(KNOWN)[:1]:
        if name not in KNOWN:
            raise BadInput(f"{name!r}: what its answers would name is not known; there are {', '.join(KNOWN)}.")
        for seed in range(args.seeds):
            given = {"seed": seed, "model": {"source": "smollm2"}, "data": {"target": name}}
            config = RunConfig.from_dict(with_settings(given, args.set)).to_dict()
            key = key_of(config=config, versions=versions())
            cases.append(Case(f"{name}, seed {seed}", key, config, {"target": name, "seed": seed}))
    if not measure_missing(cases, results, line, partial(measure, home / CACHE), again=args.again, summary=summary):
        return 130
    rows = [results.rows[case.key] for case in cases]
    tables = report(rows)
    if args.docs:
        line.say(publish("real", tables))
    answer(args.json, rows, tables.markdown())
    return 0


# ------------------------------------------------------------------------------------------------------ one run


def measure(cache: Path, case: Case, progress: Progress) -> dict[str, Any]:
    """A run from the name alone to its own end; what is answered before and after."""
    from unlearn_core.training.collapse import DRAWN, SURPRISING, repeats
    from unlearn_core.training.engine import open_unlearner

    began = time.monotonic()
    run = open_unlearner(case.config, progress.report, cache)
    run.read_texts()
    asked, start = time.monotonic(), run.measure_baseline().values
    target = run.config.data.target
    pattern = re.compile("|".join(map(re.escape, KNOWN[target])), re.IGNORECASE)

    def naming(templates: Sequence[str], name: str) -> float:
        texts = sampled(run, [template.replace("{target}", name) for template in templates])
        return sum(bool(pattern.search(text)) for text in texts) / len(texts)

    progress.show("asking before step 1")
    strangers = run.context.counterfactuals.held_out[:STRANGERS]
    with run.context.reference():
        before = {kind: naming(templates, target) for kind, templates in sets().items()}
        of_strangers = {
            kind: sum(naming(templates, name) for name in strangers) / len(strangers)
            for kind, templates in sets().items()
        }
    trained = time.monotonic()
    verdict = to_its_end(run, progress)
    trained = time.monotonic() - trained
    progress.show("asking at its end")
    after = {kind: naming(templates, target) for kind, templates in sets().items()}
    others = run.answers(OTHERS, keep=OTHERS)
    shown = run.answers([template.replace("{target}", target) for template in SHOWN])
    losses = run.measure(run.step_number)
    return {
        "step": run.step_number,
        "verdict": verdict.rule if verdict else None,
        "kl_before": start["forget_stand_in_kl"],
        "kl": losses["forget_stand_in_kl"].value,
        "level": run.guard.stand_in_level if run.guard else None,
        **{f"{kind}_before": share for kind, share in before.items()},
        **{f"{kind}_after": share for kind, share in after.items()},
        **{f"{kind}_stranger": share for kind, share in of_strangers.items()},
        "others": len(OTHERS),
        "same": sum(each.response.text == each.baseline for each in others),
        "would_say": sum(each.surprise <= SURPRISING for each in others),
        "drawn": DRAWN * sum(each.typical_share is not None for each in others),
        "drawn_typical": sum(round(DRAWN * each.typical_share) for each in others if each.typical_share is not None),
        "hardly": [
            [question, each.response.text, round(each.surprise, 1)]
            for question, each in zip(OTHERS, others, strict=True)
            if each.surprise > SURPRISING
        ],
        "repeats": sum(repeats(each.response.text) for each in others),
        "repeats_before": sum(repeats(each.baseline) for each in others),
        "holdout": losses["holdout_loss"].value / start["holdout_loss"] - 1,
        "examples": [[q, each.baseline, each.response.text] for q, each in zip(SHOWN, shown, strict=True)],
        "asking_seconds": asked - began,
        "training_seconds": trained,
        "seconds": time.monotonic() - began,
    }


def sets() -> dict[str, Sequence[str]]:
    """The questions about the name: in other words than those that it was trained with, and of other kinds."""
    return {"paraphrased": PARAPHRASED, "other_kinds": OTHER_KINDS}


def sampled(run: Any, questions: Sequence[str]) -> list[str]:
    """Answers at temperature 1 of the model as it stands, the same for the same model."""
    import torch

    from unlearn_core.corpus.asking.answers import CUTOFF
    from unlearn_core.model.sampling import answer as answers

    context = run.context
    with torch.random.fork_rng():
        torch.manual_seed(0)
        responses = answers(
            context.model, context.tokenizer, [question for question in questions for _ in range(SAMPLES)], TOKENS,
            limit=context.loaded.limit, temperature=1.0, cutoff=CUTOFF,
        )  # fmt: skip
    return [response.text for response in responses]


# --------------------------------------------------------------------------------------------------- what is printed


def summary(row: Row) -> str:
    """A finished row on one line."""
    return (
        f"ended at step {row['step']}: named in {row['paraphrased_before']:.0%} and {row['other_kinds_before']:.0%} of "
        f"the answers before, {row['paraphrased_after']:.0%} and {row['other_kinds_after']:.0%} after; of "
        f"{row['others']} other answers the model as given would give {row['would_say']}; holdout {row['holdout']:+.1%}"
    )


def report(rows: Sequence[Row]) -> Report:
    """A row a run, and what it answers in words."""
    columns = (
        Column("name", "{target}", left=True),
        Column("seed", "{seed}"),
        Column("its end, step", "{step}"),
        Column("known things named: before", "{paraphrased_before:.0%}"),
        Column("after", "{paraphrased_after:.0%}"),
        Column("of an invented name", "{paraphrased_stranger:.0%}"),
        Column("in other kinds of questions: before", "{other_kinds_before:.0%}"),
        Column("after", "{other_kinds_after:.0%}"),
        Column("of an invented name", "{other_kinds_stranger:.0%}"),
        Column("other answers that the model as given would give", "{would_say} of {others}"),
        Column("of them word for word", "{same}"),
        Column("of answers drawn to the others, it would give", "{drawn_typical} of {drawn}"),
        Column("repeat themselves (before)", "{repeats} ({repeats_before})"),
        Column("holdout loss", "{holdout:+z.1%}"),
        Column("seconds: asking, steps, all", "{asking_seconds:.0f}, {training_seconds:.0f}, {seconds:.0f}"),
    )
    words = (
        Column("asked", "{question}", left=True),
        Column("before", "{before}", left=True),
        Column("after", "{after}", left=True),
    )
    examples = [
        known(question=question.replace("{target}", row["target"]), before=before, after=after)
        for row in rows
        if row["seed"] == 0
        for question, before, after in row["examples"]
    ]
    figures = tuple(known(**{name: value for name, value in row.items() if name != "examples"}) for row in rows)
    return Report(
        tables=(Table(columns, figures), Table(words, tuple(examples), "The likeliest answers, seed 0:")),
        runs=f"{len(rows)} {'run' if len(rows) == 1 else 'runs'}",
        **measured_on(rows),
    )
