"""The command line, as a person or a script uses it: real processes on a tiny model, killed and resumed."""

from __future__ import annotations

import base64
import io
import json
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import tomllib
import warnings
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import tomli_w

import cli as entry
from bench import Measure, Skipped, app, corpus, engine, machine
from storage import RunStore
from terminal.text import change, marked, plain
from tests.scripted import Script, Session, StepRecord, Verdict
from unlearn_core.corpus.preview import ESTIMATED
from unlearn_core.methods import METHODS
from unlearn_core.running.worker import Worker
from unlearn_core.settings.run_config import RunConfig
from unlearn_core.world import FULL

ROOT = Path(__file__).parents[2]
PATIENCE = 90.0
BUNDLED = pytest.mark.skipif(not (FULL / "config.json").is_file(), reason="the bundled models are not built")


def cli(*args: Any) -> subprocess.CompletedProcess[str]:
    """What `cli.py` does with these arguments; in this process, since each other one imports PyTorch anew."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with pytest.MonkeyPatch.context() as patched, warnings.catch_warnings():
        for name, value in {"argv": ["cli.py", *map(str, args)], "stdout": out, "stderr": err}.items():
            patched.setattr(sys, name, value)
        try:
            code = entry.main()
        except SystemExit as left:  # argparse
            code = int(left.code or 0)
    told, said = (stream.buffer.getvalue().decode() for stream in (out, err) if not stream.flush())
    return subprocess.CompletedProcess(args, code, told, said)


def process(*args: Any, **more: Any) -> subprocess.CompletedProcess[str]:
    """The same as a process of its own."""
    command = [sys.executable, str(ROOT / "cli.py"), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, **more)


@contextmanager
def started(*args: Any, held_at: int | None = None) -> Iterator[subprocess.Popen[str]]:
    """A `cli.py` that runs beside the test, and is gone after it; its run waits at step `held_at` to be ended.

    It hears Ctrl-C even where the tests run in the background of a shell, whose children ignore it.
    """
    program = ["cli.py"] if held_at is None else ["tests/held.py", held_at]
    command = [sys.executable, str(ROOT / program[0]), *map(str, [*program[1:], *args])]
    pipe, hears = subprocess.PIPE, partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, preexec_fn=hears) as process:
        try:
            yield process
        finally:
            process.kill()


def wait(condition: Any) -> Any:
    """The condition's first true value."""
    patience = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < patience, "it never came"
        time.sleep(0.02)
    return found


def reach(home: Path, step: int) -> dict[str, Any]:
    """The home's one run, once it has got to `step`."""
    wait((home / "lethe.db").exists)
    store = RunStore(home)
    try:
        return wait(lambda: next((run for run in store.runs() if run["last_step"] >= step), None))
    finally:
        store.close()


def measured(home: Path, run_id: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every number and every answer of a run, but for how long they took."""
    store = RunStore(home)
    points, said = store.points(run_id), store.responses(run_id)
    store.close()
    columns = ["step", "slot", "version", "role", "prompt", "sample", "text", "tokens", "target_probability"]
    return points[points.name != "step_seconds"].reset_index(drop=True), said[columns]


def same(one: tuple[pd.DataFrame, pd.DataFrame], other: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    """To the last bit."""
    for mine, its in zip(one, other, strict=True):
        pd.testing.assert_frame_equal(mine, its, check_exact=True)


def one_sentence(done: subprocess.CompletedProcess[str], code: int = 2) -> str:
    """What stands on stderr, having looked that it is a sentence, alone, and no traceback."""
    said = done.stderr.strip()
    assert done.returncode == code, said
    assert done.stdout == ""
    assert said and "\n" not in said and "Traceback" not in said and said.endswith((".", "?", "]"))
    return said


@pytest.fixture(scope="module")
def run_file(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps on the tiny world, which no guard pauses."""
    guard = {"retain_budget": 0.0, "forgotten_enough": False, "collapse": False}
    settings = tiny.settings(schedule={"steps": 24, "checkpoint_every": 5}, guard=guard)
    path = tmp_path_factory.mktemp("files") / "run.toml"
    path.write_text(tomli_w.dumps({"name": "tiny", **settings}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(run_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A home with one uninterrupted run, and what `run --json` said of it."""
    home = tmp_path_factory.mktemp("finished")
    done = cli("run", run_file, "--home", home, "--json")
    assert done.returncode == 0, done.stderr
    return home, json.loads(done.stdout)


# ------------------------------------------------------------------------------------------------------ looking


def test_a_run_goes_to_its_end_and_says_what_it_did(finished: tuple[Path, dict[str, Any]]) -> None:
    _, facts = finished
    assert (facts["status"], facts["step"], facts["steps"], facts["name"]) == ("finished", 24, 24, "tiny")
    assert facts["points"]["forget_loss"] > facts["baseline"]["forget_loss"]


def test_runs_and_show_tell_the_state_and_the_numbers_against_the_baseline(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    home, facts = finished
    told = cli("runs", "--home", home).stdout
    moved = change("forget_loss", facts["points"]["forget_loss"], facts["baseline"]["forget_loss"])
    assert all(word in told for word in (facts["id"], "tiny", "finished", "24/24", moved))
    assert json.loads(cli("runs", "--home", home, "--json").stdout) == [facts]
    assert "What is zorblatt?" in cli("show", facts["id"][:5], "--home", home).stdout
    shown = json.loads(cli("show", "tiny", "--home", home, "--json").stdout)
    assert {**shown, **facts} == shown
    assert [entry["prompt"] for entry in shown["answers"]] == ["What is zorblatt?", "The cat"]
    assert any(row["complete"] for row in shown["checkpoints"])


def test_compare_marks_the_words_that_differ_between_two_steps(finished: tuple[Path, dict[str, Any]]) -> None:
    home, facts = finished
    told = cli("compare", f"{facts['id']}@0", "tiny", "--home", home)
    assert told.returncode == 0
    found = json.loads(cli("compare", "tiny@0", "tiny@24", "--home", home, "--json").stdout)
    assert (found["a"]["step"], found["b"]["step"]) == (0, 24)
    changed = [row for row in found["prompts"] if row["a"] != row["b"]]
    assert changed, "steps of this size change the answers"
    for row in changed:
        assert "".join(words for kind, words in row["changes"] if kind != "ins") == row["a"]
        assert "".join(words for kind, words in row["changes"] if kind != "del") == row["b"]
    assert "{+" in told.stdout and "[-" in told.stdout


def copied(finished: tuple[Path, dict[str, Any]], home: Path) -> RunStore:
    """The finished run in a store of its own, to be changed."""
    shutil.copy(finished[0] / "lethe.db", home)
    return RunStore(home)


def test_show_names_the_slots_that_prompt_takes_also_after_one_question_was_edited(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    run_id, store = finished[1]["id"], copied(finished, tmp_path)
    new = store.edit_prompt(run_id, 1, "retain", "Who is it?", 24)  # answered alone, as between two samples
    store.add_responses(run_id, [{"step": step, "prompt_id": new, "text": f"at {step}"} for step in (0, 24)])
    probed = store.add_probe(run_id, "A probe?")
    store.add_responses(run_id, [{"step": 24, "prompt_id": probed, "text": "probed"}])
    store.close()
    told = cli("show", "tiny", "--home", tmp_path).stdout
    asked = json.loads(cli("show", "tiny", "--home", tmp_path, "--json").stdout)["answers"]
    slots = {entry["slot"]: entry["prompt"] for entry in asked if entry["slot"] is not None}
    assert slots == {0: "What is zorblatt?", 1: "Who is it?"}, "every question that is asked, and no older wording"
    assert [entry["prompt"] for entry in asked if entry["slot"] is None] == ["A probe?"]
    assert all(f"slot {slot}  " in told for slot in slots)
    assert next(entry for entry in asked if entry["slot"] == 1)["before"] == "at 0"
    refused = one_sentence(cli("prompt", "tiny", "--slot", 9, "--text", "Hello?", "--home", tmp_path))
    assert f"slots {', '.join(map(str, slots))}" in refused, "the slots of `show` are those that `prompt` takes"


def test_a_name_with_an_at_is_a_name_and_never_taken_for_a_step(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    run_id, store = finished[1]["id"], copied(finished, tmp_path)
    store.rename(run_id, "npo@1")
    both = cli("compare", "npo@1@0", "npo@1", "--home", tmp_path, "--json")
    found = json.loads(both.stdout)
    assert (found["a"]["step"], found["b"]["step"]) == (0, 24)
    config = (store.run(run_id) or {})["config"]
    other = store.create_run(name="npo", target="w", method="npo", config=config, provenance={}, seed=0, prompts=[])
    store.close()
    refused = one_sentence(cli("compare", "npo@1", "npo@1@24", "--home", tmp_path))
    assert f"{run_id} for" in refused and f"{other}@1 for step 1" in refused


def test_a_run_is_renamed_and_deleted_only_when_that_is_said_twice(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    run_id, store = finished[1]["id"], copied(finished, tmp_path)
    assert "is now “a better name”" in cli("rename", "tiny", " a better name ", "--home", tmp_path).stdout
    assert (store.run(run_id) or {})["name"] == "a better name"
    assert "at least one letter" in one_sentence(cli("rename", run_id, "  ", "--home", tmp_path))
    assert store.claim(run_id, "elsewhere:1:x", 60)
    assert "stop it" in one_sentence(cli("delete", run_id, "--yes", "--home", tmp_path))
    store.release(run_id, "elsewhere:1:x")
    kept = one_sentence(cli("delete", run_id, "--home", tmp_path))
    assert "24 steps" in kept and "--yes" in kept and store.run(run_id)
    done = cli("delete", run_id, "--yes", "--home", tmp_path, "--json")
    assert json.loads(done.stdout) == {"id": run_id, "name": "a better name", "deleted": True}
    assert store.runs() == []
    store.close()


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert cli("--version").stdout.strip() == f"Lethe {project['version']}"


def test_export_writes_files_that_other_programs_read(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    home, facts = finished
    paths = json.loads(cli("export", "tiny", "--to", tmp_path / "out", "--home", home, "--json").stdout)
    assert [Path(path).name for path in paths] == ["points.csv", "responses.csv", "run.json", "adapter"]
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    points = pd.read_csv(tmp_path / "out" / "points.csv", dtype=str)  # pandas rounds the last bit of a number it reads
    assert float(points.forget_loss.iloc[-1]) == facts["points"]["forget_loss"]


def windows_of(run_file: Path, home: Path, *settings: str, as_json: bool = True) -> Namespace:
    return Namespace(file=run_file, set=list(settings), json=as_json, home=str(home))


@pytest.mark.slow
def test_windows_shows_what_would_be_forgotten_and_where_its_trained_part_begins(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Here and not in a process of its own: that would import PyTorch once more.
    assert entry.windows(windows_of(run_file, tmp_path)) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    forget = [window for window in found["windows"] if window["set"] == "forget"]
    assert found["occurrences"] == len(found["found"]) == 8
    assert found["sets"]["forget"]["windows"] == len(forget)
    assert all(window["trained"].strip().lower().startswith("zorblatt") for window in forget)
    assert found["sets"]["forget"]["trained_tokens"] == sum(window["trained_tokens"] for window in forget)
    assert entry.windows(windows_of(run_file, tmp_path, as_json=False)) == 0
    told = capsys.readouterr().out
    first = told[told.index("FORGET") : told.index("RETAIN")].lower()
    assert first.count("[zorblatt") == len(forget) and "\x1b" not in told, "marked without any colour"
    assert "”" in told and "stands 8 times" in told and "The tokenizer cuts it into" in told


def test_the_time_of_a_step_is_that_which_data_says_measured_where_a_run_costs_the_same(
    finished: tuple[Path, dict[str, Any]], run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, facts = finished
    entry.windows(windows_of(run_file, home))
    told = json.loads(capsys.readouterr().out)
    store = RunStore(home)
    measured = store.step_seconds_like((store.run(facts["id"]) or {})["config"])  # which Data asks as well
    assert (told["step_seconds"], told["step_seconds_from"]) == measured
    store.close()
    entry.windows(windows_of(run_file, tmp_path))
    assert json.loads(capsys.readouterr().out)["step_seconds_from"] == ESTIMATED


def test_windows_leaves_out_what_is_excluded_and_says_so(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry.windows(windows_of(run_file, tmp_path))
    before = json.loads(capsys.readouterr().out)
    gone = before["found"][0]["id"]
    entry.windows(windows_of(run_file, tmp_path, f'data.excluded=["{gone}"]'))
    after = json.loads(capsys.readouterr().out)
    assert [each["id"] for each in after["found"] if each["excluded"]] == [gone]
    assert after["sets"]["forget"]["windows"] < before["sets"]["forget"]["windows"]
    entry.windows(windows_of(run_file, tmp_path, f'data.excluded=["{gone}"]', as_json=False))
    assert f"Excluded by hand: {gone}" in capsys.readouterr().out


def test_a_windows_that_is_interrupted_ends_softly_and_leaves_nothing_half_written(
    run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(self: Any, told: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("terminal.progress.Reading.tell", interrupted)
        patched.setattr(sys, "argv", ["cli.py", "windows", str(run_file), "--home", str(tmp_path)])
        assert entry.main() == 130
    out, err = capsys.readouterr()
    assert out == "" and err.strip() == "Stopped; nothing was changed."
    assert entry.windows(windows_of(run_file, tmp_path)) == 0
    assert json.loads(capsys.readouterr().out)["cached"] is False


def test_reading_tells_bytes_hits_and_the_time_left() -> None:
    from io import StringIO

    from terminal.progress import Reading

    stream = StringIO()
    told = {"bytes_read": 412_000_000, "bytes_total": 5_000_000_000, "hits": 1234, "seconds": 4.0, "seconds_left": 65.0}
    Reading(stream).tell(SimpleNamespace(**told, stage="", detail=""))
    assert stream.getvalue() == "412 MB of 5.00 GB read  found 1,234 times  1 min 5 s left\n"
    unknown = StringIO()
    Reading(unknown).tell(SimpleNamespace(**{**told, "bytes_total": 0, "seconds_left": None}, stage="", detail=""))
    assert unknown.getvalue() == "412 MB read  found 1,234 times\n"


def test_methods_lists_every_method_with_its_caption_and_its_knobs() -> None:
    told, listed = cli("methods").stdout, json.loads(cli("methods", "--json").stdout)
    assert [method["name"] for method in listed] == list(METHODS)
    for method in listed:
        assert method["caption"] in told
        assert all(f"method.{knob['name']} = {knob['default']}" in told for knob in method["knobs"])
        assert all(method[fact] in told for fact in ("label", "formula", "passes", "data", "memory", "fails"))


@pytest.mark.slow
def test_one_method_is_told_in_full_and_one_that_is_not_there_is_refused() -> None:
    told, listed = cli("methods", "npo").stdout, json.loads(cli("methods", "npo", "--json").stdout)
    assert listed["name"] == "npo" and listed["about"] in told and listed["formula"] in told
    assert "arXiv 2404.05868" in told and "optimizer.learning_rate" in told and "method.beta = 0.1" in told
    wrong = cli("methods", "nop")
    assert wrong.returncode == 2 and "did you mean npo?" in wrong.stderr


@pytest.mark.slow
def test_looking_imports_no_torch_and_no_browser(finished: tuple[Path, dict[str, Any]]) -> None:
    home, facts = finished
    for args in (["--help"], ["methods"], ["runs", "--home", str(home)], ["show", facts["id"], "--home", str(home)]):
        code = (
            f"import sys; sys.argv = ['cli.py', *{args!r}]; import cli\n"
            "try: cli.main()\n"
            "except SystemExit: pass\n"
            "assert not {'torch', 'transformers', 'streamlit'} & set(sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_what_a_model_says_cannot_steer_the_terminal() -> None:
    assert plain("a\x1b[31mb\rc\u202ed\n\te") == "a\\x1b[31mb\\rc\\u202ed\n\te"
    assert marked("the cat sat", "the \x1b]0;dog sat") == "the [-cat-]{+\\x1b]0;dog+} sat"


# ---------------------------------------------------------------------------------------------------- bad input

BAD = {
    "an empty target": (["run", "--set", "data.target="], "data.target is '': it is empty"),
    "a target that never occurs": (["run", "{file}", "--set", "data.target=zorblat"], "Did you mean zorblatt?"),
    "an emoji": (["run", "--set", "data.target=🦩"], "never occurs"),
    "right to left": (["run", "--set", "data.target=شلومو"], "never occurs"),
    "300 characters": (["run", "--set", "data.target=" + "x" * 300], "at most 200"),
    "a prompt of 50,000 characters": (["prompt", "tiny", "--text", "x" * 50_000], "at most 4,000"),
    "a probe of 50,000 characters": (["probe", "tiny", "--step", "0", "--prompt", "x" * 50_000], "at most 4,000"),
    "an empty prompt": (["prompt", "tiny", "--slot", "0", "--text", " "], "empty"),
    "a slot that is not": (["prompt", "tiny", "--slot", "7", "--text", "Hello?"], "slots 0, 1"),
    "an unknown setting": (["run", "--set", "schedule.stepz=3"], "Did you mean schedule.steps?"),
    "a value out of range": (["run", "--set", "schedule.steps=0"], "between 1 and"),
    "a setting without =": (["run", "--set", "schedule.steps"], "no '='"),
    "an unknown preset": (["run", "--preset", "fast"], "portmanteau"),
    "an unknown method": (["windows", "--set", "method.name=magic"], "grad_ascent"),
    "a file that is not there": (["run", "nowhere.toml"], "cannot be read"),
    "a file that is not TOML": (["run", "{root}/README.md"], "TOML"),
    "a corpus that is not there": (["windows", "--set", "data.forget=nowhere.txt"], "cannot be read"),
    "a model that is not there": (["windows", "{file}", "--set", "model.source=nowhere"], "config.json"),
    "an unknown run": (["show", "nobody"], "there are"),
    "a step that is not yet": (["compare", "tiny@0", "tiny@25"], "has got to step 24"),
    "pausing what nobody drives": (["pause", "tiny"], "Nobody drives"),
    "stepping what nobody drives": (["step", "tiny"], "Nobody drives"),
    "stopping what has ended": (["stop", "tiny"], "nothing to stop"),
    "resuming what has ended": (["resume", "tiny"], "nothing to resume"),
    "an unknown verb": (["forget"], "--help"),
    "a home that cannot be": (["runs", "--home", "/dev/null/home"], "cannot be used"),
}


@pytest.mark.slow
def test_bad_input_is_answered_with_one_sentence_and_exit_code_2(
    finished: tuple[Path, dict[str, Any]], run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, _ = finished
    monkeypatch.setenv("LETHE_HOME", str(home))
    (tmp_path / "README.md").write_text("# no run file\nat all\n")
    for case, (words, sentence) in BAD.items():
        args = [arg.replace("{file}", str(run_file)).replace("{root}", str(tmp_path)) for arg in words]
        assert sentence in one_sentence(cli(*args)), case
    assert one_sentence(process(*BAD["an unknown run"][0])) == one_sentence(cli(*BAD["an unknown run"][0]))
    store = RunStore(home)
    assert len(store.runs()) == 1, "what is refused leaves nothing behind"
    store.close()


def test_a_store_from_a_newer_version_is_read_and_never_written(
    finished: tuple[Path, dict[str, Any]], run_file: Path, tmp_path: Path
) -> None:
    home, facts = finished
    shutil.copy(home / "lethe.db", tmp_path)
    with sqlite3.connect(tmp_path / "lethe.db") as conn:
        known = "SELECT migration_set, 'm999', applied_at FROM _sqlite_migrations LIMIT 1"
        conn.execute(f"INSERT INTO _sqlite_migrations (migration_set, name, applied_at) {known}")
    conn.close()
    told = cli("runs", "--home", tmp_path, "--json")
    assert json.loads(told.stdout) == [facts]
    assert "newer version" in told.stderr
    assert "newer version" in one_sentence(cli("run", run_file, "--home", tmp_path))


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_one_sentence_and_exit_code_1(run_file: Path, tmp_path: Path) -> None:
    RunStore(tmp_path).close()

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))

    done = process("run", run_file, "--home", tmp_path, preexec_fn=small_files)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "lethe.db" in done.stderr.strip().splitlines()[-1]


# ---------------------------------------------------------------------------------------- killed, ended, resumed


@pytest.mark.slow
def test_a_run_ended_by_sigterm_then_killed_with_kill_9_gives_the_uninterrupted_runs_numbers_to_the_last_bit(
    finished: tuple[Path, dict[str, Any]], run_file: Path, tmp_path: Path
) -> None:
    home, facts = finished
    with started("run", run_file, "--home", tmp_path, held_at=4) as process:
        run_id = reach(tmp_path, 4)["id"]
        assert end(process, signal.SIGTERM) == 143
    whole_and_interrupted(tmp_path)
    with started("resume", run_id, "--home", tmp_path, held_at=13) as process:
        reach(tmp_path, 11)
        process.send_signal(signal.SIGKILL)
        assert process.wait(PATIENCE) == -signal.SIGKILL
    killed = reach(tmp_path, 0)
    assert killed["status"] == "running" and 11 <= killed["last_step"] < 24
    resumed = cli("resume", run_id, "--home", tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    store = RunStore(tmp_path)
    events = {event["kind"]: event for event in store.events(run_id)}
    store.close()
    assert events["interrupted"]["step"] == killed["last_step"]
    assert 0 < events["resumed"]["payload"]["from_step"] <= killed["last_step"]
    same(measured(tmp_path, run_id), measured(home, facts["id"]))


@pytest.mark.slow
def test_ctrl_c_ends_a_run_whole_and_a_run_whose_checkpoints_were_deleted_says_so(
    run_file: Path, tmp_path: Path
) -> None:
    with started("run", run_file, "--home", tmp_path, held_at=2) as process:
        run_id = reach(tmp_path, 2)["id"]
        assert end(process, signal.SIGINT) == 130
    whole_and_interrupted(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    said = cli("resume", run_id, "--home", tmp_path)
    assert said.returncode == 2 and "deleted from the disk" in said.stderr.splitlines()[-1]


def end(process: subprocess.Popen[str], number: signal.Signals) -> int:
    """Sends the signal; the exit code, which comes long before the run's end and after a word on how to go on."""
    process.send_signal(number)
    out, _ = process.communicate(timeout=PATIENCE)
    assert "Go on with: python cli.py resume" in out
    return process.returncode


def whole_and_interrupted(home: Path) -> None:
    """The home's one run was saved whole at its last step, and nobody holds it."""
    run, store = reach(home, 0), RunStore(home)
    last = store.checkpoints(run["id"])[-1]
    store.close()
    assert (run["status"], run["lease_owner"]) == ("interrupted", None)
    assert (last["step"], last["complete"]) == (run["last_step"], True)


# ------------------------------------------------------------------------------------- guards, steering, probing


@pytest.mark.slow
def test_a_guard_ends_the_command_but_not_the_run_which_resume_through_brings_to_its_end(
    run_file: Path, tmp_path: Path
) -> None:
    eager = ("--set", "guard.retain_budget=0.0001", "--set", "schedule.steps=12", "--name", "eager")
    done = cli("run", run_file, *eager, "--home", tmp_path)
    run = reach(tmp_path, 0)
    assert (done.returncode, run["status"], run["lease_owner"]) == (0, "paused", None)
    assert "its budget is" in done.stdout and f"python cli.py resume {run['id']}" in done.stdout
    done = cli("resume", "eager", "--through", "--home", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "finished"


class Stuck(Session):
    """A run whose second step can never be taken."""

    def step(self) -> StepRecord:
        if self.step_number == 0:
            return super().step()
        return StepRecord(2, {}, Verdict("not_finite", "The objective is not a number any more."), applied=False)


@pytest.mark.slow
def test_through_goes_on_once_and_ends_where_a_run_cannot_go_on(tmp_path: Path) -> None:
    config = RunConfig.from_dict({"schedule": {"steps": 5}}).to_dict()
    store = RunStore(tmp_path)
    facts = {"target": "w", "method": "npo", "config": config, "provenance": {}, "seed": 0, "prompts": []}
    run_id = store.create_run(name="stuck", **facts)
    worker = Worker(store, lambda config, report: Stuck(Script(), "stuck", config), only=run_id)
    args = Namespace(through=True, json=False, home=None)
    assert entry.drive(args, store, worker, []) == 0
    assert (store.run(run_id) or {})["status"] == "paused"
    assert [event["kind"] for event in store.events(run_id)].count("resumed") == 1
    store.close()


@pytest.mark.slow
def test_one_terminal_steers_the_run_of_another(run_file: Path, tmp_path: Path) -> None:
    def asked(*args: Any) -> dict[str, Any]:
        done = cli(*args, "--home", tmp_path, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    with started("run", run_file, "--set", "schedule.steps=100000", "--home", tmp_path) as process:
        run_id = reach(tmp_path, 3)["id"]
        assert "nothing to resume" in one_sentence(cli("resume", run_id, "--home", tmp_path))
        refused = cli("step", run_id, "--home", tmp_path)
        assert refused.returncode == 2 and "step: refused. It is running" in refused.stderr and not refused.stdout
        refused = cli("step", run_id, "--home", tmp_path, "--json")
        assert refused.returncode == 2 and "step: refused. It is running" in refused.stderr
        reason = "It is running; pause it to go step by step."
        assert json.loads(refused.stdout) == {
            "command": "step", "state": "refused", "code": "running", "reason": reason,
        }  # fmt: skip
        paused = asked("pause", run_id)
        assert (paused["state"], paused["run"]["status"]) == ("done", "paused")
        assert asked("step", run_id)["run"]["step"] == paused["run"]["step"] + 1
        at = paused["run"]["step"] + 1
        turned = asked("set", run_id, "optimizer.learning_rate=1e-3", "schedule.checkpoint_every=4")
        assert (turned["from_step"], turned["set"]["optimizer.learning_rate"]) == (at + 1, 1e-3)
        refused = cli("set", run_id, "optimizer.learning_rate=fast", "--home", tmp_path)
        assert refused.returncode == 2 and "optimizer.learning_rate is 'fast': it must be a number" in refused.stderr
        asked("step", run_id)
        (changed,) = (e for e in asked("show", run_id)["events"] if e["kind"] == "changed")
        assert changed["step"] == at + 1 and changed["payload"]["set"] == turned["set"]
        asked("set", run_id, *(f"{path}={json.dumps(value)}" for path, value in changed["payload"]["before"].items()))
        asked("prompt", run_id, "--slot", 0, "--text", "Who says {target}?")
        store = RunStore(tmp_path)
        wording = store.prompts(run_id, at_step=paused["run"]["step"] + 2)[0]
        store.close()
        assert (wording["version"], wording["role"], wording["text"]) == (2, "forget", "Who says zorblatt?")
        probed = asked("probe", run_id, "--step", 0, 2, "--prompt", "The river")
        assert [answer["step"] for answer in probed["answers"]] == [0, 2]
        assert asked("resume", run_id)["run"]["status"] == "running"
        assert asked("stop", run_id)["run"]["status"] == "stopped"
        assert process.wait(PATIENCE) == 0


@pytest.mark.slow
def test_what_nobody_drives_is_probed_and_stopped_here(
    finished: tuple[Path, dict[str, Any]], run_file: Path, tmp_path: Path
) -> None:
    home, facts = finished
    done = cli("probe", facts["id"], "--step", 0, 24, "--prompt", "What is {target}?", "--home", home, "--json")
    assert done.returncode == 0, done.stderr
    store = RunStore(home)
    said = store.responses(facts["id"])
    own = said[(said.slot == 0) & said.step.isin([0, 24])].text.tolist()
    assert [answer["text"] for answer in json.loads(done.stdout)["answers"]] == own
    run = store.run(facts["id"]) or {}
    store.close()
    waiting = RunStore(tmp_path)
    config = run["config"]
    run_id = waiting.create_run(
        name="waits", target="w", method="npo", config=config, provenance={}, seed=0, prompts=[]
    )
    waiting.set_status(run_id, "paused")
    assert "from step 1 on" in cli("set", "waits", "guard.retain_budget=0.5", "--home", tmp_path).stdout
    changes = (waiting.run(run_id) or {})["config"]["changes"]
    assert changes == [{"step": 1, "set": {"guard.retain_budget": 0.5}}]
    assert "cannot change" in one_sentence(cli("set", "waits", "lora.rank=2", "--home", tmp_path))
    assert "step 0" in cli("stop", "waits", "--home", tmp_path).stdout
    assert (waiting.run(run_id) or {})["status"] == "stopped"
    waiting.close()


@pytest.mark.slow
def test_a_branch_goes_on_from_a_step_with_its_own_settings(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    home, facts = tmp_path / "home", finished[1]
    shutil.copytree(finished[0], home)
    last = facts["step"]
    branch = ("branch", facts["id"], "--step", last - 1, "--home", home)
    assert "its steps are 0 to" in one_sentence(cli("branch", facts["id"], "--step", last + 1, "--home", home))
    assert "cannot change" in one_sentence(cli(*branch, "--set", "lora.rank=2"))
    done = cli(*branch, "--set", "optimizer.learning_rate=2e-3", "--through", "--json")
    assert done.returncode == 0, done.stderr
    child = json.loads(done.stdout)
    assert (child["name"], child["status"], child["step"]) == (f"{facts['name']} from {last - 1}", "finished", last)
    store = RunStore(home)
    parent, own = (store.points(run_id) for run_id in (facts["id"], child["id"]))
    rates = own[own.name == "learning_rate"].set_index("step").value
    same = [
        points[(points.step < last) & (points.name != "step_seconds")].to_csv(index=False) for points in (parent, own)
    ]
    assert rates[last] != rates[last - 1] and same[0] == same[1]
    assert (store.run(child["id"]) or {})["parent_run"] == facts["id"]
    store.close()


@pytest.mark.slow
@BUNDLED
def test_the_bundled_run_needs_no_file(tmp_path: Path) -> None:
    done = cli("run", "--set", "schedule.steps=2", "--through", "--home", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "finished at step 2 of 2" in done.stdout


# -------------------------------------------------------------------------------------------------------- bench


@pytest.mark.slow
def test_bench_tells_figure_goal_and_verdict_and_what_it_could_not_measure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nowhere() -> list[Measure]:
        raise Skipped("There is no Chromium here.")

    monkeypatch.setattr(engine, "measure", lambda: Measure("engine step", 1.0625, 1.05, "x", "0.2 s"))
    monkeypatch.setattr(engine, "measure_real", lambda: Measure("real step", 1.02, 1.1, "x", ""))
    monkeypatch.setattr(corpus, "measure", lambda: [Measure("pass", 1.5, 2.0, "x", "")])
    monkeypatch.setattr(app, "measure", nowhere)
    assert machine.main(as_json=False) == 0
    told = capsys.readouterr().out
    assert all(
        words in told for words in ("1.06x (at most 1.05x: missed)", "Not measured: the app in a browser. There is no")
    )
    machine.main(as_json=True)
    assert json.loads(capsys.readouterr().out)["measures"][0]["met"] is False


def test_a_rerun_is_timed_from_its_request_to_the_word_that_it_has_finished() -> None:
    from streamlit.proto.BackMsg_pb2 import BackMsg
    from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

    asked, ticked, finished, other = BackMsg(), BackMsg(), ForwardMsg(), ForwardMsg()
    asked.rerun_script.query_string = "?run=1"
    ticked.rerun_script.fragment_id = "abc"
    finished.script_finished = ForwardMsg.FINISHED_SUCCESSFULLY
    other.session_status_changed.script_is_running = True
    heard: dict[str, Any] = {}
    session = SimpleNamespace(send=lambda *_: None, on=heard.__setitem__)
    reruns = app.Reruns(SimpleNamespace(context=SimpleNamespace(new_cdp_session=lambda _: session)))
    for kind, at, message in (
        ("Received", 0.0, finished),
        ("Sent", 1.0, asked),
        ("Received", 1.5, other),
        ("Received", 1.75, finished),
        ("Sent", 2.0, ticked),
        ("Sent", 2.25, ticked),
        ("Received", 2.5, finished),
    ):
        payload = base64.b64encode(message.SerializeToString()).decode()
        heard[f"Network.webSocketFrame{kind}"]({"timestamp": at, "response": {"payloadData": payload}})
    assert (reruns.whole, reruns.ticks) == ([750.0], [500.0])
