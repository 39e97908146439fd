"""The command line: `attnhook COMMAND`, also as `python -m attnhook`; one file a command, `entry` puts them together."""

from attnhook.cli.entry import main

__all__ = ["main"]
