"""All commands together.

Exit codes: 0 success; 1 some images or checks failed, and the rest is done; 2 the command could not run (one line on stderr says why).
"""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from attnhook import __version__
from attnhook.cli import comparing, demonstration, description, extracting, overlaying, verifying, viewing
from attnhook.cli.completion import add_completion
from attnhook.cli.messages import one_line, say
from attnhook.errors import AttnhookError


class _Parser(argparse.ArgumentParser):
    """A parser with errors of one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Example:
        >>> main(["describe", "--model", "no_such_model"])
        2
    """
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except (AttnhookError, ValueError, OSError) as error:
        say(f"attnhook {arguments.command}: error: {one_line(error)}")
        return 2
    except KeyboardInterrupt:
        say(f"attnhook {arguments.command}: interrupted")
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="attnhook",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Exact attention maps from Vision Transformers of timm, transformers and torchvision.",
        epilog="examples:\n  attnhook demo\n  attnhook overlay cat.jpg --model demo\n  attnhook describe --model demo:timm\n\n"
        "'attnhook COMMAND --help' explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"attnhook {__version__}")
    add_completion(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    for command in (demonstration, overlaying, viewing, comparing, extracting, description, verifying):
        command.add(commands)
    return parser
