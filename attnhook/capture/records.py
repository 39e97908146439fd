"""Captured attention: `AttentionMaps` of one forward, which hold a `BlockAttention` per block, and no reference to the model."""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from attnhook._deprecated import old_attributes
from attnhook.capture import serialization
from attnhook.capture.anatomy import Readout
from attnhook.capture.block_choice import block_index
from attnhook.capture.notebook import blocks_table, contact_sheet
from attnhook.capture.output_gradients import AttentionGradient, CapturedGradients
from attnhook.capture.sites import Layout, Queries
from attnhook.capture.softmax_matrix import SoftmaxMatrix
from attnhook.errors import GradientsNotKeptError, NothingCapturedError, RowsNotKeptError, TokenLayoutError, counted
from attnhook.options import Overlap, Rows, Size

_FORMAT = "attnhook-maps-1"


@old_attributes({"kept": "captured", "mixing": "value_multiplier", "kept_gradients": "captured_gradients"})
@dataclass(frozen=True, eq=False)
class BlockAttention:
    """The attention of one block in one forward.

    Attributes:
        name: The attention module's path; a module's second call in one forward is `"name:1"`.
        kernel: What computed it, for provenance: `"scaled_dot_product_attention"`, `"softmax"`, `"multihead"`, `"encoder layer"`, or the name
            of a function registered at transformers' attention interface.
        captured: The rows as captured, `(batch, heads, queries, keys)` float32, or the implicit matrix.
        token_layout: What the keys are, or the reason why no layout is known.
        queries: What the queries are: all tokens, the patches, the class token, or learned pooling queries.
        readout_rows: Where the rows of the class token or the pooling are among all queries, if not where `token_layout` says.
        query_token_layout: What the queries are, or why that is not known; None where it is the same as the keys.
        value_multiplier: What multiplies the values if not these softmax rows themselves, in words; empty otherwise.
        captured_gradients: Values and the gradient, if captured; read them as `values`, `output_gradient` and `gradient`.
        number: The block's number among the model's blocks, counted from 1, and how many there are; None for poolings, or if unknown.
    """

    name: str
    kernel: str
    captured: Tensor | SoftmaxMatrix
    token_layout: Layout | str
    queries: Queries = Queries.TOKENS
    readout_rows: slice | None = None
    query_token_layout: Layout | str | None = None
    value_multiplier: str = ""
    captured_gradients: CapturedGradients | None = field(default=None, repr=False)
    number: tuple[int, int] | None = None

    @property
    def pooling(self) -> bool:
        """Whether the queries are learned pooling queries."""
        return self.queries is Queries.POOL

    @property
    def rows(self) -> Tensor:
        """The captured rows, `(batch, heads, queries, keys)` float32; with `rows="all"` the same as `weights()`."""
        return self.captured if isinstance(self.captured, Tensor) else self.captured.dense()

    @property
    def matrix(self) -> SoftmaxMatrix:
        """The whole matrix, implicit; raises `RowsNotKeptError` unless captured with `rows="all"`."""
        if isinstance(self.captured, Tensor):
            raise RowsNotKeptError(
                f"block {self.name!r} has {self.captured.shape[2]} of the matrix's rows: expected all. Capture with rows='all'."
            )
        return self.captured

    def weights(self) -> Tensor:
        """The dense matrix, `(batch, heads, queries, keys)` float32; raises `RowsNotKeptError` unless captured with `rows="all"`."""
        return self.matrix.dense()

    @property
    def values(self) -> Tensor:
        """What the attention multiplies: `(batch, key heads, keys, value_dim)`, the model's dtype.

        Raises `GradientsNotKeptError` unless captured with `values=True` or `gradients=True`, or where the model has an explicit softmax.
        """
        values = self._gradients_of("values", "values=True or gradients=True").values
        if values is None:
            raise GradientsNotKeptError(
                f"block {self.name!r} has no values: expected a fused kernel, got {self.kernel!r}, whose product with the values is not "
                "visible. Build the model with fused attention on (timm.layers.set_fused_attn, attn_implementation='sdpa')."
            )
        return values

    @property
    def output_gradient(self) -> Tensor:
        """The gradient of the attention output O = A V: `(batch, heads, queries, value_dim)`; several backwards add up, as in `.grad`.

        Raises `GradientsNotKeptError` unless captured with `gradients=True` and after a backward, or where the model has an explicit softmax.
        """
        captured = self._gradients_of("gradient")
        if captured.explicit:
            raise GradientsNotKeptError(
                f"block {self.name!r} has an explicit softmax: expected a fused kernel's output, got dA itself. Read `.gradient`."
            )
        return captured.gradient(self.name)

    @property
    def gradient(self) -> AttentionGradient:
        """The gradient of the attention matrix, dA = dO V^T, implicit: `(batch, heads, queries, keys)`.

        Raises `GradientsNotKeptError` unless captured with `gradients=True` and after a backward.
        """
        return self._gradients_of("gradient").attention_gradient(self.name)

    def _gradients_of(self, what: str, option: str = "gradients=True") -> CapturedGradients:
        if self.captured_gradients is None:
            raise GradientsNotKeptError(
                f"block {self.name!r} has no {what}: expected a capture with {option}. Capture with it."
            )
        return self.captured_gradients

    @property
    def layout(self) -> Layout:
        """What the keys are; raises `TokenLayoutError` with the numbers if they fit no grid."""
        if isinstance(self.token_layout, str):
            raise TokenLayoutError(self.token_layout)
        return self.token_layout

    @property
    def query_layout(self) -> Layout:
        """What the queries are (the keys, in most models); raises `TokenLayoutError` if they fit no grid."""
        if isinstance(self.query_token_layout, str):
            raise TokenLayoutError(self.query_token_layout)
        return self.layout if self.query_token_layout is None else self.query_token_layout

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`(batch, heads, queries, keys)` of what was captured."""
        batch, heads, queries, keys = self.captured.shape
        return batch, heads, queries, keys

    def to(self, device: torch.device | str) -> "BlockAttention":
        """The same on another device."""
        gradients = None if self.captured_gradients is None else self.captured_gradients.to(device, self.name)
        return replace(self, captured=self.captured.to(device), captured_gradients=gradients)

    def __repr__(self) -> str:
        return f"BlockAttention({self.name!r}, shape={self.shape}, kernel={self.kernel!r})"


@old_attributes({"rows": "selected_rows"}, {"header": "use save", "from_header": "use AttentionMaps.load"})
class AttentionMaps(Sequence[BlockAttention]):
    """The blocks of one forward, in the order of the model.

    Index with an int, a slice or a block's name.

    Args:
        blocks: The blocks.
        rows: Which rows were captured: one of `Rows`, or the chosen tokens and patches.
        readout: What the model's head reads.
        input_size: Height and width in pixels of the input images, or None if not seen.
        patch_area: Height and width in pixels that the patch grid covers from the top left, or None if not seen. Differs from `input_size`
            where the model pads its input to whole patches, or drops a remainder.
        overlaps: How patches lie if they overlap or reach into padding, by their step (down, across) in pixels.
    """

    def __init__(
        self,
        blocks: Sequence[BlockAttention],
        *,
        rows: Rows | Sequence[Any],
        readout: Readout,
        input_size: Size | None = None,
        patch_area: Size | None = None,
        overlaps: Sequence[tuple[Size, Overlap]] = (),
    ) -> None:
        self._blocks = tuple(blocks)
        self._rows = rows
        self._readout = readout
        self._input_size = input_size
        self._patch_area = patch_area
        self._overlaps = tuple(overlaps)

    @overload
    def __getitem__(self, index: int | str) -> BlockAttention: ...
    @overload
    def __getitem__(self, index: slice) -> "AttentionMaps": ...
    def __getitem__(self, index: int | str | slice) -> "BlockAttention | AttentionMaps":
        if isinstance(index, slice):
            return self.with_blocks(self._blocks[index])
        if isinstance(index, int) and not isinstance(index, bool) and not -len(self) <= index < len(self):
            # Sequence iteration ends on IndexError; UnknownBlockError, a LookupError, would not stop it.
            raise IndexError(
                f"block {index} was not captured: expected an index from {-len(self)} to {len(self) - 1} among the captured blocks, or one of "
                f"their names ({', '.join(self.block_names[:3])}{', ...' if len(self) > 3 else ''})."
            )
        return self._blocks[block_index(self.block_names, index)]

    def __len__(self) -> int:
        return len(self._blocks)

    def __iter__(self) -> Iterator[BlockAttention]:
        return iter(self._blocks)

    def __repr__(self) -> str:
        chosen = self.selected_rows
        rows = chosen.value if isinstance(chosen, Rows) else f"{len(chosen)} chosen"
        shape = self._blocks[-1].shape if self._blocks else ()
        return f"AttentionMaps({counted(len(self), 'block')}, rows={rows}, last block {shape})"

    def _repr_html_(self) -> str:
        return blocks_table(self._blocks, repr(self))

    def _repr_png_(self) -> bytes | None:
        return contact_sheet(self._blocks)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str | bytes]:
        bundle: dict[str, str | bytes] = {"text/plain": repr(self), "text/html": self._repr_html_()}
        picture = self._repr_png_()
        return bundle if picture is None else bundle | {"image/png": picture}

    @property
    def block_names(self) -> tuple[str, ...]:
        """The blocks' names, in order."""
        return tuple(block.name for block in self._blocks)

    @property
    def layout(self) -> Layout:
        """The layout of the last block's keys; raises `TokenLayoutError` if they fit no grid."""
        return self[-1].layout

    @property
    def selected_rows(self) -> Rows | Sequence[Any]:
        """Which rows were captured: a member of `Rows`, or the chosen tokens and patches."""
        return self._rows

    @property
    def readout(self) -> Readout:
        """What the model's head reads."""
        return self._readout

    @property
    def input_size(self) -> Size | None:
        """Height and width in pixels of the model's input, or None if the patch embedding was not seen."""
        return self._input_size

    @property
    def patch_area(self) -> Size | None:
        """Height and width in pixels that the patch grid covers, from the input's top left, or None if not seen."""
        return self._patch_area

    @property
    def overlaps(self) -> tuple[tuple[Size, Overlap], ...]:
        """How patches lie if they overlap or reach into padding, by their step (down, across) in pixels."""
        return self._overlaps

    def stack(self) -> Tensor:
        """All blocks in one tensor, `(blocks, batch, heads, queries, keys)` float32; raises `RowsNotKeptError` if their shapes differ."""
        shapes = {block.shape for block in self}
        if len(shapes) != 1:
            raise RowsNotKeptError(
                f"blocks cannot be stacked: expected one shape, got {sorted(shapes)}. Stack a slice of them."
            )
        return torch.stack([block.rows for block in self])

    def to(self, device: torch.device | str) -> "AttentionMaps":
        """The same on another device."""
        return self.with_blocks([block.to(device) for block in self])

    def with_blocks(self, blocks: Sequence[BlockAttention]) -> "AttentionMaps":
        """The same forward with other blocks."""
        other = copy(self)
        other._blocks = tuple(blocks)
        return other

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file, under a temporary name first, so that a failure leaves no half-written file.

        Implicit matrices are written dense; captured values and gradients are written, too.

        Args:
            path: The file's path.

        Raises:
            NothingCapturedError: If there are no blocks to save.
            GradientsNotKeptError: If gradients were requested, and no backward has run yet.
            ValueError: If the suffix is not `.safetensors`.
        """
        if Path(path).suffix != ".safetensors":
            raise ValueError(
                f"cannot save {Path(path).name!r}: expected the suffix .safetensors, got {Path(path).suffix!r}. For NumPy: "
                "np.savez(path, **{block.name: block.rows.numpy() for block in maps})."
            )
        if not self._blocks:
            raise NothingCapturedError(
                "nothing to save: expected at least one block, got none. Save maps that have blocks."
            )
        header, tensors = header_of(self)
        tensors |= {f"rows.{i}": block.rows.contiguous() for i, block in enumerate(self)}
        serialization.write(Path(path), header, tensors)

    @classmethod
    def load(cls, path: str | Path) -> "AttentionMaps":
        """Read what `save` wrote.

        Args:
            path: The file's path.

        Returns:
            The maps, on the CPU; matrices captured with `rows="all"` are dense.

        Raises:
            NothingCapturedError: If `save` did not write the file, whatever it contains.
        """
        return serialization.read(Path(path), _FORMAT, maps_from)


def header_of(maps: AttentionMaps) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Everything but the rows: what JSON can hold, and the tensors by their names."""
    packed = [_packed(block, i) for i, block in enumerate(maps)]
    rows = maps.selected_rows
    header = {
        "format": _FORMAT,
        "rows": rows.value if isinstance(rows, Rows) else list(rows),
        "readout": [maps.readout.rows, maps.readout.reason],
        "input_size": maps.input_size,
        "patch_area": maps.patch_area,
        "overlaps": [[steps, overlap.start, overlap.reach] for steps, overlap in maps.overlaps],
        "blocks": [entry for entry, _ in packed],
    }
    return header, {name: tensor for _, tensors in packed for name, tensor in tensors.items()}


def maps_from(header: dict[str, Any], tensors: dict[str, Tensor]) -> AttentionMaps:
    """Undo `header_of`; the tensors also hold the rows of block i, `(batch, heads, queries, keys)`, as `rows.i`."""
    rows, (readout, reason) = serialization.checked_rows(header["rows"]), header["readout"]
    return AttentionMaps(
        [_unpacked(entry, i, tensors, implicit=rows is Rows.ALL) for i, entry in enumerate(header["blocks"])],
        rows=rows,
        readout=Readout(None if readout is None else Rows(readout), serialization.checked(reason, str)),
        input_size=serialization.checked_size(header["input_size"]),
        patch_area=serialization.checked_size(header["patch_area"]),
        overlaps=[serialization.checked_overlap(one) for one in header.get("overlaps", [])],
    )


def _packed(block: BlockAttention, number: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    keys, of_keys = serialization.packed_layout(block.token_layout, f"keys.{number}")
    queries, of_queries = serialization.packed_layout(block.query_token_layout, f"queries.{number}")
    gradients, of_gradients = serialization.packed_gradients(block.captured_gradients, block.name, str(number))
    rows = block.readout_rows
    entry = {
        "name": block.name,
        "kernel": block.kernel,
        "layout": keys,
        "queries": block.queries,
        "query_layout": queries,
        "readout_rows": None if rows is None else [rows.start, rows.stop],
        "mixing": block.value_multiplier,
        "gradients": gradients,
        "place": block.number,
    }
    return entry, of_keys | of_queries | of_gradients


def _unpacked(entry: dict[str, Any], number: int, tensors: dict[str, Tensor], *, implicit: bool) -> BlockAttention:
    rows = serialization.checked_tensor(tensors[f"rows.{number}"], None, None, None, None)
    layout = serialization.unpacked_layout(entry["layout"], f"keys.{number}", tensors) or "no layout was saved"
    if not isinstance(layout, str):
        layout.check(rows.shape[3])
    ends = entry["readout_rows"]
    return BlockAttention(
        serialization.checked(entry["name"], str),
        serialization.checked(entry["kernel"], str),
        SoftmaxMatrix(rows) if implicit else rows,
        layout,
        Queries(entry["queries"]),
        None if ends is None else slice(*(None if end is None else serialization.checked(end, int) for end in ends)),
        serialization.unpacked_layout(entry["query_layout"], f"queries.{number}", tensors),
        serialization.checked(entry["mixing"], str),
        serialization.unpacked_gradients(entry.get("gradients"), rows, str(number), tensors),
        serialization.checked_size(entry.get("place")),
    )
