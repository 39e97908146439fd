"""Runs a model on images alone, or the score of one class backward with respect to the pixels only: no parameter gets a gradient."""

import difflib
import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attnhook.capture.session import AttentionCapture
from attnhook.errors import GeometryError, TargetError
from attnhook.imaging.model_inputs import ModelInputs, pixels_name, with_pixels
from attnhook.zoo.model_metadata import inner_model

_SIZE = re.compile(r"\b(size|height|width)\b.*(match|expected)", re.IGNORECASE)
_POSITIONS = re.compile(r"size of tensor .* must match")  # patches and position embeddings
_INTERPOLATE = ', or pass model_kwargs={"interpolate_pos_encoding": True} to attend'


def run_vision(model: Any, inputs: Tensor | ModelInputs, model_kwargs: Mapping[str, Any] | None = None) -> Any:
    """Run a model in its own dtype and on its own device; of a preprocessing's keywords it gets those that its forward names."""
    if not isinstance(inputs, Tensor | ModelInputs):
        raise TypeError(
            f"cannot run {type(model).__name__} on these pixels: expected a tensor (batch, channels, height, width), got "
            f"{type(inputs).__name__}. Pass the preprocessed images alone, such as inputs['pixel_values']."
        )
    arguments, keywords = _arguments(model, inputs if isinstance(inputs, ModelInputs) else ModelInputs(inputs))
    like = next((one for one in model.parameters() if one.is_floating_point()), next(model.parameters(), None))
    forward = getattr(model, "get_image_features", model)
    moved = {name: _moved(value, like) for name, value in {**keywords, **(model_kwargs or {})}.items()}
    try:
        return forward(*(_moved(value, like) for value in arguments), **moved)
    except (ValueError, AssertionError, RuntimeError) as error:
        pixels = inputs.pixels if isinstance(inputs, ModelInputs) else inputs
        if (problem := _size_problem(error, inner_model(model), pixels)) is None:
            raise
        raise GeometryError(problem) from None  # the model's own traceback is long, and its message is in this one


def _size_problem(error: Exception, model: Any, pixels: Tensor) -> str | None:
    """What to do about an input of a size that a model does not take; None if an error is about something else."""
    settings: Any = getattr(model, "config", None)
    built = getattr(getattr(settings, "vision_config", settings), "image_size", None)
    size, wanted = tuple(pixels.shape[-2:]), (built, built) if isinstance(built, int) else built
    if isinstance(error, RuntimeError) and (wanted is None or tuple(wanted) == size):
        return None
    if not (_POSITIONS if isinstance(error, RuntimeError) else _SIZE).search(str(error)):
        return None
    expected = "the size that it was built for" if wanted is None else f"{wanted[0]} x {wanted[1]} pixels"
    forward = getattr(model, "get_image_features", model.forward)
    interpolates = "interpolate_pos_encoding" in inspect.signature(forward).parameters
    said = str(error).rstrip(".!")
    return (
        f"{type(model).__name__} cannot run on these photos: expected an input of {expected}, got {size[0]} x {size[1]} pixels ({said}). Let "
        f"the preprocessing make that size{_INTERPOLATE if interpolates else ''}."
    )


def _arguments(model: Any, inputs: ModelInputs) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments of a forward."""
    if not inputs.keywords:
        return [inputs.pixels], {}
    inner = inner_model(model)
    parameters = inspect.signature(getattr(inner, "get_image_features", inner.forward)).parameters.values()
    names = {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    if not names and any(one.kind is one.VAR_KEYWORD for one in parameters):  # forward(**kwargs) passes everything on
        return [], dict(inputs.keywords)
    keywords = {name: value for name, value in inputs.keywords.items() if name in names}
    return ([] if pixels_name(inputs) in keywords else [inputs.pixels]), keywords


def _moved(value: Any, like: Tensor | None) -> Any:
    """A tensor on the device and in the dtype of the parameters; integers and masks keep theirs."""
    if like is None or not isinstance(value, Tensor):
        return value
    return value.to(like.device, like.dtype if value.is_floating_point() else value.dtype)


TargetOption = str | int | None


def run_towards(
    capture: AttentionCapture,
    model: nn.Module,
    inputs: ModelInputs,
    target: TargetOption,
    labels: tuple[str, ...] | None,
    *,
    model_kwargs: Mapping[str, Any] | None = None,
) -> tuple[int, float]:
    """Run a model inside a capture, then the score of one class backward; returns both. Parameters keep their `.grad` and `requires_grad`."""
    with torch.inference_mode(mode=False), torch.enable_grad():
        leaf = inputs.pixels.detach().clone().requires_grad_()
        with capture:
            scores = class_scores(model, run_vision(model, with_pixels(inputs, leaf), model_kwargs))
        index = int(scores[0].argmax()) if target is None else class_index(target, labels, scores.shape[1])
        torch.autograd.grad(scores[0, index], leaf, allow_unused=True)
    return index, float(scores[0, index].detach())


def class_scores(model: nn.Module, output: Any) -> Tensor:
    """The scores of a classifier, `(batch, classes)`; a backbone without its head and a tower of features are refused."""
    scores = getattr(output, "logits", output)
    headless = getattr(model, "num_classes", None) == 0 or hasattr(model, "get_image_features")
    if headless or not isinstance(scores, Tensor) or scores.dim() != 2:
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise TargetError(
            f"{type(model).__name__} has no class scores: expected a classifier's output (batch, classes), got {got}"
            f"{' of a model without a head' if headless else ''}. Load a model with a classification head, or run your own score backward "
            "inside AttentionCapture(model, gradients=True)."
        )
    return scores


def class_index(target: str | int, labels: tuple[str, ...] | None, count: int) -> int:
    """The index of a class: "tabby cat" finds the label "tabby, tabby cat"."""
    if isinstance(target, int) and not isinstance(target, bool):
        if not 0 <= target < count:
            raise TargetError(f"class {target} does not exist: expected an index from 0 to {count - 1}.")
        return target
    if labels is None or len(labels) != count:
        known = "are not known" if labels is None else f"do not fit: it has {count} classes and {len(labels)} names"
        raise TargetError(
            f"unknown class {target!r}: the names of this model's classes {known}; expected an index from 0 to {count - 1}. Pass one, or the "
            "names: VisionModel(model, preprocess, labels=[...])."
        )
    wanted = str(target).casefold()
    names = [label.casefold() for label in labels]
    found = [i for i, name in enumerate(names) if name == wanted]
    found = found or [i for i, name in enumerate(names) if wanted in name.split(", ")]
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(f"{i} {labels[i]!r}" for i in found[:5])
        raise TargetError(f"class {target!r} is not one class: expected one, got {several}. Pass its index.")
    inside = [i for i, name in enumerate(names) if wanted in name]
    near = inside or [names.index(name) for name in difflib.get_close_matches(wanted, names, n=5)]
    hint = ", ".join(f"{i} {labels[i]!r}" for i in near[:5])
    raise TargetError(
        f"unknown class {target!r}: expected one of the model's {count} classes{f', such as {hint}' if hint else ''}. Pass its index or its "
        "whole name."
    )
