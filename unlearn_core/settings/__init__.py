"""What a run is made of: sections of a run file, presets, what goes together, plug-in discovery. No torch here."""
