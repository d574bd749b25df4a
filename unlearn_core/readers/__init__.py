"""One file per kind of source. A reader is a generator of Documents; it holds one block or one row at a time.

A source named by itself that cannot be read raises ConfigError; inside a folder it is left out, which the tally notes.
"""
