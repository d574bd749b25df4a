"""The server answers only whom it should: by Host and Origin, by address, by sign-in. Real servers, raw sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from itsdangerous import URLSafeTimedSerializer
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.sync.client import connect

from pages.serving.exposure import Exposure
from pages.serving.hosts import HostCheck
from pages.serving.sign_in import may_come_in
from pages.serving.uploads import FRAME, UploadLimit

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0
STREAM, STATIC = "/_stcore/stream", "/app/static/plotly.min.js"
UPGRADE = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


# ---------------------------------------------------------------------------------------------- one request, no server


def status(headers: Sequence[tuple[str, str]], server: str = "127.0.0.1", kind: str = "http", **settings: Any) -> int:
    """What the middleware answers: 200 where the application behind it is asked, else its refusal."""
    sent: list[Mapping[str, Any]] = []

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": kind, "server": (server, 8501), "headers": [(k.encode(), v.encode("latin-1")) for k, v in headers]}
    asyncio.run(HostCheck(behind, **settings)(scope, receive, send))
    return 403 if sent[0]["type"] == "websocket.close" else sent[0]["status"]


GOOD = [
    ("localhost:8501", "http://localhost:8501"),
    ("127.0.0.1:8501", "http://127.0.0.1:8501"),
    ("[::1]:8501", "http://[::1]:8501"),
    ("LOCALHOST:8501", "http://localhost:8501"),
    ("127.0.0.1", "http://127.0.0.1:80"),
    ("localhost:9000", "http://localhost:9000"),  # through a tunnel
    ("localhost:443", "https://localhost"),
    ("127.0.0.1:8501", None),
]
BAD = [
    ("evil.example", "http://evil.example"),
    ("evil.example:8501", "http://evil.example:8501"),
    ("evil.example:8501", None),
    ("127.0.0.1:8501", "http://evil.example"),
    ("127.0.0.1:8501", "http://127.0.0.1:8502"),
    ("127.0.0.1:8501", "http://127.0.0.1"),
    ("127.0.0.1:8501", "http://localhost:8501"),
    ("127.0.0.1:8501", "http://0.0.0.0:8501"),
    ("0.0.0.0:8501", "http://0.0.0.0:8501"),
    ("[::]:8501", "http://[::]:8501"),
    ("127.0.0.1:8501", "null"),
    ("127.0.0.1:8501", "file://"),
    ("127.0.0.1:8501", ""),
    ("127.0.0.1:8501", "http://127.0.0.1:8501@evil.example"),
    ("127.0.0.1:8501", "http://127.0.0.1:8501.evil.example"),
    ("127.0.0.1.evil.example:8501", "http://127.0.0.1.evil.example:8501"),
    ("localhost.evil.example", "http://localhost.evil.example"),
    ("127.0.0.1:8501@evil.example", None),
    ("192.168.1.5:8501", "http://192.168.1.5:8501"),
    ("2130706433:8501", None),  # 127.0.0.1 in another way of writing
    ("", None),
    ("127.0.0.1:99999999", None),
]


def headers_of(host: str, origin: str | None) -> list[tuple[str, str]]:
    return [("host", host), *([("origin", origin)] if origin is not None else [])]


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_only_this_machine_s_own_names_and_its_own_pages_are_answered(kind: str) -> None:
    assert [each for each in GOOD if status(headers_of(*each), kind=kind) != 200] == []
    assert [each for each in BAD if status(headers_of(*each), kind=kind) != 403] == []
    assert status([("host", "localhost"), ("host", "evil.example")], kind=kind) == 403
    assert status([("origin", "http://localhost")], kind=kind) == 403  # HTTP/1.0 without a Host
    two = [("host", "localhost"), ("origin", "http://localhost"), ("origin", "http://evil.example")]
    assert status(two, kind=kind) == 403


def test_what_arrives_from_elsewhere_is_answered_only_where_it_may_and_by_names_that_were_given() -> None:
    local, far = headers_of("localhost", None), headers_of("192.168.1.5:8501", "http://192.168.1.5:8501")
    assert status(local, server="192.168.1.5") == status(local, server="::ffff:192.168.1.5") == 403
    assert status(local, server="::ffff:127.0.0.1") == 200
    assert status(far, server="192.168.1.5", beyond=True) == status(local, beyond=True) == 200
    assert status(headers_of("gpu-box:8501", None), server="192.168.1.5", beyond=True) == 403
    assert status(headers_of("0.0.0.0:8501", None), beyond=True) == 403
    hosts = ["Lethe.Example.org", "*.lab.example"]
    there = {"hosts": hosts, "beyond": True}
    assert status(headers_of("lethe.example.org", "https://lethe.example.org"), **there) == 200
    assert status(headers_of("gpu.lab.example", "https://gpu.lab.example"), **there) == 200
    for host in ("lab.example", "evil-lab.example", "lethe.example.org.evil.example", "localhost", "192.168.1.5"):
        assert status(headers_of(host, None), **there) == 403


def test_uploads_are_bounded_one_by_one_and_together_before_a_byte_is_read() -> None:
    taken: list[int] = []

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        taken.append(limit.coming)
        await send({"type": "http.response.start", "status": 204, "headers": []})

    async def answer(length: str | None, method: str = "PUT", path: str = "/base/_stcore/upload_file/a/b") -> int:
        sent: list[Any] = []
        headers = [] if length is None else [(b"Content-Length", length.encode())]

        async def send(message: Any) -> None:
            sent.append(message)

        await limit({"type": "http", "method": method, "path": path, "headers": headers}, None, send)  # type: ignore[arg-type]
        return int(sent[0]["status"])

    held = 0
    limit = UploadLimit(behind, largest=1_000, held=lambda: held)
    for length, status in (("1000", 204), (str(1_000 + FRAME), 204), (str(1_001 + FRAME), 413), ("9" * 40, 413)):
        assert asyncio.run(answer(length)) == status
    assert [asyncio.run(answer(length)) for length in (None, "-1", "x", "")] == [411] * 4
    assert asyncio.run(answer("9" * 40, "GET")) == asyncio.run(answer("9" * 40, path="/")) == 204
    held = 3 * (1_000 + FRAME) - 10
    assert asyncio.run(answer("10")) == 204 and asyncio.run(answer("11")) == 413
    assert taken[0] == 1_000 and limit.coming == 0


# -------------------------------------------------------------------------------------------------- who may come in

SIGN_IN = {"providers": ("",), "emails": frozenset({"a@example.org"})}


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "", "192.168.1.5", "gpu-box", "unix:///tmp/lethe.sock", "127.1"])
def test_no_other_address_than_this_machine_s_without_sign_in(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pages.serving.exposure.find_spec", lambda name: True)
    assert "LETHE_TRUSTED_NETWORK=1" in Exposure(address).refusal and "docs/serving.md" in Exposure(address).refusal
    trusted = Exposure(address, trusted="1")
    assert not trusted.refusal and "start, steer, export and delete runs" in trusted.warning
    assert not Exposure(address, **SIGN_IN).refusal and not Exposure(address, **SIGN_IN).warning


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1", "localhost", "LocalHost"])
def test_this_machine_alone_needs_no_sign_in(address: str) -> None:
    assert not Exposure(address).refusal and not Exposure(address).warning and not Exposure(address).beyond


def test_a_proxy_that_has_a_name_for_it_needs_sign_in_too_and_every_gap_is_told(monkeypatch: Any) -> None:
    monkeypatch.setattr("pages.serving.exposure.find_spec", lambda name: None)
    named = Exposure(hosts=("lethe.example.org",))
    assert "lethe.example.org" in named.refusal and named.beyond
    assert not Exposure(hosts=("localhost", "127.0.0.1")).refusal
    assert "'*'" in Exposure(hosts=("*",), trusted="1").refusal
    assert "LETHE_TRUSTED_NETWORK is 'yes'" in Exposure(trusted="yes").refusal
    assert "allowed_emails" in Exposure(providers=("",)).refusal
    assert "pip install Authlib" in Exposure(**SIGN_IN).refusal


@pytest.mark.parametrize(
    ("user", "may"),
    [
        ({"is_logged_in": True, "email": "A@Example.org", "email_verified": True}, True),
        ({"is_logged_in": True, "email": "a@example.org"}, False),
        ({"is_logged_in": True, "email": "a@example.org", "email_verified": "false"}, False),
        ({"is_logged_in": True, "email": "b@example.org", "email_verified": True}, False),
        ({"is_logged_in": False, "email": "a@example.org", "email_verified": True}, False),
        ({"is_logged_in": True, "email_verified": True}, False),
        ({}, False),
    ],
)
def test_who_is_on_the_list_and_verified_may_come_in(user: dict[str, Any], may: bool) -> None:
    assert may_come_in(user, frozenset({"a@example.org"})) is may
    assert not may_come_in(user, frozenset())


# ------------------------------------------------------------------------------------------------------ real servers


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def server(folder: Path, *options: str, port: int | None = None, **environment: str) -> Iterator[tuple[int, Any]]:
    """`streamlit run app.py` from another folder, with a home of its own: (port, process)."""
    port = port or free_port()
    command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "app.py"), "--server.port", str(port)]
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("LETHE_", "STREAMLIT_"))}
    process = subprocess.Popen(
        [*command, "--server.headless", "true", *options], cwd=folder, stderr=subprocess.PIPE, text=True,
        env={**clean, "LETHE_HOME": str(folder / "home"), **environment}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield port, process
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)


def answered(port: int, path: str, host: str, origin: str | None = None, further: str = "") -> str:
    """The beginning of a server's answer to a request of ours: its status line and headers."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as stream:
        origin_line = "" if origin is None else f"Origin: {origin}\r\n"
        closing = "" if further else "Connection: close\r\n"
        stream.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{origin_line}{further}{closing}\r\n".encode())
        return stream.recv(65536).decode("latin-1").partition("\r\n\r\n")[0]


def is_up(port: int, process: Any, host: str = "127.0.0.1") -> None:
    end = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError):
            if " 200 " in answered(port, "/_stcore/health", host):
                return
        time.sleep(0.05)
    pytest.fail("the server does not answer")


def test_a_server_as_it_starts_by_itself_refuses_every_other_site_on_the_websocket_and_for_files(tmp_path: Path):
    with server(tmp_path) as (port, process):
        is_up(port, process)
        own = f"127.0.0.1:{port}"
        assert " 101 " in answered(port, STREAM, own, f"http://{own}", UPGRADE)
        foreign = [
            ("evil.example", "http://evil.example"),
            (f"evil.example:{port}", f"http://evil.example:{port}"),
            (own, "http://evil.example"),
            (own, f"http://127.0.0.1:{port + 1}"),
            (own, f"http://0.0.0.0:{port}"),
            (f"0.0.0.0:{port}", f"http://0.0.0.0:{port}"),
        ]
        for host, origin in foreign:
            assert " 403 " in answered(port, STREAM, host, origin, UPGRADE), (host, origin)
        upload = f"/_stcore/upload_file/a/b HTTP/1.1\r\nHost: {own}\r\nContent-Length: {10**12}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as stream:
            stream.sendall(f"PUT {upload}".encode())
            assert b" 413 " in stream.recv(65536).splitlines()[0]
        for path in ("/", STATIC, "/_stcore/health", "/_stcore/host-config", "/static/index.html", "/media/0.csv"):
            good = answered(port, path, own, f"http://{own}")
            assert " 403 " not in good and "frame-ancestors 'self'" in good and "nosniff" in good
            for host, origin in foreign:
                assert " 403 " in answered(port, path, host, origin).splitlines()[0], (path, host, origin)
            assert " 403 " in answered(port, path, "evil.example")


@pytest.mark.slow
def test_every_address_of_the_machine_is_refused_before_it_answers_unless_the_network_is_trusted(tmp_path: Path):
    with server(tmp_path, "--server.address", "0.0.0.0") as (_, process):
        _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2 and "without" not in told.splitlines()[0] and "Traceback" not in told
    assert "server.address" in told and "a visitor could read every run" in told
    with server(tmp_path, "--server.address", "0.0.0.0", LETHE_TRUSTED_NETWORK="1") as (port, process):
        is_up(port, process)
        assert " 403 " in answered(port, STREAM, "evil.example", "http://evil.example", UPGRADE)
        process.terminate()
        _, told = process.communicate(timeout=PATIENCE)
    assert "WARNING" in told and "start, steer, export and delete runs" in told


SECRETS = """
[auth]
redirect_uri = "http://127.0.0.1:{port}/oauth2callback"
cookie_secret = "{secret}"
client_id = "lethe"
client_secret = "secret"
server_metadata_url = "http://127.0.0.1:9/.well-known/openid-configuration"
[lethe]
allowed_emails = ["a@example.org"]
"""


def seen(port: int, user: Mapping[str, Any] | None, secret: str) -> bytes:
    """All that the server sends to a visitor, or to a user who has signed in, until its page is drawn."""
    found = re.search(r"_streamlit_xsrf=([^;]+)", answered(port, "/_stcore/health", f"127.0.0.1:{port}"))
    assert found, "the server sets a token"
    cookies = [found[0]]
    if user is not None:
        facts = {**user, "origin": f"http://127.0.0.1:{port}", "is_logged_in": True, "provider": "default"}
        signed = URLSafeTimedSerializer(secret, salt="_streamlit_user").dumps(json.dumps(facts))
        cookies.append(f"_streamlit_user={signed}")
    received = b""
    with connect(
        f"ws://127.0.0.1:{port}{STREAM}", origin=f"http://127.0.0.1:{port}",  # type: ignore[arg-type]
        subprotocols=["streamlit", found[1]], additional_headers={"Cookie": "; ".join(cookies)},  # type: ignore[list-item]
    ) as stream:  # fmt: skip
        ask = BackMsg()
        ask.rerun_script.query_string = ""
        stream.send(ask.SerializeToString())
        for message in stream:
            received += message
            if ForwardMsg.FromString(message).WhichOneof("type") == "script_finished":
                return received
    return received


@pytest.mark.slow
def test_where_people_sign_in_nothing_is_opened_for_anybody_who_is_not_on_the_list(tmp_path: Path) -> None:
    secret, port = "a-secret-of-this-test-alone", free_port()
    (tmp_path / ".streamlit").mkdir()
    (tmp_path / ".streamlit" / "secrets.toml").write_text(SECRETS.format(port=port, secret=secret))
    package = tmp_path / "packages" / "authlib"  # only looked for; nobody is sent to a provider here
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    on_the_list = {"email": "A@example.org", "email_verified": True}
    with server(tmp_path, port=port, PYTHONPATH=str(package.parent)) as (_, process):
        is_up(port, process)
        stranger = seen(port, None, secret)
        assert b"Sign in" in stranger and b"supercalifragilistic" not in stranger
        assert not (tmp_path / "home" / "lethe.db").exists()
        for user in ({**on_the_list, "email": "b@example.org"}, {**on_the_list, "email_verified": False}):
            refused = seen(port, user, secret)
            assert b"not on the list" in refused and b"supercalifragilistic" not in refused
        forged = seen(port, on_the_list, "another secret")
        assert b"Sign in" in forged and b"supercalifragilistic" not in forged
        assert not (tmp_path / "home" / "lethe.db").exists()
        assert b"supercalifragilistic" in seen(port, on_the_list, secret)
        assert (tmp_path / "home" / "lethe.db").exists()
