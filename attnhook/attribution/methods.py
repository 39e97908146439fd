"""All methods by name, for `attend(method=...)` and the command line, and what each needs from the capture."""

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
"""Each takes `AttentionMaps` and returns a `PatchMap` of `(batch, h, w)` float32, unnormalised."""


@dataclass(frozen=True)
class MethodNeeds:
    """What a method needs besides the row of the readout.

    Attributes:
        all_rows: A capture with `rows="all"`.
        gradients: A capture with `gradients=True`, and a backward pass from a class score.
        values: A capture with `values=True`.
        readout: Whether the map is the readout's; False: of all queries.
    """

    all_rows: bool = False
    gradients: bool = False
    values: bool = False
    readout: bool = True

    @property
    def mass(self) -> bool:
        """Whether map and mass outside the patches sum to 1."""
        return not (self.gradients or self.values)


NEEDS: Mapping[str, MethodNeeds] = MappingProxyType(
    {
        "raw_attention": MethodNeeds(),
        "rollout": MethodNeeds(all_rows=True),
        "value_weighted_attention": MethodNeeds(values=True),
        "gradient_attention": MethodNeeds(all_rows=True, gradients=True),
        "gradient_rollout": MethodNeeds(all_rows=True, gradients=True),
        "legrad": MethodNeeds(all_rows=True, gradients=True, readout=False),
    }
)
"""By the names of `METHODS`."""


def check_method(name: str) -> None:
    """Raise an error for an unknown method."""
    if name not in METHODS:
        raise ValueError(
            f"unknown method: expected one of {', '.join(map(repr, METHODS))}, got {name!r}. Check the spelling."
        )


def method_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Of all options, those that the method takes.

    Example:
        >>> method_options("rollout", {"block": -1, "heads": "max"})
        {'heads': 'max'}
    """
    taken = inspect.signature(METHODS[name]).parameters
    return {option: value for option, value in options.items() if option in taken}
