"""The kinds of map that a comparison makes of each photo: a method, and the relative depth of the block for methods that read a single block."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from attnhook.attribution.methods import NEEDS, check_method
from attnhook.results.captions import reads_block


@dataclass(frozen=True)
class MapKind:
    """One way to make a map."""

    method: str  # one of `METHODS`
    depth: float | None = None  # of the block, relative, at most 1 (the last); None if the method follows all blocks

    @property
    def id(self) -> str:
        """Short name, for files and columns."""
        return self.method if self.depth in (None, 1.0) else f"{self.method}@{self.depth:g}"

    @property
    def label(self) -> str:
        """In words."""
        words = self.method.replace("_", " ")
        if self.depth is None:
            return f"{words}, through all blocks"
        return f"{words}, last block" if self.depth == 1 else f"{words}, block at {self.depth:.0%} of the depth"

    @property
    def mass(self) -> bool:
        """Whether values are shares of a row's mass, comparable in units of uniform attention."""
        return NEEDS[self.method].mass

    def block(self, count: int) -> int:
        """Index of the block in a model with `count` blocks."""
        return max(1, math.ceil((self.depth or 1.0) * count - 1e-9)) - 1


def make_map_kinds(methods: "str | Sequence[str]", depths: "float | Sequence[float]") -> tuple[MapKind, ...]:
    """All methods at all depths."""
    chosen = [methods] if isinstance(methods, str) else list(methods)
    places = sorted({float(depth) for depth in ([depths] if isinstance(depths, int | float) else depths)}, reverse=True)
    for method in chosen:
        check_method(method)
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"expected at least one method, each once, got {chosen}.")
    if not places or not all(0 < place <= 1 for place in places):
        raise ValueError(f"expected relative depths above 0 and at most 1 (the last block), got {places}.")
    views: dict[str, MapKind] = {}
    for method in chosen:
        for view in [MapKind(method, place) for place in places] if reads_block(method) else [MapKind(method)]:
            if view.id in views:
                raise ValueError(
                    f"two depths are both called {view.id!r}: expected depths further apart, got {places}."
                )
            views[view.id] = view
    return tuple(views.values())
