"""Checkpoints that are not what was saved: a resumed run falls back and says so, a probe and an unusable run refuse."""

from __future__ import annotations

import io
from pathlib import Path

from tests.scripted import ask, new_run, reaches, until, verdict


def damage(folder: Path, name: str = "adapter_model.safetensors") -> None:
    content = bytearray((folder / name).read_bytes())
    content[0] ^= 1
    (folder / name).write_bytes(content)


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_and_says_so(store, script, work):
    from terminal.progress import Follower

    run_id = new_run(store, steps=8, checkpoint_every=2)
    script.verdicts[6] = verdict()
    worker = work()
    reaches(store, run_id, "paused")
    worker.stop()
    rows = {row["step"]: row for row in store.checkpoints(run_id)}
    assert rows[4]["complete"] and rows[6]["complete"]
    damage(store.home / rows[6]["path"], "state.safetensors")
    out = io.StringIO()
    follower = Follower(store, run_id, out)
    script.stepped.clear()
    work()
    assert ask(store, run_id, "resume") is None
    reaches(store, run_id, "finished")
    follower.tick()
    assert [step for _, step in script.stepped] == [5, 6, 7, 8]
    events = [event for event in store.events(run_id) if event["kind"] in ("checkpoint_damaged", "resumed")]
    assert [event["kind"] for event in events] == ["checkpoint_damaged", "resumed"]
    told = events[0]["payload"]
    assert told["checkpoint"] == 6 and events[0]["step"] == 4 and events[1]["payload"] == {"from_step": 4}
    assert "step 6 is damaged" in told["sentence"] and "goes on from step 4." in told["sentence"]
    assert told["sentence"] in out.getvalue()
    assert sorted(set(store.points(run_id).step)) == list(range(9))


def test_a_run_whose_checkpoints_are_all_damaged_does_not_go_on_and_keeps_what_it_measured(store, script, work):
    run_id = new_run(store, steps=9, checkpoint_every=2)
    script.verdicts[5] = verdict()
    worker = work()
    reaches(store, run_id, "paused")
    worker.stop()
    before = store.points(run_id)
    rows = store.checkpoints(run_id)
    for row in rows:
        damage(store.home / row["path"])
    work()
    ask(store, run_id, "resume")
    run = reaches(store, run_id, "failed")
    assert "damaged" in run["status_reason"] and store.points(run_id).equals(before)
    assert store.events(run_id)[-1]["payload"]["code"] == "checkpoints_damaged"
    assert "damaged" in ask(store, run_id, "probe", steps=[5], text="Why?")
    assert [path.name for path in (store.home / "checkpoints" / run_id).iterdir() if path.suffix] == []
    until(lambda: store.run(run_id)["lease_owner"] is None)
