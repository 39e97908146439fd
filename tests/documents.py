"""What README and docs say in code, and how it is run: Python blocks of a page in order and in one namespace, `attnhook` commands of its shell
blocks in between. A block that cannot run here says so where its reader sees it: in its title, `not run: why`.
"""

import glob
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))

_FENCE = re.compile(r"^( *)```(\w+)([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r'title="not run: ([^"]+)"')
SHELLS = {"sh", "bash", "shell", "console"}


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: Its file.
        line: Where it begins.
        language: What the fence says.
        code: What is inside.
        not_run: Why it is not run, or None.
    """

    page: Path
    line: int
    language: str
    code: str
    not_run: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """Arguments of each `attnhook` command, comments away."""
        lines = self.code.replace("\\\n", " ").splitlines() if self.language in SHELLS else []
        return [
            shlex.split(line, comments=True)[1:]
            for line in lines
            if line.startswith(("attnhook ", "python -m attnhook "))
        ]

    @property
    def promises(self) -> list[str]:
        """What lines of the form `print(...)  # text` say that they print."""
        return [
            line.partition("  # ")[2].strip()
            for line in self.code.splitlines()
            if line.lstrip().startswith("print(") and "  # " in line
        ]


def blocks_of(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        indent, language, info, code = match.groups()
        why = _NOT_RUN.search(info)
        plain = re.sub(rf"^{indent}", "", code, flags=re.MULTILINE)
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(page, line, language, plain, why and why[1]))
    return found


def expanded(arguments: list[str]) -> Iterator[str]:
    """Patterns of files as a shell would write them out."""
    for argument in arguments:
        yield from (sorted(glob.glob(argument)) or [argument]) if "*" in argument else [argument]  # noqa: PTH207 (relative)
