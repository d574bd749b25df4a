"""Texts: reading them, finding the target, cutting windows."""
