"""Unlearning methods, one file each; base.py is their contract. METHODS: name -> class."""

from unlearn_core.settings.discovery import plugins

METHODS = plugins("methods")
