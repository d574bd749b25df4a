"""The eleven defects of the published code (MrCartoonology/unlearning), one test each: none of them is here.

a gradients that are not cleared, b labels on padding, c windows cut at markers, d a first basis that says nothing of A,
e retain gradients without dropout, f a projection that Adam undoes, g answers with dropout, h answers re-sorted,
i another number of samples than said, j nothing to repeat or to stop a run, k one code path for the loss alone.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unlearn_core.model.batches import collate
from unlearn_core.model.losses import nll
from unlearn_core.model.sampling import answer
from unlearn_core.settings.run_config import RunConfig

pytestmark = pytest.mark.usefixtures("one_thread")


def raw_gradient(run, number: int) -> torch.Tensor:
    """What the optimizer would see in step `number`, after whatever the rail does before it."""
    torch.manual_seed(0)
    run.context.model.train()
    run.context.adapter.gradient.zero_()
    if run.update.rail:
        run.update.rail.refresh(number)
    assert not run.context.adapter.gradient.any(), "nothing is left over from the retain samples"
    run.update.gradient(run.config.method.loss(run.update.model, run.draws.batch(number), run.context.reference))
    return run.context.adapter.gradient.clone()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grad_ascent", "npo"])
def test_a_no_retain_gradient_is_left_in_the_forget_gradient(tiny, method):
    """The same step with a rail and without one sees the same raw gradient, to the bit; so does one started dirty."""
    settings = {"lora": {"dropout": 0.0}, "method": {"name": method, "retain_weight": 0.0}}
    railed, free = tiny.open(**settings), tiny.open(**settings, guard_rail={"kind": "none"})
    for number in (1, 2):
        expected = raw_gradient(free, number)
        assert torch.equal(raw_gradient(railed, number), expected)
        railed.context.adapter.gradient.fill_(7.0)
        assert expected.norm() > 0 and torch.equal(railed.context.adapter.gradient_of(
            railed.config.method.loss(railed.update.model, railed.draws.batch(number), railed.context.reference).forget
        ), expected)  # fmt: skip


def test_b_padding_is_never_trained_on(tiny):
    """A window gives the same gradient alone and beside a longer one, and losses of end marks in the text count."""
    run = tiny.open(lora={"dropout": 0.0})
    windows = sorted(run.context.windows.forget, key=len)
    short, long = windows[0], windows[-1]
    assert len(short) < len(long)

    def gradient(*rows) -> torch.Tensor:
        return run.context.adapter.gradient_of(
            nll(run.context.model, collate(rows, run.context.pad_id)).mean_per_token.sum()
        )

    torch.testing.assert_close(gradient(short, long), gradient(short) + gradient(long), rtol=1e-4, atol=1e-5)
    tokens = collate([short, long], run.context.pad_id)
    assert int((tokens.labels[0] != -100).sum()) == len(short) - short.first_loss
    assert not tokens.mask[0, len(short) :].any() and (tokens.labels[0, len(short) :] == -100).all()


def test_c_windows_move_by_tokens_not_from_one_punctuation_mark_to_the_next(tiny):
    run = tiny.open(data={"context_lines": 6})
    by_passage: dict[tuple[str, int], list[int]] = {}
    for window in run.context.windows.forget:
        by_passage.setdefault((window.text, window.ids[window.first_loss]), []).append(window.first_loss)
    contexts = [sorted(found, reverse=True) for found in by_passage.values()]
    assert max(map(len, contexts)) >= 4
    for found in contexts:
        assert all(earlier - later in range(9) for earlier, later in zip(found, found[1:], strict=False))


@pytest.mark.slow
def test_d_the_basis_is_renewed_in_each_of_the_first_three_steps(tiny):
    run = tiny.open(guard_rail={"every": 5}, lora={"dropout": 0.0})
    a_part = torch.cat([
        torch.full((p.numel(),), "lora_A" in name)
        for name, p in run.context.model.named_parameters() if p.requires_grad
    ])  # fmt: skip
    spaces = []
    for _ in range(8):
        run.step()
        spaces.append(run.update.rail.space)
    assert not spaces[0].rows[:, a_part].any(), "while B is zero, retain gradients say nothing about A"
    assert all(space.rows[:, a_part].any(dim=1).all() for space in spaces[1:3])
    fresh = [number for number, space in enumerate(spaces, 1) if number == 1 or space is not spaces[number - 2]]
    assert fresh == [1, 2, 3, 6]


@pytest.mark.slow
def test_e_retain_gradients_are_taken_in_the_same_mode_as_forget_gradients(tiny):
    for dropout, same in ((0.3, False), (0.0, True)):
        run = tiny.open(lora={"dropout": dropout})
        run.step()
        rows = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            run.update.rail.refresh(2)
            rows.append(run.update.rail.space.rows)
        assert run.context.model.training and torch.equal(*rows) is same


def test_f_the_applied_step_not_the_gradient_is_what_is_kept_off(tiny):
    """The default. `test_engine.py` proves it for every optimizer."""
    run = tiny.open(guard_rail={"apply_to": "update"})
    before = run.context.adapter.values.detach().clone()
    run.step()
    update = run.context.adapter.values.detach() - before
    assert (run.update.rail.space.rows @ update).abs().max() < 1e-5 * update.norm()


@pytest.mark.slow
def test_g_answers_are_given_without_dropout_and_the_mode_is_as_before(tiny):
    run = tiny.open(lora={"dropout": 0.5})
    for _ in range(3):
        run.step()
    for training in (True, False):
        run.context.model.train(training)
        said = [run.answers(["The cat", "What is zorblatt?"]) for _ in range(3)]
        assert run.context.model.training is training
        for again in said[1:]:
            assert [a.response.text for a in again] == [a.response.text for a in said[0]]
            assert [a.target_probability for a in again] == [a.target_probability for a in said[0]]


def test_h_an_answer_is_the_raw_continuation_and_its_length_does_not_count_the_question(tiny):
    run = tiny.open()
    for prompt in ("The cat", "The cat sees the old lamp and the teacher keeps the letter in the garden."):
        ids = torch.tensor([run.context.tokenizer(prompt)["input_ids"]])
        expected: list[int] = []
        with run.context.reference() as model:
            for _ in range(12):
                so_far = torch.cat([ids, torch.tensor([expected])], 1).long()
                expected.append(int(model(input_ids=so_far).logits[0, -1].argmax()))
                if expected[-1] == run.context.tokenizer.eos_token_id:
                    break
        said = answer(run.context.model, run.context.tokenizer, [prompt], 12)[0]
        kept = [token for token in expected if token != run.context.tokenizer.eos_token_id]
        assert said.text == run.context.tokenizer.decode(kept).removeprefix("\n") and said.tokens == len(kept)


@pytest.mark.slow
def test_i_as_many_retain_samples_are_read_as_the_settings_say(tiny):
    for rows, directions in (("group", 3), ("sample", 8)):
        run = tiny.open(guard_rail={"rows": rows, "groups": 3, "batches": 4, "batch_size": 2})
        asked = run.context.draw("rail", run.context.windows.retain, 1, 8)
        assert run.update.rail.refresh(1) == sum(map(len, asked)) and len(set(asked)) == 8
        assert run.update.rail.space.rows.shape == (directions, run.context.adapter.values.numel())


def test_i_a_group_stands_for_the_gradient_of_its_samples(tiny):
    run = tiny.open(lora={"dropout": 0.0}, guard_rail={"groups": 2, "batches": 3, "batch_size": 2})
    drawn = run.context.draw("rail", run.context.windows.retain, 1, 6)
    run.update.rail.refresh(1)
    for row, group in zip(run.update.rail.space.rows, (drawn[0::2], drawn[1::2]), strict=True):
        expected = run.context.adapter.gradient_of(
            nll(run.context.model, collate(group, run.context.pad_id)).token_mean
        )
        torch.testing.assert_close(row, expected / expected.norm(), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_j_a_run_can_be_repeated_left_and_taken_up_at_any_step_and_stopped(tiny, tmp_path):
    run = tiny.open()
    run.step()
    run.save(tmp_path / "one", whole=True)
    second = run.step()
    again = tiny.open()
    again.restore(tmp_path / "one")
    assert again.step().values["forget_loss"] == second.values["forget_loss"]
    collapsed = replace(second, values={**second.values, "forget_loss": 2 * again.guard.collapse_level})
    assert again.judge(collapsed.values).rule == "collapse"


def test_k_a_step_on_two_windows_is_the_mean_of_a_step_on_each(tiny):
    run = tiny.open(lora={"dropout": 0.0}, method={"name": "grad_ascent"})
    batch = run.draws.batch(1)

    def gradient(windows) -> torch.Tensor:
        part = type(batch)(collate(windows, run.context.pad_id), None, None)
        return run.context.adapter.gradient_of(
            run.config.method.loss(run.update.model, part, run.context.reference).forget
        )

    one, two = batch.forget.windows
    torch.testing.assert_close(gradient((one, two)), (gradient([one]) + gradient([two])) / 2, rtol=1e-4, atol=1e-5)
    assert run.context.adapter.values.dtype == run.context.adapter.gradient.dtype == torch.float32


# ------------------------------------------------------------- two of them can be put back, one by one, to learn from


def with_defects(tiny, **switches):
    """A run a few steps from its start, with these defects; and the same run without any, at the same numbers."""
    settings = {"lora": {"dropout": 0.0}, "guard_rail": {"groups": 3, "batches": 6, "batch_size": 1}}
    plain, odd = tiny.open(**settings), tiny.open(**settings, as_run=switches)
    for _ in range(4):
        plain.step()
    with torch.no_grad():
        odd.context.adapter.values.copy_(plain.context.adapter.values)
    return plain, odd


@pytest.mark.slow
@pytest.mark.parametrize(("number", "refreshes"), [(5, False), (6, False), (7, True), (8, False), (10, True)])
def test_a_put_back_adds_the_last_retain_sample_s_gradient_on_refresh_steps_and_nothing_on_others(
    tiny, number, refreshes
):
    plain, odd = with_defects(tiny, leftover_gradients=True)
    odd.update.rail.refresh(1)
    expected = raw_gradient(plain, number)
    last = plain.context.draw("rail", plain.context.windows.retain, number, 6)[-1]
    leftover = plain.context.adapter.gradient_of(
        nll(plain.context.model, collate([last], plain.context.pad_id)).token_mean
    )
    assert leftover.norm() > 0
    assert torch.equal(raw_gradient(odd, number), expected + leftover if refreshes else expected)


@pytest.mark.slow
def test_b_put_back_labels_and_attends_to_end_marks_behind_every_forget_window(tiny):
    plain, odd = with_defects(tiny, padding_trained=True)
    right, wrong = plain.draws.batch(5), odd.draws.batch(5)
    limit = min(odd.context.loaded.limit, odd.config.data.window_tokens)
    for row, window in enumerate(right.forget.windows):
        assert wrong.forget.windows[row].ids[: len(window)] == window.ids
        beyond = slice(len(window), limit)
        assert (wrong.forget.labels[row, beyond] == odd.context.tokenizer.eos_token_id).all()
        assert wrong.forget.mask[row].all() and wrong.forget.ids.shape[1] == limit
        assert torch.equal(wrong.forget.labels[row, : len(window)], right.forget.labels[row, : len(window)])
    assert any(len(window) < limit for window in right.forget.windows)
    losses = [
        run.config.method.loss(run.update.model, run.draws.batch(5), run.context.reference).forget
        for run in (plain, odd)
    ]
    assert not torch.isclose(*losses, rtol=1e-4)
    assert odd.context.windows.forget == plain.context.windows.forget and odd.baseline == plain.baseline, (
        "what is measured is not filled"
    )


@pytest.mark.slow
def test_with_neither_put_back_every_number_is_that_of_a_run_without_the_switches(tiny):
    runs = tiny.open(), tiny.open(as_run={"leftover_gradients": False, "padding_trained": False})
    for _ in range(5):
        one, other = (run.step() for run in runs)
        seconds = {"step_seconds": 0.0}
        assert {**one.values, **seconds} == {**other.values, **seconds}
    assert torch.equal(runs[0].context.adapter.values, runs[1].context.adapter.values)


def test_the_preset_that_puts_both_back_is_else_the_published_one():
    published, as_run = (RunConfig.from_dict({"preset": name}).to_dict() for name in ("post", "post_as_run"))
    assert as_run.pop("as_run") == {"leftover_gradients": True, "padding_trained": True}
    assert not any(published.pop("as_run").values())
    del published["preset"], as_run["preset"]
    assert published == as_run
