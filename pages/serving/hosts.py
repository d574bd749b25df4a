"""Which requests the server answers, by their Host and Origin headers: an ASGI middleware before all of Streamlit.

A page of any site can make its own name point to 127.0.0.1 (DNS rebinding) and then speak to a server of this machine
as if it were its own. Its requests carry that name as Host, and the page's address as Origin; both are told apart here,
for the WebSocket as for every file.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

PLACE = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>\d{1,5}))?")  # of a Host header
PORTS = {"http": "80", "https": "443"}  # that a browser leaves out
# No other site may show a page in a frame and have it clicked; nothing is taken for another type than it is said to be.
HEADERS = (
    (b"content-security-policy", b"frame-ancestors 'self'"),
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
REFUSED = 403


def number(host: str) -> IPv4Address | IPv6Address | None:
    """The address that a host is in numbers; None where it is a name."""
    try:
        address = ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address


def is_loopback(host: str) -> bool:
    """Whether a host is this machine seen from itself: localhost, 127.0.0.0/8 or ::1."""
    address = number(host)
    return host == "localhost" if address is None else address.is_loopback


def listed(host: str, hosts: Sequence[str]) -> bool:
    """Whether a host is one of `hosts`, of which `*.example.org` stands for every name below example.org."""
    patterns = [pattern.strip().lower().rstrip(".") for pattern in hosts]
    return any(host.endswith(each[1:]) if each.startswith("*.") else host == each for each in patterns)


class HostCheck:
    """Answers what was meant for this server, refuses the rest with 403 (before a WebSocket is accepted).

    `hosts`: the names under which it may be reached, as `server.allowedHosts`; without any, those of this machine
    itself. `beyond`: whether other machines may reach it at all, then also by its address in numbers, which no
    site can make its own.
    """

    def __init__(self, app: Application, hosts: Sequence[str] = (), beyond: bool = False) -> None:
        self.app, self.hosts, self.beyond = app, tuple(hosts), beyond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
        elif reason := self.refusal(scope):
            logging.getLogger("lethe").warning("A request was refused: %s", reason)
            await _refuse(scope["type"], reason, receive, send)
        else:
            await self.app(scope, receive, _with_headers(send))

    def refusal(self, scope: Scope) -> str:
        """Why a request is not answered, in a sentence; empty where it is."""
        arrived_at = (scope.get("server") or ("",))[0]
        if not self.beyond and not is_loopback(str(arrived_at)):
            return f"it arrived at {arrived_at!r}, and only this machine itself is answered."
        hosts, origins = (_values(scope, name) for name in (b"host", b"origin"))
        place = PLACE.fullmatch(hosts[0].lower()) if len(hosts) == 1 else None
        if place is None or not self._is_ours(place["host"]):
            return f"its Host {', '.join(hosts)!r} is not a name of this server (server.allowedHosts)."
        if origins and (len(origins) > 1 or not _same_place(origins[0].lower(), place)):
            return f"its Origin {', '.join(origins)!r} is another than its Host {hosts[0]!r}."
        return ""

    def _is_ours(self, host: str) -> bool:
        if self.hosts:
            return listed(host, self.hosts)
        address = number(host)
        return is_loopback(host) or (self.beyond and address is not None and not address.is_unspecified)


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in scope["headers"] if key.lower() == name]


def _same_place(origin: str, place: re.Match[str]) -> bool:
    """Whether an Origin header is of the page that was asked of the same host and port."""
    scheme, _, rest = origin.partition("://")
    there = PLACE.fullmatch(rest)
    if scheme not in PORTS or there is None or there["host"] != place["host"]:
        return False
    return (there["port"] or PORTS[scheme]) == (place["port"] or PORTS[scheme])


async def _refuse(kind: str, reason: str, receive: Receive, send: Send) -> None:
    if kind == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": "refused"})
        return
    text = f"Refused: {reason}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": REFUSED, "headers": [*headers, *HEADERS]})
    await send({"type": "http.response.body", "body": text})


def _with_headers(send: Send) -> Send:
    """`send`, with the headers that every answer carries, where it has them not already."""

    async def send_with_headers(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            given = list(message.get("headers", ()))
            names = {name.lower() for name, _ in given}
            message = {**message, "headers": [*given, *(pair for pair in HEADERS if pair[0] not in names)]}
        await send(message)

    return send_with_headers
