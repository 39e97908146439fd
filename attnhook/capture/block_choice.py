"""Which blocks a selector chooses: timm's meaning of `blocks=`."""

import operator
from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex, TypeGuard, TypeVar

from attnhook.errors import UnknownBlockError
from attnhook.options import BlocksOption

_Named = TypeVar("_Named", bound=Any)  # has a name: an attention site, a captured block


def are_names(blocks: BlocksOption) -> TypeGuard[str | Sequence[str]]:
    """Whether a block selector is a name, or names alone."""
    return isinstance(blocks, str) or (
        isinstance(blocks, Sequence) and len(blocks) > 0 and all(isinstance(block, str) for block in blocks)
    )


def choose_blocks(sites: Sequence[_Named], blocks: BlocksOption) -> tuple[_Named, ...]:
    """The sites, or captured blocks, that a block selector chooses, in the model's order; `UnknownBlockError`, with the legal ones, if none.

    It has timm's meaning: None = all, int n = the last n, a name, indices (negative from the end) and names, or a predicate over names.
    """
    if blocks is None:
        return tuple(sites)
    names = [site.name for site in sites]
    if callable(blocks):
        chosen = {i for i, name in enumerate(names) if blocks(name)}
    elif isinstance(blocks, bool) or not isinstance(blocks, str | SupportsIndex | Iterable):
        raise UnknownBlockError(
            f"unknown block {blocks!r}: expected an index or a name. Pass one, such as blocks=[-1]."
        )
    elif isinstance(blocks, SupportsIndex) and not isinstance(blocks, Iterable):  # NumPy's, too
        count = operator.index(blocks)
        if not 0 < count <= len(names):
            one = count if -len(names) <= count <= 0 else -1
            raise UnknownBlockError(
                f"blocks={count} means the last {count}: expected 1 to {len(names)}. For one block, pass a list, such as blocks=[{one}]."
            )
        chosen = set(range(len(names) - count, len(names)))
    else:
        chosen = {block_index(names, block) for block in ([blocks] if isinstance(blocks, str) else blocks)}
    if not chosen:
        said = f"the predicate blocks={getattr(blocks, '__name__', 'given')}" if callable(blocks) else f"{blocks=}"
        raise UnknownBlockError(f"{said} selects no block: expected at least one of {_summary(names)}. Choose some.")
    return tuple(site for i, site in enumerate(sites) if i in chosen)


def block_index(names: Sequence[str], block: int | str) -> int:
    """Index in `names` of a block given by name or number (negative from the end); `UnknownBlockError` if there is none."""
    if isinstance(block, str):
        if block in names:
            return list(names).index(block)
        raise UnknownBlockError(f"unknown block {block!r}: expected one of {_summary(names)}.")
    if isinstance(block, Sequence | set | slice):
        raise UnknownBlockError(
            f"{block!r} is not one block: expected an index or a name, got several. A map is of one block: make one map per block."
        )
    if isinstance(block, bool) or not isinstance(block, SupportsIndex) or not -len(names) <= block < len(names):
        raise UnknownBlockError(
            f"unknown block {block!r}: expected an index from {-len(names)} to {len(names) - 1}, or one of {_summary(names)}."
        )
    return operator.index(block) % len(names)


def _summary(names: Sequence[str]) -> str:
    shown = list(names) if len(names) <= 6 else [*names[:3], "...", names[-1]]
    return ", ".join(name if name == "..." else repr(name) for name in shown)
