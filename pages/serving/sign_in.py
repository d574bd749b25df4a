"""The page before all others where people sign in: nothing of the store is opened for anybody else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from pages.serving.exposure import Exposure


def may_come_in(user: Mapping[str, Any], emails: frozenset[str]) -> bool:
    """Whether somebody signed in with an address of the list, which the provider says is really theirs."""
    email = str(user.get("email") or "").strip().casefold()
    return user.get("is_logged_in") is True and user.get("email_verified") is True and email in emails


def admit(exposure: Exposure) -> None:
    """Returns where nobody has to sign in, or the visitor has and may come in; ends the script for all others."""
    user = st.user.to_dict() if exposure.providers else {}
    if not exposure.providers or may_come_in(user, exposure.emails):
        return
    st.title("Lethe")
    if user.get("is_logged_in"):
        email = user.get("email") or "This account"
        verified = "" if user.get("email_verified") is True else " (the provider does not say that it is verified)"
        st.text(f"{email}{verified} is not on the list of those who may come in.")
        st.button("Sign out", on_click=st.logout)
    else:
        st.text("Sign in to see the runs of this machine.")
        for name in exposure.providers:
            label = f"Sign in with {name}" if name else "Sign in"
            st.button(label, on_click=st.login, args=[name] if name else [], type="primary")
    st.stop()
