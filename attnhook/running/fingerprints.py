"""What a model is by content: its weights, its architecture, its preprocessing. Names and files say nothing about that."""

import hashlib
import inspect
import json
from collections.abc import Iterable
from dataclasses import dataclass
from types import CodeType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from attnhook.zoo.vision_models import VisionModel

_PROBES = ((61, 83), (211, 150), (24, 720), (1500, 1100))
"""Heights and widths: upright, across, a strip that a limit of the longer edge cuts down, and a large one."""
_SHARED = 0.5


@dataclass(frozen=True)
class Fingerprint:
    """A model's content, as hexadecimal SHA-256.

    Attributes:
        weights: Of all parameters and buffers, with their names.
        architecture: Of all modules' classes with their code, of plain settings, and of buffers that no state dict holds.
        preprocessing: Of what it makes of two fixed pictures, and of where it says that their pixels went.
        hooked: Whether somebody's hooks may change what it computes, which no digest can tell.
        tensors: Of each large tensor's numbers alone, with its size in bytes: the same weights under other names have the same, also where
            one library keeps queries, keys and values together.
    """

    weights: str
    architecture: str
    preprocessing: str
    tensors: tuple[tuple[str, int], ...]
    hooked: bool = False

    @property
    def key(self) -> str:
        """All of it as one."""
        return digest([self.weights, self.architecture, self.preprocessing])

    def shared(self, other: "Fingerprint") -> float:
        """How many of the numbers are those of another model, whatever library holds them."""
        theirs, own = dict(other.tensors), dict(self.tensors)
        common = sum(size for name, size in own.items() if name in theirs)
        return common / max(min(sum(own.values()), sum(theirs.values())), 1)

    def shares_weights(self, other: "Fingerprint") -> bool:
        """Whether most of the numbers are those of another model, whatever library holds them."""
        theirs, own = dict(other.tensors), dict(self.tensors)
        common = sum(size for name, size in own.items() if name in theirs)
        return common > _SHARED * max(sum(own.values()), sum(theirs.values()), 1)


def fingerprint(vision: VisionModel) -> Fingerprint:
    """Read a model's content."""
    weights = hashlib.sha256()
    tensors: dict[str, int] = {}
    for name, tensor in sorted(vision.model.state_dict().items()):
        if not isinstance(tensor, Tensor):  # quantised linears pack theirs
            weights.update(f"{name} {tensor!r}".encode())
            continue
        content = tensor_digest(tensor)
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {content}\n".encode())
        for part in _parts(tensor) if tensor.numel() > 1 else ():
            tensors[content if part is tensor else tensor_digest(part)] = part.numel() * part.element_size()
    return Fingerprint(
        weights.hexdigest(),
        _architecture(vision.model),
        _preprocessing(vision),
        tuple(sorted(tensors.items())),
        any(
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
            or "forward" in vars(module)
            for module in vision.model.modules()
        ),
    )


def _parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values, where they may stand below each other; else the tensor."""
    return tensor.chunk(3) if tensor.dim() == 2 and tensor.shape[0] == 3 * tensor.shape[1] else (tensor,)


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest() if len(flat) else digest([])


def digest(parts: Iterable[Any]) -> str:
    """SHA-256 of plain values."""
    text = json.dumps(list(parts), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _architecture(model: nn.Module) -> str:
    """State dicts do not tell the number of heads; modules' plain attributes do."""
    found = []
    for name, module in model.named_modules():
        own = {k: v for k, v in vars(module).items() if k[0] != "_" and k != "training"}
        plain = {k: v for k, v in own.items() if _is_plain(v)}
        plain |= {k: f"{v.__module__}.{v.__name__}" for k, v in own.items() if inspect.isroutine(v)}
        for buffer in sorted(module._non_persistent_buffers_set):
            tensor = getattr(module, buffer)
            plain[buffer] = None if tensor is None else tensor_digest(tensor)
        config: Any = getattr(module, "config", None)
        settings = config.to_diff_dict() if not name and hasattr(config, "to_diff_dict") else None
        found.append([name, f"{type(module).__module__}.{type(module).__qualname__}", plain, settings])
    kinds = {kind for module in model.modules() for kind in type(module).__mro__ if kind not in nn.Module.__mro__}
    return digest([found, sorted(digest(_code_of(kind)) for kind in kinds)])


def _code_of(kind: type) -> list[Any]:
    """What a class does: names alone do not tell a model that is still being written."""
    functions = {name: getattr(value, "__func__", value) for name, value in sorted(vars(kind).items())}
    return [
        [name, _bytecode(code)]
        for name, function in functions.items()
        if inspect.isfunction(function) and (code := getattr(inspect.unwrap(function), "__code__", None)) is not None
    ]


def _bytecode(code: CodeType) -> list[Any]:
    return [code.co_code.hex(), code.co_names, [_constant(value) for value in code.co_consts]]


def _constant(value: object) -> Any:
    if isinstance(value, CodeType):
        return _bytecode(value)
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | torch.dtype)


def _preprocessing(vision: VisionModel) -> str:
    parts = []
    for height, width in _PROBES:
        ramp = np.arange(height * width * 3, dtype=np.uint32).reshape(height, width, 3) * 2654435761 >> 24
        try:
            prepared = vision.prepare(Image.fromarray(ramp.astype(np.uint8)))
        except Exception as error:  # photos that it refuses, too, say so themselves
            parts.append(type(error).__name__)
        else:
            named = {name: _content(value) for name, value in (prepared.inputs.keywords or {}).items()}
            parts += [tensor_digest(prepared.inputs.pixels), json.dumps(named, sort_keys=True), repr(prepared.geometry)]
    return digest(parts)


def _content(value: object) -> str:
    return tensor_digest(value) if isinstance(value, Tensor) else repr(value)
