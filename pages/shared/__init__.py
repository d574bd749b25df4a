"""What several pages, and the terminal, use alike."""
