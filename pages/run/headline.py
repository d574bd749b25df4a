"""The top of the page: name, status and progress of a run, and its warnings."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from pages.run.view import RESUMABLE, View
from pages.shared.banner import Banner
from pages.shared.format import duration, percent, step_time, three
from pages.shared.html import element
from pages.shared.recorded import RECORDED
from unlearn_core.methods import METHODS
from unlearn_core.settings import provenance
from unlearn_core.training.stopping import STAND_IN_KL, UNKNOWN

SIGNS = {
    "queued": "◌",
    "loading": "◐",
    "baseline": "◐",
    "running": "●",
    "paused": "❚❚",
    "finished": "✓",
    "stopped": "■",
    "failed": "✕",
    "interrupted": "⚡",
}
WORDS = {"baseline": "asking before step 1"}
RATE_STEPS = 20
TAUGHT = -0.02  # change of the forget loss


def status_words(status: str) -> str:
    return f"{SIGNS.get(status, '·')} {WORDS.get(status, status)}"


def pace(view: View) -> str:
    """The time of a step and the time left, while it runs."""
    seconds = view.recent("step_seconds", RATE_STEPS)
    if view.status != "running" or not len(seconds):
        return ""
    mean = sum(seconds) / len(seconds)
    left = duration(mean * (view.total - view.last_step))
    return f"{step_time(mean)} a step · {left} left"


def circumstances(view: View, unusual: Sequence[str]) -> str:
    """Name, method, what is unusual, model and device, quietly."""
    source = view.run["config"].get("model", {}).get("source", "bundled")
    device = str(view.run["provenance"].get("device", "")).upper()
    model = "bundled model" if source == "bundled" else source
    method = METHODS[view.run["method"]].facts.label if view.run["method"] in METHODS else ""
    return " · ".join(part for part in (view.run["name"], method, *unusual, model, device) if part)


def resumed_otherwise(view: View) -> str:
    """How the versions of a resumed run differ from those it began with; else empty."""
    if view.status in RESUMABLE and not view.run["lease_owner"]:
        differing = provenance.differences(view.run["provenance"], {"versions": provenance.versions()})
        return provenance.warning(differing, resumed=False)
    resumed = [event["payload"] for event in view.events if event["kind"] == "resumed"]
    return next((payload["sentence"] for payload in reversed(resumed) if "sentence" in payload), "")


def passed_over(view: View) -> str:
    """Which damaged checkpoints the newest resume has passed over; empty where it has gone on from the newest."""
    sentences: list[str] = []
    resumes = 0
    for event in reversed(view.events):
        resumes += event["kind"] == "resumed" and "from_step" in event["payload"]
        if resumes > 1:
            break
        if event["kind"] == "checkpoint_damaged":
            sentences.append(event["payload"]["sentence"])
    return " ".join(reversed(sentences))


def banner(view: View) -> Banner | None:
    """The banner of a run; None where nothing needs attention."""
    notice, warned = _banner(view), " ".join(filter(None, (passed_over(view), resumed_otherwise(view))))
    if not warned:
        return notice
    if notice is None:
        return Banner("warn", warned)
    return Banner("warn" if notice.kind == "calm" else notice.kind, notice.text, f"{notice.action} {warned}".strip())


def _banner(view: View) -> Banner | None:
    reason = view.run["status_reason"] or ""
    whole = [row["step"] for row in view.checkpoints if row["complete"]]
    back = f"Resume goes on from step {whole[-1]}." if whole else "Resume begins anew."
    if whole and whole[-1] < max(row["step"] for row in view.checkpoints) and view.status != "running":
        back = f"Its newest whole state is that of step {whole[-1]}: Resume goes on from there."
    if view.status == "failed":
        return Banner("bad", reason or "The run failed.", back if whole else "Start a new run when this is put right.")
    guards = [event for event in view.events if event["kind"] == "guard" and event["step"] == view.last_step]
    if view.status == "interrupted":
        sentence = reason or f"It was cut off at step {view.last_step}."
        if guards:  # why it stood still when that happened
            sentence = f"{guards[-1]['payload'].get('sentence', '')} {sentence}".strip()
        measured = " What it measured can be read here." if view.recorded else ""
        return Banner("warn", sentence, f"{back}{measured}")
    if view.status == "paused" and guards:
        return Banner("warn", guards[-1]["payload"].get("sentence", reason), "Resume goes on past it.")
    if view.status == "paused" and not view.run["lease_owner"]:
        return Banner("calm", reason, "")
    return _doubt(view)


def _doubt(view: View) -> Banner | None:
    """What makes a run pointless: a word that the model never knew, or a loss that falls where it should rise."""
    level, before = view.levels.get("stand_in_level"), view.baseline.get(STAND_IN_KL)
    if level and before is not None and before < UNKNOWN * level:
        sentence = f"This model does not seem to know {view.run['target']}: it treats it as it treats invented names."
        return Banner("warn", sentence, "There is little to forget. Choose another word, or another model.")
    change = view.change("forget_loss", view.last_step)
    if change is not None and change < TAUGHT:
        sentence = f"Forget loss falls ({percent(change)}): these steps teach the passages instead of unlearning them."
        return Banner("warn", sentence, "Stop, and choose another method or other settings.")
    return None


def draw(view: View, sentence: str, step: int) -> None:
    """Target, state and pace, and the sentence."""
    turned = view.value("dial", step)
    dial = f"{_dial(view)} {_position(turned)}" if turned is not None and step else ""
    facts = [status_words(view.status), f"step {view.last_step} of {view.total}", dial, pace(view)]
    line = element("p.facts", (element("span", fact) for fact in facts if fact))
    meaning = RECORDED[view.budgeted].explained
    status = element("p.sentence", sentence, role="status", title=meaning)
    st.html(element("header.strip", element("h1", view.run["target"]), line, status, data_status=view.status))


def _dial(view: View) -> str:
    """What the method's dial is."""
    method = METHODS.get(view.run["method"])
    return (method.facts.dial if method else "") or "dial at"


def _position(turned: float) -> str:
    """Where a dial stands: a count as one."""
    return f"{turned:.0f}" if turned == round(turned) and abs(turned) < 1000 else three(turned)
