"""Texts from the model itself: what it answers about the target, and about everything else."""
