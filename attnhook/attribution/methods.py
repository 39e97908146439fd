"""The methods by name, for the command line and `attend(method=...)`."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from attnhook.attribution.raw_maps import raw_attention

METHODS: Mapping[str, Callable[..., Tensor]] = MappingProxyType({"raw_attention": raw_attention})
"""Each takes `AttentionMaps` and gives `(batch, h, w)` float32, unnormalised."""
