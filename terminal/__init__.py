"""What the command line prints: `cli.py`'s counterpart of `pages/`. Loads no torch."""
