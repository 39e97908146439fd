"""Patch maps: one value per patch, with the place of the patches in the model's input and the meaning of the values.

So a forgotten argument cannot put a map on the wrong part of the input.
"""

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, SupportsIndex

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from attnhook._deprecated import was_a_tensor
from attnhook.errors import GeometryError
from attnhook.files import replacing, user_path
from attnhook.imaging import styles
from attnhook.imaging.figures import FIGURE_OPTIONS, overlay_figure, shown_at, styled, triptych
from attnhook.imaging.geometry import Box, ImageGeometry
from attnhook.imaging.heatmaps import checked_map, interpolate
from attnhook.imaging.images import ImageSource, read_image
from attnhook.imaging.looks import caption_of, keywords, scale_in_words
from attnhook.imaging.overlays import blend, look_of
from attnhook.imaging.prepared import by, locate, view_in_words
from attnhook.options import NO_OVERLAP, Interpolation, Overlap, PatchIndex, Size, Style, choose

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@was_a_tensor
@dataclass(frozen=True, eq=False, repr=False)
class PatchMap:
    """One value per patch, with the place and the meaning of the values. Every method returns one.

    `len`, indexing and slicing work on the first axis: for values `(batch, h, w)`, `patch_map[0]` is the map `(h, w)` of the first image, and
    `patch_map[0].overlay(...)` draws it. NumPy and matplotlib accept a patch map as an array.

    Attributes:
        values: `(batch, h, w)` or `(batch, heads, h, w)`; for one image `(h, w)` or `(heads, h, w)`. float32, unnormalised; NaN marks patches
            that the model dropped.
        input_size: Height and width of the model's input, in pixels; None if unknown.
        area: Height and width of the part of the input that the grid covers, in input pixels from the top left; None if unknown. Smaller than
            the input where the patch embedding drops a remainder, larger where it pads.
        overlap: How patches lie if they overlap or reach into padding: each cell then lies around the centre of its kernel.
        uniform: 1/N, the attention that each of N tokens would get if attention were uniform; None if the values are not shares of softmax mass.
        adds_up: Whether each map adds up to 1 together with the mass on other tokens.
        description: What was computed: method, block, heads, readout.
        quantity: What the values are, for a colour bar.

    Example:
        >>> patch_map = PatchMap(torch.rand(2, 14, 14), input_size=(224, 224), area=(224, 224))
        >>> patch_map.shape, len(patch_map), patch_map[0].shape
        (torch.Size([2, 14, 14]), 2, torch.Size([14, 14]))
        >>> seen = ImageGeometry.identity((428, 640)).resize(248).center_crop(224)
        >>> patch_map.heatmap(seen).shape
        torch.Size([2, 428, 640])
    """

    values: Tensor
    input_size: Size | None = None
    area: Size | None = None
    uniform: float | None = None
    adds_up: bool = False
    description: str = ""
    quantity: str = "attention"
    overlap: Overlap = NO_OVERLAP

    @property
    def shape(self) -> torch.Size:
        """The shape of `values`."""
        return self.values.shape

    @property
    def grid(self) -> Size:
        """Patch rows and columns."""
        return self.values.shape[-2], self.values.shape[-1]

    @property
    def outside(self) -> Tensor | None:
        """The attention mass of each map on tokens that are not patches, shaped like `values` without `(h, w)`; None if `adds_up` is False."""
        return 1.0 - self.values.nan_to_num().sum(dim=(-2, -1)) if self.adds_up else None

    @property
    def caption(self) -> str:
        """The caption of a figure: method, readout, block, heads; for a single map also the mass outside the patches."""
        return caption_of(self.description, self.outside)

    def __len__(self) -> int:
        self._check_indexable()
        return len(self.values)

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, index: SupportsIndex | slice) -> "PatchMap":
        self._check_indexable()
        if not isinstance(index, SupportsIndex | slice):
            raise TypeError(
                f"a PatchMap takes one number or a slice: expected patch_map[0] or patch_map[0][3] (image 0, head 3), got {index!r}. For tensor "
                "indexing use patch_map.values."
            )
        count = len(self.values)
        if isinstance(index, slice):
            return replace(self, values=self.values[list(range(count)[index])])  # torch takes no negative steps
        if not -count <= (index := operator.index(index)) < count:
            raise IndexError(f"map {index} does not exist: expected -{count} to {count - 1}.")
        return replace(self, values=self.values[index])

    def __iter__(self) -> Iterator["PatchMap"]:
        return (self[number] for number in range(len(self)))

    def _check_indexable(self) -> None:
        if self.values.dim() <= 2:
            raise TypeError(
                f"cannot index a single map: expected several maps, got shape {tuple(self.shape)}. Index its patches with .values."
            )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.numpy(), dtype, copy=copy)

    def __repr__(self) -> str:
        return f"PatchMap({tuple(self.shape)}{f', {self.caption}' if self.caption else ''})"

    def numpy(self) -> NDArray[Any]:
        """Return the values as an array.

        Returns:
            float32, of the shape of `values`; a copy if they are not on the CPU.
        """
        array: NDArray[Any] = self.values.detach().cpu().numpy()
        return array

    def to(self, device: torch.device | str) -> Self:
        """Move the values to another device.

        Args:
            device: The device.

        Returns:
            The same map on that device.
        """
        return replace(self, values=self.values.to(device))

    def facts(self) -> dict[str, Any]:
        """Everything but the values, as JSON can store it, for `with_facts`."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "values"} | {
            "overlap": [self.overlap.start, self.overlap.reach]
        }

    @classmethod
    def with_facts(cls, values: Tensor, facts: Mapping[str, Any]) -> Self:
        """Make a map from values and what `facts` returned."""
        sizes = {name: None if facts[name] is None else tuple(facts[name]) for name in ("input_size", "area")}
        overlap = Overlap(*map(tuple, facts.get("overlap", [])))
        return cls(values, **{**facts, **sizes, "overlap": overlap})

    def like(self, values: Tensor) -> Self:
        """Make a map of other values for the same patches. They are not attention: `uniform`, `outside` and `description` are unknown.

        Args:
            values: `(..., h, w)`, on the same grid.

        Returns:
            A map in the same place.
        """
        if tuple(values.shape[-2:]) != self.grid:
            raise GeometryError(
                f"cannot place other values: expected this map's grid, {self.grid}, got {tuple(values.shape[-2:])}. Pass one value per patch."
            )
        return replace(self, values=values, quantity="value", uniform=None, adds_up=False, description="")

    def save(self, path: str | Path) -> Path:
        """Write the map and its place to a NumPy archive. It is written under a temporary name first, so no file is ever half-written.

        Args:
            path: The file's path, with the suffix `.npz`.

        Returns:
            The path. `np.load(path)` has `values` and, if known, `input_size`, `area`, `uniform`, `outside` and `caption`.

        Raises:
            ValueError: If the suffix is not `.npz`.
        """
        target = user_path(path)
        if target.suffix.lower() != ".npz":
            raise ValueError(
                f"cannot save {target.name!r}: expected the suffix .npz, got {target.suffix!r}. For a picture, save what overlay returns."
            )
        known = {name: getattr(self, name) or None for name in ("input_size", "area", "uniform", "caption")}
        arrays: dict[str, Any] = {name: np.asarray(value) for name, value in known.items() if value is not None}
        if self.overlap != NO_OVERLAP:
            arrays |= {name: np.asarray(value) for name, value in vars(self.overlap).items()}
        if self.outside is not None:
            arrays["outside"] = self.outside.detach().cpu().numpy()
        with replacing(target) as temporary, temporary.open("wb") as file:
            np.savez(file, values=self.numpy(), **arrays)
        return target

    def area_on(self, geometry: ImageGeometry) -> Size:
        """Return the part of the input that the grid covers, after checking that the map and the geometry match.

        Args:
            geometry: The place of the input in the photo.

        Returns:
            Height and width in input pixels, from the top left.

        Raises:
            GeometryError: If the model's input and the geometry differ in size, or if it is unknown which part of the input the grid covers and
                it cannot be all of it.
        """
        if self.input_size is not None and tuple(self.input_size) != tuple(geometry.input_size):
            raise GeometryError(
                f"the map and the geometry do not match: expected an input of {by(self.input_size)} pixels, as the model was fed, got a "
                f"geometry for an input of {by(geometry.input_size)}. Pass the preprocessing that made the model's input."
            )
        if self.area is not None:
            return self.area
        if any(pixels % patches for pixels, patches in zip(geometry.input_size, self.grid, strict=True)):
            raise GeometryError(
                f"cannot place the patch grid: expected patches that cover the input of {by(geometry.input_size)} pixels exactly, got "
                f"{by(self.grid)} patches. Pass the PatchMap that a method returned, or patch_area=(height, width), the input pixels that the "
                "grid covers from the top left."
            )
        return geometry.input_size

    def edges(self, where: Any) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
        """Find the borders between patches in the photo.

        Args:
            where: The `ImageGeometry`.

        Returns:
            Horizontal borders `(h + 1,)` and vertical borders `(w + 1,)`, in photo pixels counted from pixel edges; some may be outside the
            photo.
        """
        geometry = locate(where)
        height, width = self.area_on(geometry)
        rows, columns = self.grid
        top, left = self.overlap.start
        y, x = top + np.arange(rows + 1) * (height / rows), left + np.arange(columns + 1) * (width / columns)
        return geometry.to_image(y, x)

    def box(self, where: Any, patch: PatchIndex) -> Box:
        """Find one patch in the photo.

        Args:
            where: The `ImageGeometry`.
            patch: Its row and column; negative numbers count from the end.

        Returns:
            Top, left, bottom, right, in photo pixels counted from pixel edges, clipped to the photo.

        Raises:
            GeometryError: If there is no such patch, or it is entirely outside the photo.
        """
        geometry, grid, (row, column) = locate(where), self.grid, patch
        if not (-grid[0] <= row < grid[0] and -grid[1] <= column < grid[1]):
            raise GeometryError(
                f"patch {tuple(patch)} lies outside the grid: expected a row below {grid[0]} and a column below {grid[1]}."
            )
        row, column = row % grid[0], column % grid[1]
        ys, xs = self.edges(geometry)
        height, width = geometry.image_size
        top, bottom = np.clip(np.sort(ys[[row, row + 1]]), 0, height).tolist()
        left, right = np.clip(np.sort(xs[[column, column + 1]]), 0, width).tolist()
        if top >= bottom or left >= right:
            raise GeometryError(
                f"patch {tuple(patch)} shows only padding: expected a patch that shows part of the photo, got one outside the {height} x "
                f"{width} photo. Choose another patch."
            )
        return top, left, bottom, right

    def heatmap(self, where: Any, *, photo: Any = None, mode: str = Interpolation.BILINEAR) -> Tensor:
        """Interpolate to the pixels of the photo.

        Args:
            where: An `ImageGeometry`; or what turned the photo into pixels (a transform, a processor, any callable), together with `photo`.
            photo: If `where` is a preprocessing: the photo, or its (height, width).
            mode: "bilinear", "nearest" (for values that must not be mixed), or "bicubic" (smooth, but overshoots: attention can become
                negative).

        Returns:
            `values` with `(H, W)`, the photo's size, in place of `(h, w)`; float32, on the same device. NaN where the model did not look.

        Raises:
            GeometryError: If map and geometry do not match; the message has both sizes.
            ValueError: If `mode` is unknown.
        """
        geometry = locate(where, photo)
        checked_map(self.values)
        return interpolate(self.values, geometry, self.area_on(geometry), mode, self.overlap)

    def overlay(
        self,
        photo: ImageSource,
        where: Any = None,
        *,
        style: str = Style.HEAT,
        mode: str = Interpolation.BILINEAR,
        keep: float = 0.6,
        smallest: int = 1,
        **look: Any,
    ) -> Image.Image:
        """Draw a single map over its photo.

        Args:
            photo: The photo, as `read_image` takes it.
            where: What turned the photo into pixels (a transform, a processor, any callable), or an `ImageGeometry`.
            style: "heat" (an interpolated heat map), "patches" (one colour per patch), "contours" (lines of equal value) or "mask" (darkens all
                but the fewest patches that hold `keep` of the attention, like DINO's figures; boolean values are used as the mask).
            mode: "bilinear", "nearest" or "bicubic", as `heatmap` takes it; only with "heat" and "contours".
            keep: The share of the attention to keep; only with "mask".
            smallest: Connected parts of fewer patches are left out of the mask; only with "mask".
            **look: `colormap` ("plasma"): a matplotlib colormap or its name. `scale` ("robust", 1st to 99th percentile): "minmax" (its own
                range), "uniform" (multiples of 1/N, logarithmic from 1/N on: comparable between pictures) or (lowest, highest). `alpha`
                (0.85): the highest opacity, 0 to 1. `weighted` (True): whether opacity rises with the value, from nothing at the median; False
                gives `alpha` everywhere. `floor`: the value where opacity begins, in place of the median. `fade` (0.4): how grey the part
                becomes that the model did not see; 0 leaves it alone. `crop` ("photo"): "seen" for only the part that the model saw.

        Returns:
            An RGB image of the photo's size, or with crop="seen" of the seen part's.

        Raises:
            GeometryError: If there is more than one map, or map and geometry do not match.
            TypeError: If there is no such option.
            ValueError: If an option has an unknown value, or the style does not take it.
        """
        chosen, smooth = choose(Style, style, "style"), choose(Interpolation, mode, "mode")
        colors = look_of(self, look, PatchMap.overlay)
        styles.check_style(chosen, vars(colors) | {"mode": smooth, "keep": keep, "smallest": smallest})
        one = self._single()
        picture = read_image(photo)
        geometry = locate(where, photo, picture)
        if chosen is Style.MASK:
            mask = one.values if one.values.dtype is torch.bool else styles.mass_mask(one.values, keep)
            inside = replace(one, values=styles.without_small_parts(mask, smallest).float()).heatmap(
                geometry, mode=Interpolation.NEAREST
            )
            return styles.draw_mask(picture, inside, replace(colors, alpha=look.get("alpha", styles.SHADE)))
        if chosen is Style.PATCHES:
            return styles.draw_patches(
                picture, one.heatmap(geometry, mode=Interpolation.NEAREST), one.edges(geometry), colors
            )
        draw = styles.draw_contours if chosen is Style.CONTOURS else blend
        return draw(picture, one.heatmap(geometry, mode=smooth), colors)

    def figure(
        self,
        photo: ImageSource,
        where: Any = None,
        *,
        mode: str = Interpolation.BILINEAR,
        **options: Any,
    ) -> "Figure":
        """Draw photo, map and overlay as a matplotlib figure with a colour bar and a caption; with `ax=`, only the overlay.

        Args:
            photo: The photo, as `read_image` takes it.
            where: What turned the photo into pixels (a transform, a processor, any callable), or an `ImageGeometry`.
            mode: "bilinear", "nearest" or "bicubic", as `heatmap` takes it.
            **options: Of the look: `colormap`, `alpha`, `weighted`, `floor`, `scale`, `fade` and `crop`, as `overlay` takes them. Of the figure:
                `title`, `titles` of the three panels, `caption`, `mark` (a box), `label` (of the colour bar), `width` (in inches), `dpi`,
                `style` ("paper": 6.75 inches, 300 dpi; "slides": 1920 pixels, large text; both without a caption), and `ax`: your own
                axes, into which only the overlay is drawn, without a caption.

        Returns:
            The figure; save it with `.savefig`.

        Raises:
            GeometryError: If there is more than one map, or map and geometry do not match.
        """
        one, picture = self._single(), read_image(photo)
        geometry = locate(where, photo, picture)
        said: dict[str, Any] = {"label": self.quantity, "uniform": self.uniform} | styled(options)
        draw = triptych if said.get("ax") is None else overlay_figure
        own = {*keywords(draw), *FIGURE_OPTIONS}
        look = look_of(self, {name: value for name, value in said.items() if name not in own}, draw)
        words = caption_of(self.description, self.outside, view_in_words(geometry))
        said = {"caption": f"{words}. {scale_in_words(look)}"} | said
        wide = picture.width
        picture, geometry = shown_at(picture, geometry, float(said.get("width") or 5.0) * float(said.get("dpi", 200)))
        if said.get("mark") is not None:
            said["mark"] = tuple(edge * picture.width / wide for edge in said["mark"])
        return draw(picture, one.heatmap(geometry, mode=mode), **said)

    def _single(self) -> Self:
        """The same map without axes of length 1 before `(h, w)`."""
        if any(length != 1 for length in self.shape[:-2]):
            raise GeometryError(
                f"cannot draw several maps over one photo: expected one map, got shape {tuple(self.shape)}. Take one by indexing: patch_map[0]."
            )
        return replace(self, values=self.values.reshape(self.grid))
