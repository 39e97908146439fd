"""Weights in local safetensors files: pickles are refused, and a file must hold exactly the model's own `state_dict()`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from attnhook.errors import ModelLoadError
from attnhook.files import user_path

_WRAPPERS = ("module.", "model.", "_orig_mod.")  # DataParallel, a trainer's attribute, torch.compile
_SAFE_IN_SHELL = re.compile(r"[\w.+-]+")


def read_safetensors(file: str | Path) -> dict[str, Tensor]:
    """Read a safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = user_path(file)
    if path.suffix != ".safetensors":
        raise not_safetensors(path)
    if not path.is_file():
        raise ModelLoadError(f"cannot read weights: expected a file {path}, got none there. Check the path.")
    try:
        state: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelLoadError(
            f"cannot read weights: expected an intact safetensors file, got {path} ({error}). Copy or save it again."
        ) from error
    return state


def not_safetensors(path: Path) -> ModelLoadError:
    """The error for weights in another format, with a command that converts them."""
    name, stem = (path.name, path.stem) if _SAFE_IN_SHELL.fullmatch(path.name) else ("FILE", "FILE")
    line = (
        "import torch, safetensors.torch as s; s.save_file({k: v.contiguous() for k, v in "
        f"torch.load('{name}', weights_only=True).items()}}, '{stem}.safetensors')"
    )
    return ModelLoadError(
        f"cannot read weights: expected a .safetensors file, got {path}. Other formats are pickles, which can run code when they are "
        f'read. If you trust the file, convert it once, in its directory: `python -c "{line}"`'
    )


def by_wrapper(state: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The weights as they are, then without each prefix of a wrapper that all names share, by the prefix that is left out."""
    forms, prefix = {"": state}, ""
    while state and (found := [one for one in _WRAPPERS if all(key.startswith(one) for key in state)]):
        prefix, state = prefix + found[0], {key.removeprefix(found[0]): tensor for key, tensor in state.items()}
        forms[prefix] = state
    return forms


def without_wrappers(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The weights under the model's own names, as far as names tell."""
    return list(by_wrapper(state).values())[-1]


def head_options(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, int]:
    """The number of classes in the weights, so that a fine-tuned model loads under the name of its backbone."""
    plain = without_wrappers(state)
    return next(({"num_classes": len(plain[name])} for name in names if name in plain), {})


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], *, name: str, source: str) -> None:
    """Load weights into a model that must have exactly these tensors, under its own names or with one prefix before all of them."""
    own = {key: tensor.shape for key, tensor in model.state_dict().items()}
    forms = by_wrapper(state)
    for form in forms.values():
        if {key: tensor.shape for key, tensor in form.items()} == own:
            model.float()  # under another default dtype, parameters would round what is loaded
            model.load_state_dict(form, strict=True)
            return
    prefix, plain = list(forms.items())[-1]
    reshaped = [key for key in own if key in plain and plain[key].shape != own[key]]
    found = {
        "missing": [key for key in own if key not in plain],
        "unexpected": [key for key in plain if key not in own],
        "of another shape": [f"{key} {tuple(plain[key].shape)} instead of {tuple(own[key])}" for key in reshaped],
    }
    differences = "; ".join(f"{len(keys)} {kind} ({summary(keys)})" for kind, keys in found.items() if keys)
    wrapped = f" after the prefix {prefix!r} that all its names have" if prefix else ""
    raise ModelLoadError(
        f"{source} does not hold the weights of {name}: expected exactly its {len(own)} tensors, got {differences}{wrapped}. "
        "Save the state_dict() of this very model."
    )


def summary(names: Sequence[str]) -> str:
    """The first five names, for a message."""
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
