"""Settings of a run: sections of a run file, presets, compatibility rules, plug-in discovery. No torch here."""
