"""Changes to whole model inputs: several photos in one batch, other pixels, another device."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attnhook.imaging.model_inputs import ModelInputs


def pixels_name(inputs: ModelInputs) -> str | None:
    """Find the keyword under which the pixels are passed."""
    return next((name for name, value in (inputs.keywords or {}).items() if value is inputs.pixels), None)


def with_pixels(inputs: ModelInputs, pixels: Tensor) -> ModelInputs:
    """Replace the pixels."""
    name = pixels_name(inputs)
    keywords = inputs.keywords if name is None else {**(inputs.keywords or {}), name: pixels}
    return replace(inputs, pixels=pixels, keywords=keywords)


def each_tensor(inputs: ModelInputs, change: Callable[[Tensor], Tensor]) -> ModelInputs:
    """Apply a function to every tensor."""
    pixels = change(inputs.pixels)
    if inputs.keywords is None:
        return replace(inputs, pixels=pixels)
    keywords = {
        name: pixels if value is inputs.pixels else change(value) if isinstance(value, Tensor) else value
        for name, value in inputs.keywords.items()
    }
    return replace(inputs, pixels=pixels, keywords=keywords)


def batch_key(inputs: ModelInputs) -> tuple[Any, ...]:
    """Make a key that is the same for inputs that fit into one batch."""
    tensors = [("", inputs.pixels), *sorted(_tensors(inputs).items())]
    return tuple((name, tuple(tensor.shape[1:]), tensor.dtype) for name, tensor in tensors)


def batched(several: Sequence[ModelInputs]) -> ModelInputs:
    """Put the inputs of several photos into one batch."""
    first = several[0]
    pixels = torch.cat([one.pixels for one in several])
    if first.keywords is None:
        return ModelInputs(pixels)
    columns = {name: [(one.keywords or {}).get(name) for one in several] for name in first.keywords}
    joined = {name: _joined(values) for name, values in columns.items()}
    name = pixels_name(first)
    return ModelInputs(pixels, joined if name is None else {**joined, name: pixels})


def _joined(values: list[Any]) -> Any:
    if all(isinstance(value, Tensor) and value.dim() for value in values):
        return torch.cat(values)
    if all(isinstance(value, list) for value in values):
        return [item for value in values for item in value]
    return values[0]


def _tensors(inputs: ModelInputs) -> dict[str, Tensor]:
    """The tensors other than the pixels that have a batch axis."""
    return {
        name: value
        for name, value in (inputs.keywords or {}).items()
        if isinstance(value, Tensor) and value is not inputs.pixels and value.dim()
    }
