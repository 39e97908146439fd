"""The methods by name, for the command line and `attend(method=...)`, and what each needs to have been captured."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from attnhook.attribution.gradients import gradient_attention, gradient_rollout, legrad
from attnhook.attribution.raw_maps import raw_attention
from attnhook.attribution.rollouts import rollout
from attnhook.attribution.value_weights import value_weighted_attention
from attnhook.imaging.patch_maps import PatchMap

METHODS: Mapping[str, Callable[..., PatchMap]] = MappingProxyType(
    {
        "raw_attention": raw_attention,
        "rollout": rollout,
        "value_weighted_attention": value_weighted_attention,
        "gradient_attention": gradient_attention,
        "gradient_rollout": gradient_rollout,
        "legrad": legrad,
    }
)
"""Each takes `AttentionMaps` and gives a `PatchMap` of `(batch, h, w)` float32, unnormalised."""


@dataclass(frozen=True)
class MethodNeeds:
    """What a method needs beyond the rows of a readout, and what its map is of.

    Attributes:
        all_rows: Whole matrices: a capture with `rows="all"`.
        gradients: A capture with `gradients=True`, and the score of a class run backward.
        values: A capture with `values=True`.
        readout: Whose map it is: the readout's, or (False) that of all queries.
    """

    all_rows: bool = False
    gradients: bool = False
    values: bool = False
    readout: bool = True

    @property
    def mass(self) -> bool:
        """Whether the map is a share of a mass of 1, of which the rest lies outside the patches."""
        return not (self.gradients or self.values)


_FOLLOWED_BACKWARD = MethodNeeds(all_rows=True, gradients=True)

NEEDS: Mapping[str, MethodNeeds] = MappingProxyType(
    {
        "raw_attention": MethodNeeds(),
        "rollout": MethodNeeds(all_rows=True),
        "value_weighted_attention": MethodNeeds(values=True),
        "gradient_attention": _FOLLOWED_BACKWARD,
        "gradient_rollout": _FOLLOWED_BACKWARD,
        "legrad": MethodNeeds(all_rows=True, gradients=True, readout=False),
    }
)
"""By the names of `METHODS`."""


def check_method(name: str) -> None:
    """Refuse what is no method."""
    if name not in METHODS:
        raise ValueError(
            f"unknown method: expected one of {', '.join(map(repr, METHODS))}, got {name!r}. Check the spelling."
        )


def method_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a method takes, out of those that a workflow has for all methods.

    Example:
        >>> method_options("rollout", {"block": -1, "heads": "max"})
        {'heads': 'max'}
    """
    taken = inspect.signature(METHODS[name]).parameters
    return {option: value for option, value in options.items() if option in taken}
