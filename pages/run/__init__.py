"""One run on screen."""
