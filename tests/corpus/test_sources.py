"""Which files a browser may name: inside the roots whatever the way is written, and nothing of what lies outside."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest

from pages.setup import sources
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.run_config import RunConfig


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with texts and a model in it, a secret outside, and links of both kinds."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "stories" / "old", root / "model", outside, tmp_path / "home"):
        folder.mkdir(parents=True)
    (root / "a.txt").write_text("a")
    (root / "stories" / "b.txt").write_text("b")
    (root / "stories" / "old" / "c.txt").write_text("c")
    (root / "model" / "config.json").write_text("{}")
    (outside / "secret.txt").write_text("secret")
    (outside / "config.json").write_text("{}")
    monkeypatch.setenv("LETHE_ROOTS", str(root))
    monkeypatch.setenv("HOME", str(root))
    monkeypatch.chdir(root)
    return tmp_path


def texts(written: str, place: Path) -> list[str]:
    return sources.texts(written, place / "home")


def test_a_path_inside_is_written_out_whatever_way_it_is_named(place: Path) -> None:
    wanted = str((place / "root" / "a.txt").resolve())
    for written in ("a.txt", "~/a.txt", "stories/../a.txt", wanted, "./stories/old/../../a.txt"):
        assert texts(written, place) == [wanted], written
    assert texts("a.txt; stories", place) == [wanted, str((place / "root" / "stories").resolve())]
    for name in ("bundled", "hf:imdb", "hf:roneneldan/TinyStories", "hf:locuslab/TOFU/forget05:train"):
        assert texts(name, place) == [name]


def test_a_pattern_inside_is_kept_as_a_pattern(place: Path) -> None:
    root = (place / "root").resolve()
    for written in ("*.txt", "stories/*.txt", "stories/**/*.txt", "stor*/old", "~/*.txt"):
        (pattern,) = texts(written, place)
        assert pattern == os.path.join(root, written.removeprefix("~/"))
    with pytest.raises(ConfigError, match="Nothing is called nope"):
        texts("nope*.txt", place)


OUTSIDE = [
    "../outside/secret.txt",
    "../outside/nothing.txt",
    "../outside",
    "../outside/*.txt",
    "../*/secret.txt",
    "../outside/**",
    "~/../outside/secret.txt",
    "hf:../outside",
    "hf:/etc",
    "/etc/passwd",
    "/etc/*",
    "/*",
    "~root",
    "a.txt; ../outside/secret.txt",
]


@pytest.mark.parametrize("written", OUTSIDE)
def test_a_path_outside_is_refused_and_names_the_way_out(place: Path, written: str) -> None:
    with pytest.raises(ConfigError, match="is outside of the folders") as refused:
        texts(written, place)
    assert "LETHE_ROOTS" in str(refused.value) and str((place / "root").resolve()) in str(refused.value)
    assert "secret" not in str(refused.value).replace(written.split("; ")[-1], "")


def test_a_refusal_does_not_tell_whether_the_file_is_there(place: Path) -> None:
    said = set()
    for written in ("../outside/secret.txt", "../outside/nobody.txt", "../nowhere/nobody.txt"):
        with pytest.raises(ConfigError) as refused:
            texts(written, place)
        said.add(str(refused.value).replace(written, "IT"))
        with pytest.raises(ConfigError) as refused:
            sources.model(written, place / "home")
        said.add(str(refused.value).replace(written, "IT"))
    assert len(said) == 1


@pytest.mark.parametrize(
    "written", ["link.txt", "stories/link", "stories", "*.txt", "stories/**/*.txt", "stories/*/*.txt"]
)
def test_a_link_that_leads_out_is_outside_wherever_it_lies(place: Path, written: str) -> None:
    (place / "root" / "link.txt").symlink_to(place / "outside" / "secret.txt")
    (place / "root" / "stories" / "link").symlink_to(place / "outside")
    with pytest.raises(ConfigError, match="outside of the folders"):
        texts(written, place)


def test_a_link_that_stays_inside_is_followed_and_a_circle_ends(place: Path) -> None:
    (place / "root" / "link.txt").symlink_to(place / "root" / "a.txt")
    (place / "root" / "stories" / "up").symlink_to(place / "root" / "stories")
    assert texts("link.txt", place) == [str((place / "root" / "a.txt").resolve())]
    assert texts("stories", place) == [str((place / "root" / "stories").resolve())]
    (place / "root" / "knot").symlink_to(place / "root" / "knot")
    with pytest.raises(ConfigError):
        texts("knot", place)


def test_nothing_outside_is_opened_or_listed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "root" / "stories" / "link").symlink_to(place / "outside")
    looked: list[str] = []
    for name in ("scandir", "listdir"):
        usual = getattr(os, name)

        def watched(path: Any = ".", usual: Any = usual) -> Any:
            looked.append(os.path.realpath(path))
            return usual(path)

        monkeypatch.setattr(os, name, watched)
    for written in [*OUTSIDE, "stories", "stories/**/*.txt", "s*/*/*.txt"]:
        with pytest.raises(ConfigError):
            texts(written, place)
    (
        sources.offered(place / "home"),
        sources.texts_in("../outside", place / "home"),
        sources.models_in("/", place / "home"),
    )
    assert looked and not [path for path in looked if not sources.inside(path, sources.roots(place / "home"))]


def test_a_path_that_cannot_be_is_refused_in_a_sentence(place: Path) -> None:
    os.mkfifo(place / "root" / "pipe")
    for written, said in [
        ("a\0b", "no path"),
        ("x" * 5000, "no path"),
        ("  ;  ", "No texts are named"),
        ("stories/nope.txt", "There is nothing at"),
        ("pipe", "neither a file nor a folder"),
    ]:
        with pytest.raises(ConfigError, match=said):
            texts(written, place)


def test_a_folder_too_large_to_be_looked_through_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MOST_ENTRIES", 2)
    with pytest.raises(ConfigError, match="name a smaller folder"):
        texts("~/", place)


def test_a_model_is_bundled_a_hub_id_or_a_folder_with_a_config(place: Path) -> None:
    home = place / "home"
    assert sources.model("bundled", home) == "bundled"
    assert sources.model("EleutherAI/gpt-j-6b", home) == "EleutherAI/gpt-j-6b"
    assert sources.model("model", home) == str((place / "root" / "model").resolve())
    with pytest.raises(ConfigError, match="no config.json"):
        sources.model("stories", home)
    with pytest.raises(ConfigError, match="Choose one of the 1 models in it"):
        sources.model("~/", home)
    for written in ("../outside", str(place / "outside")):
        with pytest.raises(ConfigError, match="outside of the folders"):
            sources.model(written, home)
    (place / "root" / "evil").symlink_to(place / "outside")
    with pytest.raises(ConfigError, match="outside of the folders"):  # shaped like a hub id, but a folder would be read
        sources.model("evil", home)


def test_a_run_s_settings_are_checked_whole(place: Path) -> None:
    config = RunConfig.from_dict({"data": {"forget": ["a.txt"]}}).to_dict()
    found = sources.checked(config, place / "home")
    assert found["data"]["forget"] == [str((place / "root" / "a.txt").resolve())]
    assert found["data"]["retain"] == found["data"]["forget"]  # what is kept comes from the same texts
    for section in (
        {"data": {"retain": ["/etc/passwd"]}},
        {"model": {"source": "/etc"}},
        {"model": {"adapter": "/etc"}},
    ):
        with pytest.raises(ConfigError, match="outside of the folders"):
            sources.checked({**config, **section}, place / "home")


def test_without_lethe_roots_the_working_folder_and_the_home_are_the_roots(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LETHE_ROOTS")
    monkeypatch.setenv("HOME", str(place / "home"))
    uploads = place / "home" / "store" / "uploads"
    assert sources.roots(place / "home" / "store") == tuple(
        path.resolve() for path in (place / "root", place / "home", uploads)
    )
    monkeypatch.setenv("LETHE_ROOTS", "")
    assert sources.roots(place / "home" / "store") == (uploads.resolve(),)


# -------------------------------------------------------------------------------------------------------- uploads


def test_an_upload_is_kept_once_by_its_content_and_can_be_named(place: Path) -> None:
    home = place / "home"
    kept = sources.keep_upload("../../etc/my stories.txt", io.BytesIO(b"one two"), home)
    assert Path(kept).read_bytes() == b"one two" and Path(kept).name == "my-stories.txt"
    assert Path(kept).is_relative_to((home / "uploads").resolve())
    assert sources.keep_upload("my stories.txt", io.BytesIO(b"one two"), home) == kept
    assert sources.keep_upload("my stories.txt", io.BytesIO(b"other"), home) != kept
    assert texts(kept, place) == [kept] and kept in sources.uploaded(home)
    assert sources.named(kept, home).startswith("my-stories.txt (uploaded")
    assert not list((home / "uploads").glob(".part*"))


def test_an_upload_goes_to_the_disk_in_pieces(place: Path) -> None:
    class Large(io.RawIOBase):
        left, most = 5 << 20, 0

        def read(self, size: int = -1) -> bytes:
            assert 0 < size <= 1 << 20, "all of it at once"
            given = min(size, self.left)
            self.left -= given
            return b"x" * given

    kept = sources.keep_upload("large.txt", Large(), place / "home")  # type: ignore[arg-type]
    assert Path(kept).stat().st_size == 5 << 20


@pytest.mark.parametrize("name", ["", "..", "/", ".bashrc", "a\0b.txt", "x" * 300 + ".txt", "<img src=x>.json"])
def test_whatever_an_upload_is_called_it_lies_among_the_uploads(place: Path, name: str) -> None:
    kept = Path(sources.keep_upload(name, io.BytesIO(b"text"), place / "home"))
    assert kept.parent.parent == (place / "home" / "uploads").resolve() and not kept.name.startswith(".")


def test_an_empty_upload_and_a_full_disk_are_sentences_and_leave_nothing(place: Path) -> None:
    class Broken(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise OSError(28, "No space left on device")

    for content, said in ((io.BytesIO(b""), "is empty"), (Broken(), "No space left on device")):
        with pytest.raises(ConfigError, match=said):
            sources.keep_upload("a.txt", content, place / "home")  # type: ignore[arg-type]
    assert not [path for path in (place / "home" / "uploads").rglob("*") if path.is_file()]


def test_what_is_offered_are_models_texts_and_uploads_in_the_roots(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "root" / "stories" / "notes.jsonl.gz").write_bytes(b"")
    (place / "root" / "stories" / "photo.png").write_bytes(b"")
    (place / "root" / ".hidden.txt").write_text("")
    kept = sources.keep_upload("mine.txt", io.BytesIO(b"text"), place / "home")
    monkeypatch.setenv("HOME", str(place / "home"))  # a home of its own: it is not listed
    models, files = sources.offered(place / "home")
    assert models == [str((place / "root" / "model").resolve())]
    assert files == [kept, str((place / "root" / "a.txt").resolve())]
    inner = sources.texts_in(place / "root" / "stories", place / "home")
    assert [Path(path).name for path in inner] == ["b.txt", "notes.jsonl.gz"]


@pytest.mark.parametrize("name", ["a.exe", "a.pkl", "a.txt.exe", "model.safetensors", "config.json", "a.html", "a.gz"])
def test_an_upload_under_a_name_that_is_not_of_texts_is_refused(place: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a file of texts .* one of .*\.csv"):
        sources.keep_upload(name, io.BytesIO(b"text"), place / "home")
    assert not (place / "home" / "uploads").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"\x89PNG\r\n\x1a\n\0\0\0"),
        ("a.csv", b"PK\x03\x04\0\0"),
        ("a.txt.gz", b"text"),
        ("a.parquet", b"text"),
        ("a.json", b"\0\1\2\3" * 100),
    ],
)
def test_an_upload_whose_content_is_of_another_kind_is_refused_and_leaves_nothing(
    place: Path, name: str, content: bytes
) -> None:
    with pytest.raises(ConfigError) as caught:
        sources.keep_upload(name, io.BytesIO(content), place / "home")
    assert name in str(caught.value) and ".part" not in str(caught.value)
    assert not [path for path in (place / "home" / "uploads").rglob("*") if path.is_file()]


def test_uploads_are_bounded_in_size_and_number_on_the_server(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "UPLOAD_MB", 1)
    with pytest.raises(ConfigError, match="more than 1 MB"):
        sources.keep_upload("large.txt", io.BytesIO(b"x" * ((1 << 20) + 1)), place / "home")
    kept = sources.keep_upload("large.txt", io.BytesIO(b"x" * (1 << 20)), place / "home")
    monkeypatch.setattr(sources, "MOST_UPLOADS", 1)
    assert sources.keep_upload("large.txt", io.BytesIO(b"x" * (1 << 20)), place / "home") == kept  # there already
    with pytest.raises(ConfigError, match="1 uploads are kept"):
        sources.keep_upload("other.txt", io.BytesIO(b"text"), place / "home")
    assert sources.uploaded(place / "home") == [kept]


@pytest.mark.parametrize(("name", "kept"), [("CON.txt", "_CON.txt"), ("aux", "_aux.txt"), ("com1.csv", "_com1.csv")])
def test_no_upload_is_called_as_a_device(place: Path, name: str, kept: str) -> None:
    assert Path(sources.keep_upload(name, io.BytesIO(b"a,b\n1,2\n"), place / "home")).name == kept
