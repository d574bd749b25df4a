"""Masks: which trained parameters may change, one file per rule; base.py is their contract. MASKS: name -> class."""

from unlearn_core.settings.discovery import plugins

MASKS = plugins("masks")
