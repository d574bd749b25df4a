"""Code that several pages and the terminal share."""
