"""Who can reach the server, and whether that may be: anybody but this machine itself only after signing in.

Streamlit's own settings say where it listens (`server.address`) and under which names (`server.allowedHosts`, which a
proxy before it needs); its secrets hold the provider that people sign in with (`[auth]`) and the list of those who
may (`[lethe] allowed_emails`). docs/serving.md shows all of it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import streamlit as st

from pages.serving.hosts import is_loopback
from unlearn_core.settings.home import home_folder

TRUSTED = "LETHE_TRUSTED_NETWORK"
PAGE = "docs/serving.md says how."
VISITOR = (
    "read every run, text and answer in {home} and every file below {roots}; start, steer, export and delete runs; "
    "upload files; and use this machine's processor, memory and disk"
)


@dataclass(frozen=True)
class Exposure:
    """Where the server listens and who may come in.

    `address`: as `server.address`, empty for every address of the machine. `hosts`: as `server.allowedHosts`.
    `providers`: names by which Streamlit knows those to sign in with ("" for the only one); without any, nobody signs
    in. `emails`: of those who may. `trusted`: the value of LETHE_TRUSTED_NETWORK.
    """

    address: str = "127.0.0.1"
    hosts: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    emails: frozenset[str] = frozenset()
    trusted: str = ""

    @property
    def beyond(self) -> bool:
        """Whether other machines can reach it, by its address or through a proxy that has a name for it."""
        return not is_loopback(self.address.lower()) or not all(is_loopback(host.lower()) for host in self.hosts)

    @property
    def refusal(self) -> str:
        """Why the server must not start, in a sentence and the way out; empty where it may."""
        if self.trusted not in ("", "0", "1"):
            return (
                f"{TRUSTED} is {self.trusted!r}: it is 1 (everybody who can reach this machine may come in) or unset."
            )
        if any(host.strip() == "*" for host in self.hosts):
            return "server.allowedHosts is '*', with which any site could speak to this server: name its hosts instead."
        if self.providers and not self.emails:
            return (
                "Sign-in is set up ([auth] in secrets.toml), but nobody may come in: "
                f"list their addresses as allowed_emails under [lethe]. {PAGE}"
            )
        if self.providers and find_spec("authlib") is None:
            return "Sign-in is set up ([auth] in secrets.toml), and needs a package: python -m pip install Authlib"
        if self.beyond and not self.providers and self.trusted != "1":
            return (
                f"{self._where}, and nobody would have to sign in: a visitor could {visitor()}. Listen on 127.0.0.1, "
                f"set up sign-in, or set {TRUSTED}=1 where everybody on the network is trusted. {PAGE}"
            )
        return ""

    @property
    def warning(self) -> str:
        """What a visitor can do where nobody signs in, in a sentence; empty where nobody else can come in."""
        if not self.beyond or self.providers:
            return ""
        return f"WARNING: {self._where}, without sign-in ({TRUSTED}=1). Everybody who reaches it can {visitor()}."

    @property
    def _where(self) -> str:
        if is_loopback(self.address.lower()):
            return f"Lethe is set to be reached as {', '.join(self.hosts)} (server.allowedHosts)"
        return f"Lethe is set to listen on {self.address or 'every address of this machine'} (server.address)"


def visitor() -> str:
    """What somebody who has come in can do."""
    roots = os.environ.get("LETHE_ROOTS") or f"{os.getcwd()} and {os.path.expanduser('~')}"
    return VISITOR.format(home=home_folder().absolute(), roots=roots)


def exposure() -> Exposure:
    """Who can reach the server, by Streamlit's settings and secrets and the environment."""
    auth, own = (_section(name) for name in ("auth", "lethe"))
    emails = own.get("allowed_emails", ())
    return Exposure(
        address=(st.get_option("server.address") or "").strip(),
        hosts=tuple(st.get_option("server.allowedHosts") or ()),
        providers=_providers(auth),
        emails=frozenset(str(email).strip().casefold() for email in _texts(emails)),
        trusted=os.environ.get(TRUSTED, ""),
    )


def _section(name: str) -> Mapping[str, Any]:
    """A section of Streamlit's secrets; empty where there is none, or no such file."""
    try:
        section = st.secrets.get(name)
    except FileNotFoundError:
        return {}
    return section if isinstance(section, Mapping) else {}


def _providers(auth: Mapping[str, Any]) -> tuple[str, ...]:
    named = tuple(name for name, value in auth.items() if isinstance(value, Mapping) and name != "client_kwargs")
    return named or (("",) if auth else ())


def _texts(value: Any) -> Sequence[Any]:
    return value.split(",") if isinstance(value, str) else list(value)
