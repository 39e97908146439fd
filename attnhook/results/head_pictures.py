"""Figures that tell heads apart, and results side by side: DINO's panel, the head that dominates each patch, several classes or photos."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from attnhook.attribution.map_making import block_in_words
from attnhook.attribution.raw_maps import raw_attention
from attnhook.imaging.figures import FIGURE_OPTIONS, Panel, draw_pictures, split_look, styled
from attnhook.imaging.looks import check_options, scale_in_words, stretch_in_words
from attnhook.imaging.overlays import Heatmap, blend, check_scale, color_scale, finish_unseen
from attnhook.imaging.panels import color_bar
from attnhook.imaging.picture_grids import TEXT_POINTS
from attnhook.options import Interpolation, Scale, ScaleOption
from attnhook.results.display import FOR_CLASS
from attnhook.results.pictures import shown_result
from attnhook.results.results import AttentionResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_COLUMNS, _OTHERS = 8, "#777777"
# Okabe and Ito's colours, told apart by colour-blind readers, and four more for models with many heads.
_HEAD_COLORS = (
    *("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"),
    *("#882255", "#44aa99", "#999933", "#6a3d9a", "#b15928"),
)


def head_masks_figure(
    result: AttentionResult, *, block: int | str | None = None, keep: float = 0.6, smallest: int = 1, **options: Any
) -> "Figure":
    """Draw DINO's panel: for each head the patches that hold most of its attention, over the photo, and below them the map itself.

    The masks are those of Caron et al. 2021 (arXiv 2104.14294): the fewest patches that hold `keep` of a head's attention to the patches.

    Args:
        result: The result.
        block: The block; None takes the result's own.
        keep: The share of the attention to keep, 0 to 1.
        smallest: Connected parts of fewer patches are left out of the masks.
        **options: `caption`; of the look and of the figure, what `PatchMap.figure` takes.

    Returns:
        The figure.

    Example:
        >>> from attnhook import attend, head_masks_figure
        >>> figure = head_masks_figure(attend("demo", "cat.jpg")[0])  # doctest: +SKIP
    """
    options = styled(options)
    chosen = result.maps[result.settings.block if block is None else block]
    heads = raw_attention(result.maps, block=chosen.name, heads=None)[0]
    photo, geometry = shown_result(result, options)
    caption = options.pop(
        "caption",
        f"{result.settings.model}, every head of {block_in_words(chosen)}: the fewest patches with {keep:.0%} of its attention to the patches, "
        "and the map in multiples of 1/N.",
    )
    colors, figure = split_look({"scale": Scale.UNIFORM, "uniform": heads.uniform} | options, head_masks_figure)
    maps = [one.heatmap(geometry, mode=Interpolation.NEAREST) for one in heads]
    masks = [
        one.overlay(photo, geometry, style="mask", keep=keep, smallest=smallest, fade=colors.fade, crop=colors.crop)
        for one in heads
    ]
    pictures: list[Panel] = []
    for first in range(0, len(maps), _MOST_COLUMNS):
        numbers = range(first, min(first + _MOST_COLUMNS, len(maps)))
        blank = [(Image.new("RGB", photo.size, "white"), "", None)] * (min(_MOST_COLUMNS, len(maps)) - len(numbers))
        pictures += [(masks[number], f"head {number}", None) for number in numbers] + blank
        pictures += [(blend(photo, maps[number], colors), "", None) for number in numbers] + blank
    bar, flat = color_bar(maps, colors, heads.quantity)
    return draw_pictures(pictures, min(_MOST_COLUMNS, len(maps)), texts=[caption, flat], bar=bar, **figure)


def dominant_heads_figure(result: AttentionResult, *, block: int | str | None = None, **options: Any) -> "Figure":
    """Draw heads as colours: each patch has the colour of the head that gives it the most attention, as opaque as that attention is high.

    Args:
        result: The result.
        block: The block; None takes the result's own.
        **options: `caption`; of the look (`alpha`, `fade`, `crop`) and of the figure, what `PatchMap.figure` takes.

    Returns:
        The figure, with a legend. Below uniform attention, 1/N, the photo is untouched; opacity is complete at 5.7/N. Of more
        than twelve heads that dominate some patch, the twelve that dominate most have colours, and the others are grey.
    """
    options = styled(options)
    chosen = result.maps[result.settings.block if block is None else block]
    heads = raw_attention(result.maps, block=chosen.name, heads=None)[0]
    photo, geometry = shown_result(result, options, 3.2)
    caption = options.pop(
        "caption",
        f"{result.settings.model}, {block_in_words(chosen)}: the head that gives each patch the most attention; opacity rises from 1/N on.",
    )
    check_options(options, ("alpha", "fade", "crop", *FIGURE_OPTIONS))
    colors, figure = split_look({"scale": Scale.UNIFORM, "uniform": heads.uniform} | options, dominant_heads_figure)
    values = heads.heatmap(geometry, mode=Interpolation.NEAREST).numpy()
    unseen = np.isnan(values).all(axis=0)
    best = np.where(unseen, 0, np.nan_to_num(values, nan=-1.0).argmax(axis=0))
    highest = np.where(unseen, np.nan, values.max(axis=0)).astype(np.float32)
    scale = color_scale(highest, colors)
    opacity = np.where(unseen, 0, scale.weights(colors)[scale.levels(highest)]).astype(np.uint8)
    named, others = _colors_of(np.bincount(best[opacity > 0], minlength=len(heads)))
    table = np.array([ImageColor.getrgb(named.get(head, _OTHERS)) for head in range(len(heads))], np.uint8)
    picture = photo.copy()
    picture.paste(Image.fromarray(table[best]), (0, 0), Image.fromarray(opacity))
    if unseen.any():
        picture = finish_unseen(picture, highest, colors.fade, colors.crop)
    drawn = draw_pictures([(picture, "", None)], 1, texts=[caption], bar=None, **({"cell_width": 3.2} | figure))
    axes = drawn.axes[-1] if figure.get("ax") is None else figure["ax"].child_axes[-1]
    from matplotlib.patches import Patch

    handles = [Patch(color=color, label=f"head {head}") for head, color in named.items()]
    handles += [Patch(color=_OTHERS, label=f"{others} other heads")] if others else []
    axes.legend(handles=handles, fontsize=TEXT_POINTS, loc="upper left", framealpha=0.85, handlelength=1.0)
    return drawn


def _colors_of(counts: NDArray[np.int_]) -> tuple[dict[int, str], int]:
    """Colours by head, of the heads that dominate most pixels, and how many heads that dominate some are left without one."""
    ranked = [int(head) for head in np.argsort(-counts, kind="stable") if counts[head]]
    shown = sorted(ranked[: len(_HEAD_COLORS)])
    few = not shown or shown[-1] < len(_HEAD_COLORS)  # then a head has the same colour in every figure
    return {head: _HEAD_COLORS[head if few else place] for place, head in enumerate(shown)}, len(ranked) - len(shown)


def results_figure(
    results: Sequence[AttentionResult],
    titles: Sequence[str] | None = None,
    *,
    scale: "ScaleOption | None" = None,
    **options: Any,
) -> "Figure":
    """Draw results side by side: several classes of one photo, or several photos of one model.

    Args:
        results: Results of `attend`.
        titles: One title for each; None uses each result's class and score, or else its number.
        scale: Which values the colours stand for. None takes "uniform", comparable, if all maps are shares of attention, and else "robust".
        **options: `caption`, `columns`, `label`; of the look and of the figure, what `PatchMap.figure` takes.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no result, or not one title for each.

    Example:
        >>> from attnhook import attend, results_figure
        >>> figure = results_figure(attend("demo", ["cat.jpg", "dog.jpg"]))  # doctest: +SKIP
    """
    several, options = list(results), styled(options)
    named = [_title(one, number) for number, one in enumerate(several, 1)] if titles is None else list(titles)
    if not several or len(named) != len(several):
        raise ValueError(
            f"cannot draw results: expected at least one, and a title for each, got {len(several)} and {len(named)} titles."
        )
    if scale is None:
        scale = Scale.UNIFORM if all(one.uniform for one in several) else Scale.ROBUST
    caption, columns = options.pop("caption", None), options.pop("columns", None)
    label = options.pop("label", several[0].quantity)
    colors, figure = split_look({"scale": scale} | options, results_figure)
    for one in several:
        check_scale(colors.scale, mass=one.uniform is not None, shown=one.quantity)
    pictures: list[Panel] = []
    drawn: list[Heatmap] = []
    for one, title in zip(several, named, strict=True):
        photo, geometry = shown_result(one, figure)
        values = one.patch_map.heatmap(geometry, mode=one.mode)
        pictures.append((blend(photo, values, replace(colors, uniform=one.uniform)), title, None))
        drawn.append(values / one.uniform if colors.has_scale(Scale.UNIFORM) and one.uniform else values)
    stretch = stretch_in_words(colors)
    unit = replace(colors, uniform=1.0)
    bar, flat = (None, None) if stretch else color_bar(drawn, unit, label)
    own = stretch and f"Colours: {stretch} per map, not comparable between maps."
    if caption is None:
        # A class that is in the title is not said again.
        titled = [titles is None and one.settings.target is not None for one in several]
        words = [one.patch_map.description for one in several]
        shown = [said.partition(FOR_CLASS)[0] if known else said for said, known in zip(words, titled, strict=True)]
        maps = "; ".join(dict.fromkeys(shown))
        caption = f"{maps}. {scale_in_words(unit, 'each picture')}"
    return draw_pictures(pictures, columns, texts=[caption, flat, own], bar=bar, **figure)


def _title(result: AttentionResult, number: int) -> str:
    target, score = result.settings.target, result.settings.score
    if target is None:
        return f"photo {number}"
    name = target if isinstance(target, str) else f"class {target}"
    return name if score is None else f"{name}, score {score:.3g}"
