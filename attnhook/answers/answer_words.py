"""From token ids to words."""

import re
from collections.abc import Sequence
from typing import Any

# Scripts written without spaces: every character is a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORDS = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_BROKEN = "\ufffd"  # part of a character


class Word(str):
    """A word of an answer: its text, and in `tokens` the numbers of the tokens that it is made of."""

    __slots__ = ("tokens",)
    tokens: tuple[int, ...]

    def __new__(cls, text: str, tokens: Sequence[int]) -> "Word":
        """Make a word of these tokens."""
        word = super().__new__(cls, text)
        word.tokens = tuple(tokens)
        return word

    def __getnewargs__(self) -> tuple[str, tuple[int, ...]]:  # type: ignore[override]
        return str(self), self.tokens


def words_of(decode: Any, ids: Sequence[int]) -> tuple[str, tuple[Word, ...]]:
    """The text of tokens, and its words. `decode` turns a list of ids into text, without special tokens.

    A token's text is what it adds to the text of those before it, so any tokenizer will do.
    """
    ends, broken, text = [], [], ""
    for count in range(1, len(ids) + 1):
        text = decode(list(ids[:count]))
        ends.append(len(text.rstrip(_BROKEN)))
        broken.append(text.endswith(_BROKEN))
    for number in range(len(ends) - 2, -1, -1):  # what a later token takes back was not yet there
        ends[number] = min(ends[number], ends[number + 1])
    # A token that begins a character and does not end it reaches into it.
    spans = [(start, end + part) for start, end, part in zip([0, *ends[:-1]], ends, broken, strict=True)]
    words = [
        Word(one[0], [number for number, (start, end) in enumerate(spans) if start < one.end() and end > one.start()])
        for one in _WORDS.finditer(text)
    ]
    return text.strip(), tuple(words)
