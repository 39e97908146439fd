"""Layouts, values and gradients as JSON and tensors, and back: how `AttentionMaps` puts them into a safetensors file."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnhook.capture.following import KeptGradients
from attnhook.capture.layout import TokenLayout
from attnhook.capture.packing import PackedLayout
from attnhook.capture.sites import Layout
from attnhook.capture.windows import WindowLayout
from attnhook.errors import NothingCapturedError
from attnhook.files import replacing
from attnhook.options import Rows, Size

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


@contextmanager
def errors_of(path: Path, form: str) -> Iterator[None]:
    """Turn whatever a file's contents make go wrong into one error.

    Args:
        path: The file's path.
        form: The `format` that it should have.

    Raises:
        NothingCapturedError: Instead of anything but an `OSError`.
    """
    try:
        yield
    except (NothingCapturedError, OSError):
        raise
    except Exception as error:
        raise NothingCapturedError(
            f"cannot read {str(path)!r}: expected a whole file of format {form!r}, got one that does not hold together "
            f"({type(error).__name__}: {error}). Save the maps again."
        ) from None


def read_tensors(path: Path, form: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `write_tensors` wrote.

    Args:
        path: The file's path.
        form: What the header should have as its `format`.

    Returns:
        The header and the tensors.

    Raises:
        NothingCapturedError: If it is no safetensors file, or of another format.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("attnhook", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise NothingCapturedError(f"cannot read {str(path)!r}: expected a safetensors file, got {error}.") from None
    if header.get("format") != form:
        raise NothingCapturedError(
            f"cannot read {str(path)!r}: expected a file of format {form!r}, got {header.get('format')!r}."
        )
    return header, tensors


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
        return None if entry is None else checked_text(entry)
    if "images" in entry:
        images = [_token_layout(image, f"{name}.{i}", tensors) for i, image in enumerate(entry["images"])]
        entries, starts = (tuple(map(_checked_number, entry[field])) for field in ("entries", "starts"))
        ends = [start + image.num_tokens for start, image in zip(starts, images, strict=True)]
        _require(len(entries) == len(images) > 0 and min(entries + starts) >= 0, "images where their tokens stand")
        _require(max(ends) <= _checked_number(entry["num_tokens"]), "images inside the sequence")
        return PackedLayout(tuple(images), entries, starts, entry["num_tokens"])
    if "words" not in entry:
        return _token_layout(entry, name, tensors)
    grid = TokenLayout(checked_size(entry["grid"]) or (0, 0)).grid
    query_grid, queries = checked_size(entry["query_grid"]), tensors.get(f"{name}.queries")
    positions = _checked_index(tensors[f"{name}.positions"], -1, grid)
    queries = None if queries is None else _checked_index(queries, -1, query_grid or grid)
    return WindowLayout(grid, positions, queries, query_grid, checked_text(entry["words"]))


def _token_layout(entry: dict[str, Any], name: str, tensors: dict[str, Tensor]) -> TokenLayout:
    numbers = {field: _checked_number(entry[field]) for field in _FIELDS[2:]}
    cls = None if entry["cls"] is None else _checked_number(entry["cls"])
    layout = TokenLayout(checked_size(entry["grid"]) or (0, 0), cls, **numbers)  # type: ignore[arg-type]
    order = tensors.get(f"{name}.order")
    if order is None:
        return layout
    return replace(layout, order=_checked_index(order, 0, (layout.frames * layout.grid[0], layout.grid[1])))


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"expected {what}")


def _checked_number(entry: Any) -> int:
    _require(isinstance(entry, int), f"a whole number, got {type(entry).__name__}")
    return int(entry)


def _checked_index(index: Tensor, least: int, grid: Size) -> Tensor:
    whole = index.dim() == 2 and index.dtype is torch.int64
    inside = whole and bool(((index >= least) & (index < grid[0] * grid[1])).all())
    _require(inside, f"indices on a grid of {grid[0]}x{grid[1]} for each window or image")
    return index


def checked_text(entry: Any) -> str:
    """Text, as JSON gave it back; anything else is a `ValueError`."""
    _require(isinstance(entry, str), f"text, got {type(entry).__name__}")
    return str(entry)


def checked_size(entry: Any) -> Size | None:
    """A height and a width, or None, as JSON gave them back; anything else is an error."""
    return None if entry is None else (_checked_number(entry[0]), _checked_number(entry[1]))


def checked_rows(entry: Any) -> Rows | list[int | Size | None]:
    """Which rows were kept, as JSON gave it back: one of `Rows`, or tokens and patches; anything else is an error."""
    if isinstance(entry, str):
        return Rows(entry)
    return [checked_size(choice) if isinstance(choice, list) else _checked_number(choice) for choice in entry]


def checked_slice(entry: Any) -> slice | None:
    """A slice or None, from its ends as JSON gave them back; anything else is an error."""
    return None if entry is None else slice(*(None if end is None else _checked_number(end) for end in entry))


def checked_tensor(tensor: Tensor, *shape: int | None) -> Tensor:
    """A floating tensor of a certain shape, as the file gave it; anything else is a `ValueError`.

    Args:
        tensor: The tensor.
        shape: Its lengths, None for any.

    Returns:
        The tensor.
    """
    fits = len(shape) == tensor.dim() and all(n is None or n == m for n, m in zip(shape, tensor.shape, strict=True))
    floating = tensor.is_floating_point() and tensor.dtype.itemsize > 1
    _require(fits and floating, f"numbers of shape {shape}, got {tuple(tensor.shape)} {tensor.dtype}")
    return tensor


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


def unpacked_gradients(entry: Any, rows: Tensor, name: str, tensors: dict[str, Tensor]) -> KeptGradients | None:
    """Undo `packed_gradients`.

    Args:
        entry: The entry, as JSON gave it back.
        rows: The block's rows, `(batch, heads, queries, keys)`.
        name: The suffix.
        tensors: All tensors of the file.

    Returns:
        What was kept.
    """
    if entry is None:
        return None
    batch, heads, queries, keys = rows.shape
    values = tensors.get(f"values.{name}")
    if values is not None:
        checked_tensor(values, batch, None, keys, None)
        _require(values.shape[1] > 0 and heads % values.shape[1] == 0, f"values of {heads} heads")
    kept = KeptGradients(values, explicit=bool(entry["explicit"]), wanted=bool(entry["wanted"]))
    if kept.wanted:
        width = keys if kept.explicit or values is None else values.shape[3]
        kept.add(checked_tensor(tensors[f"gradient.{name}"], batch, heads, queries, width))
    return kept


def _owned(tensor: Tensor) -> Tensor:
    return tensor.clone().contiguous()  # blocks share one
