"""Layouts, values and gradients as JSON and tensors, and back: how `AttentionMaps` stores them in a safetensors file.

A file may contain anything, so everything read from it is checked for its type and range; `read` turns any failure into one error.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from attnhook.capture.layout import TokenLayout
from attnhook.capture.output_gradients import CapturedGradients
from attnhook.capture.sites import Layout
from attnhook.capture.windows import PackedLayout, WindowLayout
from attnhook.errors import NothingCapturedError
from attnhook.files import replacing
from attnhook.options import Overlap, Rows, Size

_FIELDS = ("grid", "cls", "registers", "distillation", "suffix", "frames", "frames_in_batch")
_Read = TypeVar("_Read")


def write(path: Path, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a JSON header and tensors to a safetensors file, under a temporary name first."""
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"attnhook": json.dumps(header)})


def read(path: Path, form: str, unpack: Callable[[dict[str, Any], dict[str, Tensor]], _Read]) -> _Read:
    """`unpack(header, tensors)` of a file of format `form`; `NothingCapturedError` if that fails for any contents."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("attnhook", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if header.get("format") == form:
            return unpack(header, tensors)
        problem = f"a file of format {form!r}, got {header.get('format')!r}"
    except OSError:
        raise
    except SafetensorError as error:
        problem = f"a safetensors file, got {error}"
    except Exception as error:
        problem = f"a complete file of format {form!r}, got a damaged one ({type(error).__name__}: {error})"
    raise NothingCapturedError(f"cannot read {str(path)!r}: expected {problem}. Save the maps again.")


def packed_layout(layout: Layout | str | None, name: str) -> tuple[Any, dict[str, Tensor]]:
    """A layout, or the reason why there is none: what JSON can hold, and tensors whose names begin with `name`."""
    if isinstance(layout, TokenLayout):
        order = {} if layout.order is None else {f"{name}.order": _owned(layout.order)}
        return {field: getattr(layout, field) for field in _FIELDS}, order
    if isinstance(layout, WindowLayout):
        indices = {"positions": layout.positions, "queries": layout.query_positions}
        tensors = {f"{name}.{key}": _owned(index) for key, index in indices.items() if index is not None}
        return {"grid": layout.grid, "query_grid": layout.query_grid, "words": layout.words}, tensors
    if isinstance(layout, PackedLayout):
        images = [packed_layout(image, f"{name}.{i}") for i, image in enumerate(layout.images)]
        entry = {field: getattr(layout, field) for field in ("entries", "starts", "num_tokens")}
        orders = {key: order for _, owned in images for key, order in owned.items()}
        return entry | {"images": [image for image, _ in images]}, orders
    return layout, {}


def unpacked_layout(entry: Any, name: str, tensors: dict[str, Tensor]) -> Layout | str | None:
    """Undo `packed_layout`: its entry, as JSON gave it back, and all tensors of the file."""
    if not isinstance(entry, dict):
        return None if entry is None else checked(entry, str)
    if "images" in entry:
        images = [_token_layout(image, f"{name}.{i}", tensors) for i, image in enumerate(entry["images"])]
        entries, starts = (tuple(checked(number, int) for number in entry[field]) for field in ("entries", "starts"))
        ends = [start + image.num_tokens for start, image in zip(starts, images, strict=True)]
        _require(len(entries) == len(images) > 0 and min(entries + starts) >= 0, "a place for each image")
        _require(max(ends) <= checked(entry["num_tokens"], int), "images inside the sequence")
        return PackedLayout(tuple(images), entries, starts, entry["num_tokens"])
    if "words" not in entry:
        return _token_layout(entry, name, tensors)
    grid = TokenLayout(checked_size(entry["grid"]) or (0, 0)).grid
    query_grid, queries = checked_size(entry["query_grid"]), tensors.get(f"{name}.queries")
    positions = _checked_index(tensors[f"{name}.positions"], -1, grid)
    queries = None if queries is None else _checked_index(queries, -1, query_grid or grid)
    return WindowLayout(grid, positions, queries, query_grid, checked(entry["words"], str))


def _token_layout(entry: dict[str, Any], name: str, tensors: dict[str, Tensor]) -> TokenLayout:
    numbers: dict[str, Any] = {field: checked(entry.get(field, 1), int) for field in _FIELDS[2:]}
    cls = None if entry["cls"] is None else checked(entry["cls"], int)
    layout = TokenLayout(checked_size(entry["grid"]) or (0, 0), cls, **numbers)
    order = tensors.get(f"{name}.order")
    if order is None:
        return layout
    return replace(layout, order=_checked_index(order, 0, (layout.frames * layout.grid[0], layout.grid[1])))


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"expected {what}")


def checked(entry: Any, kind: type[_Read]) -> _Read:
    """An entry of the header, checked for its type."""
    _require(isinstance(entry, kind), f"a value of type {kind.__name__}, got {type(entry).__name__}")
    return entry  # type: ignore[no-any-return]


def checked_size(entry: Any) -> Size | None:
    """A pair of integers, such as height and width; None stays None."""
    return None if entry is None else (checked(entry[0], int), checked(entry[1], int))


def checked_overlap(entry: Any) -> tuple[Size, Overlap]:
    """Steps and how patches of these steps lie."""
    steps, start, reach = entry
    pairs = [(float(one[0]), float(one[1])) for one in (start, reach)]
    return (checked(steps[0], int), checked(steps[1], int)), Overlap(*pairs)


def checked_rows(entry: Any) -> Rows | list[int | Size | None]:
    """Which rows were captured: one of `Rows`, or tokens and patches."""
    if isinstance(entry, str):
        return Rows(entry)
    return [checked_size(row) if isinstance(row, list) else checked(row, int) for row in entry]


def _checked_index(index: Tensor, least: int, grid: Size) -> Tensor:
    whole = index.dim() == 2 and index.dtype is torch.int64
    inside = whole and bool(((index >= least) & (index < grid[0] * grid[1])).all())
    _require(inside, f"indices on a grid of {grid[0]}x{grid[1]} for each window or image")
    return index


def checked_tensor(tensor: Tensor, *shape: int | None) -> Tensor:
    """A floating-point tensor, checked for its shape; None is any length."""
    fits = len(shape) == tensor.dim() and all(n is None or n == m for n, m in zip(shape, tensor.shape, strict=True))
    floating = tensor.is_floating_point() and tensor.dtype.itemsize > 1
    _require(fits and floating, f"numbers of shape {shape}, got {tuple(tensor.shape)} {tensor.dtype}")
    return tensor


def packed_gradients(captured: CapturedGradients | None, block: str, name: str) -> tuple[Any, dict[str, Tensor]]:
    """A block's values and gradients: what JSON can hold, and tensors whose names end with `name`."""
    if captured is None:
        return None, {}
    tensors = {} if captured.values is None else {f"values.{name}": _owned(captured.values)}
    if captured.wanted:
        tensors[f"gradient.{name}"] = _owned(captured.to("cpu", block).gradient(block))
    return {"explicit": captured.explicit, "wanted": captured.wanted}, tensors


def unpacked_gradients(entry: Any, rows: Tensor, name: str, tensors: dict[str, Tensor]) -> CapturedGradients | None:
    """Undo `packed_gradients` of a block with these rows, `(batch, heads, queries, keys)`."""
    if entry is None:
        return None
    batch, heads, queries, keys = rows.shape
    values = tensors.get(f"values.{name}")
    if values is not None:
        checked_tensor(values, batch, None, keys, None)
        _require(values.shape[1] > 0 and heads % values.shape[1] == 0, f"values of {heads} heads")
    captured = CapturedGradients(values, explicit=bool(entry["explicit"]), wanted=bool(entry["wanted"]))
    if captured.wanted:
        width = keys if captured.explicit or values is None else values.shape[3]
        captured.add(checked_tensor(tensors[f"gradient.{name}"], batch, heads, queries, width))
    return captured


def _owned(tensor: Tensor) -> Tensor:
    return tensor.clone().contiguous()  # blocks share one
