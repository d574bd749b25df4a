"""The documentation is right: the README's tree, commands and links exist, and what is public has a docstring."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import fields
from importlib import import_module
from importlib.metadata import version
from inspect import isclass
from pathlib import Path
from types import ModuleType
from urllib.request import urlopen

import pytest
from streamlit.testing.v1 import AppTest

from cli import make_parser
from storage import RunStore
from unlearn_core.methods import METHODS
from unlearn_core.settings.knobs import knobs
from unlearn_core.settings.presets import PRESETS
from unlearn_core.settings.run_config import RunConfig
from unlearn_core.settings.sections import RAILS, rail_settings

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ROOMS = ("unlearn_core", "storage", "pages", "terminal", "bench", "tests")
PATH = re.compile(r"[\w.-]+(/[\w.-]+)*(\.\w+|/)")
SENTENCE = re.compile(r"[A-Z].*[^.]\.")
SOURCE = re.compile(r"arxiv|doi|https?://|\d{4}\.\d{4,5}", re.IGNORECASE)


def our_files() -> set[str]:
    """Every Python file of the rooms and of the root that git would have, as paths from the root."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode == 0:
        paths = {name for name in listed.stdout.split() if (ROOT / name).is_file()}
    else:
        paths = {str(path.relative_to(ROOT)) for room in (".", *ROOMS) for path in (ROOT / room).glob("**/*.py")}
    return {name for name in paths if "/" not in name or name.split("/")[0] in ROOMS}


def tree() -> list[str]:
    """The paths that the README's tree names: fenced lines `path   comment`, nested by two blanks."""
    blocks = re.findall(r"```\w*\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    block = next((block for block in blocks if re.search(r"^unlearn_core/", block, re.MULTILINE)), "")
    named: list[str] = []
    above: list[str] = []
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        del above[depth:]
        for piece in re.split(r"\s{2,}", line.strip()):
            paths = piece.split()
            if not paths or not all(PATH.fullmatch(path) for path in paths):
                break  # the comment begins
            named += ["".join(above) + path for path in paths]
            above[depth:] = [paths[-1]] if paths[-1].endswith("/") else []
    return named


def test_every_path_in_the_readme_s_tree_exists() -> None:
    paths = tree()
    assert len(paths) > 20, "the README shows the tree of the project in a fenced block"
    assert not [path for path in paths if not (ROOT / path).exists()]
    assert len(paths) == len(set(paths))


def test_the_readme_s_tree_names_every_folder_of_the_core_every_page_and_every_file_at_the_root() -> None:
    """It names folders; single files only of the root and of pages."""
    files, named = our_files(), set(tree())
    folders = {f"{path.rsplit('/', 1)[0]}/" for path in files if "/" in path}
    top = {folder for folder in folders if folder.count("/") == 1}
    rooms = {folder for folder in folders if folder.startswith(("unlearn_core/", "pages/")) and folder.count("/") == 2}
    pages = {path for path in files if path.startswith("pages/") and path.count("/") == 1} - {"pages/__init__.py"}
    at_the_root = {path for path in files if "/" not in path}
    assert {"pages/watch.py", "app.py"} <= pages | at_the_root and "unlearn_core/methods/" in rooms
    assert not (top | rooms | pages | at_the_root) - named


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


def test_every_number_that_a_run_records_is_in_the_table_of_metrics() -> None:
    pinned = json.loads((ROOT / "tests" / "trajectories" / "pinned.json").read_text(encoding="utf-8"))
    recorded = {name for case in pinned["cases"].values() for name in case["points"]}
    described = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert "removed_share" in recorded and not recorded - set(described)
    assert len(described) == len(set(described))


def test_a_term_is_explained_once_in_the_glossary() -> None:
    terms = re.findall(r"^- \*\*(.+?)\*\*", (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(terms) == len(set(terms)) and {"holdout loss", "removed share", "retain budget", "dial"} <= set(terms)


# ------------------------------------------------------------------------------------------- the README's two commands


def commands() -> list[str]:
    """The commands of the README's fenced blocks that install and start something."""
    blocks = re.findall(r"```\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return [block.strip() for block in blocks if block.startswith("python -m pip install")]


def test_the_readme_has_one_command_to_start_and_one_to_test_and_what_they_name_exists() -> None:
    start, test = (command.split(" && ") for command in commands())
    assert start == ["python -m pip install -r requirements.txt", "streamlit run app.py"]
    assert test == ["python -m pip install -r requirements-dev.txt", "python -m pytest"]
    for command in (start, test):
        requirements = ROOT / command[0].rsplit(" ", 1)[1]
        named = re.findall(r"^-[rc] (\S+)", requirements.read_text(encoding="utf-8"), re.MULTILINE)
        assert named and all((ROOT / name).is_file() for name in named)
        pins = re.findall(r"^([\w.-]+)==(\S+)", requirements.read_text(encoding="utf-8"), re.MULTILINE)
        assert pins and all(version(name) for name, _ in pins), "every package that it installs can be found here"


@pytest.mark.slow
def test_the_readme_s_first_command_starts_the_app(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    streamlit, *words = commands()[0].split(" && ")[1].split()
    options = ["--server.headless=true", "--server.address=127.0.0.1", f"--server.port={port}"]
    with (tmp_path / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", streamlit, *words, *options],
            cwd=ROOT, env={**os.environ, "LETHE_HOME": str(tmp_path)}, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            status, end = 0, time.monotonic() + 60
            while status != 200 and process.poll() is None and time.monotonic() < end:
                with (
                    contextlib.suppress(OSError),
                    urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=5) as reply,
                ):
                    status = reply.status
                time.sleep(0.1)
        finally:
            process.terminate()
            process.wait(30)
    assert status == 200, (tmp_path / "log.txt").read_text()


@pytest.mark.slow
def test_the_readme_s_second_command_collects_the_tests() -> None:
    program = commands()[1].split(" && ")[1].split()
    done = subprocess.run(
        [sys.executable, *program[1:], "-n", "0", "--collect-only", "tests/storage", str(Path(__file__))],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "tests/test_docs.py" in done.stdout, done.stdout + done.stderr


def test_the_commands_of_the_command_line_that_documents_name_exist() -> None:
    for page in DOCUMENTS:
        for verb in sorted(set(re.findall(r"python cli\.py ([a-z]+)", page.read_text(encoding="utf-8")))):
            with pytest.raises(SystemExit) as ended:
                make_parser().parse_args([verb, "--help"])
            assert ended.value.code == 0, f"{page.name}: {verb}"


# ------------------------------------------------------------------------------------ the examples of CONTRIBUTING.md

PLUGIN_BASES = {"METHOD": "Method", "GUARD_RAIL": "GuardRail", "METRIC": "Metric", "READER": "Reader"}


def examples() -> dict[str, str]:
    """The files that CONTRIBUTING.md shows in full: path -> text."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return dict(re.findall(r"```python\n# (\S+)\n(.*?)```", text, re.DOTALL))


def written(path: str, root: Path) -> Path:
    file = root / path
    file.parent.mkdir(parents=True)
    file.write_text(examples()[path], encoding="utf-8")
    return file


def imported(file: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{file.stem}", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where a dataclass looks its annotations up
    spec.loader.exec_module(module)
    return module


def test_contributing_shows_an_example_of_every_kind_and_none_of_them_is_in_the_project() -> None:
    rooms = [str(Path(path).parent) for path in examples()]
    kinds = ["methods", "guard_rails", "metrics", "corpus/readers"]
    assert sorted(rooms) == sorted(["pages", *(f"unlearn_core/{kind}" for kind in kinds)])
    assert not [path for path in examples() if (ROOT / path).exists()]


@pytest.mark.parametrize("path", [path for path in examples() if path.startswith("unlearn_core/")])
def test_an_example_of_a_plug_in_is_a_whole_file_that_sets_what_its_folder_asks_for(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Path(path).parent
    if "top_token_share" in path and not importlib.util.find_spec("unlearn_core.metrics.base"):
        pytest.skip("metrics are no plug-ins yet")
    attribute = room.name.removesuffix("s").upper()
    member = getattr(imported(written(path, tmp_path), monkeypatch), attribute)
    base = getattr(import_module(".".join((*room.parts, "base"))), PLUGIN_BASES[attribute])
    assert issubclass(member, base) if isclass(member) else isinstance(member, base)
    assert undocumented(tmp_path / path) == []


def test_the_example_of_a_page_runs_on_a_store(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "home")
    try:
        for name in ("one", "two"):
            store.create_run(name=name, target="zorblatt", method="npo", config={}, provenance={}, seed=0, prompts=[])
        page = AppTest.from_file(str(written("pages/targets.py", tmp_path)), default_timeout=30)
        page.session_state["store"] = store
        page.run()
        assert not page.exception, page.exception
        html = "\n".join(each.proto.body for each in page.get("html"))
        assert "1 targets in 2 runs." in html and "<li>zorblatt: 2</li>" in html
    finally:
        store.close()


# ---------------------------------------------------------------------------------------------- what is in the code


@pytest.mark.parametrize("name", METHODS)
def test_a_method_cites_its_source_and_explains_every_knob(name):
    text = METHODS[name].__doc__ or ""
    assert SOURCE.search(text) and len(text.splitlines()[0]) <= 120 and text.splitlines()[0].endswith(".")
    for fact in knobs(METHODS[name]):
        assert SENTENCE.fullmatch(fact["help"]), f"{name}.{fact['name']}: {fact['help']!r} is not a sentence"


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_what_a_person_who_chooses_it_should_know(name):
    """Complete facts: phrases without a full stop, a formula that is LaTeX by itself, settings that a run can have."""
    facts = METHODS[name].facts
    for fact in ("label", "formula", "passes", "data", "memory", "fails"):
        text = getattr(facts, fact)
        assert text and text == text.strip() and not text.endswith("."), f"{name}: {fact}"
    assert "$" not in facts.formula and facts.formula.count("{") == facts.formula.count("}")
    assert facts.formula.count(r"\big(") + facts.formula.count(r"\Big(") <= facts.formula.count(")")
    assert facts.where and facts.rails and facts.settings is not None
    assert facts.trains or facts.dial, "what do its steps set?"
    assert len({METHODS[other].facts.label for other in METHODS}) == len(METHODS)
    chosen = RunConfig.from_dict({"method": {"name": name}})
    for section, values in facts.settings.items():
        for key, value in values.items():
            if (section, key) != ("method", "name"):
                assert getattr(getattr(chosen, section), key) == value or name == "grad_ascent", f"{section}.{key}"


SECTIONS = ("model", "lora", "where", "data", "guard_rail", "optimizer", "schedule", "guard", "as_run")


@pytest.mark.parametrize("section", SECTIONS)
def test_the_help_of_every_setting_of_the_run_file_is_a_sentence(section):
    kinds = map(rail_settings, RAILS) if section == "guard_rail" else [type(getattr(RunConfig.from_dict({}), section))]
    for fact in itertools.chain.from_iterable(map(knobs, kinds)):
        assert SENTENCE.fullmatch(fact["help"]), f"{section}.{fact['name']}: {fact['help']!r} is not a sentence"


def test_the_help_of_every_setting_outside_of_a_section_is_a_sentence():
    texts = {entry.name: entry.metadata["help"] for entry in fields(RunConfig) if "help" in entry.metadata}
    assert {"seed", "preset"} <= set(texts) and all(map(SENTENCE.fullmatch, texts.values())), texts


def test_a_preset_says_in_a_sentence_what_it_does():
    assert all(preset.label and preset.caption.endswith(".") for preset in PRESETS.values())


def undocumented(path: Path) -> list[str]:
    """Public functions and classes at the top of a file without a docstring; a class of fields alone may be bare."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    bare = [] if ast.get_docstring(module) or "methods" in path.parts else ["the file itself"]
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            only_fields = isinstance(node, ast.ClassDef) and all(isinstance(part, ast.AnnAssign) for part in node.body)
            if not ast.get_docstring(node) and not only_fields:
                bare.append(node.name)
    return bare


@pytest.mark.parametrize("path", sorted(p for p in our_files() if p.startswith(("unlearn_core/", "storage/"))))
def test_what_is_public_has_a_docstring(path):
    assert not undocumented(ROOT / path)
