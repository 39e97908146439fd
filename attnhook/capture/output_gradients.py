"""Captures the values of an attention call and the gradient of its output, which give the gradient of the matrix without storing it.

The gradient arrives through a tensor hook on the output: that belongs to the autograd graph, not to the model, and refers weakly to what it
fills.
"""

import sys
import warnings
import weakref
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnhook.capture.operands import as_index, exact_arithmetic, versions
from attnhook.capture.torch_internals import current_transform
from attnhook.errors import GradientsNotKeptError, UnsupportedModelError


class AttentionGradient:
    """dA, `(batch, heads, queries, keys)`, computed on demand: exactly dO V^T for the output O = A V, without a softmax.

    `source` is dO `(batch, heads, queries, value_dim)` and V `(batch, key heads, keys, value_dim)`, where consecutive heads may share one. Or it
    is dA itself, of a model with an explicit softmax.
    """

    def __init__(self, source: tuple[Tensor, Tensor] | Tensor) -> None:
        self._given: Tensor = source if isinstance(source, Tensor) else source[0]
        self._values: Tensor | None = None if isinstance(source, Tensor) else source[1]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`(batch, heads, queries, keys)`."""
        batch, heads, queries, width = self._given.shape
        return batch, heads, queries, width if self._values is None else self._values.shape[2]

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return self._given.device

    @property
    def dtype(self) -> torch.dtype:
        """What it is computed in: float32, or float64 where the model ran in it."""
        return torch.float64 if self._given.dtype is torch.float64 else torch.float32

    def __repr__(self) -> str:
        kind = "dense" if self._values is None else "from the output's gradient and the values"
        return f"AttentionGradient(shape={self.shape}, {kind})"

    def rows(self, index: slice | Tensor | list[int]) -> Tensor:
        """Chosen rows, `(batch, heads, rows, keys)` float32, owning their memory; `index` says which queries."""
        with exact_arithmetic(self.device.type):
            wanted = self._given[:, :, as_index(index, self.device)]
            if self._values is None:
                return wanted.to(dtype=torch.float32, copy=True)
            values = self._values.to(self.dtype)
            batch, heads, rows, width = wanted.shape
            groups, keys = values.shape[1:3]
            # Heads that share values, one after the other.
            shared = wanted.to(self.dtype).reshape(batch, groups, heads // groups * rows, width)
            return (shared @ values.transpose(2, 3)).view(batch, heads, rows, keys).float()

    def dense(self) -> Tensor:
        """The whole gradient: `(batch, heads, queries, keys)` float32. Its size grows with the square of the tokens."""
        return self.rows(slice(None))

    def head_rows(self, image: int, head: int, queries: slice, buffer: Tensor) -> Tensor:
        """Rows of one head of one image, `(rows, keys)` of this `dtype`, for going through it in chunks.

        `queries` has `start` and `stop` set; `buffer` has room for at least rows times keys numbers of this `dtype`, and is overwritten.
        """
        rows, (_, heads, _, keys) = queries.stop - queries.start, self.shape
        out = buffer[: rows * keys].view(rows, keys)
        with exact_arithmetic(self.device.type):
            given = self._given[image, head, queries]
            if self._values is None:
                return out.copy_(given)
            values = self._values[image, head * self._values.shape[1] // heads]
            return torch.mm(given.to(self.dtype), values.to(self.dtype).T, out=out)


Arrange = Callable[[Tensor], Tensor | None]


@dataclass(slots=True, eq=False)
class CallOutput:
    """The values and the output of an attention call, by reference."""

    value: Tensor  # `(batch, key heads, keys, value_dim)` where `arrange` is given
    output: Tensor  # in the autograd graph
    dropout: float = 0.0
    # Turns the gradient of `output` into that of O, `(batch, heads, queries, value_dim)`; None: the site's own arrangement, also for values.
    arrange: Arrange | None = None
    weights: Tensor | None = None  # returned, too: O does not get the gradient of a score that reads them


class CapturedGradients:
    """The values `(batch, key heads, keys, value_dim)` of one attention call, if seen, and the gradient of its output if `wanted`.

    Where `explicit`, the gradient is dA itself, that of an explicit softmax. It is stored on `device`; None: where it arrives.
    `weights_read` says that a backward came through the returned weights, past the output.
    """

    __slots__ = (
        "__weakref__",
        "_device",
        "_gradient",
        "_read",
        "_values",
        "_versions",
        "explicit",
        "mixed",
        "wanted",
        "weights_read",
    )

    def __init__(
        self, values: Tensor | None, *, explicit: bool = False, wanted: bool = True, device: torch.device | None = None
    ) -> None:
        # Tensors made in inference mode do not count writes.
        self._values = values.clone() if values is not None and values.is_inference() else values
        self._versions = versions(self._values)
        self.explicit = explicit
        self.wanted = wanted
        self._device = device
        self.clear()

    def clear(self) -> None:
        """Forget the gradient, so that the next backward does not add to it."""
        self._gradient: Tensor | None = None
        self._read = self.mixed = False  # whether it was read, and a backward added to it afterwards
        self.weights_read = False

    @property
    def values(self) -> Tensor | None:
        """As given; raises `GradientsNotKeptError` if the model has overwritten them."""
        if versions(self._values) != self._versions:
            raise GradientsNotKeptError(
                "the values are lost: expected them as they were in the call, but the model has overwritten them since. Run the forward in "
                "torch.inference_mode(), where they are copied."
            )
        return self._values

    def add(self, gradient: Tensor) -> None:
        """Add the gradient of one backward, as `.grad` does."""
        gradient = gradient if self._device is None else gradient.to(self._device)
        self.mixed = self.mixed or self._read
        self._gradient = gradient if self._gradient is None else self._gradient + gradient

    def gradient(self, block: str) -> Tensor:
        """The gradient of the output, or dA where `explicit`: `(batch, heads, queries, value_dim or keys)`."""
        if self.weights_read:
            raise GradientsNotKeptError(
                f"the gradient of block {block!r} is incomplete: expected a score that reads only the attention's output, got one that also "
                "reads the weights that the module returned. Leave them out of the score."
            )
        if not self.wanted:
            raise GradientsNotKeptError(
                f"block {block!r} has values but no gradient: expected a capture with gradients=True. Capture with it, and call "
                "score.backward()."
            )
        if self._gradient is None:
            raise GradientsNotKeptError(
                f"no gradient has reached block {block!r}: expected a backward from a score of this very forward, got none. Call "
                "score.backward() (or torch.autograd.grad(score, pixels)) before you read gradients; a score that does not depend on the block "
                "gives it none."
            )
        self._read = True
        if self.mixed:
            warnings.warn(
                "gradients of several scores add up: expected one backward per map, got another one after a map of this forward was read. Call "
                "capture.clear_gradients() before each backward.",
                stacklevel=_users_level(),
            )
        return self._gradient

    def attention_gradient(self, block: str) -> AttentionGradient:
        """The gradient of the attention matrix, dA, implicit."""
        gradient = self.gradient(block)
        return AttentionGradient(gradient if self.explicit or self.values is None else (gradient, self.values))

    def to(self, device: torch.device | str, block: str) -> "CapturedGradients":
        """A copy on another device, which no later backward reaches."""
        self._check_arrived(f"block {block!r}")
        moved = copy(self)
        moved._values = None if self._values is None else self._values.to(device)
        moved._versions = versions(moved._values)
        moved._gradient = None if self._gradient is None else self._gradient.to(device)
        return moved

    def __getstate__(self) -> tuple[Any, ...]:
        self._check_arrived("a block of these maps")  # it would not reach the copy
        return self.values, self.explicit, self.wanted, self._device, self._gradient, self.weights_read, self.mixed

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._values, self.explicit, self.wanted, self._device, self._gradient, self.weights_read, self.mixed = state
        self._read = False
        self._versions = versions(self._values)  # a copy's tensors count anew

    def _check_arrived(self, what: str) -> None:
        if self.wanted and self._gradient is None:
            raise GradientsNotKeptError(
                f"{what} cannot be moved, copied or saved before its gradient has arrived: expected score.backward() first. Call it, then move "
                "or copy the maps; or capture with device=."
            )


def _users_level() -> int:
    """How many frames above its caller the code is that called attnhook."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("attnhook."):
        level, frame = level + 1, frame.f_back
    return level


def hook_gradient(output: Tensor, captured: CapturedGradients, arrange: Arrange, block: str) -> None:
    """Have the gradient of a tensor of the running forward, arranged, added to `captured` in every backward."""
    if current_transform() is not None:
        raise UnsupportedModelError(
            f"the gradient of block {block!r} cannot be captured inside a transform of torch.func: expected a plain forward. Use "
            "score.backward() or torch.autograd.grad."
        )
    if not output.requires_grad:
        raise no_backward_error(block)
    reference = weakref.ref(captured)

    def add(gradient: Tensor) -> None:
        target = reference()
        if target is not None and (arranged := arrange(gradient.detach())) is not None:
            target.add(arranged)

    output.register_hook(add)  # type: ignore[no-untyped-call]


def hook_weights(weights: Tensor | None, captured: CapturedGradients) -> None:
    """Have `captured` told if a score reads the weights that a call returned, if any."""
    reference = weakref.ref(captured)

    def note(gradient: Tensor) -> None:
        target = reference()
        if target is not None and bool(gradient.any()):
            target.weights_read = True

    if weights is not None and weights.requires_grad:
        weights.register_hook(note)  # type: ignore[no-untyped-call]


def no_backward_error(block: str) -> GradientsNotKeptError:
    """The error for an output that is in no autograd graph, and for kernels that run only without one."""
    what = f"no backward can reach block {block!r}: expected an attention output that requires grad"
    if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
        return GradientsNotKeptError(
            f"{what}, but grad mode was off when it ran. Run the forward without torch.no_grad() and torch.inference_mode(); if the model "
            "checkpoints its blocks, use use_reentrant=False."
        )
    return GradientsNotKeptError(
        f"{what}, got one that does not: neither the parameters before it nor the pixels do. Call pixels.requires_grad_() before the forward; "
        "parameters may stay frozen."
    )
