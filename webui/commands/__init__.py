"""What `python -m webui COMMAND` does, one module a command: its flags, and what is run with them.

A module adds its command to a parser with `add`. Nothing slow is imported before the flags have been read.
"""
