"""What several guard rails compute alike."""
