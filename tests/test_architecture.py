"""Who may import whom and use which names: the table of the README, enforced on every statement of the project."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import LONGEST

ROOT = Path(__file__).parents[1]
CORE = "unlearn_core"
STANDARD = frozenset(sys.stdlib_module_names) - {"sqlite3"}
OUR_OWN = {"unlearn_core", "storage", "pages", "app", "bench", "cli", "terminal"}
HEAVY = {"torch", "transformers", "peft", "safetensors", "tokenizers"}
LIGHT_ROOMS = ("settings.run_config", "corpus.windows", "world", "methods", "guard_rails", "running.worker")
LIGHT = tuple(f"unlearn_core.{name}" for name in LIGHT_ROOMS)
# From the top: a folder imports only folders behind it, also while type checking. `context` is a file.
ORDER = (
    "running", "training", "metrics", "methods", "guard_rails", "masks", "optimizers", "context", "corpus", "model",
    "settings", "world",
)  # fmt: skip
MOST_LEVELS = 9

MAY_IMPORT: dict[str, frozenset[str]] = {
    "unlearn_core": STANDARD
    | HEAVY
    | {"unlearn_core", "tomli_w", "datasets", "numpy", "huggingface_hub", "jinja2", "charset_normalizer", "ijson"}
    | {"mwparserfromhell", "pyarrow", "regex", "xxhash", "sklearn", "zstandard", "datasketch", "psutil", "gguf"},
    "unlearn_core/running": STANDARD
    | {"unlearn_core.running", "unlearn_core.settings.provenance", "unlearn_core.settings.report"}
    | {"unlearn_core.settings.disk"},
    "unlearn_core/settings/provenance.py": STANDARD,
    "unlearn_core/settings/report.py": STANDARD,
    "unlearn_core/settings/disk.py": STANDARD,
    "unlearn_core/settings/home.py": STANDARD,
    "unlearn_core/settings/imports.py": STANDARD,
    "storage": STANDARD
    | {"sqlite3", "sqlite_utils", "pandas", "psutil", "storage"}
    | {"unlearn_core.settings.disk", "unlearn_core.settings.home"},
    "pages": STANDARD | {"streamlit", "plotly", "pandas", "markupsafe", "pages", "unlearn_core"},
    "pages/shared/format.py": STANDARD,
    "pages/shared/diff.py": STANDARD,
}


class Import(NamedTuple):
    """One imported module, and how: `types` only while type checking, `late` inside a function."""

    name: str
    line: int
    types: bool
    late: bool


def walk(node: ast.AST, types: bool, late: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, types, late) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert not child.level, f"line {child.lineno}: write the whole name instead of a relative import"
            yield Import(child.module or "", child.lineno, types, late)
            yield from (Import(f"{child.module}.{a.name}", child.lineno, types, late) for a in child.names)
        else:
            checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(child, types or checking, late or inside)


@cache
def imports(path: Path) -> tuple[Import, ...]:
    return tuple(walk(ast.parse(path.read_text(encoding="utf-8"), str(path)), False, False))


def files(room: str) -> list[Path]:
    found = sorted((ROOT / room).rglob("*.py")) if (ROOT / room).is_dir() else [ROOT / room]
    return [path for path in found if path.is_file()]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_it_may(room):
    paths = files(room)
    assert paths
    breaches = [
        f"{path.relative_to(ROOT)}:{found.line} imports {found.name}"
        for path in paths
        for found in imports(path)
        if not any(found.name == name or found.name.startswith(f"{name}.") for name in MAY_IMPORT[room])
        and not (found.types and room == "pages")
    ]
    assert not breaches, "\n".join(breaches)


def test_pages_do_not_even_name_torch_sqlite_or_the_doors():
    never = HEAVY | {"sqlite3", "sqlite_utils", "app", "cli", "terminal"}
    breaches = [
        f"{path.relative_to(ROOT)}:{found.line} imports {found.name}"
        for path in files("pages")
        for found in imports(path)
        if found.name.split(".")[0] in never
    ]
    assert not breaches, "\n".join(breaches)


def module_path(name: str) -> Path | None:
    base = ROOT.joinpath(*name.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def reached(name: str, seen: set[str]) -> set[str]:
    """Every module that importing `name` imports, ours and others', as far as the statements at module level tell."""
    parts = name.split(".")
    for stop in range(1, len(parts) + 1):
        part = ".".join(parts[:stop])
        path = module_path(part)
        if part in seen or (path is None and part.split(".")[0] in OUR_OWN):
            continue
        seen.add(part)
        for found in imports(path) if path else ():
            if not found.types and not found.late:
                reached(found.name, seen)
    return seen


@pytest.mark.parametrize("room", ["pages", "app.py", "storage", *LIGHT])
def test_opening_a_page_reaches_nothing_heavy(room):
    """Not even by way of others: the page paints before the worker has imported PyTorch."""
    names = [room] if room in LIGHT else [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in files(room)]
    for name in names:
        heavy = {part.split(".")[0] for part in reached(name, set())} & HEAVY
        assert not heavy, f"importing {name} imports {', '.join(sorted(heavy))}"


def test_the_walk_sees_what_python_does():
    assert "torch" in reached("unlearn_core.training.engine", set()) and "torch" in reached("bench.world_build", set())
    assert "sqlite_utils" in reached("storage", set())


def test_the_light_parts_import_neither_torch_nor_transformers_nor_peft():
    code = f"import sys, {', '.join(LIGHT)}; print(*sorted({{'torch', 'transformers', 'peft'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def core_imports() -> dict[str, dict[str, list[str]]]:
    """Module of the core -> module of the core that it imports, type checking included -> the names that it takes."""
    paths = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in files(CORE)}
    found: dict[str, dict[str, list[str]]] = {name: {} for name in paths}
    for name, path in paths.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == CORE:
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    module = whole if whole in paths else str(node.module)
                    if module in paths and module != name:
                        found[name].setdefault(module, []).append(alias.name)
    return found


def folder(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_no_two_modules_of_the_core_import_each_other_by_any_way():
    graph, circle = core_imports(), []
    try:
        tuple(TopologicalSorter({name: set(uses) for name, uses in graph.items()}).static_order())
    except CycleError as error:
        circle = error.args[1]
    pairs = zip(circle[1:], circle, strict=False)
    ties = [f"{user} -> {used}: {', '.join(graph[user].get(used, []))}" for user, used in pairs]
    assert not ties, "an import cycle:\n" + "\n".join(ties)


def test_every_import_of_the_core_points_down_the_order_of_folders():
    assert {folder(name) for name in core_imports()} - {""} == set(ORDER), "a folder has no place in ORDER"
    upward = [
        f"{user} -> {used}: {', '.join(names)}"
        for user, uses in core_imports().items()
        for used, names in uses.items()
        if folder(user) and folder(used) and ORDER.index(folder(user)) > ORDER.index(folder(used))
    ]
    assert not upward, "\n".join(upward)


def test_the_core_has_few_levels_of_folders():
    below: dict[str, set[str]] = {name: set() for name in ORDER}
    for user, uses in core_imports().items():
        if folder(user):
            below[folder(user)] |= {folder(used) for used in uses} - {"", folder(user)}

    @cache
    def level(name: str) -> int:
        return 1 + max(map(level, below[name]), default=0)

    assert max(map(level, ORDER)) <= MOST_LEVELS, {name: level(name) for name in ORDER}


def test_there_is_no_drawer_for_everything():
    names = {path.name for room in OUR_OWN for path in files(room if (ROOT / room).is_dir() else f"{room}.py")}
    assert not names & {"utils.py", "common.py", "helpers.py", "misc.py"}


# --------------------------------------------------------------------------------------------------- private names

OUTSIDE = {  # private names of others that have no public counterpart -> in which files, and why
    "_replace": ("", "a method of every named tuple, underscored only to keep it apart from the fields"),
    "_asdict": ("", "likewise"),
    "_fields": ("", "likewise"),
    "_parser": (
        "unlearn_core/corpus/target.py",
        "re has no public parser, which reads a pattern's literals",
    ),
    "_exit": ("tests/faults/", "the end of a forked process, which must not do what is its parent's to do"),
    "_forward_hooks": ("tests/", "torch has no public list of a module's hooks"),
    "_backward_hooks": ("tests/", "torch has no public list of a parameter's hooks"),
    "_forward_pre_hooks": ("tests/", "torch has no public list of a module's hooks"),
}
SETTERS = {"setattr", "delattr", "getattr", "hasattr", "patch", "object"}


def private(name: str) -> bool:
    return name.startswith("_") and name.strip("_") != "" and not name.startswith("__")


def private_uses(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of every private name that a file takes from elsewhere.

    An attribute of something other than `self` and `cls`, unless the file itself defines that name; an imported name,
    or one out of a private module; a name that is given to `setattr` and the like as a text.
    """
    own = {
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            own |= {node.attr} if isinstance(node.value, ast.Name) and node.value.id == "self" else set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            if not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}) and node.attr not in own:
                yield node.lineno, node.attr
        elif isinstance(node, ast.Import | ast.ImportFrom):
            whole = [part for alias in node.names for part in alias.name.split(".")]
            module = (node.module or "").split(".") if isinstance(node, ast.ImportFrom) else []
            yield from ((node.lineno, part) for part in (*module, *whole) if private(part))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in SETTERS:
            texts = [
                given.value for given in node.args if isinstance(given, ast.Constant) and isinstance(given.value, str)
            ]
            for part in (part for text in texts for part in text.split(".")):
                if private(part) and part.isidentifier() and part not in own:
                    yield node.lineno, part


def source_files() -> list[Path]:
    rooms = [name if (ROOT / name).is_dir() else f"{name}.py" for name in sorted(OUR_OWN)]
    return [path for room in (*rooms, "tests") for path in files(room)]


def test_no_file_uses_a_private_name_of_another():
    paths = source_files()
    assert {"cli.py", "unlearn_core", "tests"} <= {path.relative_to(ROOT).parts[0] for path in paths}
    uses = [
        (str(path.relative_to(ROOT)), line, name)
        for path in paths
        for line, name in private_uses(ast.parse(path.read_text(encoding="utf-8")))
    ]
    breaches = [
        f"{path}:{line} uses {name}"
        for path, line, name in uses
        if name not in OUTSIDE or not path.startswith(OUTSIDE[name][0])
    ]
    assert not breaches, "\n".join(breaches)
    used = {name for _, _, name in uses}
    assert not {name for name, (where, _) in OUTSIDE.items() if where} - used, "an exception that nothing needs"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("worker._steps", ["_steps"]),
        ("run.context._adapter.values", ["_adapter"]),
        ("from storage.runs import _row, RunStore", ["_row"]),
        ("import torch._dynamo", ["_dynamo"]),
        ("monkeypatch.setattr(Worker, '_beat', None)", ["_beat"]),
        ("monkeypatch.setattr('storage.runs._now', None)", ["_now"]),
        ("class A:\n def f(self, other): return self._x + cls._y + other.__class__.z + other._f\n def _f(self): 0", []),
        ("class A:\n def __init__(self): self._n = 0\n def __eq__(self, other): return self._n == other._n", []),
        ("text.removesuffix('_loss')", []),
    ],
)
def test_private_names_are_seen_where_they_are_used(text, names):
    assert [name for _, name in private_uses(ast.parse(text))] == names


def test_the_test_files_that_are_shared_out_first_exist():
    assert LONGEST and not [name for name in LONGEST if not (ROOT / "tests" / name).is_file()]
