"""Puts each command's own help into the page of the command line, while the site is built: it cannot be out of date."""

import argparse
import re
from functools import partial
from typing import Any

PLACE = "<!-- commands -->"


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Called by mkdocs for every page."""
    return markdown.replace(PLACE, written()) if PLACE in markdown else markdown


def written() -> str:
    """A section for each command."""
    from attnhook.cli.entry import _parser

    actions = [action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction)]
    sections = []
    for name, parser in actions[0].choices.items():
        parser.formatter_class = partial(argparse.RawDescriptionHelpFormatter, width=96)
        text = re.sub(r"(?m)^ +-h, --help .*\n", "", parser.format_help()).rstrip()
        sections.append(f"## `attnhook {name}`\n\n```text\n{text}\n```\n")
    return "\n".join(sections)
