"""What the terminal's door says: as `pages/` is to `app.py`, so is this to `cli.py`. Loads no torch."""
