"""Weights in local safetensors files: read them, refuse pickles, and load them without a tensor too many or too few.

Knows nothing of any library's models, and changes no names: a file holds a model's own `state_dict()`, or it is an error that says how
the two differ.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from attnhook.errors import ModelLoadError

_WRAPPERS = ("module.", "model.", "_orig_mod.")
_PLAIN = re.compile(r"[\w.+-]+")
"""Names that are safe inside a line that is offered to be pasted into a shell."""


def read_safetensors(file: str | Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Example:
        >>> read_safetensors("weights.safetensors")  # doctest: +SKIP
        {'head.weight': tensor(...)}
    """
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
    """Describe weights in another format, with the line that converts them.

    Example:
        >>> "cannot read weights" in str(not_safetensors(Path("model.pth")))
        True
    """
    name, stem = (path.name, path.stem) if _PLAIN.fullmatch(path.name) else ("FILE", "FILE")
    line = (
        "import torch, safetensors.torch as s; s.save_file({k: v.contiguous() for k, v in "
        f"torch.load('{name}', weights_only=True).items()}}, '{stem}.safetensors')"
    )
    return ModelLoadError(
        f"cannot read weights: expected a .safetensors file, got {path}. Other formats are pickles, which can run code when they are "
        f'read. If you trust it, convert it once, in its directory: `python -c "{line}"`'
    )


def head_options(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, int]:
    """Read the number of classes off the weights, so that a fine-tuned model loads under its backbone's name.

    Example:
        >>> import torch
        >>> head_options({"head.weight": torch.zeros(10, 192)}, ["head.weight"])
        {'num_classes': 10}
    """
    return next(({"num_classes": len(state[name])} for name in names if name in state), {})


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], *, name: str, source: str) -> None:
    """Load weights into a model that has exactly these tensors.

    Example:
        >>> layer = nn.Linear(2, 3)
        >>> load_strictly(layer, layer.state_dict(), name="a layer", source="itself")
    """
    own = model.state_dict()
    found = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "of another shape": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(tensor.shape)}"
            for key, tensor in own.items()
            if key in state and state[key].shape != tensor.shape
        ],
    }
    if any(found.values()):
        differences = "; ".join(f"{len(keys)} {kind} ({summary(keys)})" for kind, keys in found.items() if keys)
        wrapper = next((prefix for prefix in _WRAPPERS if state and all(key.startswith(prefix) for key in state)), None)
        raise ModelLoadError(
            f"{source} does not hold the weights of {name}: expected exactly its {len(own)} tensors, got {differences}. "
            + (
                f"All its names start with {wrapper!r}: save the model without its wrapper."
                if wrapper
                else "Check that they were saved from this model, as its own state_dict()."
            )
        )
    model.load_state_dict(state, strict=True)


def summary(names: Sequence[str]) -> str:
    """Join names for a message.

    Example:
        >>> summary(list("abcdefg"))
        'a, b, c, d, e, …'
    """
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
