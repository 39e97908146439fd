"""Layouts, values and gradients as JSON and tensors, and back: how `AttentionMaps` puts them into a safetensors file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from attnhook.capture.following import KeptGradients
from attnhook.capture.layout import TokenLayout
from attnhook.capture.packing import PackedLayout
from attnhook.capture.sites import Layout
from attnhook.capture.windows import WindowLayout
from attnhook.errors import NothingCapturedError
from attnhook.files import replacing
from attnhook.options import Size

_FIELDS = ("grid", "cls", "registers", "distillation", "suffix", "frames")


def write_tensors(tensors: dict[str, Tensor], header: dict[str, Any], path: Path) -> None:
    """Write tensors and a header to a safetensors file: to a temporary name first, so that a failure leaves no half-written file.

    Args:
        tensors: By name.
        header: What JSON can hold.
        path: The file's path.
    """
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"attnhook": json.dumps(header)})


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `write_tensors` wrote.

    Args:
        path: The file's path.

    Returns:
        The header, empty if the file has none, and the tensors.

    Raises:
        NothingCapturedError: If it is no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("attnhook", "{}"))
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise NothingCapturedError(f"cannot read {str(path)!r}: expected a safetensors file, got {error}.") from None


def packed_layout(layout: Layout | str | None, name: str) -> tuple[Any, dict[str, Tensor]]:
    """Turn a layout into what JSON can hold and the tensors that it cannot.

    Args:
        layout: The layout, the reason why there is none, or None.
        name: Prefix of the tensors' names, unique in the file.

    Returns:
        The entry and the tensors.
    """
    if isinstance(layout, TokenLayout):
        order = {} if layout.order is None else {f"{name}.order": _owned(layout.order)}
        return {field: getattr(layout, field) for field in _FIELDS}, order
    if isinstance(layout, WindowLayout):
        tensors = {f"{name}.positions": _owned(layout.positions)}
        if layout.query_positions is not None:
            tensors[f"{name}.queries"] = _owned(layout.query_positions)
        return {"grid": layout.grid, "query_grid": layout.query_grid, "words": layout.words}, tensors
    if isinstance(layout, PackedLayout):
        images: list[Any] = []
        owned: dict[str, Tensor] = {}
        for i, image in enumerate(layout.images):
            entry, more = packed_layout(image, f"{name}.{i}")
            images.append(entry)
            owned |= more
        return {
            "images": images,
            "entries": layout.entries,
            "starts": layout.starts,
            "num_tokens": layout.num_tokens,
        }, owned
    return layout, {}


def unpacked_layout(entry: Any, name: str, tensors: dict[str, Tensor]) -> Layout | str | None:
    """Undo `packed_layout`.

    Args:
        entry: The entry, as JSON gave it back.
        name: The prefix.
        tensors: All tensors of the file.

    Returns:
        The layout.
    """
    if not isinstance(entry, dict):
        return None if entry is None else str(entry)
    if "images" in entry:
        images = [_token_layout(image, f"{name}.{i}", tensors) for i, image in enumerate(entry["images"])]
        return PackedLayout(tuple(images), tuple(entry["entries"]), tuple(entry["starts"]), entry["num_tokens"])
    if "words" not in entry:
        return _token_layout(entry, name, tensors)
    values = {**entry, "grid": size(entry["grid"]), "query_grid": size(entry["query_grid"])}
    return WindowLayout(
        positions=tensors[f"{name}.positions"], query_positions=tensors.get(f"{name}.queries"), **values
    )


def _token_layout(entry: dict[str, Any], name: str, tensors: dict[str, Tensor]) -> TokenLayout:
    return TokenLayout(order=tensors.get(f"{name}.order"), **{**entry, "grid": size(entry["grid"])})


def size(pair: Sequence[int] | None) -> Size | None:
    """Height and width from a list: JSON's, or an adapter's.

    Args:
        pair: Two numbers, or None.

    Returns:
        The size, or None.
    """
    return None if pair is None else (pair[0], pair[1])


def packed_gradients(kept: KeptGradients | None, block: str, name: str) -> tuple[Any, dict[str, Tensor]]:
    """Turn what is kept of values and gradients into what JSON can hold and the tensors.

    Args:
        kept: What is kept, or None.
        block: The block's name, for the message where a gradient is still to come.
        name: Suffix of the tensors' names, unique in the file.

    Returns:
        The entry and the tensors.
    """
    if kept is None:
        return None, {}
    tensors = {} if kept.values is None else {f"values.{name}": _owned(kept.values)}
    if kept.wanted:
        arrived = kept.to("cpu", block).gradient(block)
        tensors[f"gradient.{name}"] = _owned(arrived)
    return {"explicit": kept.explicit, "wanted": kept.wanted}, tensors


def unpacked_gradients(entry: Any, name: str, tensors: dict[str, Tensor]) -> KeptGradients | None:
    """Undo `packed_gradients`.

    Args:
        entry: The entry, as JSON gave it back.
        name: The suffix.
        tensors: All tensors of the file.

    Returns:
        What was kept.
    """
    if entry is None:
        return None
    kept = KeptGradients(tensors.get(f"values.{name}"), explicit=entry["explicit"], wanted=entry["wanted"])
    if kept.wanted:
        kept.add(tensors[f"gradient.{name}"])
    return kept


def _owned(tensor: Tensor) -> Tensor:
    return tensor.clone().contiguous()  # blocks share one
