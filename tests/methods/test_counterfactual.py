"""Counterfactual distillation: 0 where target and stand-in are treated alike, never below, nothing without a target."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from unlearn_core.methods import METHODS
from unlearn_core.metrics.shared.evaluate import evaluate
from unlearn_core.metrics.shared.stand_ins import held_out
from unlearn_core.model.batches import Batch, collate
from unlearn_core.model.teacher import renamed, teacher
from unlearn_core.model.window import Begin, Twin, Window
from unlearn_core.settings.errors import ConfigError
from unlearn_core.training.engine import Unlearner

pytestmark = pytest.mark.usefixtures("one_thread")
METHOD = METHODS["counterfactual"]
NAMES = ("quexibalor", "query the lorik", "x")


@pytest.fixture
def run(tiny) -> Unlearner:
    return tiny.open(method={"name": "counterfactual"}, guard_rail={"kind": "none"}, lora={"dropout": 0.0})


def batch(run: Unlearner, windows, names=NAMES) -> Batch:
    extras = {"counterfactuals": run.context.counterfactuals, "stand_ins": names}
    return Batch(collate(windows, run.context.pad_id), None, None, run.context.pad_id, 1, extras)


def loss(run: Unlearner, windows, names=NAMES):
    return METHOD().loss(run.update.model, batch(run, windows, names), run.context.reference).forget


def move(run: Unlearner, seed: int, size: float = 0.3) -> None:
    """The adapter anywhere."""
    torch.manual_seed(seed)
    with torch.no_grad():
        run.context.adapter.values.copy_(size * torch.randn_like(run.context.adapter.values))
    run.context.adapter.scatter()


def as_written(old: str, new: str) -> str:
    """In the capitals in which the target stands there."""
    return new[:1].upper() + new[1:] if old[:1].isupper() else new


def by_hand(run: Unlearner, window: Window, names) -> tuple[list[int], torch.Tensor]:
    """The teacher of a text window by characters, one stand-in and one text at a time, in double precision."""
    tokenizer, target = run.context.tokenizer, run.config.data.target
    whole = tokenizer(window.text)["input_ids"]
    place = next(at for at in range(len(whole)) if tuple(whole[at : at + len(window)]) == window.ids)

    def read(text: str):
        encoded = tokenizer(text, return_offsets_mapping=True)
        return encoded["input_ids"], encoded["offset_mapping"]

    spots = [match.span() for match in re.finditer(rf"\b{target}\b", window.text, re.IGNORECASE)]
    ids, offsets = read(window.text)
    each, labels = [], None
    for name in names:
        text = re.sub(
            rf"\b{target}\b", lambda match, new=name: as_written(match[0], new), window.text, flags=re.IGNORECASE
        )
        other, there = read(text)
        with torch.no_grad(), run.context.reference() as model:
            outside = next(
                i for i in range(place, len(ids)) if all(offsets[i][1] <= a or offsets[i][0] >= b for a, b in spots)
            )
            earlier = sum(stop <= offsets[outside][0] for _, stop in spots)
            begin = there.index(tuple(at + (len(name) - len(target)) * earlier for at in offsets[outside]))
            logits = model(input_ids=torch.tensor([other[begin : begin + run.context.loaded.limit]])).logits[0].double()
        rows: dict[int, torch.Tensor] = {}
        for index in range(place + max(1, window.first_loss), place + len(window)):
            start, end = offsets[index]
            before = sum(b <= start for _, b in spots)
            gain = (len(name) - len(target)) * before
            if any(start < b and end > a for a, b in spots):
                a = next(a for a, b in spots if start < b and end > a)
                if not (start <= a < end) or (offsets[index - 1][1] > a):
                    continue
                at = offsets_index(there, offsets[index - 1][1] + gain) + 1
                p = logits[at - 1 - begin].softmax(-1)
                again = any(place <= i < index for i, (s, e) in enumerate(offsets) for x, y in spots if s < y and e > x)
                q = logits[at - 1 - begin].clone()
                q[[ids[index], other[at]] if again else [ids[index]]] = -torch.inf
                mass = p[other[at]].item() if again else 0.0
                rows[index - place] = q.softmax(-1) * (1 - mass)
                rows[index - place][ids[index]] = mass
            else:
                at = next((i for i, span in enumerate(there) if span == (start + gain, end + gain)), None)
                if at is not None and other[at] == ids[index]:
                    rows[index - place] = logits[at - 1 - begin].softmax(-1)
        each.append(rows)
    labels = sorted(set.intersection(*map(set, each)))
    return labels, torch.stack([torch.stack([rows[label] for rows in each]).mean(0) for label in labels])


def offsets_index(offsets, end: int) -> int:
    return max(index for index, (_, stop) in enumerate(offsets) if stop == end)


def test_the_loss_is_that_of_an_independent_computation_on_every_window(run):
    windows = run.context.windows.forget[:50]
    assert len(windows) >= 20
    move(run, 1)
    run.context.model.eval()
    for window in windows:
        ours = loss(run, [window]).item()
        labels, expected = by_hand(run, window, NAMES)
        with torch.no_grad():
            now = run.context.model(input_ids=torch.tensor([window.ids])).logits[0].double().log_softmax(-1)
        theirs = torch.nn.functional.kl_div(now[[label - 1 for label in labels]], expected, reduction="batchmean")
        assert ours == pytest.approx(theirs.item(), rel=5e-4)
    together = loss(run, windows).item()
    assert together == pytest.approx(sum(loss(run, [window]).item() for window in windows) / len(windows), rel=1e-4)


def test_the_loss_is_0_where_the_target_is_treated_as_the_stand_in(run):
    """By its own name as stand-in, that is at the start; where its first token is predicted, by hand (below)."""
    target, windows = run.config.data.target, run.context.windows.forget[:8]
    twins = run.context.counterfactuals.twins(windows, [target])
    plain = [[replace(twin, places={a: b for a, b in twin.places.items() if a not in twin.begins}, begins={})
              for twin in some] for some in twins]  # fmt: skip
    with run.context.reference() as before:
        teaches = teacher(replace(run.update.model, module=before), windows, plain, run.context.pad_id)
    run.context.model.eval()
    tokens = collate(windows, run.context.pad_id)
    assert teaches.distances(run.update.model, tokens).abs().max().item() < 1e-6
    move(run, 3)
    assert teaches.distances(run.update.model, tokens).min().item() > 1e-3


@pytest.mark.parametrize("seed", range(5))
def test_the_loss_is_never_below_0(run, seed):
    move(run, seed, size=0.1 * 3**seed)
    assert loss(run, run.context.windows.forget[:6]).item() >= 0


def test_windows_without_the_target_have_no_loss_and_no_gradient(run):
    ids = tuple(run.context.tokenizer("The cat sees the old lamp and the river on day 7.")["input_ids"])
    window = Window(ids, 1, "The cat sees the old lamp and the river on day 7.", "a text")
    move(run, 2)
    value = loss(run, [window])
    assert value.item() == 0 and not run.context.adapter.gradient_of(value).any()
    one = run.context.windows.forget[:1]
    alone, both = loss(run, one), loss(run, [*one, window])
    assert alone.item() == pytest.approx(both.item(), rel=1e-5)


def test_the_target_s_first_token_has_the_stand_in_s_probability_where_the_name_is_known_and_none_before():
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.5, 0.0, -1.0, 2.0]])
    window = Window((9, 2, 2), 1, "", "")
    twin = Twin(window, {1: 1, 2: 2}, {1: Begin(3, False), 2: Begin(3, True)})
    first, again = renamed(logits, twin, window, (1, 2))
    others = logits[0, [0, 1, 3]].softmax(-1)
    assert first[2] == 0 and torch.allclose(first[[0, 1, 3]], others)
    p = logits[1].softmax(-1)
    assert torch.allclose(again[2], p[3]) and again[3] == 0 and torch.allclose(again.sum(), torch.tensor(1.0))
    assert torch.allclose(again[0] / again[1], p[0] / p[1])
    same = renamed(logits, Twin(window, {2: 2}, {2: Begin(2, True)}), window, (2,))
    assert torch.allclose(same[0], logits[0].softmax(-1)), "the stand-in begins as the target does"


def test_the_stand_ins_of_a_step_follow_from_the_seed_and_are_fresh_in_each(run):
    drawn = [run.method.batch_extras(run.context, step, 4)["stand_ins"] for step in (1, 2, 1)]
    assert drawn[0] == drawn[2] and not set(drawn[0]) & set(drawn[1]) and len(drawn[0]) == 4


def test_the_metric_is_the_loss_with_held_out_stand_ins_and_its_level_how_far_one_is_from_the_others(run):
    windows, made = run.evaluation.of("forget"), run.context.counterfactuals
    move(run, 4)
    measured = evaluate(run.context.model, run.evaluation, run.context.reference)["forget_stand_in_kl"]
    run.context.model.eval()
    assert measured.value == pytest.approx(loss(run, windows, made.held_out).item(), rel=1e-4)
    assert len(measured.examples) == len(windows)
    with run.context.reference() as before:
        model = replace(run.update.model, module=before)
        given = held_out(model, made, windows, run.context.pad_id)
        apart = []
        for window in windows:
            for name in made.held_out:
                others = [other for other in made.held_out if other != name]
                rest = teacher(model, [window], made.twins([window], others), run.context.pad_id)
                own = teacher(model, [window], made.twins([window], [name]), run.context.pad_id)
                shared = [label for label in rest.labels[0] if label in own.labels[0]]
                p = rest.probabilities[0][[rest.labels[0].index(label) for label in shared]]
                q = own.probabilities[0][[own.labels[0].index(label) for label in shared]]
                apart.append((p * (p.clamp_min(1e-8).log() - q.clamp_min(1e-8).log())).sum(-1).mean().item())
    assert given.level == pytest.approx(sum(apart) / len(apart), rel=1e-3)


def test_the_run_pauses_where_the_target_is_treated_as_one_stand_in_more_and_where_it_comes_no_nearer(run):
    assert run.guard.stand_in_level and run.guard.course == []
    guard = replace(run.guard, baseline={"forget_stand_in_kl": 9.0})
    calm = {"forget_loss": 1.0}
    judged = [guard.judge({**calm, "forget_stand_in_kl": 10.0 - step}, step=step) for step in range(5)]
    assert judged == [None] * 5
    at_level = {**calm, "forget_stand_in_kl": guard.stand_in_level}
    assert [guard.judge(at_level, step=step) for step in range(5, 13)] == [None] * 8, "not at once"
    verdict = guard.judge(at_level, step=13)
    assert verdict.rule == "forgotten_enough" and "never met" in verdict.sentence
    assert guard.judge({**calm, "forget_stand_in_kl": guard.stand_in_level / 2}, step=14) is None, "said once"
    stranger = replace(guard, spoken=set(), course=[], baseline={"forget_stand_in_kl": 1.2 * guard.stand_in_level})
    told = stranger.judge({**calm, "forget_stand_in_kl": guard.stand_in_level}, step=1)
    assert "did not know the target" in told.sentence
    other = replace(guard, spoken=set(), course=[], stand_in_level=0.01)
    values = [5.0, 3.0, 2.0, *[1.99] * 14]
    said = [other.judge({**calm, "forget_stand_in_kl": value}, step=step) for step, value in enumerate(values)]
    stops = [step for step, verdict in enumerate(said) if verdict]
    assert stops == [14] and "no nearer" in said[14].sentence


def test_questions_with_the_target_are_asked_about_a_stand_in_too_of_the_model_as_given(run):
    target = run.config.data.target
    told = run.about_a_stand_in([f"What is {target}?", "The cat"])
    name = run.context.counterfactuals.held_out[0]
    ((question, (other, text)),) = told["answers"].items()
    assert (told["name"], question, other) == (name, f"What is {target}?", f"What is {name}?")
    move(run, 5)
    assert run.about_a_stand_in([question])["answers"][question] == [other, text]
    assert text == run.baseline_answers([other])[0].response.text
    assert run.about_a_stand_in(["The cat"]) == {}


def test_what_has_no_stand_in_is_refused_for_this_method_and_not_measured_for_others(tiny):
    def opened(name: str) -> Unlearner:
        return tiny.open(method={"name": name}, data={"target": "day"}, guard_rail={"kind": "none"})

    assert "forget_stand_in_kl" in opened("npo").baseline
    whole = tiny.config(method={"name": "npo"}, data={"everything": True}, guard_rail={"kind": "none"})
    other = Unlearner(whole)
    other.measure_baseline()
    assert "forget_stand_in_kl" not in other.baseline and other.guard.stand_in_level is None
    with pytest.raises(ConfigError, match=r"data\.everything.*npo"):
        tiny.config(method={"name": "counterfactual"}, data={"everything": True})
