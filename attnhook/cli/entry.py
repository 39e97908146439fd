"""All commands together.

Exit codes: 0 success; 1 some images or checks failed, and the rest is done; 2 the command could not run (one line on stderr says why).
"""

import argparse
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from attnhook import __version__
from attnhook.cli import comparing, demonstration, description, extracting, logs, overlaying, verifying, viewing
from attnhook.cli.arguments import one_line, photo_name, printable, say
from attnhook.errors import AttnhookError

_NOBODY_READS = 141  # as shells report a program that SIGPIPE ended
_SHELLS = ("bash", "zsh", "tcsh")


class _Parser(argparse.ArgumentParser):
    """A parser with errors of one line."""

    def error(self, message: str) -> NoReturn:
        known = {option for action in _actions(self) for option in action.option_strings}
        unknown = [word for word in message.split() if word.startswith("-")] if "unrecognized" in message else []
        if wrong := re.search("invalid choice: '(.+?)'", message):
            known = {str(choice) for action in self._actions for choice in action.choices or ()}
            unknown = [wrong[1]]
        near = [name for word in unknown for name in _nearest(word.partition("=")[0], known)]
        near += [f"./{word}" for word in unknown if os.path.lexists(word)]
        hint = f"; did you mean {' and '.join(near)}?" if near else ""
        self.exit(2, f"{printable(one_line(f'{self.prog}: error: {message}{hint} (see {self.prog} --help)'))}\n")


class _PrintCompletion(argparse.Action):
    """Prints the script with which a shell completes commands, options and files. The package shtab writes it."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: object, values: object, option: object = None
    ) -> None:
        try:
            import shtab
        except ImportError:
            parser.error(
                'cannot write completions: expected the package shtab. Run `pip install ".[completion]"` in a clone.'
            )
        for action in _actions(parser):
            if action.type in (Path, photo_name) or action.dest == "out":
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # where shtab looks
        print(shtab.complete(parser, shell=str(values)))
        parser.exit()


def _nearest(word: str, known: set[str]) -> list[str]:
    """The name that was meant, if any is near; letters that changed places are nearer than one too few."""
    return [name for name in known if sorted(name) == sorted(word)][:1] or get_close_matches(word, known, n=1)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    try:
        with _on_any_terminal(sys.stdout):
            return _run(argv)
    except BrokenPipeError:  # `| head`: nobody reads on, and Python would complain again when it ends
        with suppress(OSError, ValueError):  # streams that are no files
            for stream in (sys.stdout, sys.stderr):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return _NOBODY_READS


@contextmanager
def _on_any_terminal(stream: Any) -> Iterator[None]:
    """Escape what a terminal cannot show, instead of failing when the work is done; and write all of it here, not when Python ends."""
    before = stream.errors if isinstance(stream, io.TextIOWrapper) else None
    if before is not None:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        stream.flush()
        if before is not None:
            stream.reconfigure(errors=before)


def _run(argv: Sequence[str] | None) -> int:
    arguments, unknown = _parser().parse_known_args(argv)
    if unknown:
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        return int(arguments.run(arguments))
    except BrokenPipeError:
        raise
    except (AttnhookError, ValueError, OSError) as error:
        say(f"attnhook {arguments.command}: error: {one_line(error)}")
        return 2
    except KeyboardInterrupt:
        say(f"attnhook {arguments.command}: interrupted")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="attnhook",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Exact attention maps from Vision Transformers: timm, transformers, torchvision, open_clip and your own files.",
        epilog="examples:\n  attnhook demo\n  attnhook overlay cat.jpg --model demo\n  attnhook describe --model demo:timm\n\n"
        "'attnhook COMMAND --help' explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"attnhook {__version__}")
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=_SHELLS,
        metavar="SHELL",
        help=f"print a script that completes commands, for {', '.join(_SHELLS)}, and exit (needs shtab)",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (demonstration, overlaying, viewing, comparing, extracting, logs, description, verifying):
        command.add(commands)
    return parser
