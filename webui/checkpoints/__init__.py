"""A file on disk → loaded modules: scan, detect, hash, load. `scan` imports no torch; `load` and `loaded` do."""
