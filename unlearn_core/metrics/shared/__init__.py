"""What metrics read, and the level that the forget loss is compared with."""
