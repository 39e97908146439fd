"""The attention modules of a model that are not captured: text towers, language models, decoders."""

import re
from collections.abc import Collection

from torch import nn

from attnhook.capture.recognition import attends, class_of
from attnhook.zoo._timm_blocks import NOT_TOKENS
from attnhook.zoo._transformers_blocks import not_tokens
from attnhook.zoo._transformers_towers import inside

_KERNELS = frozenset({"ALL_ATTENTION_FUNCTIONS", "scaled_dot_product_attention"})
_CALLS = _KERNELS | {"softmax", "Softmax"}
_NAMED = re.compile("atten|attn", re.IGNORECASE)


def uncaptured_attention(model: nn.Module, captured: Collection[str]) -> tuple[str, ...]:
    """The paths of the attention modules that are not among the captured ones."""
    found = [
        name for name, module in model.named_modules() if not inside(name, tuple(captured)) and _is_attention(module)
    ]
    known = [*captured, *found]
    return tuple(name for name in found if name and not any(other.startswith(f"{name}.") for other in known))


def _is_attention(module: nn.Module) -> bool:
    """By what the class's code calls; as routers, heads and losses call a softmax, too, that alone counts only if the name says attention."""
    kind = class_of(module).__name__
    if kind in NOT_TOKENS or not_tokens(kind) is not None:
        return False
    named = _NAMED.search(kind) is not None
    return attends(module, calls=_CALLS if named else _KERNELS, base="PreTrainedModel", helpers=named)
