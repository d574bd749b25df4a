"""The worker with a scripted session and a real store: what is asked is done or refused, and no run has two drivers."""

from __future__ import annotations

import time

import pytest

from tests.scripted import WatchedStore, ask, at_step, kinds, new_run, reaches, until, verdict

# ---------------------------------------------------------------------------------------------- a run's life


def test_a_run_goes_through_its_life_in_order_and_the_baseline_comes_first(store, script, work):
    run_id = new_run(store)
    work()
    run = reaches(store, run_id, "finished")
    assert store.statuses[run_id] == ["loading", "baseline", "running", "finished"]
    assert kinds(store, run_id) == ["created", "loading", "loading", "baseline", "started", "finished"]
    assert [step for _, step in store.appended] == list(range(6)), "one transaction a step"
    assert store.first_points(run_id) == {"forget_loss": 1.0, "retain_loss": 2.0}
    assert run["provenance"] == {"device": "none"} and run["last_step"] == 5 and "5 steps" in run["status_reason"]
    answers = store.responses(run_id)
    assert list(answers.step) == [step for step in range(6) for _ in range(2)]
    assert answers.text[0] == "What is it? -> 0" and answers.text.iloc[-1] == "Who is she? -> 5"
    until(lambda: store.run(run_id)["lease_owner"] is None)


@pytest.mark.slow
def test_answers_are_taken_at_the_sampled_steps_and_at_the_last_with_an_adapter_each(store, work):
    run_id = new_run(store, steps=7, sample_every=3)
    work()
    reaches(store, run_id, "finished")
    assert sorted(set(store.responses(run_id).step)) == [0, 3, 6, 7]
    rows = {row["step"]: row for row in store.checkpoints(run_id)}
    assert sorted(rows) == [0, 3, 6, 7] and rows[0]["complete"] and rows[7]["complete"] and not rows[3]["complete"]
    for step, row in rows.items():
        folder = store.home / row["path"]
        assert (folder / "adapter_model.safetensors").read_text() == str(step)
        assert row["bytes"] == sum(path.stat().st_size for path in folder.iterdir()) and len(row["sha256"]) == 64


def test_a_run_is_steered_by_commands_that_are_acknowledged_and_done(store, script, work):
    run_id = new_run(store, steps=1000)
    work()
    at_step(store, run_id, 2)
    assert ask(store, run_id, "pause") is None
    run = reaches(store, run_id, "paused")
    step = run["last_step"]
    assert run["status_reason"] == "Paused by hand." and store.nearest_checkpoint(run_id, step)["complete"]
    assert ask(store, run_id, "pause") is None, "asking twice is no mistake"
    time.sleep(0.05)
    assert store.run(run_id)["last_step"] == step
    assert ask(store, run_id, "step") is None
    run = store.run(run_id)
    assert (run["status"], run["last_step"]) == ("paused", step + 1)
    assert len(store.responses(run_id, step=step + 1)) == 2
    assert store.nearest_checkpoint(run_id, step + 1)["complete"]
    assert store.commands(run_id)[-1]["step"] == step + 1, "where it took effect"
    assert ask(store, run_id, "set", set={"schedule.steps": 999}) is None
    assert store.commands(run_id)[-1]["step"] == step + 2, "the first step that is taken with it"
    assert store.run(run_id)["config"]["schedule"]["steps"] == 999
    assert "cannot change" in ask(store, run_id, "set", set={"lora.rank": 2})
    assert "names no settings" in ask(store, run_id, "set") and "a table" in ask(store, run_id, "set", set=[1])
    assert store.run(run_id)["config"]["schedule"]["steps"] == 999
    assert ask(store, run_id, "resume") is None
    at_step(store, run_id, step + 3)
    assert "pause it" in ask(store, run_id, "step")
    assert "not something a run can do" in ask(store, run_id, "dance")
    assert [row["code"] for row in store.commands(run_id)[-2:]] == ["running", "unknown_command"]
    assert ask(store, run_id, "stop") is None
    run = reaches(store, run_id, "stopped")
    assert str(run["last_step"]) in run["status_reason"]
    assert store.nearest_checkpoint(run_id, run["last_step"])["complete"]
    assert [k for k in kinds(store, run_id) if k in ("paused", "resumed", "stopped")] == [
        "paused", "paused", "resumed", "stopped",
    ]  # fmt: skip


@pytest.mark.slow
def test_what_a_run_cannot_do_any_more_is_refused_with_its_state(store, work):
    run_id = new_run(store, steps=1)
    work()
    reaches(store, run_id, "finished")
    for kind in ("pause", "resume", "step", "stop", "prompt", "dance"):
        sentence = ask(store, run_id, kind, text="x", role="free")
        assert "“run a” is finished" in sentence and kind in sentence and sentence.endswith(".")
    assert {row["code"] for row in store.commands(run_id)} == {"finished"}


@pytest.mark.slow
def test_a_pause_that_was_asked_for_while_it_loaded_comes_before_the_first_step(store, script, work):
    run_id = new_run(store)
    store.request(run_id, "pause")
    work()
    assert reaches(store, run_id, "paused")["last_step"] == 0
    assert script.stepped == [] and len(store.responses(run_id)) == 2


def test_a_guard_s_verdict_pauses_with_its_sentence_and_resuming_goes_on(store, script, work):
    script.verdicts[3] = verdict()
    run_id = new_run(store)
    work()
    run = reaches(store, run_id, "paused")
    assert (run["last_step"], run["status_reason"]) == (3, "Collapse: it repeats itself.")
    said = next(event for event in store.events(run_id) if event["kind"] == "guard")
    assert said["payload"] == {"rule": "collapse", "sentence": "Collapse: it repeats itself."} and said["step"] == 3
    assert store.nearest_checkpoint(run_id, 3)["complete"] and len(store.responses(run_id, step=3)) == 2
    assert ask(store, run_id, "resume") is None
    reaches(store, run_id, "finished")
    assert [step for _, step in script.stepped] == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_a_run_that_is_resumed_with_other_versions_says_so_and_one_with_the_same_does_not(store, script, work):
    def resumed(version: str) -> dict:
        """The payload of the event with which another process goes on with the run."""
        script.provenance = {"device": "none", "versions": {"torch": "2.13.0", "transformers": version}}
        worker = work()
        assert ask(store, run_id, "resume") is None
        until(lambda: kinds(store, run_id).count("resumed") > before)
        store.request(run_id, "pause")
        reaches(store, run_id, "paused")
        worker.stop()
        return [event["payload"] for event in store.events(run_id) if event["kind"] == "resumed"][before]

    script.provenance = {"device": "none", "versions": {"torch": "2.13.0", "transformers": "5.23.0"}}
    run_id, before = new_run(store, steps=100_000), 0
    worker = work()
    at_step(store, run_id, 2)
    store.request(run_id, "pause")
    reaches(store, run_id, "paused")
    worker.stop()
    assert "transformers 5.24.0 instead of 5.23.0: its numbers can differ" in resumed("5.24.0")["sentence"]
    before = 1
    assert "sentence" not in resumed("5.23.0")
    assert store.run(run_id)["provenance"]["versions"]["transformers"] == "5.23.0", "what it began with stays"


@pytest.mark.slow
def test_a_guard_that_speaks_in_the_last_step_is_noted_and_the_run_is_finished(store, script, work):
    script.verdicts[5] = verdict()
    run_id = new_run(store)
    work()
    reaches(store, run_id, "finished")
    assert "guard" in kinds(store, run_id)


@pytest.mark.slow
def test_a_step_that_was_not_taken_pauses_where_the_run_was_and_is_tried_again(store, script, work):
    script.verdicts[3], script.not_taken = verdict("not_finite", "The objective is not a number."), {3}
    run_id = new_run(store)
    work()
    run = reaches(store, run_id, "paused")
    assert (run["last_step"], run["status_reason"]) == (2, "The objective is not a number.")
    assert store.points(run_id).step.max() == 2
    script.not_taken = set()
    assert ask(store, run_id, "resume") is None
    reaches(store, run_id, "finished")
    assert sorted(set(store.points(run_id).step)) == list(range(6))


@pytest.mark.slow
def test_a_last_step_that_was_left_out_ends_the_run_all_the_same(store, script, work):
    """With its rule off, a step that is not finite is counted and not applied; the schedule ends at its end."""
    script.not_taken = {4, 5, 6, 7, 8}
    run_id = new_run(store)
    work()
    assert reaches(store, run_id, "finished")["last_step"] == 5
    assert script.stepped[-1] == ("a", 5)


# ---------------------------------------------------------------------------------------- more than one run


@pytest.mark.slow
def test_a_second_run_waits_for_the_first(store, script, work):
    first, second = new_run(store, "a", steps=30), new_run(store, "b")
    work()
    reaches(store, first, "running")
    assert store.run(second)["status"] == "queued"
    reaches(store, second, "finished")
    assert store.run(first)["status"] == "finished"
    labels = [label for label, _ in script.stepped]
    assert labels == ["a"] * 30 + ["b"] * 5


@pytest.mark.slow
def test_a_paused_run_is_set_aside_for_one_that_waits_and_comes_back_with_the_same_numbers(store, script, work):
    first = new_run(store, "a", steps=200)
    work()
    at_step(store, first, 3)
    ask(store, first, "pause")
    paused_at = reaches(store, first, "paused")["last_step"]
    second = new_run(store, "b", steps=6)
    reaches(store, second, "finished")
    run = store.run(first)
    assert run["status"] == "paused" and run["lease_owner"] is None and "set aside" in run["status_reason"]
    assert "paused; it cannot step" in ask(store, first, "step")
    store.request(first, "resume")
    at_step(store, first, paused_at + 3)
    assert [step for label, step in script.stepped if label == "a"][: paused_at + 3] == list(range(1, paused_at + 4))
    assert sorted(set(store.points(first).step))[: paused_at + 3] == list(range(paused_at + 3))
    assert [c["error"] for c in store.commands(first)] == [None, "“run a” is paused; it cannot step now.", None]


@pytest.mark.slow
def test_a_pause_by_hand_keeps_the_model_from_those_that_wait_already_and_a_guard_s_does_not(store, script, work):
    first, second = new_run(store, "a", steps=400), new_run(store, "b", steps=3)
    work()
    at_step(store, first, 2)
    ask(store, first, "pause")
    paused_at = reaches(store, first, "paused")["last_step"]
    time.sleep(0.1)
    assert ask(store, first, "step") is None, "it is still the one that is held"
    time.sleep(0.1)
    run = store.run(first)
    assert (run["status"], run["last_step"], store.run(second)["status"]) == ("paused", paused_at + 1, "queued")
    assert run["lease_owner"]
    assert ask(store, second, "resume") is None, "a person who waits may take it"
    reaches(store, second, "finished")
    assert "set aside" in store.run(first)["status_reason"] and store.run(first)["lease_owner"] is None
    script.verdicts[paused_at + 4] = verdict()
    store.request(first, "resume")
    at_step(store, first, paused_at + 2)
    third = new_run(store, "c", steps=3)
    reaches(store, third, "finished")
    assert store.run(first)["status"] == "paused" and store.run(first)["last_step"] == paused_at + 4


@pytest.mark.slow
def test_resuming_one_run_waits_until_the_running_one_is_done_or_it_is_asked_again_of_a_paused_one(store, script, work):
    first = new_run(store, "a", steps=400)
    work()
    at_step(store, first, 2)
    ask(store, first, "pause")
    second = new_run(store, "b", steps=400)
    at_step(store, second, 2)
    command = store.request(first, "resume")
    time.sleep(0.05)
    assert store.run(first)["status"] == "paused" and not store.commands(first)[-1]["done_at"]
    ask(store, second, "pause")
    time.sleep(0.1)
    assert store.run(first)["status"] == "paused" and store.run(second)["lease_owner"]
    store.request(first, "resume")
    reaches(store, first, "running")
    assert store.run(second)["status"] == "paused"
    assert until(lambda: next(c for c in store.commands(first) if c["id"] == command)["done_at"])


@pytest.mark.slow
def test_a_queued_run_can_be_stopped_before_it_begins(store, script, work):
    first, second = new_run(store, "a", steps=400), new_run(store, "b")
    work()
    at_step(store, first, 1)
    assert ask(store, second, "stop") is None and store.run(second)["status"] == "stopped"
    assert "cannot pause" in ask(store, second, "pause")
    ask(store, first, "stop")
    assert "is stopped; it cannot stop" in ask(store, first, "stop")
    time.sleep(0.05)
    assert script.opened == ["a"]
    store.request(second, "resume")
    reaches(store, second, "finished")


@pytest.mark.slow
def test_two_workers_never_drive_the_same_run(store, script, work, tmp_path):
    runs = [new_run(store, str(number), steps=12) for number in range(6)]
    other = WatchedStore(tmp_path)
    workers = [work(), work(other), work(), work(other)]
    for run_id in runs:
        reaches(store, run_id, "finished")
    assert script.most_at_once == 1 and sorted(script.opened) == sorted(map(str, range(6)))
    assert sorted(script.stepped) == sorted((str(n), step) for n in range(6) for step in range(1, 13))
    for worker in workers:
        worker.stop()
    other.close()


@pytest.mark.slow
def test_a_worker_whose_lease_was_taken_over_writes_nothing_more(store, script, work):
    run_id = new_run(store, steps=400)
    worker = work()
    at_step(store, run_id, 3)
    script.gate.clear()
    time.sleep(0.05)  # in the middle of a step, as on a machine that was put to sleep
    with store.write() as conn:
        conn.execute("UPDATE runs SET lease_owner = 'elsewhere:1:x', lease_until = ?", (time.time() + 60,))
    before = store.run(run_id)
    script.gate.set()
    time.sleep(0.2)
    after = store.run(run_id)
    assert (after["last_step"], after["status"]) == (before["last_step"], before["status"])
    assert after["lease_owner"] == "elsewhere:1:x" and worker.alive
    assert store.points(run_id).step.max() == before["last_step"]


@pytest.mark.slow
def test_a_slow_heartbeat_does_not_make_a_worker_give_up_a_run_it_has_just_taken(store, script, work):
    store.slow_heartbeat = 0.04
    work()
    for number in range(7):
        time.sleep(0.017)
        reaches(store, new_run(store, str(number), steps=1), "finished")
    assert [run["status"] for run in store.runs()] == 7 * ["finished"]


def test_a_command_for_a_run_that_another_process_drives_is_left_to_it(store, script, work):
    run_id = new_run(store)
    assert store.claim(run_id, "elsewhere:1:x", 60)
    store.set_status(run_id, "running")
    command = store.request(run_id, "pause")
    resumed = store.request(run_id, "resume")
    work()
    time.sleep(0.1)
    open_ones = [c for c in store.commands(run_id) if not c["acknowledged_at"]]
    assert [c["id"] for c in open_ones] == [command, resumed] and script.opened == []


@pytest.mark.slow
def test_a_paused_run_is_not_set_aside_for_one_that_another_process_holds(store, script, work):
    elsewhere = new_run(store, "b")
    assert store.claim(elsewhere, "elsewhere:1:x", 60)
    store.set_status(elsewhere, "paused")
    mine = new_run(store, "a", steps=400)
    work()
    at_step(store, mine, 1)
    ask(store, mine, "pause")
    store.request(elsewhere, "resume")
    time.sleep(0.1)
    assert store.run(mine)["lease_owner"] and "by hand" in store.run(mine)["status_reason"]


@pytest.mark.slow
def test_a_worker_for_one_run_drives_that_one_and_ends(store, script, work):
    other, mine = new_run(store, "b"), new_run(store, "a")
    worker = work(only=mine)
    worker.join(5)
    assert not worker.alive and store.run(mine)["status"] == "finished" and store.run(other)["status"] == "queued"
    late = new_run(store, "c")
    store.claim(late, "elsewhere:1:x", 60)
    worker = work(only=late)
    worker.join(5)
    assert not worker.alive and store.run(late)["status"] == "queued"
