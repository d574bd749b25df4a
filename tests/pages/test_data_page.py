"""The Data page and the card's second row: a real store into which the test writes what the preview thread would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from pages.shared import process
from pages.shared.format import size
from storage import RunStore
from tests.pages.test_pages import HOSTILE, IdlePreview, IdleWorker, begin, button, component, fill, opened, shown
from unlearn_core.settings.run_config import RunConfig
from unlearn_core.world import TARGET

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LETHE_ROOTS", str(tmp_path))
    opened = RunStore(tmp_path / "home")
    yield opened
    opened.close()


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The whole app with a worker that does nothing, on an empty store."""
    monkeypatch.setattr("unlearn_core.running.worker.Worker", IdleWorker)
    monkeypatch.setattr("unlearn_core.running.preview.PreviewThread", IdlePreview)
    monkeypatch.setenv("LETHE_HOME", str(tmp_path / "app"))
    monkeypatch.setenv("LETHE_ROOTS", str(tmp_path))
    yield AppTest.from_file(str(ROOT / "app.py"), default_timeout=30).run()
    for name in ("worker", "preview", "home"):
        process.objects.pop(name, None)
    if "store" in process.objects:
        process.objects.pop("store").close()


def facts(word: str = TARGET, found: int = 45, excluded: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    """What a look finds: `found` occurrences, as many forget windows, 30 retain texts and no neighbours."""
    occurrences = [
        {"id": f"o{n}", "source": "/far/away/story.txt", "place": f"line {n}", "before": f"before {n} ", "target": word,
         "after": f" after {n}", "excluded": f"o{n}" in excluded}
        for n in range(found)
    ]  # fmt: skip
    windows = [
        {"set": "forget", "occurrence": f"o{n}", "source": "/far/away/story.txt", "place": f"line {n}",
         "why": "holds the word", "context": f"context {n}: ", "trained": f"{word} is what {n} was.", "tokens": 20,
         "trained_tokens": 12}
        for n in range(found)
    ]  # fmt: skip
    windows += [
        {"set": name, "occurrence": "", "source": "/far/away/keep.txt", "place": f"row {n}", "why": "drawn at random",
         "context": "", "trained": f"Text {n} of {name}.", "tokens": 9, "trained_tokens": 8}
        for name in ("retain", "holdout") for n in range(30)
    ]  # fmt: skip
    sets = {name: {"windows": sum(w["set"] == name for w in windows), "tokens": 900, "trained_tokens": 500}
            for name in ("forget", "retain", "holdout")}  # fmt: skip
    return {
        "target": word, "pieces": ["super", "cali", " fragil"], "documents": 1234, "bytes": 5_300_000,
        "occurrences": found, "seconds": 2.5, "cached": False, "notes": ["1 file is Latin-1; it was read as such."],
        "sets": sets, "found": occurrences, "windows": windows, "step_seconds": 0.4, "step_tokens": 2100,
        "step_seconds_from": "measured in “first light”",
        "memory": {"parts": {"weights": 9e6}, "total": 170e6, "available": 8e9, "fits": True},
        "model": {"source": "bundled", "modules": ["q_proj", "v_proj"], "limit": 256,
                  "prompts": [{"text": "What?", "shown": "<|user|>What?"}]},
        **more,
    }  # fmt: skip


def looks(store: RunStore, kind: str = "windows") -> list[dict[str, Any]]:
    return [command for command in store.commands(None, limit=200) if command["kind"] == kind]


def answer(store: RunStore, what: dict[str, Any]) -> None:
    """What the preview thread does with the newest look: the file, the event, done."""
    command = looks(store)[-1]
    store.acknowledge(command["id"])
    folder = Path(store.home) / "windows"
    folder.mkdir(exist_ok=True)
    (folder / f"{command['id']}.json").write_text(json.dumps(what), encoding="utf-8")
    store.add_event(None, "windows_found", {"command": command["id"], "file": f"windows/{command['id']}.json"})
    store.finish(command["id"])


def found(store: RunStore, what: dict[str, Any] | None = None, **address: str) -> AppTest:
    """The page once its look is done."""
    at = opened("data", store, **address)
    answer(store, what or facts())
    return at.run()


def write(at: AppTest, key: str, text: str) -> None:
    """Types something of one's own into a list and presses Enter: the test's selectbox knows only what is offered."""
    box = at.selectbox(key=key)
    box.set_value(text)
    box.options.append(box.format_func(text))
    at.run()


# --------------------------------------------------------------------------------------------------- looking


def test_the_page_begins_with_the_card_s_choice_and_asks_once(store: RunStore) -> None:
    at = opened("data", store)
    at.run()
    (command,) = looks(store)
    wanted = RunConfig.from_dict({}).to_dict()
    assert command["payload"]["config"]["data"] == wanted["data"]
    assert command["payload"]["config"]["model"] == wanted["model"]
    assert TARGET in shown(at) and "the bundled world" in shown(at) and "Looking into the texts" in shown(at)
    assert button(at, "forget_this").disabled and button(at, "forget_this").help


def test_while_it_looks_bytes_hits_and_time_left_are_told_and_it_can_be_stopped(store: RunStore) -> None:
    at = opened("data", store)
    (command,) = looks(store)
    store.acknowledge(command["id"])
    told = {"bytes_read": 412_000_000, "bytes_total": 5_000_000_000, "hits": 3, "seconds": 4.0, "seconds_left": 40.0}
    store.add_event(None, "windows_progress", {"command": command["id"], **told})
    at.run()
    assert "412 MB of 5.00 GB · found 3 times · 40 s left" in shown(at) and "aria-valuenow='8'" in shown(at)
    button(at, "stop_look").click().run()
    (cancel,) = looks(store, "cancel")
    assert cancel["payload"] == {"command": command["id"]}
    store.finish(command["id"], "It was stopped before it was done.")
    at.run()
    assert "It was stopped before it was done." in shown(at) and len(looks(store)) == 1
    button(at, "look_anew").click().run()
    assert len(looks(store)) == 2


def test_a_second_tab_joins_the_look_that_is_under_way(store: RunStore) -> None:
    opened("data", store)
    opened("data", store)
    assert len(looks(store)) == 1


def test_a_look_that_fails_says_why_in_a_sentence_and_how_to_go_on(store: RunStore) -> None:
    at = opened("data", store)
    store.finish(
        looks(store)[0]["id"], "“zorb” never occurs in <b>a.txt</b> (3 texts). Choose a word that stands there."
    )
    at.run()
    assert "“zorb” never occurs in &lt;b&gt;a.txt" in shown(at) and "Change the word or the texts on Watch" in shown(at)
    assert button(at, "forget_this").disabled and not button(at, "look_anew").disabled


def test_what_was_found_and_is_gone_from_the_disk_is_said_to_be_gone(store: RunStore) -> None:
    at = opened("data", store)
    answer(store, facts())
    for path in (Path(store.home) / "windows").iterdir():
        path.unlink()
    at.run()
    assert "is not on the disk any more" in shown(at)


# ----------------------------------------------------------------------------------------------- what is found


def test_the_totals_say_how_much_there_is_and_what_a_step_will_take(store: RunStore) -> None:
    page = shown(found(store))
    assert (
        "It occurs 45 times in 1,234 texts. 45 forget windows teach the model to forget it; 30 retain texts to" in page
    )
    told = ("0.400 s", "measured in “first light”", "170 MB", "of 8.00 GB that are there", "5.30 MB", "is Latin-1")
    assert not [words for words in told if words not in page]
    assert "cuts it into 3 pieces" in page and "<code>super</code><code>cali</code><code>␣fragil</code>" in page
    assert "q_proj, v_proj" in page and "&lt;|user|&gt;What?" in page


def test_memory_that_is_not_there_is_said_with_what_to_change(store: RunStore) -> None:
    memory = {"parts": {}, "total": 24e9, "available": 8e9, "fits": False}
    page = shown(found(store, facts(memory=memory, step_seconds=None, step_seconds_from="")))
    assert "needs about 24.0 GB" in page and "Take a smaller model" in page
    assert "<dd>–</dd>" in page


def test_every_window_can_be_read_a_set_and_a_page_at_a_time(store: RunStore) -> None:
    at = found(store)
    seen = []
    for page in (1, 2, 3):
        at.get("pagination")[0].set_value(page).run() if page > 1 else None
        seen += [n for n in range(45) if f"context {n}: <" in shown(at)]
        assert shown(at).count("<article") == (20 if page < 3 else 5)
    assert seen == list(range(45))
    at.segmented_control(key="shown_set").set_value("holdout").run()
    assert (
        "Text 3 of holdout." in shown(at) and "measured from here" in shown(at) and "trained from here" not in shown(at)
    )


def test_context_trained_text_and_the_word_are_told_apart_in_words_and_marks(store: RunStore) -> None:
    at = found(store)
    page = shown(at)
    assert (
        "<span class='context'>context 0: </span><b class='from'>trained from here</b>"
        f"<span class='trained'><b class='target'>{TARGET}</b> is what 0 was.</span>"
    ) in page
    assert "context: read, not trained on" in page and "underlined: trained on" in page
    style = (ROOT / "pages" / "shared" / "style.css").read_text()
    assert ".trained { text-decoration: underline" in style


def test_windows_are_searched_in_text_place_and_reason(store: RunStore) -> None:
    at = found(store)
    at.text_input(key="search_texts").set_value("WHAT 17 was").run()
    assert shown(at).count("<article") == 1 and "context 17: " in shown(at) and "is in 1 of them" in shown(at)


def test_a_long_text_is_cut_and_can_be_shown_whole(store: RunStore) -> None:
    what = facts(found=1)
    what["windows"][0]["context"] = "early " + "c " * 2000
    what["windows"][0]["trained"] = f"{TARGET} " + "t " * 2000 + "late"
    page = shown(found(store, what))
    cut, whole = page.split("<summary>show all</summary>")
    assert "early" not in cut and "late" not in cut.split("<article")[1]
    assert "early" in whole and "late" in whole


def test_the_totals_stay_true_where_not_every_window_is_in_the_answer(store: RunStore) -> None:
    what = facts()
    what["sets"]["forget"]["windows"] = 12_345
    assert "45 of 12,345 are shown, drawn evenly." in shown(found(store, what))


def test_a_forget_set_of_whole_texts_has_no_occurrences_to_list(store: RunStore) -> None:
    at = opened("data", store)
    at.session_state["card_everything"] = True
    at.run()
    answer(store, {**facts(), "found": [], "occurrences": 0})
    at.run()
    assert "All of these are forget texts: 1,234 texts" in shown(at)
    assert "occurrences" not in at.segmented_control(key="shown_set").options


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_corpora_are_text_wherever_they_are_shown(store: RunStore, text: str) -> None:
    what = facts(found=2, notes=[text], pieces=[text])
    for each in what["windows"]:
        each |= {"context": text, "trained": text, "why": text, "place": text, "source": text}
    for each in what["found"]:
        each |= {"before": text, "target": text[:300], "after": text, "place": text, "source": text}
    what["model"]["prompts"] = [{"text": text, "shown": text}]
    at = found(store, what)
    every = shown(at)
    at.segmented_control(key="shown_set").set_value("occurrences").run()
    every += shown(at)
    assert "<img" not in every and not at.exception
    assert not any(text[:20] in element.value for element in at.markdown)


# --------------------------------------------------------------------------------- leaving out, and handing over


def test_an_excluded_occurrence_is_counted_anew_while_the_page_stays(store: RunStore) -> None:
    at = found(store)
    at.segmented_control(key="shown_set").set_value("occurrences").run()
    next(box for box in at.checkbox if box.label == "exclude 3").check().run()
    assert looks(store)[-1]["payload"]["config"]["data"]["excluded"] == ["o2"] and len(looks(store)) == 2
    assert "Counting anew" in shown(at) and "before 2 " in shown(at), "what was found before is still there"
    next(box for box in at.checkbox if box.label == "exclude 5").check().run()
    assert looks(store)[-1]["payload"]["config"]["data"]["excluded"] == ["o2", "o4"]
    assert [c["payload"]["command"] for c in looks(store, "cancel")] == [looks(store)[1]["id"]], "nobody waits for that"
    answer(store, facts(excluded=("o2", "o4")))
    at.run()
    assert "2 of them excluded by hand" in shown(at) and shown(at).count("<span class='out'>excluded") == 2
    next(box for box in at.checkbox if box.label == "exclude 3").uncheck().run()
    assert looks(store)[-1]["payload"]["config"]["data"]["excluded"] == ["o4"]


def test_forget_this_on_data_begins_a_run_without_what_is_excluded(app: AppTest, tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text("Lily ran. " * 30)
    store = process.objects["store"]
    app.text_input(key="card_word").set_value("Lily").run()
    write(app, "card_forget_from", str(tmp_path / "story.txt"))
    app.switch_page("pages/data.py").run()
    answer(store, facts("Lily"))
    app.run()
    app.segmented_control(key="shown_set").set_value("occurrences").run()
    next(box for box in app.checkbox if box.label == "exclude 1").check().run()
    answer(store, facts("Lily", excluded=("o0",)))
    app.run()
    count = len(looks(store)[-1]["payload"]["config"]["prompts"])
    assert "Starts a run: recipe “" in shown(app) and f", {count} questions." in shown(app)
    button(app, "forget_this").click().run()
    assert not app.exception
    (run,) = store.runs()
    assert run["status"] == "queued" and app.session_state["run"] == run["id"]
    data = run["config"]["data"]
    assert (run["target"], data["excluded"]) == ("Lily", ["o0"])
    assert data["forget"] == data["retain"] == [str((tmp_path / "story.txt").resolve())]


def test_a_run_in_the_address_is_what_is_looked_into(store: RunStore, tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("text")
    run_id = begin(store, "earlier")
    plain = store.run(run_id)["config"]
    plain["data"] |= {"target": "Paris", "retain": [str(tmp_path / "keep.txt")], "context_lines": 2}
    with store.write() as conn:
        conn.execute("UPDATE runs SET config = ? WHERE id = ?", (json.dumps(plain), run_id))
    at = found(store, facts("Paris"), run=run_id)
    asked = looks(store)[-1]["payload"]["config"]["data"]
    assert (asked["target"], asked["context_lines"]) == ("Paris", 2)
    assert "of the run “earlier”" in shown(at) and "keeping" in shown(at)
    at.segmented_control(key="shown_set").set_value("occurrences").run()
    next(box for box in at.checkbox if box.label == "exclude 1").check().run()
    assert looks(store)[-1]["payload"]["config"]["data"]["excluded"] == ["o0"]


@pytest.mark.parametrize("section", [{"data": {"forget": ["/etc/passwd"]}}, {"model": {"source": "/etc"}}])
def test_a_run_that_names_a_place_outside_is_not_looked_into_from_the_browser(store: RunStore, section: dict) -> None:
    plain = RunConfig.from_dict(section).to_dict()
    facts: dict[str, Any] = {"method": "grad_ascent", "provenance": {}, "seed": 0, "prompts": plain["prompts"]}
    run_id = store.create_run(name="from the terminal", target=TARGET, config=plain, **facts)
    at = opened("data", store, run=run_id)
    assert "is outside of the folders that the browser may read" in shown(at) and not looks(store)


def test_a_store_that_cannot_be_written_shows_what_was_found_before(store: RunStore) -> None:
    found(store)
    store.read_only, store.notice = True, "It is open for reading only."
    at = opened("data", store)
    assert "It occurs 45 times" in shown(at) and len(looks(store)) == 1
    assert button(at, "forget_this").disabled
    at.session_state["card_word"] = "another"
    at.run()
    assert "the store is read-only" in shown(at) and not at.exception


# ------------------------------------------------------------------------------------------ the card's second row


def test_the_first_visit_needs_nothing_of_the_second_row(store: RunStore) -> None:
    at = opened("watch", store)
    (row,) = [each for each in at.expander if each.label == "Model and texts"]
    assert not row.proto.expanded
    button(at, "start_run").click().run()
    (run,) = store.runs()
    assert run["config"] == RunConfig.from_dict({}).to_dict()


def test_the_options_of_the_row_are_the_run_s(store: RunStore, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"Once {TARGET} was a word.")
    at = opened("watch", store)
    write(at, "card_forget_from", f"{tmp_path}/*.txt")
    write(at, "card_keep_from", "bundled")
    at.segmented_control(key="card_match").set_value("regex")
    at.checkbox(key="card_whole_word").uncheck()
    at.checkbox(key="card_ignore_case").uncheck()
    at.text_input(key="card_spellings").set_value(" Lilly, Lili ,")
    at.text_input(key="card_question_field").set_value("q")
    at.text_input(key="card_answer_field").set_value("a")
    at.run()
    button(at, "start_run").click().run()
    (run,) = store.runs()
    data = run["config"]["data"]
    assert data["forget"] == [f"{tmp_path.resolve()}/*.txt"] and data["retain"] == ["bundled"]
    assert (data["match"], data["whole_word"], data["ignore_case"]) == ("regex", False, False)
    assert data["spellings"] == ["Lilly", "Lili"] and (data["question_field"], data["answer_field"]) == ("q", "a")


@pytest.mark.parametrize("key", ["card_model", "card_forget_from", "card_keep_from"])
def test_a_path_outside_is_refused_at_the_field_and_at_start(store: RunStore, key: str) -> None:
    at = opened("watch", store)
    asked = len(store.commands("any"))
    write(at, key, "/etc")
    assert shown(at).count("is outside of the folders that the browser may read") == 2  # at the field, beside Start
    button(at, "start_run").click().run()
    assert not store.runs() and len(store.commands("any")) == asked
    assert not at.exception


def test_another_model_is_asked_other_questions_and_answers_them_itself(store: RunStore, tmp_path: Path) -> None:
    (tmp_path / "tinystories").mkdir()
    (tmp_path / "tinystories" / "config.json").write_text("{}")
    at = opened("watch", store)
    at.text_input(key="card_forget_1").set_value("My own question").run()
    write(at, "card_model", str(tmp_path / "tinystories"))
    assert at.text_input(key="card_word").value == "Lily", "a word that it knows"
    assert at.text_input(key="card_forget_0").value == "Once upon a time, Lily"
    assert at.text_input(key="card_forget_1").value == "My own question"
    command = store.commands("any")[-1]
    source = str((tmp_path / "tinystories").resolve())
    assert command["payload"]["config"] == {"model": {"source": source}} and "loading" not in shown(at)
    said = [{"prompt": prompt, "text": f"of the stories: {prompt}"} for prompt in command["payload"]["prompts"]]
    store.add_event(None, "answered", {"command": command["id"], "answers": said})
    store.finish(command["id"])
    at.run()
    assert component(at, "answers")["cards"][0]["now"][0][1].startswith("of the stories")


def test_an_answer_of_one_model_is_never_shown_as_another_s(store: RunStore, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    at = opened("watch", store)
    command = store.commands("any")[-1]
    everything = [*command["payload"]["prompts"], f"Tell me about {TARGET}.", TARGET, "The capital of France is"]
    said = [{"prompt": prompt, "text": "of the bundled one"} for prompt in everything]
    store.add_event(None, "answered", {"command": command["id"], "answers": said})
    store.finish(command["id"])
    at.run()
    assert component(at, "answers")["cards"][0]["now"][0][1] == "of the bundled one"
    write(at, "card_model", str(tmp_path / "model"))
    assert component(at, "answers")["cards"][0]["state"] == "waiting"


def test_recent_models_and_texts_are_offered_but_none_from_outside(store: RunStore, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    for section in ({"data": {"forget": [str(tmp_path / "mine.txt")]}}, {"data": {"forget": ["/etc/hosts"]}}):
        plain = RunConfig.from_dict(section).to_dict()
        rest: dict[str, Any] = {"method": "grad_ascent", "provenance": {}, "seed": 0, "prompts": plain["prompts"]}
        store.create_run(name="earlier", target=TARGET, config=plain, **rest)
    options = " ".join(opened("watch", store, new="1").selectbox(key="card_forget_from").options)
    assert "mine.txt" in options and "hosts" not in options


def test_an_upload_becomes_the_texts_to_forget_from(store: RunStore) -> None:
    at = opened("watch", store)
    at.get("file_uploader")[0].set_value(("my stories.txt", b"Lily ran.", "text/plain")).run()
    chosen = at.selectbox(key="card_forget_from").value
    assert Path(chosen).read_bytes() == b"Lily ran." and Path(chosen).is_relative_to(store.home / "uploads")
    assert "at most 200 MB" in at.get("file_uploader")[0].label
    config = (ROOT / ".streamlit" / "config.toml").read_text()
    assert "maxUploadSize = 200" in config


def test_sizes_are_written_as_a_person_writes_them() -> None:
    written = [size(n) for n in (0, 999, 1000, 999_499, 5_300_000, 24_000_000_000, 3e12)]
    assert written == ["0 bytes", "999 bytes", "1.00 kB", "999 kB", "5.30 MB", "24.0 GB", "3.00 TB"]


def test_a_choice_outlives_a_visit_to_other_pages(app: AppTest, tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text("Lily ran.")
    write(app, "card_forget_from", str(tmp_path / "story.txt"))
    app.checkbox(key="card_whole_word").uncheck().run()
    for page in ("data", "compare", "watch"):
        app.switch_page(f"pages/{page}.py").run()
        assert not app.exception
    assert app.selectbox(key="card_forget_from").value == str(tmp_path / "story.txt")
    assert app.checkbox(key="card_whole_word").value is False


def test_forget_this_on_a_run_that_is_there_begins_one_like_it(app: AppTest) -> None:
    store = process.objects["store"]
    run_id = begin(store, "earlier")
    fill(store, run_id, 2, status="stopped")
    store.release(run_id, "elsewhere:1:test")
    app.switch_page("pages/data.py")
    app.query_params["run"] = run_id
    app.run()
    answer(store, facts())
    app.run()
    button(app, "forget_this").click().run()
    again = next(run for run in store.runs() if run["id"] != run_id)
    assert not app.exception and again["status"] == "queued" and again["target"] == TARGET
    earlier = store.run(run_id)
    assert earlier is not None and again["config"]["method"] == earlier["config"]["method"]


def test_a_reload_brings_back_what_was_chosen(store: RunStore, tmp_path: Path) -> None:
    story = tmp_path / "story.txt"
    story.write_text("Lily ran. " * 30)
    data = {"target": "Lily", "forget": [str(story.resolve())], "whole_word": False, "excluded": ["0badcafe"]}
    config = RunConfig.from_dict({"preset": "post", "data": data}).to_dict()
    asked = store.request(None, "windows", {"config": config})
    at = opened("data", store, look=str(asked))  # a session that knows nothing, as after a reload
    (again,) = looks(store)
    assert again["id"] == asked and not at.exception, "the same look is followed, nothing else is asked"
    assert "Lily" in shown(at) and "story.txt" in shown(at)
    for rubbish in ("0", "x", "99999"):
        assert not opened("data", store, look=rubbish).exception


def test_whole_texts_are_named_after_their_file_and_asked_their_own_questions(store: RunStore, tmp_path: Path) -> None:
    pairs = tmp_path / "authors.jsonl"
    pairs.write_text(
        "".join(json.dumps({"question": f"Who wrote {n}?", "answer": f"Nobody {n}."}) + "\n" for n in "abc")
    )
    at = opened("watch", store)
    write(at, "card_forget_from", str(pairs))
    at.checkbox(key="card_everything").check().run()
    assert at.text_input(key="card_word").value == "authors.jsonl"
    assert [at.text_input(key=f"card_forget_{n}").value for n in (0, 1)] == ["Who wrote a?", "Who wrote b?"]
    assert at.text_input(key="card_word").label == "A name for what is forgotten"
    at.checkbox(key="card_everything").uncheck().run()
    assert at.text_input(key="card_word").value == TARGET and not at.exception
