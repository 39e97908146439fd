"""All methods by name, for `attend(method=...)` and the command line, and what each needs from the capture."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from attnhook.attribution.gradients import gradient_attention, gradient_rollout, legrad
from attnhook.attribution.raw_maps import raw_attention, received_attention, value_weighted_attention
from attnhook.attribution.rollouts import rollout
from attnhook.imaging.patch_maps import PatchMap

METHODS: Mapping[str, Callable[..., PatchMap]] = MappingProxyType(
    {
        "raw_attention": raw_attention,
        "rollout": rollout,
        "value_weighted_attention": value_weighted_attention,
        "received_attention": received_attention,
        "gradient_attention": gradient_attention,
        "gradient_rollout": gradient_rollout,
        "legrad": legrad,
    }
)
"""Each takes `AttentionMaps` and returns a `PatchMap` of `(batch, h, w)` float32, unnormalised."""


@dataclass(frozen=True)
class MethodNeeds:
    """What a method needs from the capture besides the row of the readout."""

    all_rows: bool = False
    gradients: bool = False  # and a backward pass from a class score
    values: bool = False
    readout: bool = True  # whether the map is the readout's; False: of all queries

    @property
    def mass(self) -> bool:
        """Whether map and mass outside the patches sum to 1."""
        return not (self.gradients or self.values)


NEEDS: Mapping[str, MethodNeeds] = MappingProxyType(
    {
        "raw_attention": MethodNeeds(),
        "rollout": MethodNeeds(all_rows=True),
        "value_weighted_attention": MethodNeeds(values=True),
        "received_attention": MethodNeeds(all_rows=True, readout=False),
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
    """Of all options, those that the method takes."""
    taken = inspect.signature(METHODS[name]).parameters
    return {option: value for option, value in options.items() if option in taken}


def reads_block(method: str) -> bool:
    """Whether a method computes its map from a single block."""
    return bool(method_options(method, {"block": None}))
