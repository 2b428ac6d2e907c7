"""Command line, `python -m infini`: one file a command, named after it."""
