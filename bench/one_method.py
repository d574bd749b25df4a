"""One method at its settings, to the step that its own guard chooses: the process that `bench/methods.py` starts.

Its argument is JSON, {"config": ..., "seconds": ...}. It writes JSON lines to stdout: progress ({"doing": ...} or
{"step": ..., "steps": ...}), and at last {"row": ...}. It ends when stdout is closed.
"""

from __future__ import annotations

import json
import sys
import time
from copy import copy
from typing import Any

from bench import peak_memory

BEGAN = time.perf_counter()
SUPPRESSED = -1e9  # a log-probability that no model gives by itself


class OutOfTime(Exception):
    """The method's time is over."""


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def measure(config: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The row of one method. `seconds`: after so many it is cut, and measured at the step it has reached."""
    from unlearn_core.metrics import LOSS, SETS
    from unlearn_core.metrics.shared.evaluate import values_of
    from unlearn_core.training.engine import open_unlearner

    def report(stage: str, detail: str = "") -> None:
        tell(doing=f"{stage}: {detail}" if detail else stage)
        if time.perf_counter() - BEGAN > seconds:
            raise OutOfTime("Its time was over before its first step.")

    run = open_unlearner(config, report)
    run.read_texts()
    baseline, distance_before = baseline_of(run)
    cut, trained, verdict = False, 0.0, None
    try:
        began = time.perf_counter()
        run.measure_baseline()
        prepared = time.perf_counter() - began
        trained, verdict, cut = to_its_end(run, seconds)
    except OutOfTime:
        prepared, cut = seconds, True
    step, memory = run.step_number, peak_memory()
    losses = values_of(run.measure(step))
    points = {of: LOSS.point(of) for of in SETS if of != "forget"}
    assert run.guard
    return {
        "step": step,
        "steps": run.config.schedule.steps,
        "verdict": verdict.rule if verdict else None,
        "sentence": verdict.sentence if verdict else None,
        "cut": seconds if cut else None,
        "forget_loss": losses["forget_loss"],
        "forget_level": run.guard.forget_level,
        "collapse_level": run.guard.collapse_level,
        "changes": {of: losses[name] / baseline[name] - 1 for of, name in points.items() if name in baseline},
        "distance": distance_to_the_reference(run, step),
        "distance_before": distance_before,
        **answers_of(run, step),
        "preparing_seconds": prepared,
        "training_seconds": trained,
        "seconds": time.perf_counter() - BEGAN,
        "memory": memory,
    }


def baseline_of(run: Any) -> tuple[dict[str, float], float | None]:
    """Losses and distance of the model that knows the word, against which a method is measured.

    That is the run's own start; a method that starts from another model (untrained, or the reference) is measured
    against the bundled one too.
    """
    from unlearn_core.metrics.shared.evaluate import evaluate, values_of
    from unlearn_core.model.loading import load_base
    from unlearn_core.world import FULL

    elsewhere = run.config.model.source != "bundled" or run.method.builds_model
    model = load_base(FULL)[0].to(run.context.device) if elsewhere and has_reference(run) else run.context.model
    return values_of(evaluate(model, run.evaluation)), distance_to_the_reference(run, 0, model)


def to_its_end(run: Any, seconds: float) -> tuple[float, Any, bool]:
    """Steps until a guard's verdict, the last step or the end of the time: (seconds in steps, verdict, was it cut?).

    The guard judges as in the app: with the answers to the run's questions, every `sample_every` steps.
    """
    schedule, trained = run.config.schedule, 0.0
    prompts = [prompt.text for prompt in run.config.prompts]
    while run.step_number < schedule.steps:
        if time.perf_counter() - BEGAN > seconds:
            return trained, None, True
        began = time.perf_counter()
        record = run.step()
        trained += time.perf_counter() - began
        asks = record.applied and (record.step % schedule.sample_every == 0 or record.step >= schedule.steps)
        answers = [(answer.baseline, answer.response.text) for answer in (run.answers(prompts) if asks else ())]
        if verdict := record.verdict or run.judge(record.values, answers):
            return trained, verdict, False
        tell(step=record.step, steps=schedule.steps)
    return trained, None, False


def has_reference(run: Any) -> bool:
    """True where there is a model that was trained on everything but the forget texts."""
    from unlearn_core.settings.sections import BUNDLED_MODELS
    from unlearn_core.world import TARGET

    config = run.config
    return config.model.source in BUNDLED_MODELS and config.data.target == TARGET and config.data.forget == ("bundled",)


def distance_to_the_reference(run: Any, step: int, model: Any = None) -> float | None:
    """KL(reference model || the run's model at a step), nats, mean over the labelled tokens of all forget windows.

    The reference model never saw the target: 0 would be exact unlearning. A context that a method puts before a text is
    not given to the reference; a token id that the method suppresses (a shadow class) is left out of both.
    `model`: measured instead of the run's own.
    """
    if not has_reference(run):
        return None
    import torch

    from unlearn_core.model.batches import collate
    from unlearn_core.model.loading import load_base
    from unlearn_core.world import REFERENCE

    every = copy(run.evaluation)
    every.tokens = collate(run.context.windows.forget, run.context.pad_id, run.context.device)
    context = run.method.prompt_prefix(run.context, step)
    read = (
        every.behind(
            tuple(run.context.tokenizer(context + "\n", add_special_tokens=False)["input_ids"]),
            run.context.loaded.limit,
        )
        if context
        else every
    )
    retrained = load_base(REFERENCE)[0].to(run.context.device)
    model = run.context.model if model is None else model
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad(), run.method.inference_context(run.context, step):
        for window, plain in zip(read.tokens.windows, every.tokens.windows, strict=True):
            now = predicted(model, collate([window], run.context.pad_id, run.context.device))
            target = predicted(retrained, collate([plain], run.context.pad_id, run.context.device))
            allowed = now > SUPPRESSED
            target = target.masked_fill(~allowed, float("-inf")).log_softmax(-1)
            total += (target.exp() * (target - now))[allowed].sum().item()
            count += len(target)
    model.train(was_training)
    return total / count


def predicted(model: Any, tokens: Any) -> Any:
    """Log-probabilities (labelled tokens, vocabulary) of one row."""
    from unlearn_core.model.logits import by_group, predictions

    ids, mask, labels = next(by_group(tokens))
    return predictions(model, ids, mask)[labels != -100].double().log_softmax(-1)


def answers_of(run: Any, step: int) -> dict[str, float | None]:
    """Mentions of Mary Poppins and fewest parts named over all questions about the word; shares of other questions."""
    if not has_reference(run):
        return dict.fromkeys(("mentions", "asked", "parts", "neighbour", "general"))
    from bench.world_check import second_act, target_prompts

    with run.method.inference_context(run.context, step):
        answers = second_act(run.context.model, run.context.tokenizer, run.method.prompt_prefix(run.context, step))
    return {**answers, "asked": float(len(target_prompts()))}


def main() -> int:
    """Measures as its argument says; an error becomes a row too, in one sentence."""
    order = json.loads(sys.argv[1])
    try:
        tell(row=measure(order["config"], order["seconds"]))
    except BrokenPipeError:
        raise
    except Exception as error:
        sentence = str(error).strip() or type(error).__name__
        plain = sentence if isinstance(error, ValueError) else f"{type(error).__name__}: {sentence}"
        tell(row={"error": " ".join(plain.split())})
    return 0


if __name__ == "__main__":
    sys.exit(main())
