"""Runs a model on images alone."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from attnhook.imaging.model_inputs import ModelInputs, pixels_name
from attnhook.zoo.model_metadata import innermost


def run_vision(model: Any, inputs: Tensor | ModelInputs, model_kwargs: Mapping[str, Any] | None = None) -> Any:
    """Run a model in its own dtype and on its own device; of a preprocessing's keywords it gets those that its forward names."""
    arguments, keywords = _arguments(model, inputs if isinstance(inputs, ModelInputs) else ModelInputs(inputs))
    like = next((one for one in model.parameters() if one.is_floating_point()), next(model.parameters(), None))
    forward = getattr(model, "get_image_features", model)
    moved = {name: _moved(value, like) for name, value in {**keywords, **(model_kwargs or {})}.items()}
    return forward(*(_moved(value, like) for value in arguments), **moved)


def _arguments(model: Any, inputs: ModelInputs) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments of a forward."""
    if not inputs.keywords:
        return [inputs.pixels], {}
    inner = innermost(model)
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
