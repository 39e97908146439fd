"""`attend`: one call from a model and photos to attention maps that you can look at, save and show in a notebook."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from attnhook._deprecated import named_fields, old_attributes
from attnhook.attribution.methods import METHODS, NEEDS, check_method, method_options, reads_block
from attnhook.capture.records import AttentionMaps
from attnhook.capture.session import AttentionCapture
from attnhook.files import replacing, user_path
from attnhook.imaging.geometry import ImageGeometry
from attnhook.imaging.images import ImageSource, check_file, each_image, read_image
from attnhook.imaging.looks import caption_of, keywords
from attnhook.imaging.patch_maps import PatchMap
from attnhook.imaging.prepared import view_in_words
from attnhook.options import BlocksOption, HeadFusion, HeadsOption, Interpolation, Rows, RowsOption, Style, choose
from attnhook.results.display import captioned, html_of, mimebundle, png_of, rows_in_words
from attnhook.results.scenes import Scene
from attnhook.running.targets import TargetOption, run_towards, run_vision
from attnhook.zoo.loading import as_vision_model
from attnhook.zoo.vision_models import VisionModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_SHOWN = 8  # of several results in a notebook


@named_fields
@dataclass(frozen=True)
class ResultSettings:
    """The settings that a map was made with."""

    model: str  # its name
    method: str = "raw_attention"  # one of `METHODS`
    block: str = ""  # its name, or the name of the last block if the method follows several
    heads: HeadsOption = HeadFusion.MEAN.value  # how heads became one map
    rows: str = ""  # which row of the attention matrix the map shows
    target: str | int | None = None  # the class that a gradient method followed, by name or index
    score: float | None = None  # of that class, as the model gives it (a logit)
    options: Mapping[str, Any] = field(default_factory=dict)  # the method's own


@old_attributes({"patch_area": "patch_map.area"})
@dataclass(frozen=True, eq=False)
class AttentionResult:
    """Where a model's readout (what its classifier reads, usually the class token) looked in one photo.

    A notebook shows the overlay. Raw attention shows where attention went in one block; it does not measure importance. `result[block]` is the
    result for another captured block, by index or name.

    Attributes:
        image: The photo, RGB, upright, at its original size.
        patch_map: The map of the photo, `(h, w)` float32, unnormalised.
        geometry: Where the model looked in the photo.
        maps: Everything that was captured for this photo, on the CPU.
        settings: The settings that the map was made with.
        mode: How patches are interpolated to pixels.
    """

    image: Image.Image
    patch_map: PatchMap
    geometry: ImageGeometry
    maps: AttentionMaps
    settings: ResultSettings
    mode: Interpolation = Interpolation.BILINEAR

    def __getitem__(self, block: int | str) -> "AttentionResult":
        method = self.settings.method
        if not reads_block(method):
            raise ValueError(
                f"method {method!r} follows all captured blocks: expected no block, got {block!r}. Use a method of one block, such as "
                "'raw_attention'."
            )
        settings = replace(self.settings, block=self.maps[block].name)
        return replace(self, patch_map=_mapped(self.maps, settings), settings=settings)

    @property
    def attention(self) -> Tensor:
        """The map on the patch grid, `(h, w)` float32, unnormalised: the values of `patch_map`."""
        return self.patch_map.values

    @property
    def heatmap(self) -> Tensor:
        """The map at the photo's size: `(H, W)` float32, NaN where the model did not look."""
        return self.patch_map.heatmap(self.geometry, mode=self.mode)

    def upsample(self, patch_map: Tensor) -> Tensor:
        """Interpolate other values for the same patches to the photo's size.

        Args:
            patch_map: `(h, w)`, or `(n, h, w)` for several, such as one per head.

        Returns:
            `(H, W)` or `(n, H, W)` float32, NaN where the model did not look.
        """
        return self.patch_map.like(patch_map).heatmap(self.geometry, mode=self.mode)

    @property
    def uniform(self) -> float | None:
        """1/N, each token's share if attention were uniform: the unit of `scale="uniform"`. None if values are not shares of attention."""
        return self.patch_map.uniform

    @property
    def outside(self) -> float:
        """The attention mass on tokens that are not patches; NaN if the map does not show softmax rows."""
        outside = self.patch_map.outside
        return float("nan") if outside is None else float(outside)

    @property
    def caption(self) -> str:
        """The caption of a figure: model, method, readout, block, heads, the part of the photo that was seen, mass outside the patches."""
        return caption_of(self.patch_map.description, self.patch_map.outside, view_in_words(self.geometry))

    @property
    def quantity(self) -> str:
        """What the map's values are, for a colour bar: attention, or the method's name."""
        return self.patch_map.quantity

    def overlay(self, **look: Any) -> Image.Image:
        """Draw the map over the photo.

        Args:
            **look: `style`, `mode`, `colormap`, `alpha`, `scale`, `fade`, `crop` and the other options that `PatchMap.overlay` describes.

        Returns:
            An RGB image of the photo's size, or with crop="seen" of the seen part's. What the model did not see is faded.

        Raises:
            TypeError: If there is no such option.
            ValueError: If an option has an unknown value, or the style does not take it.
        """
        smooth = look.get("style", Style.HEAT) in (Style.HEAT, Style.CONTOURS)
        return self.patch_map.overlay(self.image, self.geometry, **({"mode": self.mode} | look if smooth else look))

    def figure(self, **look: Any) -> "Figure":
        """Draw photo, map and overlay as a matplotlib figure with a colour bar and a caption; with `ax=`, only the overlay.

        Args:
            **look: Options of the look and of the figure, as `PatchMap.figure` takes them, such as `title`, `width` (in inches), `style`
                ("paper" or "slides"), and `ax` to draw the overlay into your own axes.

        Returns:
            The figure; save it with `.savefig`.
        """
        return self.patch_map.figure(self.image, self.geometry, **({"mode": self.mode} | look))

    def save(self, path: str | Path, **options: Any) -> Path:
        """Write the overlay to a file, under a temporary name first.

        Args:
            path: The file's path; its suffix gives the format.
            **options: What `overlay` takes.

        Returns:
            The path.
        """
        return save_image(self.overlay(**options), path)

    def to_html(self, path: str | Path | None = None, *, name: str = "photo", **options: Any) -> str:
        """Make the viewer: one self-contained page with sliders for block and head, values under the pointer, and what each patch looks at.

        Args:
            path: Where to write it; None only returns it.
            name: The photo's name on the page; any text.
            **options: `matrices` (the blocks whose whole matrices go into the page: "auto" for every block whose tokens all attend to each
                other, or what `AttentionCapture` takes as `blocks`), `matrix_heads` ("all", "mean", or "auto" for every head of the last of
                these blocks, if that is at most six million values, and the mean over heads of the others) and `longest` (the photo's longer
                edge in pixels; up to three times as long for panoramas).

        Returns:
            The HTML. It shows what patches look at, and received attention, only after `attend(..., rows="all")`.
        """
        from attnhook.pages.documents import check_page_name, save_viewer
        from attnhook.results.scenes import viewer_html

        if path is not None:
            check_page_name(path)
        page = viewer_html([self.scene(name)], model=self.settings.model, **options)
        if path is not None:
            save_viewer(page, path)
        return page

    def scene(self, name: str = "photo") -> Scene:
        """Turn this photo into a scene, of which a viewer may show several.

        Args:
            name: The photo's name; any text.

        Returns:
            What `viewer_html` takes.
        """
        return Scene(name, self.image, self.geometry, self.maps)

    def _repr_html_(self) -> str:
        return html_of(self.overlay(), self.caption)

    def _repr_png_(self) -> bytes:
        return png_of(self.overlay())

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str | bytes]:
        return mimebundle(self.overlay(), self.caption, repr(self))

    def __repr__(self) -> str:
        return f"AttentionResult({self.image.width}x{self.image.height} photo, grid {tuple(self.attention.shape)}, {self.caption})"


class _Results(list[AttentionResult]):
    """Results that a notebook shows as pictures when they are the last line of a cell."""

    def _repr_html_(self) -> str:
        shown = "".join(one._repr_html_() for one in self[:_MOST_SHOWN])
        left = len(self) - _MOST_SHOWN
        more = f"<p>and {left} more</p>" if left > 0 else ""
        return f'<div style="display:flex;flex-wrap:wrap;gap:12px">{shown}</div>{more}'


def attend(
    model: "str | VisionModel | nn.Module",
    images: "ImageSource | Iterable[ImageSource]",
    *,
    method: str = "raw_attention",
    blocks: BlocksOption = None,
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
        images: One or several photos: paths, folders, globs, PIL images, arrays, tensors.
        method: One of `METHODS`. For methods that need whole matrices, such as rollout, queries and keys are captured by reference.
        blocks: Which blocks to capture, as `AttentionCapture` takes them. The result shows the last one, `result[block]` any other; methods
            that follow several blocks follow these.
        heads: How heads become one map: `"mean"`, `"max"`, `"min"`, or one head's index; gradient methods use the mean.
        rows: Whose attention: `"readout"` (what the model's head reads), `"cls"`, `"pool"`, `"mean"`, or one patch `[(row, column)]`. `"all"`
            shows the readout's row and keeps the whole matrices, by reference, for `to_html` and for methods that need them.
        target: For gradient methods: the class whose score is followed backward, by index or name; None for the class with the highest score.
            The parameters' `.grad` and `requires_grad` stay as they are.
        mode: `"bilinear"`, `"nearest"`, or `"bicubic"` (which overshoots).
        preprocess: What turns a photo into the model's input: a transform, an image processor, a timm data config, any callable, or a function
            that returns `(pixels, ImageGeometry)`; see `VisionModel`. None uses what the spec or the `VisionModel` brings, or a timm model's
            own `pretrained_cfg`; the caption says so in the latter case.
        model_kwargs: Keyword arguments for the model's forward, such as `{"interpolate_pos_encoding": True}`.
        **options: The method's own options, such as `residual`, `discard` and `start` of rollout.

    Returns:
        One result per photo, in order.

    Raises:
        ValueError: If an option has an unknown value, the method does not take it, or a module needs `preprocess` and none was passed.
        ImageError: If a photo cannot be read.
        GeometryError: If attnhook cannot find out where the pixels lie in a photo, or the preprocessing makes several inputs from one photo.
        TargetError: If the model has no class scores, or no such class.

    Example:
        >>> from attnhook import attend
        >>> result = attend("demo", "cat.jpg")[0]  # doctest: +SKIP
        >>> result.save("cat-attention.png")  # doctest: +SKIP
    """
    check_method(method)
    if heads is None:
        raise ValueError(
            "cannot attend with heads=None: expected one map per photo, got one per head. Leave heads out, and use "
            "raw_attention(result.maps, heads=None) for all heads."
        )
    if "block" in options:
        block = options["block"]
        listed = [*block] if isinstance(block, list | tuple | range) else [block]
        raise ValueError(
            f"attend takes blocks, as AttentionCapture does: expected blocks=, got block={block!r}. Pass blocks={listed!r}, or capture all "
            f"blocks and take result[{(listed or [block])[0]!r}]."
        )
    legal = [name for name in keywords(METHODS[method]) if name not in {"block", "heads", "row"}]
    if unknown := [name for name in options if name not in legal]:
        raise ValueError(
            f"attend and the method {method!r} have no option {unknown[0]!r}: expected {', '.join(legal) or 'none'} of the method's own. What "
            "prepares the photo goes into preprocess=, arguments of the model's forward into model_kwargs=."
        )
    _check_target(method, target, heads)
    smooth = choose(Interpolation, mode, "mode")
    sources = each_image(images)
    for source in sources:  # a missing photo is noticed before a model is loaded
        if isinstance(source, str | Path):
            check_file(source)
    with torch.inference_mode(mode=False):  # parameters created in it have no gradients
        vision = as_vision_model(model, preprocess)
    name = vision.name if vision.assumed is None else f"{vision.name} (photos prepared as {vision.assumed})"
    needs = NEEDS[method]
    kept: Any = {"rows": _rows_for(method, rows), "gradients": needs.gradients, "values": needs.values}
    capture = AttentionCapture(vision.model, blocks=blocks, device="cpu", **kept)
    if not isinstance(rows, str | int) and len(rows) > 1:
        raise ValueError(
            f"attend shows one row: expected one patch, rows=[(row, column)], got {rows=}. Call it for each, or capture them together: "
            f"AttentionCapture(model, {rows=})."
        )
    results = _Results()
    for source in sources:
        photo = read_image(source)
        prepared = vision.prepare(photo)
        followed = score = None
        if needs.gradients:
            index, score = run_towards(
                capture, vision.model, prepared.inputs, target, vision.labels, model_kwargs=model_kwargs
            )
            followed = index if vision.labels is None else vision.labels[index]
        else:
            # Not inference mode: tensors that a model caches could not be used in training afterwards.
            with torch.no_grad(), capture:
                run_vision(vision.model, prepared.inputs, model_kwargs)
        maps = capture.maps
        settings = ResultSettings(name, method, maps[-1].name, heads, rows_in_words(maps), followed, score, options)
        patch_map = _mapped(maps, settings)
        patch_map.area_on(prepared.geometry)  # a mismatch is reported now, not when something is drawn
        results.append(AttentionResult(photo, patch_map, prepared.geometry, maps, settings, smooth))
    return results


def _mapped(maps: AttentionMaps, settings: ResultSettings) -> PatchMap:
    """The first image's map, with the model's name in front of its caption."""
    options = method_options(settings.method, {"block": settings.block, "heads": settings.heads})
    patch_map = METHODS[settings.method](maps, **options, **settings.options)[0]
    return captioned(patch_map, settings.model, settings.target, settings.score)


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
    """What to capture: a method that needs whole matrices starts at the readout, so it takes no other row."""
    if not NEEDS[method].all_rows:
        return rows
    if rows not in (Rows.READOUT, Rows.ALL):
        raise ValueError(
            f"method {method!r} follows attention to the model's own readout: expected rows='readout' or 'all', got {rows!r}. Leave rows out."
        )
    return Rows.ALL


def save_image(picture: Image.Image, path: str | Path) -> Path:
    """Write a picture under a temporary name, then rename it, so that no file is ever half-written."""
    target = user_path(path)
    format_name = Image.registered_extensions().get(target.suffix.lower())
    if format_name is None:
        raise ValueError(
            f"cannot save {target.name!r}: expected a picture's suffix such as .png or .jpg, got {target.suffix!r}. Change the suffix."
        )
    with replacing(target) as temporary:
        picture.save(temporary, format=format_name)
    return target
