"""Guard rails: constraints on the step, one file each; base.py is their contract. GUARD_RAILS: kind -> class."""

from unlearn_core.settings.discovery import plugins

GUARD_RAILS = plugins("guard_rails")
