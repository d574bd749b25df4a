"""One run stepped from outside: engine, checkpoints, stopping rules."""
