"""Photos in, pictures out: one call from a model and photos to attention that can be looked at, saved and shown in a notebook."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from attnhook.attribution.methods import METHODS, NEEDS, check_method, check_options, method_options
from attnhook.capture.records import AttentionMaps
from attnhook.capture.session import AttentionCapture
from attnhook.errors import GeometryError
from attnhook.files import replacing
from attnhook.imaging.geometry import ImageGeometry
from attnhook.imaging.heatmaps import heatmap
from attnhook.imaging.images import ImageSource, each_image, read_image
from attnhook.imaging.overlays import overlay
from attnhook.imaging.styles import check_style, contour_overlay, mask_overlay, mass_mask, patch_overlay
from attnhook.options import (
    HeadFusion,
    HeadsOption,
    Interpolation,
    Rows,
    RowsOption,
    ScaleOption,
    Size,
    Style,
    choose,
)
from attnhook.workflows.captions import adds_up, caption_of, check_scale, reads_block, rows_in_words, scale_in_words
from attnhook.workflows.display import html_of, mimebundle, png_of
from attnhook.workflows.running import run_vision
from attnhook.workflows.targets import TargetOption, run_towards
from attnhook.workflows.viewer.scenes import Scene
from attnhook.zoo.loading import as_vision_model
from attnhook.zoo.vision_models import VisionModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class AttentionResult:
    """Where a model's readout looked in one photo.

    A notebook shows the overlay. Raw attention is where attention went in one block; it is not importance.

    Attributes:
        image: The photo, RGB, upright, at its own size.
        attention: The map on the patch grid, `(h, w)` float32, unnormalised.
        geometry: Where the model looked in the photo.
        patch_area: Height and width in pixels of the model's input that the grid covers, or None for all of it.
        maps: Everything captured, one image, on the CPU.
        settings: What made the map: model, method, block, heads, readout; `keys`, the block's tokens, where the block is none of `maps`.
        mode: How patches become pixels.
    """

    image: Image.Image
    attention: Tensor
    geometry: ImageGeometry
    patch_area: Size | None
    maps: AttentionMaps
    settings: dict[str, Any] = field(default_factory=dict)
    mode: Interpolation = Interpolation.BILINEAR

    @property
    def heatmap(self) -> Tensor:
        """The map at the photo's size: `(H, W)` float32, NaN where the model did not look."""
        return self.upsample(self.attention)

    def upsample(self, patch_map: Tensor) -> Tensor:
        """Bring another map of the same grid to the photo's size.

        Args:
            patch_map: `(h, w)`, or `(n, h, w)` for several, such as one a head.

        Returns:
            `(H, W)` or `(n, H, W)` float32, NaN where the model did not look.
        """
        return heatmap(patch_map, self.geometry, mode=self.mode, patch_area=self.patch_area)

    @property
    def uniform(self) -> float:
        """What a patch would get if the sequence were attended uniformly: the unit of `scale="uniform"`."""
        keys: int = self.settings.get("keys") or self.maps[self.settings.get("block", -1)].shape[-1]
        return 1.0 / keys

    @property
    def outside(self) -> float:
        """Attention mass on tokens that are no patches; NaN if the map is not one of softmax rows."""
        mass = self._of_mass and adds_up(self.settings.get("heads", HeadFusion.MEAN))
        return 1.0 - float(torch.nan_to_num(self.attention).sum()) if mass else float("nan")

    @property
    def _of_mass(self) -> bool:
        return NEEDS[self.settings.get("method", "raw_attention")].mass

    @property
    def caption(self) -> str:
        """Model, block, heads, readout, mass outside the patches: what a figure has to say."""
        return caption_of(self.settings, self.outside)

    @property
    def quantity(self) -> str:
        """What the map's values are, for a colour bar: attention, or what a method makes of it."""
        method: str = self.settings.get("method", "raw_attention")
        return "attention" if method == "raw_attention" else method.replace("_", " ")

    def overlay(
        self,
        *,
        colormap: Any = "viridis",
        alpha: float = 0.5,
        scale: ScaleOption = "minmax",
        style: str = "heat",
        weighted: bool = False,
        keep: float = 0.6,
    ) -> Image.Image:
        """The map over the photo.

        Args:
            colormap: A matplotlib colormap or its name; not with `"mask"`.
            alpha: Opacity of the heat map, 0 to 1; not with `"contours"`.
            scale: `"minmax"` (this picture's own range), `"robust"` (its 1st to 99th percentile, where sinks hide the rest), `"uniform"`
                (multiples of uniform attention, comparable between pictures) or `(vmin, vmax)`; not with `"mask"`.
            style: `"heat"` (a film of colour), `"patches"` (each patch in one colour), `"contours"` (lines of equal value) or `"mask"` (all but
                the patches that hold `keep` of the mass darkened, as DINO shows it).
            weighted: With `"heat"`: whether opacity follows the value.
            keep: With `"mask"`: the share of the map's mass.

        Returns:
            An RGB image of the photo's size; pixels that the model did not see are the photo's.

        Raises:
            ValueError: If an option is not one of its choices, or one that the style does not take.
        """
        chosen = choose(Style, style, "style")
        given = {"colormap": colormap, "alpha": alpha, "scale": scale, "weighted": weighted, "keep": keep}
        check_style(chosen, given)
        check_scale(scale, mass=self._of_mass, shown=self.settings["method"])
        colors: dict[str, Any] = {"colormap": colormap, "scale": scale, "uniform": self.uniform}
        place: dict[str, Any] = {"patch_area": self.patch_area, "alpha": alpha}
        if chosen is Style.HEAT:
            return overlay(self.image, self.heatmap, alpha=alpha, weighted=weighted, **colors)
        if chosen is Style.CONTOURS:
            return contour_overlay(self.image, self.heatmap, **colors)
        if chosen is Style.PATCHES:
            return patch_overlay(self.image, self.attention, self.geometry, **place, **colors)
        return mask_overlay(self.image, mass_mask(self.attention, keep), self.geometry, **place)

    def figure(self, *, colormap: Any = "viridis", alpha: float = 0.5, scale: ScaleOption = "minmax") -> "Figure":
        """The overlay as a matplotlib figure with a colour bar and a caption.

        Args:
            colormap: As in `overlay`.
            alpha: As in `overlay`.
            scale: As in `overlay`.

        Returns:
            The figure; save it with `.savefig`.
        """
        from attnhook.imaging.figures import overlay_figure

        check_scale(scale, mass=self._of_mass, shown=self.settings["method"])
        return overlay_figure(
            self.image,
            self.heatmap,
            caption=f"{self.caption}. {scale_in_words(scale)}",
            colormap=colormap,
            alpha=alpha,
            scale=scale,
            uniform=self.uniform,
            label=self.quantity,
        )

    def save(self, path: str | Path, **options: Any) -> Path:
        """Write the overlay, to a temporary name first.

        Args:
            path: The file's path; its suffix says the format.
            **options: As in `overlay`.

        Returns:
            The path.
        """
        return save_image(self.overlay(**options), path)

    def to_html(self, path: str | Path | None = None, *, name: str = "photo", **options: Any) -> str:
        """The viewer: one self-contained page with sliders for block and head, values under the pointer, and patches that say where they look.

        Args:
            path: Where to write it; None only returns it.
            name: What the photo is called in it; any text.
            **options: As in `attnhook.workflows.viewer.pages.viewer_html`: `matrices`, `matrix_heads`, `longest`.

        Returns:
            The HTML. What patches look at needs `attend(..., rows="all")`.
        """
        from attnhook.workflows.viewer.pages import save_viewer, viewer_html

        page = viewer_html([self.scene(name)], model=self.settings["model"], **options)
        if path is not None:
            save_viewer(page, path)
        return page

    def scene(self, name: str = "photo") -> Scene:
        """This photo as a part of a viewer of several.

        Args:
            name: What the photo is called; any text.

        Returns:
            What `viewer_html` takes.
        """
        return Scene(name, self.image, self.geometry, self.maps, self.patch_area)

    def _repr_html_(self) -> str:
        return html_of(self.overlay(), self.caption)

    def _repr_png_(self) -> bytes:
        return png_of(self.overlay())

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str | bytes]:
        return mimebundle(self.overlay(), self.caption, repr(self))

    def __repr__(self) -> str:
        return f"AttentionResult({self.image.width}x{self.image.height} photo, grid {tuple(self.attention.shape)}, {self.caption})"


def attend(
    model: "str | VisionModel | nn.Module",
    images: "ImageSource | Iterable[ImageSource]",
    *,
    method: str = "raw_attention",
    block: int | str = -1,
    heads: HeadsOption = "mean",
    rows: RowsOption = "readout",
    target: TargetOption = None,
    mode: str = "bilinear",
    preprocess: Any = None,
    model_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> list[AttentionResult]:
    """From photos to attention maps in one call.

    Args:
        model: A spec as `load` takes it, a `VisionModel`, or a module.
        images: A photo or several: paths, PIL images, arrays, tensors.
        method: One of `METHODS`. Those that need whole matrices (rollout) have them captured, by reference.
        block: Which block, by index or name; methods that follow all blocks do not read it.
        heads: How heads become one map: `"mean"`, `"max"`, `"min"`, or one head's index; gradient methods take the mean.
        rows: Whose row: `"readout"` (what the model's head reads), `"cls"`, `"pool"`, `"mean"`, or one patch `[(row, column)]`. `"all"` shows
            the readout's and keeps the whole matrices, by reference, for `to_html` and for methods that need them.
        target: For gradient methods: the class whose score runs backward, by index or name; None for the one with the highest score. The model
            keeps its parameters' `.grad` and `requires_grad` as they are.
        mode: `"bilinear"`, `"nearest"`, or `"bicubic"` (which overshoots).
        preprocess: What turns a photo into what the model is fed: a transform, an image processor, a timm data config, any callable, or a
            function that returns `(pixels, ImageGeometry)`; see `VisionModel`. None: what the spec or the `VisionModel` brings, or a timm
            model's own `pretrained_cfg`, which the caption then says.
        model_kwargs: Keyword arguments for the model's forward, such as `{"interpolate_pos_encoding": True}`.
        **options: The method's own, such as `residual`, `discard` and `start` of rollout.

    Returns:
        One result a photo, in order.

    Raises:
        ValueError: If an option is not one of its choices or not one of the method's, or a module needs `preprocess` and comes without it.
        GeometryError: If it cannot be told where the pixels lie in a photo, or the preprocessing makes several inputs of one photo.
        TargetError: If the model has no class scores, or no such class.

    Example:
        >>> from attnhook import attend
        >>> result = attend("demo", "cat.jpg")[0]  # doctest: +SKIP
        >>> result.save("cat-attention.png")  # doctest: +SKIP
    """
    check_method(method)
    if heads is None:
        raise ValueError(
            "heads=None keeps all heads: expected one map a photo. Take result.maps and raw_attention(maps, heads=None)."
        )
    check_options(method, options)
    if block != -1 and not reads_block(method):
        raise ValueError(
            f"method {method!r} follows all captured blocks: expected block to be left out, got {block!r}. Leave it out."
        )
    _check_target(method, target, heads)
    smooth = choose(Interpolation, mode, "mode")
    with torch.inference_mode(mode=False):  # parameters made in it could not be followed backward
        vision = as_vision_model(model, preprocess)
    module, name, labels = vision.model, vision.name, vision.labels
    needs = NEEDS[method]
    capture = AttentionCapture(
        module, rows=_rows_for(method, rows), gradients=needs.gradients, values=needs.values, device="cpu"
    )
    results = []
    for image in each_image(images):
        photo = read_image(image)
        prepared = vision.prepare(photo.copy())  # a preprocessing may work in place, as PIL's thumbnail does
        inputs, geometry = prepared.inputs, prepared.geometry
        said = dict(options)
        if needs.gradients:
            index = run_towards(capture, module, inputs, target, labels, model_kwargs=model_kwargs)
            said["target"] = index if labels is None else labels[index]
        else:
            # Not inference mode: tensors that a model keeps for itself could not be trained with.
            with torch.no_grad(), capture:
                run_vision(module, inputs, model_kwargs)
        maps = capture.maps
        _check_sizes(maps, geometry, name)
        settings = {
            "model": name if vision.assumed is None else f"{name} (photos prepared as {vision.assumed})",
            "method": method,
            "block": maps[block if reads_block(method) else -1].name,
            "heads": heads,
            "rows": rows_in_words(maps),
        } | said
        attention = METHODS[method](maps, **method_options(method, {"block": block, "heads": heads}), **options)[0]
        results.append(AttentionResult(photo, attention, geometry, maps.patch_area, maps, settings, smooth))
    return results


def _check_sizes(maps: AttentionMaps, geometry: ImageGeometry, name: str) -> None:
    if maps.input_size is not None and maps.input_size != tuple(geometry.input_size):
        raise GeometryError(
            f"{name} was fed {maps.input_size} pixels: expected {tuple(geometry.input_size)}, which the geometry says. Its preprocessing "
            "and its geometry do not go together."
        )


def _check_target(method: str, target: TargetOption, heads: HeadsOption) -> None:
    if target is not None and not NEEDS[method].gradients:
        legal = ", ".join(repr(name) for name, needs in NEEDS.items() if needs.gradients)
        raise ValueError(
            f"method {method!r} is the same for every class: expected no target, got {target!r}. Leave it out, or use one of {legal}."
        )
    if heads != HeadFusion.MEAN and not method_options(method, {"heads": heads}):
        raise ValueError(
            f"method {method!r} takes the mean over heads: expected heads='mean', got {heads!r}. Leave heads out."
        )


def _rows_for(method: str, rows: RowsOption) -> RowsOption:
    """What to capture: a method that needs whole matrices starts at the readout, so nobody else's row can be asked for."""
    if not NEEDS[method].all_rows:
        return rows
    if rows not in (Rows.READOUT, Rows.ALL):
        raise ValueError(
            f"method {method!r} follows attention to the model's own readout: expected rows='readout' or 'all', got {rows!r}. Leave rows out."
        )
    return Rows.ALL


def save_image(picture: Image.Image, path: str | Path) -> Path:
    """Write a picture to a temporary name, then rename: never half a file.

    Args:
        picture: The picture.
        path: The file's path; its suffix says the format.

    Returns:
        The path.

    Raises:
        ValueError: If Pillow knows no format of that suffix.
    """
    target = Path(path)
    format_name = Image.registered_extensions().get(target.suffix.lower())
    if format_name is None:
        raise ValueError(
            f"cannot save {target.name!r}: expected a picture's suffix such as .png or .jpg, got {target.suffix!r}."
        )
    with replacing(target) as temporary:
        picture.save(temporary, format=format_name)
    return target
