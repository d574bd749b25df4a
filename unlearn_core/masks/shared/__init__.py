"""What several masks compute alike."""
