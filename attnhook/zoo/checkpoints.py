"""Weights in local safetensors files: pickles are refused, and a file must hold exactly the model's own `state_dict()`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from attnhook.errors import ModelLoadError

_WRAPPERS = ("module.", "model.", "_orig_mod.")
_SAFE_IN_SHELL = re.compile(r"[\w.+-]+")


def read_safetensors(file: str | Path) -> dict[str, Tensor]:
    """Read a safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(file).expanduser()
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


def head_options(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, int]:
    """The number of classes in the weights, so that a fine-tuned model loads under the name of its backbone."""
    return next(({"num_classes": len(state[name])} for name in names if name in state), {})


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], *, name: str, source: str) -> None:
    """Load weights into a model that must have exactly these tensors."""
    own = model.state_dict()
    reshaped = [key for key in own if key in state and state[key].shape != own[key].shape]
    found = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "of another shape": [f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}" for key in reshaped],
    }
    if any(found.values()):
        differences = "; ".join(f"{len(keys)} {kind} ({summary(keys)})" for kind, keys in found.items() if keys)
        wrapper = next((prefix for prefix in _WRAPPERS if state and all(key.startswith(prefix) for key in state)), None)
        remedy = "Save the state_dict() of this very model."
        if wrapper:
            remedy = f"All names in the file start with {wrapper!r}: save the model without its wrapper."
        raise ModelLoadError(
            f"{source} does not hold the weights of {name}: expected exactly its {len(own)} tensors, got {differences}. {remedy}"
        )
    model.float()  # under another default dtype, parameters would round what is loaded
    model.load_state_dict(state, strict=True)


def summary(names: Sequence[str]) -> str:
    """The first five names, for a message."""
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
