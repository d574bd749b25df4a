"""The threads that drive runs and look into texts. Standard library only; training is met through a protocol."""
