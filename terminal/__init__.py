"""Output of the command line, as `pages/` is that of the browser. Loads no torch."""
