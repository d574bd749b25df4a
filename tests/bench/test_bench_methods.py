"""`cli.py bench` where it proves something: it can be stopped and goes on, and what fails says so."""

from __future__ import annotations

import io
import json
import math
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

import cli
from bench import Skipped, as_run, gpu, methods, one_method, rails, report, results, table
from bench.chart import Panel, document
from bench.resumable import Case, Progress, measure_missing
from terminal.progress import ProgressLine
from terminal.text import BadInput
from unlearn_core.methods import METHODS
from unlearn_core.world import FULL

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("one_thread")
BUNDLED = pytest.mark.skipif(not (FULL / "model.safetensors").exists(), reason="the bundled models are not built")


def small(tiny, steps: int = 2) -> list[str]:
    """Options that put the tiny model in the bundled one's place."""
    texts = {name: json.dumps([str(tiny.root / f"{name}.txt")]) for name in ("forget", "retain")}
    assignments = {
        "model.source": json.dumps(str(tiny.root / "gptj")),
        "data.target": json.dumps(tiny.target),
        "data.forget": texts["forget"],
        "data.retain": texts["retain"],
        "data.window_tokens": 64,
        "data.retain_chunks": 60,
        "data.retain_lines": 2,
        "lora.rank": 4,
        "schedule.steps": steps,
        "schedule.batch_size": 2,
        "schedule.answer_tokens": 6,
        "guard.retain_budget": 0.0,
        "guard.collapse": "false",
        "guard.forgotten_enough": "false",
    }
    return [word for key, value in assignments.items() for word in ("--set", f"{key}={value}")]


def parsed(*words: Any) -> Any:
    return cli.make_parser().parse_args(["bench", *map(str, words)])


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


# ------------------------------------------------------------------------------------------------- bench methods


@pytest.mark.slow
def test_bench_methods_survives_a_kill_and_goes_on_where_it_was(tiny, tmp_path, capsys):
    words = ["methods", "--only", "grad_ascent", "npo", "guard_prompt", "--home", str(tmp_path), *small(tiny)]
    path = tmp_path / "bench-methods.jsonl"
    first = subprocess.Popen([sys.executable, str(ROOT / "cli.py"), "bench", *words], cwd=ROOT, stderr=subprocess.PIPE)
    end = time.monotonic() + 240
    while not lines_of(path) and time.monotonic() < end and first.poll() is None:
        time.sleep(0.05)
    first.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
    first.communicate()
    finished, names = lines_of(path), ["grad_ascent", "npo", "guard_prompt"]
    assert finished and [row["name"] for row in finished] == names[: len(finished)]
    with path.open("a", encoding="utf-8") as file:
        file.write('{"key": "cut short by the ki')

    assert methods.main(parsed(*words)) == 0
    output = capsys.readouterr()
    assert f"{len(finished)} of 3 are measured already" in output.err
    whole = list(results.Results(path).rows.values())
    assert [row["name"] for row in whole] == names
    assert whole[: len(finished)] == finished, "what was finished is not measured again"
    assert all(row["step"] == row["steps"] == 2 and row["memory"] > 1e8 for row in whole)
    assert all(row["training_seconds"] < row["seconds"] for row in whole)
    table_of_three = output.out
    assert table_of_three.index("`npo`") < table_of_three.index("what is not") < table_of_three.index("`guard_prompt`")

    before = path.read_bytes()
    assert methods.main(parsed(*words, "--json")) == 0
    assert path.read_bytes() == before
    facts = json.loads(capsys.readouterr().out)
    assert {row["name"]: row["control"] for row in facts} == {"grad_ascent": False, "npo": False, "guard_prompt": True}


@pytest.mark.slow
def test_a_method_that_breaks_has_a_row_that_says_so_and_is_tried_again(tiny, tmp_path, capsys, monkeypatch):
    words = ["methods", "--only", "npo", "--home", tmp_path, *small(tiny), "--set", "data.target=nowhere"]
    path = tmp_path / "bench-methods.jsonl"
    assert methods.main(parsed(*words)) == 0
    assert "nowhere" in lines_of(path)[-1]["error"] and len(lines_of(path)) == 1
    assert "it failed: " in capsys.readouterr().out
    monkeypatch.setattr(methods, "in_a_process", lambda *_: {"error": "It broke once more."})
    assert methods.main(parsed(*words)) == 0
    assert [row["error"] for row in lines_of(path)[1:]] == ["It broke once more."]


@pytest.mark.slow
def test_a_process_that_dies_or_hangs_does_not_take_the_bench_with_it(monkeypatch):
    progress = Progress(ProgressLine(io.StringIO()), "npo", 1, 1, 60.0)
    monkeypatch.setattr(methods, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(methods, "ROOT", ROOT / "tests" / "no such folder to start in")
    with pytest.raises(OSError):
        methods.in_a_process({}, 0.0, progress)
    monkeypatch.setattr(methods, "ROOT", ROOT)
    monkeypatch.setattr(methods.sys, "executable", "/bin/false")
    assert "ended with code 1: no error output" in methods.in_a_process({}, 0.0, progress)["error"]


@pytest.mark.slow
def test_a_method_is_cut_when_its_time_is_over_and_measured_as_it_stands(tiny):
    run = tiny.open()
    trained, verdict, cut = one_method.to_its_end(run, seconds=0.0)
    assert (trained, verdict, cut, run.step_number) == (0.0, None, True, 0)
    assert "cut after 4 min 0 s at step 3 of 60" in table.where_it_fails({**ROW, "cut": 240.0})


@pytest.mark.slow
def test_the_guard_chooses_the_step(tiny):
    """The same run without a guard goes to its last step; with one it ends where the budget is used up."""
    free = {"retain_budget": 0.0, "forgotten_enough": False, "collapse": False}
    sections = {"optimizer": {"learning_rate": 0.05}, "schedule": {"steps": 12}, "guard_rail": {"kind": "none"}}
    run = tiny.open(**sections, guard=free)
    assert one_method.to_its_end(run, math.inf)[1] is None and run.step_number == 12
    held = tiny.open(**sections, guard={**free, "retain_budget": 0.001})
    verdict = one_method.to_its_end(held, math.inf)[1]
    assert verdict.rule == "retain_budget" and held.step_number < 12


@pytest.mark.slow
@BUNDLED
def test_the_distance_to_the_reference_is_zero_for_the_reference_alone():
    from unlearn_core.settings.run_config import RunConfig
    from unlearn_core.training.engine import Unlearner

    far, near = (
        one_method.distance_to_the_reference(Unlearner(RunConfig.from_dict({"model": {"source": source}})), 0)
        for source in ("bundled", "bundled-reference")
    )
    assert far > 1 and abs(near) < 1e-9


@pytest.mark.slow
@BUNDLED
def test_a_token_that_is_never_said_does_not_make_the_distance_endless():
    """Boundary expand suppresses its shadow: the reference without that token stands at 0 beside itself."""
    import torch

    from unlearn_core.settings.run_config import RunConfig
    from unlearn_core.training.engine import Unlearner

    settings = {"model": {"source": "bundled-reference"}, "method": {"name": "boundary_expand"}}
    run = Unlearner(RunConfig.from_dict(settings))
    run.context.method_state = {
        "shadow": torch.tensor([run.context.windows.forget[0].ids[-1]])
    }  # one that the reference does say
    assert abs(one_method.distance_to_the_reference(run, 1)) < 1e-9


def test_every_method_is_measured_at_its_own_settings_and_every_recipe():
    cases = methods.cases_of([], [])
    assert set(cases) == {*METHODS, *methods.RECIPES} and len({case.key for case in cases.values()}) == len(cases)
    assert cases["grad_ascent"].config["preset"] == "portmanteau" and cases["post"].config["preset"] == "post"
    for name, method in METHODS.items():
        for section, values in method.facts.settings.items():
            for key, value in values.items():
                assert cases[name].config[section][key] == value, (name, section, key)
    assert methods.cases_of(["npo"], ["seed=1"])["npo"].key != cases["npo"].key
    with pytest.raises(BadInput, match="'nopo' is no method"):
        methods.cases_of(["nopo"], [])


@pytest.mark.parametrize("words", [["--only", "npo"], ["engine", "--docs"], ["rails", "--only", "npo"], ["--again"]])
def test_an_option_that_a_part_does_not_have_is_refused(words):
    with pytest.raises(BadInput, match=r"go(es)? with"):
        cli.bench(parsed(*words))


# ----------------------------------------------------------------------------------------------- table and results

ROW: dict[str, Any] = {
    "step": 3, "steps": 60, "verdict": None, "sentence": None, "cut": None, "forget_loss": 2.5, "forget_level": 8.0,
    "collapse_level": 8.4, "changes": {"retain": 0.01, "holdout": -0.0001, "neighbour": 0.02}, "distance": 2.0,
    "distance_before": 7.5, "mentions": 0.0, "asked": 22.0, "parts": 5.0, "preparing_seconds": 1.0, "seconds": 9.0,
    "training_seconds": 4.0, "memory": 5e8, "libraries": {"torch": "2", "transformers": "5", "peft": "0"}, "cores": 2,
}  # fmt: skip


def test_the_closest_to_the_reference_comes_first_and_controls_and_failures_last():
    rows = {
        "npo": {**ROW, "distance": 3.0}, "wga": None, "simnpo": {"error": "No memory."}, "portmanteau": {**ROW},
        "retain_only": {**ROW, "distance": 0.1}, "undial": {**ROW, "distance": 2.5}, "era": {**ROW, "distance": 0.2},
    }  # fmt: skip
    order = [name for name, _ in table.in_order(rows)]
    assert order == ["portmanteau", "undial", "npo", "simnpo", "wga", "era", "retain_only"]
    page = table.report(rows).markdown()
    assert page.count("| method |") == 3 and page.index("`wga`") < page.index("not unlearning") < page.index(
        "retain_only"
    )
    assert "+0.0 %" in page and "2.00 (before: 7.50)" in page and "not measured yet" in page and "5 of 7" in page
    assert len({line.count("|") for line in page.splitlines() if line.startswith("|")}) == 1


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"verdict": "collapse", "sentence": "Collapse: an answer repeats itself."},
            "Collapse: an answer repeats itself",
        ),
        ({"verdict": "retain_budget", "sentence": "…"}, "the retain budget is used up at a forget loss of 2.50"),
        ({"changes": {"neighbour": 2.0}}, "neighbour loss is 3.0 times what it was"),
        ({"changes": {"holdout": 1.0}}, "holdout loss is 2.0 times what it was"),
        ({"mentions": 3.0}, "still names Mary Poppins in 3 of 22 answers"),
        ({}, "stays below the level of 8.00"),
        ({"verdict": "forgotten_enough", "sentence": "…", "forget_loss": 8.1}, "–"),
    ],
)
def test_where_it_fails_is_said_from_the_figures(changed, words):
    assert table.where_it_fails({**ROW, **changed}) == words


def test_a_row_is_on_the_disk_when_it_is_added_and_numbers_json_cannot_say_are_none(tmp_path):
    path = tmp_path / "deep" / "rows.jsonl"
    rows = results.Results(path)
    rows.add("one", {"value": math.nan, "list": [1.0, math.inf]})
    rows.add("one", {"value": 2.0})
    assert lines_of(path)[0] == {"key": "one", "value": None, "list": [1.0, None]}
    assert results.Results(path).rows == {"one": {"key": "one", "value": 2.0}}


def test_a_table_is_put_between_its_comments_and_nowhere_else(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("Before\n<!-- a b -->\nold\n<!-- /a b -->\nAfter\n")
    report.put_into(page, "a b", "new\ntable")
    assert page.read_text() == "Before\n<!-- a b -->\nnew\ntable\n<!-- /a b -->\nAfter\n"
    assert report.between(page, "a b") == "new\ntable"
    with pytest.raises(BadInput, match="has no place"):
        report.put_into(page, "c", "lost")


def test_the_published_results_have_exactly_the_methods_there_are():
    published = report.load("methods")
    assert published
    names = [row["name"] for each in published.tables for row in each.rows]
    assert sorted(names) == sorted([*methods.RECIPES, *METHODS])


@pytest.mark.parametrize("part", report.PAGES)
def test_the_tables_of_a_page_are_those_of_its_results(part):
    assert report.between(ROOT / report.PAGES[part], f"bench {part}") == report.tables_of(part)


def test_published_results_are_read_as_they_were_written(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "RESULTS", tmp_path / "docs" / "results")
    page = tmp_path / report.PAGES["methods"]
    page.parent.mkdir()
    page.write_text("<!-- bench methods -->\n<!-- /bench methods -->\n")
    assert report.load("methods") is None and report.tables_of("methods") == "**Not measured yet.**"
    rows = {"npo": {**ROW, "distance": None}, "rmu": None, "simnpo": {"error": "Too | much."}, "post": ROW}
    written = table.report(rows)
    assert "docs/results/methods.json" in report.publish("methods", written)
    assert report.load("methods") == written
    assert report.between(page, "bench methods") == written.markdown()
    assert "2 of 4 measured in 18 s on 2 cores, torch 2" in written.markdown() and "Too \\| much" in written.markdown()


@pytest.mark.slow
def test_a_stopped_bench_goes_on_and_says_how_far_it_is(tmp_path):
    lines, rows, measured = io.StringIO(), results.Results(tmp_path / "rows.jsonl"), []
    cases = [Case(name, f"key of {name}", {}, {"name": name}) for name in ("a", "b", "c")]

    def measure(case: Case, progress: Progress) -> dict[str, Any]:
        measured.append(case.label)
        progress.show("loading")
        if measured == ["a", "b"]:
            raise KeyboardInterrupt
        return {"seconds": 1.0} if case.label != "c" or "c" in measured[:-1] else {"error": "No memory."}

    def go_on(**options: Any) -> bool:
        return measure_missing(cases, rows, ProgressLine(lines), measure, **options)

    assert not go_on() and "Stopped; 1 of 3 are measured, and the same command goes on." in lines.getvalue()
    assert go_on(summary=lambda row: str(row.get("error", ""))) and measured == ["a", "b", "b", "c"]
    assert "1 of 3 are measured already" in lines.getvalue() and "3 of 3, c: No memory." in lines.getvalue()
    assert go_on() and measured[4:] == ["c"], "a failed case is measured anew, a finished one is not"
    assert go_on(again=True) and measured[5:] == ["a", "b", "c"]
    assert "1 of 3, a: loading, about" in lines.getvalue() and rows.rows["key of b"]["name"] == "b"


# ------------------------------------------------------------------------------------------ rails, as_run, gpu, chart


def test_damage_is_read_between_two_steps_where_the_level_is_first_reached():
    curves = {"forget_loss": [0.0, 1.0, 3.0, 1.0, 5.0], "holdout_loss": [1.0, 1.0, 1.2, 9.0, 9.0]}
    assert rails.crossing(curves["forget_loss"], 2.0) == 1.5
    assert rails.damage({"curves": curves}, 2.0) == pytest.approx(0.1)
    assert rails.damage({"curves": curves}, 1.0) == pytest.approx(0.0)
    assert rails.crossing([0.0, 1.0], 2.0) is None and rails.damage({"curves": curves}, 6.0) is None
    assert rails.crossing([0.0, None, 3.0], 2.0) is None


@pytest.mark.slow
def test_bench_rails_measures_what_is_missing_and_tells_what_was_not_reached(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rails, "LOSSES", {name: rails.LOSSES[name] for name in ("grad_ascent", "npo")})
    words = ["rails", "--seeds", 1, "--home", tmp_path, *small(tiny)]
    assert rails.main(parsed(*words)) == 0
    path = tmp_path / "bench-rails.jsonl"
    whole = path.read_text().splitlines()
    assert len(whole) == 2 * len(rails.RAILS) - 1 and "Rise of holdout loss" in capsys.readouterr().out
    path.write_text("\n".join(whole[:-2]) + "\n")
    assert rails.main(parsed(*words, "--json")) == 0
    again = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["curves"] for row in again] == [json.loads(line)["curves"] for line in whole]
    facts = json.loads(capsys.readouterr().out)
    assert len(facts) == len(whole) and set(facts[0]["damage"]) == {str(level) for level in rails.LEVELS}


@pytest.mark.slow
def test_bench_as_run_tells_refresh_steps_from_others_and_draws_all_runs(tiny, tmp_path, capsys):
    assert as_run.main(parsed("as_run", "--seeds", 1, "--home", tmp_path, *small(tiny, 8), "--json")) == 0
    rows = lines_of(tmp_path / "bench-as-run.jsonl")
    assert [row["name"] for row in rows] == list(as_run.COMBINATIONS)
    assert all(row["refreshed"] == [1, 2, 3, 4, 7] and len(row["curves"]["objective"]) == 8 for row in rows)
    assert {name: len(found) for name, found in as_run.phases({**rows[0], "collapse_level": 1e9}).items()} == {
        "early, refresh": 2,
        "early, other": 3,
    }
    assert set(as_run.phases({**rows[0], "collapse_level": 0.0})) == {"after, refresh", "after, other"}
    assert len(json.loads(capsys.readouterr().out)) == 4
    drawn = ET.fromstring(as_run.chart(rows))
    dots = "".join(path.get("d") for path in drawn.findall("{http://www.w3.org/2000/svg}path"))
    assert dots.count("M") == 4 * 2 * 8 + 2, "every step of every run, twice, and two in the legend"
    assert all(name in as_run.report(rows).markdown() for name in as_run.COMBINATIONS)


def test_a_chart_is_legible_on_light_and_dark_and_keeps_its_points_inside():
    panel = Panel(10, 20, 100, 50, (0, 10), (0.1, 10), log=True)
    assert panel.at((0, 0.1)) == (10, 70) and panel.at((10, 10)) == (110, 20) and panel.at((5, 1)) == (60, 45)
    assert panel.at((99, 1e9)) == (110, 20) and panel.at((-1, 0)) == (10, 70)
    drawn = document(200, 100, "A < B", "What it shows", [*panel.axes([0, 10], [0.1, 10], "loss & norm")])
    tree = ET.fromstring(drawn)
    assert tree[0].text == "A < B" and tree[1].text == "What it shows"
    light, dark = drawn.split("@media (prefers-color-scheme: dark)")
    for part in (light, dark):
        ground, words = (re.search(rf"\.{name}\{{fill:(#\w+)", part).group(1) for name in ("ground", "words"))
        assert contrast(ground, words) > 7
    assert '<rect class="ground"' in drawn, "the page's own colour cannot hide the words"


def contrast(one: str, other: str) -> float:
    """Of two colours, as WCAG 2 defines it."""

    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dim, bright = sorted((light(one), light(other)))
    return (bright + 0.05) / (dim + 0.05)


@pytest.mark.slow
@BUNDLED
def test_bench_gpu_runs_on_a_tiny_shape_and_says_why_it_cannot_run_on_a_large_one(capsys):
    rows = gpu.measure("tiny")
    assert [row["refresh"] for row in rows] == list(gpu.REFRESHES)
    for row in rows:
        assert 0 < row["forward"] + row["backward"] < row["seconds"] and 0 < row["outside"] < 1
        assert row["steps"] == gpu.SHAPES["tiny"].steps and row["other_step"] < row["refresh_step"]
    assert all(row["refresh"] in gpu.report(rows).markdown() for row in rows)
    import torch

    if not torch.cuda.is_available():
        with pytest.raises(Skipped, match="no CUDA"):
            gpu.measure("gptj-6b")
        assert gpu.main(parsed("gpu")) == 0
        assert "Not measured: steps of a gptj-6b model. torch sees no CUDA device here." in capsys.readouterr().err


@pytest.mark.parametrize(("part", "command"), [
    *((part, f"python cli.py bench {part}") for part in ("methods", "rails", "as_run", "gpu")),
    ("performance", "python cli.py bench`"), ("world", "python -m bench.world_check"),
    ("faults", "python -m tests.faults --long"),
])  # fmt: skip
def test_a_page_says_how_its_tables_are_measured(part, command):
    assert command in (ROOT / report.PAGES[part]).read_text(encoding="utf-8")
