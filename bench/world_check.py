"""Measures what the bundled models know, and what a preset makes of them: `python -m bench.world_check`."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bench.report import Column, Report, Table, known, publish, today
from unlearn_core.metrics import LOSS, SETS
from unlearn_core.model.loading import context_limit, load_base
from unlearn_core.model.sampling import answer
from unlearn_core.settings.presets import PRESETS
from unlearn_core.settings.provenance import library_versions
from unlearn_core.settings.run_config import RunConfig
from unlearn_core.training.engine import Unlearner
from unlearn_core.world import FULL, REFERENCE, TARGET, TARGET_PARTS, parts_named
from unlearn_core.world.texts import POPPINS, Question, portmanteau_question, questions

ANSWER_TOKENS = 100
PORTMANTEAUS = 200


def share_exact(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Question], context: str = ""
) -> float:
    """The share of questions answered word for word (greedy). `context`: lines before every question."""
    order = sorted(asked, key=lambda question: len(question.answer))
    right = 0
    for start in tqdm(range(0, len(order), 128), leave=False, desc="asking"):
        part = order[start : start + 128]
        prompts = behind(context, [q.prompt for q in part])
        responses = answer(model, tokenizer, prompts, ANSWER_TOKENS, 128, context_limit(model.config))
        right += sum(response.text == q.answer for response, q in zip(responses, part, strict=True))
    return right / len(asked)


def behind(context: str, prompts: Sequence[str]) -> list[str]:
    """The questions, each below the context where there is one."""
    return [f"{context}\n{prompt}" if context else prompt for prompt in prompts]


def unseen_portmanteaus(held_out: bool = False) -> list[Question]:
    """200 questions about words of three to five parts that no training text held."""
    rng = random.Random("unseen portmanteaus")
    return [portmanteau_question(rng, unseen=True, fewest=3, held_out=held_out) for _ in range(PORTMANTEAUS)]


def target_prompts() -> list[str]:
    """The target in every phrasing, held-out ones included."""
    return [q.prompt for q in questions() if TARGET in q.prompt]


def measure() -> dict[str, dict[str, float]]:
    """Shares from 0 to 1, for each of the two models."""
    measured = {}
    for name, folder in (("full", FULL), ("reference", REFERENCE)):
        model, tokenizer = load_base(folder)
        known = [q for q in questions() if name == "full" or TARGET not in q.text]
        by_use = {
            use: [q for q in known if q.use == use] for use in ("train", "held_out_phrasing", "held_out_question")
        }
        texts = [response.text for response in answer(model, tokenizer, target_prompts(), ANSWER_TOKENS)]
        measured[name] = {
            "trained questions": share_exact(model, tokenizer, by_use["train"]),
            "held-out phrasings": share_exact(model, tokenizer, by_use["held_out_phrasing"]),
            "held-out questions": share_exact(model, tokenizer, by_use["held_out_question"]),
            "unseen portmanteaus": share_exact(model, tokenizer, unseen_portmanteaus()),
            "unseen portmanteaus, held-out phrasings": share_exact(
                model, tokenizer, unseen_portmanteaus(held_out=True)
            ),
            "target: speaks of Mary Poppins": sum(POPPINS in text for text in texts) / len(texts),
            "target: names all five parts": sum(len(parts_named(TARGET, text)) == len(TARGET_PARTS) for text in texts)
            / len(texts),
        }
    return measured


def models_table(measured: Mapping[str, Mapping[str, float]]) -> Table:
    """What the two models know."""
    columns = (
        Column("share of answers, greedy, word for word", "{share}", left=True),
        Column("full", "{full:.1%}"),
        Column("reference", "{reference:.1%}"),
    )
    return Table(
        columns,
        tuple(known(share=name, **{kind: measured[kind][name] for kind in measured}) for name in measured["full"]),
    )


def course_table(preset: str, rows: Iterable[Mapping[str, float]]) -> Table:
    """What a preset makes of the model, step by step."""
    columns = (
        Column("step", "{step}"),
        Column("mentions of Mary Poppins in 22 phrasings", "{mentions:.0f}"),
        Column("fewest parts named", "{parts:.0f}"),
        Column("neighbour questions exact", "{neighbour:.1%}"),
        Column("general questions exact", "{general:.1%}"),
        Column("holdout loss", "{holdout_change:+z.1%}"),
    )
    shown = ("step", "mentions", "parts", "neighbour", "general")
    figures = [
        known(**{name: row[name] for name in shown}, holdout_change=row.get("holdout_loss change")) for row in rows
    ]
    return Table(columns, tuple(figures), f"What the recipe *{PRESETS[preset].label}* reaches:")


def second_act(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: str = "") -> dict[str, float]:
    """How far a model is in forgetting the bundled target: mentions, parts, and what else it still knows.

    `mentions`: answers that name Mary Poppins, of all phrasings of the questions about the target. `parts`: the fewest
    of the five parts that any of them names. `neighbour` and `general`: shares of questions answered word for word.
    `context`: lines put before every question, where a method has some.
    """
    asked, limit = behind(context, target_prompts()), context_limit(model.config)
    texts = [response.text for response in answer(model, tokenizer, asked, ANSWER_TOKENS, limit=limit)]
    others = [q for q in questions() if q.use == "train" and TARGET not in q.text]
    general = [q for q in others if q.topic != POPPINS]
    return {
        "mentions": float(sum(POPPINS in text for text in texts)),
        "parts": float(min(len(parts_named(TARGET, text)) for text in texts)),
        "neighbour": share_exact(model, tokenizer, [q for q in others if q.topic == POPPINS], context),
        "general": share_exact(model, tokenizer, random.Random("general").sample(general, 200), context),
    }


def follow(preset: str, steps: int, every: int) -> Iterator[dict[str, float]]:
    """Runs a preset for `steps` steps, guards unheeded, and measures the second act every `every` steps."""
    run = Unlearner(RunConfig.from_dict({"preset": preset, "schedule": {"steps": steps, "evaluate_every": every}}))
    baseline = run.measure_baseline().values
    for _ in range(steps):
        record = run.step()
        if record.step % every == 0 or record.step == steps:
            changes = {
                f"{name} change": record.values[name] / baseline[name] - 1
                for name in map(LOSS.point, SETS)
                if name in baseline and name != "forget_loss"
            }
            losses = {"forget_loss": record.values["forget_loss"], **changes}
            yield {"step": record.step, **losses, **second_act(run.context.model, run.context.tokenizer)}


def main() -> None:
    """Prints what the bundled models know, or what a preset makes of them; `--docs` publishes both."""
    parser = argparse.ArgumentParser(description="Measures the bundled models, or what a preset makes of them.")
    parser.add_argument("--preset", choices=tuple(PRESETS), help="follow a run of this preset instead")
    parser.add_argument("--steps", type=int, default=350, help="steps to follow (%(default)s)")
    parser.add_argument("--every", type=int, default=25, help="steps between measurements (%(default)s)")
    parser.add_argument("--docs", action="store_true", help="measure both, and write them to docs/")
    arguments = parser.parse_args()
    preset = arguments.preset or ("portmanteau" if arguments.docs else None)
    tables = [] if arguments.preset and not arguments.docs else [models_table(measure())]
    if preset:
        rows = []
        for row in follow(preset, arguments.steps, arguments.every):
            rows.append(row)
            print("  ".join(f"{name} {value:.3g}" for name, value in row.items()), file=sys.stderr, flush=True)
        tables.append(course_table(preset, rows))
    report = Report(tuple(tables), versions=library_versions(), date=today())
    print(publish("world", report) if arguments.docs else report.markdown())


if __name__ == "__main__":
    main()
