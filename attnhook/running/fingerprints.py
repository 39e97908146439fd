"""A model identified by content: its weights, its architecture, its preprocessing; and the versions of the libraries.

Names and files say nothing about what a model is.
"""

import hashlib
import inspect
import json
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from attnhook.zoo.vision_models import VisionModel

_PROBES = ((61, 83), (211, 150), (24, 720), (1500, 1100))
"""Heights and widths: portrait, landscape, a strip that a limit on the longer edge shrinks, and a large one."""
_SHARED = 0.5


@dataclass(frozen=True)
class Fingerprint:
    """A model's content, as hexadecimal SHA-256."""

    weights: str  # of all parameters and buffers, with their names
    # Of the classes of all modules with their source, plain settings, and buffers outside the state dict.
    architecture: str
    preprocessing: str  # of the pixels and the geometry that it makes of four fixed pictures
    # Of each tensor's numbers alone, with its size in bytes: equal under other names, and where a library stacks queries, keys and values.
    tensors: tuple[tuple[str, int], ...]
    # False if it has hooks, a replaced `forward`, or code without source, which the digests do not cover.
    complete: bool = True

    @property
    def key(self) -> str:
        """All of it as one."""
        return digest([self.weights, self.architecture, self.preprocessing])

    def shared(self, other: "Fingerprint") -> float:
        """The share of the weights, in bytes, that another model has too, whatever library stores them."""
        common, own, theirs = self._common(other)
        return common / max(min(own, theirs), 1)

    def shares_weights(self, other: "Fingerprint") -> bool:
        """Whether most of the weights are those of another model, whatever library stores them."""
        common, own, theirs = self._common(other)
        return common > _SHARED * max(own, theirs, 1)

    def _common(self, other: "Fingerprint") -> tuple[int, int, int]:
        """Bytes in common, and the bytes of each."""
        theirs, own = dict(other.tensors), dict(self.tensors)
        return sum(own[name] for name in own.keys() & theirs.keys()), sum(own.values()), sum(theirs.values())


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
    sources = _sources(vision.model)
    return Fingerprint(
        weights.hexdigest(),
        _architecture(vision.model, sources),
        _preprocessing(vision),
        tuple(sorted(tensors.items())),
        complete=sources is not None and not any(map(_is_altered, vision.model.modules())),
    )


def _is_altered(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


def _parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values, where they may be stacked; else the tensor."""
    return tensor.chunk(3) if tensor.dim() == 2 and tensor.shape[0] == 3 * tensor.shape[1] else (tensor,)


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest() if len(flat) else digest([])


def digest(parts: Iterable[Any]) -> str:
    """SHA-256 of plain values."""
    text = json.dumps(list(parts), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _architecture(model: nn.Module, sources: list[str] | None) -> str:
    """Classes, plain attributes (a state dict does not tell the number of heads) and sources."""
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
    return digest([found, sources])


def _sources(model: nn.Module) -> list[str] | None:
    """The source of all methods, because a class that is still being written keeps its name; None if the source of one is not available."""
    kinds = {kind for module in model.modules() for kind in type(module).__mro__ if kind not in nn.Module.__mro__}
    functions = [getattr(value, "__func__", value) for kind in kinds for value in vars(kind).values()]
    try:
        return sorted(f"{one.__qualname__} {inspect.getsource(one)}" for one in functions if inspect.isfunction(one))
    except OSError:
        return None


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
        except Exception as error:  # that it refuses a picture is part of it
            parts.append(type(error).__name__)
        else:
            keywords = (prepared.inputs.keywords or {}).items()
            named = {name: tensor_digest(v) if isinstance(v, Tensor) else repr(v) for name, v in keywords}
            parts += [tensor_digest(prepared.inputs.pixels), json.dumps(named, sort_keys=True), repr(prepared.geometry)]
    return digest(parts)


_PACKAGES = ("torch", "torchvision", "timm", "transformers", "numpy", "pillow")


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that maps depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
