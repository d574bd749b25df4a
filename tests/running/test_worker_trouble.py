"""The worker when things go wrong: closing, crashes, full disks, deleted files, half-done steps, odd questions."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.scripted import Session, ask, at_step, kinds, new_run, reaches, until, verdict
from unlearn_core.running import worker

pytestmark = pytest.mark.slow


def steps_of(script, label: str = "a") -> list[int]:
    return [step for name, step in script.stepped if name == label]


def folder_of(store, run_id: str, step: int) -> Path:
    return store.home / "checkpoints" / run_id / f"step-{step:06d}"


# ------------------------------------------------------------------------------------------ closing and crashing


def test_closing_saves_the_run_whole_and_resuming_goes_on_from_there(store, script, work):
    run_id = new_run(store, steps=300)
    worker = work()
    at_step(store, run_id, 3)
    worker.stop()
    worker.stop()
    run = store.run(run_id)
    assert (run["status"], run["lease_owner"], worker.alive) == ("interrupted", None, False)
    assert "Resume" in run["status_reason"] and kinds(store, run_id)[-1] == "interrupted"
    left_at = run["last_step"]
    assert store.nearest_checkpoint(run_id, left_at)["complete"] and folder_of(store, run_id, left_at).is_dir()
    work()
    time.sleep(0.05)
    assert store.run(run_id)["status"] == "interrupted", "nobody asked for it to go on"
    assert ask(store, run_id, "resume") is None
    at_step(store, run_id, left_at + 2)
    assert steps_of(script)[: left_at + 2] == list(range(1, left_at + 3))
    resumed = next(event for event in store.events(run_id) if event["kind"] == "resumed")
    assert resumed["payload"] == {"from_step": left_at}


def test_a_paused_run_stays_paused_when_the_worker_ends(store, work):
    run_id = new_run(store, steps=300)
    worker = work()
    at_step(store, run_id, 1)
    ask(store, run_id, "pause")
    worker.stop()
    assert store.run(run_id)["status"] == "paused" and store.run(run_id)["lease_owner"] is None
    work()
    assert ask(store, run_id, "resume") is None
    reaches(store, run_id, "running")


def test_a_run_whose_process_died_is_interrupted_and_goes_on_from_its_last_whole_state(store, script, work):
    run_id = new_run(store, steps=9, checkpoint_every=3)
    script.verdicts[7] = verdict()
    worker = work()
    reaches(store, run_id, "paused")
    worker.stop()
    newest = store.nearest_checkpoint(run_id, 7)
    store.shrink_checkpoint(newest["id"])  # as if it had died in step 8: the last whole state is that of step 6
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    store.claim(run_id, f"{socket.gethostname()}:{dead.pid}:x", 60)
    store.set_status(run_id, "running")
    script.stepped.clear()
    work()
    run = reaches(store, run_id, "interrupted")
    assert "gone" in run["status_reason"] and "step 7" in run["status_reason"]
    assert ask(store, run_id, "resume") is None
    reaches(store, run_id, "finished")
    assert steps_of(script) == [7, 8, 9] and sorted(set(store.points(run_id).step)) == list(range(10))
    assert len(store.responses(run_id)) == 20
    assert all((store.home / row["path"]).is_dir() for row in store.checkpoints(run_id))


def test_a_command_that_a_dead_program_had_begun_is_answered(store, script, work):
    run_id = new_run(store, steps=2)
    command = store.request(run_id, "pause")
    store.acknowledge(command)
    work()
    reaches(store, run_id, "finished")
    command = store.commands(run_id)[0]
    assert "ended before it was done" in command["error"] and command["code"] == "driver_gone"


@pytest.mark.parametrize(("kind", "payload"), [("ask", {"prompts": ["Who?"]}), ("windows", {"config": {}})])
def test_a_question_that_a_dead_program_had_begun_is_answered_and_one_that_a_live_one_does_is_left_to_it(
    store, work, kind, payload, monkeypatch
):
    monkeypatch.setattr(worker, "HEARTBEAT_SECONDS", 0.02)
    left, being_done = store.request(None, kind, payload), store.request(None, kind, payload)
    dead = subprocess.run([sys.executable, "-c", "from storage import drivers; print(drivers.new_owner())"],
                          cwd=ROOT, capture_output=True, text=True, check=True)  # fmt: skip
    assert store.acknowledge(left, dead.stdout.strip()) and store.acknowledge(being_done, store.new_owner())
    work()
    closed, waiting = until(lambda: (both := store.commands(None))[0]["done_at"] and both)
    assert closed["id"] == left and "ended before it was done" in closed["error"] and closed["code"] == "driver_gone"
    assert waiting["done_at"] is None
    store.finish(being_done)


# ---------------------------------------------------------------------------------------------- things that fail


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (RuntimeError("out of memory"), "internal", "Internal error (RuntimeError: out of memory); {log}"),
        (ValueError("The corpus is gone; put it back."), "invalid", "The corpus is gone; put it back."),
        (KeyError("x"), "internal", "Internal error (KeyError: 'x'); {log}"),
        (AssertionError(), "internal", "Internal error (AssertionError); {log}"),
    ],
)
def test_a_step_that_fails_ends_the_run_with_a_sentence_and_the_worker_lives_on(
    store, script, work, error, code, sentence
):
    sentence = sentence.format(log=f"the traceback is in {store.home / 'lethe.log'}.")
    script.errors[3] = error
    first, second = new_run(store, "a", checkpoint_every=2), new_run(store, "b")
    worker = work()
    run = reaches(store, first, "failed")
    assert run["status_reason"] == sentence and run["last_step"] == 2
    assert store.events(first)[-1]["payload"] == {"sentence": sentence, "code": code}
    reaches(store, second, "finished")
    until(lambda: store.run(first)["lease_owner"] is None)
    assert worker.alive and ask(store, first, "resume") is None
    reaches(store, first, "finished")
    assert steps_of(script) == [1, 2, 3, 4, 5]


def test_a_single_step_that_fails_half_way_ends_the_run_and_leaves_no_hole(store, script, work):
    """The model may have moved although the store has not: going on from there would skip a step."""
    run_id = new_run(store, steps=9)
    work()
    at_step(store, run_id, 1)
    ask(store, run_id, "pause")
    step = store.run(run_id)["last_step"]
    plain, broken = store.append_step, iter([True])

    def append_step(*given, **more):
        if more["points"] and next(broken, False):
            raise RuntimeError("the write was cut off")
        plain(*given, **more)

    store.append_step = append_step
    assert "the write was cut off" in ask(store, run_id, "step")
    assert "the write was cut off" in reaches(store, run_id, "failed")["status_reason"]
    assert ask(store, run_id, "resume") is None
    reaches(store, run_id, "finished")
    assert sorted(set(store.points(run_id).step)) == list(range(10)) and steps_of(script).count(step + 1) == 2


def test_a_model_that_cannot_be_opened_is_a_failed_run_with_the_reason(store, script, work):
    script.open_error = ValueError("model.source is 'nowhere'; there is no folder of that name.")
    run_id = new_run(store)
    work()
    assert reaches(store, run_id, "failed")["status_reason"].startswith("model.source is 'nowhere'")
    script.open_error = None
    assert ask(store, run_id, "resume") is None, "it had not begun: it begins"
    reaches(store, run_id, "finished")
    assert sorted(set(store.points(run_id).step)) == list(range(6))


def test_a_full_disk_ends_the_run_visibly_and_what_was_saved_goes_on_later(store, script, work):
    script.gate.clear()
    run_id = new_run(store, steps=20, checkpoint_every=2)
    worker = work()
    script.gate.set()
    at_step(store, run_id, 5)
    store.full = True
    time.sleep(0.2)
    frozen = store.run(run_id)["last_step"]
    assert worker.alive and store.points(run_id).step.max() == frozen
    store.full = False
    run = reaches(store, run_id, "failed")
    assert "disk" in run["status_reason"] and "full" in run["status_reason"] and run["last_step"] == frozen
    assert ask(store, run_id, "resume") is None
    reaches(store, run_id, "finished")
    assert sorted(set(store.points(run_id).step)) == list(range(21))


def test_an_idle_worker_outlives_a_full_disk(store, work):
    store.full = True
    worker = work()
    time.sleep(0.1)
    store.full = False
    reaches(store, new_run(store), "finished")
    assert worker.alive


# ---------------------------------------------------------------------------------------------- deleted checkpoints


def test_a_deleted_checkpoint_is_refused_with_a_sentence_and_the_run_goes_on(store, work):
    run_id = new_run(store, steps=3)
    work()
    reaches(store, run_id, "finished")
    shutil.rmtree(folder_of(store, run_id, 2))
    assert "step-000002 is not there any more" in ask(store, run_id, "probe", steps=[2], text="Again?")
    assert len(store.responses(run_id)) == 8 and len(store.prompts(run_id)) == 2
    assert ask(store, run_id, "probe", steps=[3], text="Again?") is None


def test_a_run_goes_on_from_the_newest_whole_state_that_is_still_on_the_disk(store, script, work):
    run_id = new_run(store, steps=400, checkpoint_every=2)
    worker = work()
    at_step(store, run_id, 6)
    ask(store, run_id, "stop")
    run = reaches(store, run_id, "stopped")
    whole = [row for row in store.checkpoints(run_id) if row["complete"]]
    assert len(whole) == 2
    shutil.rmtree(store.home / whole[-1]["path"])
    assert ask(store, run_id, "resume") is None
    resumed = until(lambda: [event for event in store.events(run_id) if event["kind"] == "resumed"])
    assert resumed[0]["payload"] == {"from_step": whole[0]["step"]} and whole[0]["step"] < run["last_step"]
    at_step(store, run_id, run["last_step"] + 1)
    worker.stop()
    shutil.rmtree(store.home / "checkpoints" / run_id)
    work()
    ask(store, run_id, "resume")
    gone = reaches(store, run_id, "failed")
    assert "checkpoints were deleted" in gone["status_reason"] and gone["last_step"] > 2
    assert store.events(run_id)[-1]["payload"]["code"] == "checkpoints_deleted"


def test_only_the_newest_whole_states_are_kept_and_those_that_were_pinned(store, script, work):
    run_id = new_run(store, steps=12, checkpoint_every=2)
    script.verdicts[4] = verdict()
    worker = work()
    reaches(store, run_id, "paused")
    with store.write() as conn:
        conn.execute("UPDATE checkpoints SET pinned = 1 WHERE run_id = ? AND step = 4", (run_id,))
    ask(store, run_id, "resume")
    reaches(store, run_id, "finished")
    worker.stop()
    assert [row["step"] for row in store.checkpoints(run_id) if row["complete"]] == [4, 10, 12]
    for row in store.checkpoints(run_id):
        assert (store.home / row["path"] / "state.json").is_file() is row["complete"]
        assert (store.home / row["path"] / "state.safetensors").is_file() is row["complete"]
        assert (store.home / row["path"] / "adapter_model.safetensors").is_file()
    assert len(store.checkpoints(run_id)) == 13 and not list((store.home / "checkpoints" / run_id).glob("*.part"))


# ---------------------------------------------------------------------------------------------- questions


def test_an_edited_prompt_keeps_the_old_answers_with_the_old_wording(store, work):
    run_id = new_run(store, steps=600)
    work()
    at_step(store, run_id, 3)
    assert ask(store, run_id, "prompt", slot=0, role="forget", text="  What was it?  ") is None
    old, new = (prompt for prompt in store.prompts(run_id) if prompt["slot"] == 0)
    assert (new["text"], new["version"], new["from_step"]) == ("What was it?", 2, old["to_step"])
    at_step(store, run_id, new["from_step"] + 2)
    ask(store, run_id, "pause")
    answers = store.responses(run_id)
    for row in answers[answers.slot == 0].itertuples():
        assert row.text.startswith("What was it?" if row.prompt_id == new["id"] else "What is it?")
        assert row.prompt == row.text.split(" -> ")[0]
    asked = {prompt["id"]: set(answers[answers.prompt_id == prompt["id"]].step) for prompt in (old, new)}
    assert asked[old["id"]] == set(range(new["from_step"] + 1))
    assert asked[new["id"]] == {0, *range(new["from_step"], store.run(run_id)["last_step"] + 1)}
    assert ask(store, run_id, "prompt", slot=None, role="free", text="And why?") is None
    assert [p["slot"] for p in store.prompts(run_id, at_step=store.run(run_id)["last_step"])] == [0, 1, 2]


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ({"slot": 0, "role": "forget", "text": "  "}, "empty"),
        ({"slot": 0, "role": "forget", "text": "a" * 50_000}, "too many characters"),
        ({"slot": 7, "role": "forget", "text": "Why?"}, "no question in slot 7"),
        ({"slot": 0, "role": "keep", "text": "Why?"}, "one of the roles"),
        ({"slot": 0}, "empty"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused_and_nothing_changes(store, work, payload, words):
    run_id = new_run(store, steps=100_000)
    work()
    at_step(store, run_id, 1)
    ask(store, run_id, "pause")
    before = store.prompts(run_id), len(store.responses(run_id))
    assert words in ask(store, run_id, "prompt", **payload)
    assert (store.prompts(run_id), len(store.responses(run_id))) == before
    assert store.run(run_id)["status"] == "paused"


@pytest.mark.parametrize("state", ["paused", "set aside", "finished"])
def test_a_probe_is_answered_by_the_adapter_of_the_nearest_checkpoint_whatever_the_run_does(store, script, work, state):
    run_id = new_run(store, steps=7 if state == "finished" else 500, sample_every=3)
    script.verdicts[7] = verdict()
    work()
    reaches(store, run_id, "finished" if state == "finished" else "paused")
    if state == "set aside":
        other = new_run(store, "b", steps=100_000)
        at_step(store, other, 1)
    assert ask(store, run_id, "probe", steps=[1, 4, 5, 7], text=" Why? ") is None
    rows = store.responses(run_id)
    rows = rows[rows.prompt == "Why?"]
    assert dict(zip(rows.step, rows.text, strict=True)) == {
        step: f"Why? -> adapter {step}" for step in (0, 3, 7)
    }  # fmt: skip
    told = next(event["payload"] for event in store.events(run_id) if event["kind"] == "probed")
    assert (told["steps"], told["checkpoint_steps"]) == ([1, 4, 5, 7], [0, 3, 3, 7])
    assert ask(store, run_id, "probe", steps=[3], text="Why?") is None
    assert len([p for p in store.prompts(run_id) if p["text"] == "Why?"]) == 1
    assert all(p["text"] != "Why?" for p in store.prompts(run_id, at_step=7)), "a probe never becomes a prompt"
    assert "empty" in ask(store, run_id, "probe", steps=[3], text=" ")


def test_a_probe_of_a_run_that_has_not_begun_is_refused(store, script, work):
    first, second = new_run(store, "a", steps=100_000), new_run(store, "b")
    work()
    at_step(store, first, 1)
    assert "no checkpoint near step 3" in ask(store, second, "probe", steps=[3], text="Why?")


def test_the_bundled_model_answers_before_any_run_and_beside_one(store, script, work):
    work()
    assert ask(store, None, "ask", prompts=["Hello?", "Who?"]) is None
    run_id = new_run(store, steps=100_000)
    at_step(store, run_id, 1)
    assert ask(store, None, "ask", prompts=["Again?"]) is None
    with store.read() as conn:
        said = [row[0] for row in conn.execute("SELECT payload FROM events WHERE run_id IS NULL ORDER BY id")]
    assert "Hello? -> before" in said[0] and "Who? -> before" in said[0] and "Again? -> before" in said[1]
    assert script.opened == ["", "a"], "the model that is there anyway is asked"
    assert store.run(run_id)["status"] == "running"


def test_a_run_with_a_model_of_its_own_does_not_answer_for_the_bundled_one(store, script, work, monkeypatch):
    monkeypatch.setattr(Session, "same_base_model", lambda self, method: bool(method))
    work()
    run_id = new_run(store, steps=100_000)
    at_step(store, run_id, 1)
    assert ask(store, None, "ask", prompts=["Again?"]) is None
    assert script.opened == ["a", ""], "the bundled model is opened for it"


def test_a_run_whose_questions_are_put_otherwise_is_asked_by_a_session_of_its_own(store, script, work):
    """Another target on the same texts is asked alike; another template, or other texts, is not."""
    work()
    run_id = new_run(store, steps=100_000)
    at_step(store, run_id, 1)
    config = store.run(run_id)["config"]
    own = config.get("data", {})
    assert ask(store, None, "ask", prompts=["Who?"], config={**config, "data": {**own, "target": "another"}}) is None
    assert script.opened == ["a"]
    for other in ({"pair_template": "Q: {question} A: {answer}"}, {"forget": ["pairs.jsonl"]}):
        assert ask(store, None, "ask", prompts=["Who?"], config={**config, "data": {**own, **other}}) is None
    assert script.opened == ["a", "a", "a"]


# ------------------------------------------------------------------------------- leaving a run that is being loaded


def slow_to_load(script):
    """An opener that reads a corpus without end, as one of many gigabytes seems to be."""

    def read(config, report):
        for read in range(10_000):
            report("reading the corpus", f"{read} of 10,000 MB")
            time.sleep(0.005)

    script.open = read


def test_a_run_can_be_stopped_while_its_corpus_is_read_and_each_stage_is_one_event(store, script, work):
    slow_to_load(script)
    run_id = new_run(store)
    work()
    until(lambda: "of 10,000 MB" in (store.run(run_id)["status_reason"] or ""))
    assert ask(store, run_id, "stop") is None
    assert reaches(store, run_id, "stopped")["lease_owner"] is None
    assert kinds(store, run_id) == ["created", "loading", "loading", "stopped"]


def test_closing_does_not_wait_for_a_corpus(store, script, work):
    slow_to_load(script)
    run_id = new_run(store)
    worker = work()
    until(lambda: "of 10,000 MB" in (store.run(run_id)["status_reason"] or ""))
    worker.stop()
    assert not worker.alive
    assert store.run(run_id)["status"] == "interrupted" and "closed" in store.run(run_id)["status_reason"]
