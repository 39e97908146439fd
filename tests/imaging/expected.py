"""What pictures and figures should hold, worked out beside the package: colours and opacities by their formula, the parts of a drawn figure."""

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

PLAIN = {"colormap": "viridis", "scale": "minmax", "weighted": False, "fade": 0}
"""A look without anything that depends on the map: one opacity, one range, nothing greyed."""


def table(name):
    """The 256 colours of matplotlib's colormap, 0 to 255."""
    return np.rint(mpl.colormaps[name](np.linspace(0, 1, 256))[:, :3] * 255)


def robust(values):
    """Lowest, highest, and where opacity begins, of the default look."""
    known = np.concatenate([np.asarray(one, np.float64).ravel() for one in values])
    known = known[np.isfinite(known)]
    low, high = np.percentile(known, [1, 99])
    return low, high, min(np.median(known), (low + high) / 2)


def painted(photo, values, low, high, floor, *, alpha=0.85, steep=1.6, colormap="plasma", logarithmic=False):
    """A photo under a map whose opacity rises from nothing at the floor; what the model did not see is left alone."""
    values, photo = np.asarray(values, np.float64), np.asarray(photo, np.float64)
    if logarithmic:
        share = np.log(np.maximum(values, low) / low) / np.log(high / low)
        begin = 0.0
    else:
        share, begin = (values - low) / (high - low), (floor - low) / (high - low)
    levels = np.rint(np.clip(np.nan_to_num(share), 0, 1) * 255)  # of 256 colours
    rise = np.clip(steep * (levels / 255 - begin) / (1 - begin), 0, 1)
    opacity = np.where(np.isnan(values), 0, alpha * rise)[..., None]
    return photo * (1 - opacity) + table(colormap)[levels.astype(int)] * opacity


def differs_little(picture, expected, *, where=None):
    """Whether a picture is the expected one but for rounding: a value between two of the 256 colours may get either."""
    difference = np.abs(np.asarray(picture, np.float64) - expected)
    difference = difference if where is None else difference[where]
    return np.quantile(difference, 0.99) <= 1.2 and difference.max() <= 6


def greyed(photo, fade=0.4):
    """A photo as far from light grey as it is where the model did not see it."""
    return np.asarray(photo, np.float64) * (1 - fade) + 222 * fade


def frame_around(box, shape, width=1):
    """The pixels of a frame around (top, left, bottom, right)."""
    top, left, bottom, right = box
    frame = np.zeros(shape, bool)
    frame[max(0, top - width) : bottom + width, max(0, left - width) : right + width] = True
    frame[top:bottom, left:right] = False
    return frame


def all_axes(figure):
    """Every axes of a figure, those inside others, too."""
    found = []
    waiting = list(figure.axes)
    while waiting:
        axes = waiting.pop(0)
        found.append(axes)
        waiting += axes.child_axes
    return found


def shown(figure):
    """The axes with pictures."""
    return [axes for axes in all_axes(figure) if axes.images]


def bars(figure):
    """The axes of colour bars."""
    return [axes for axes in all_axes(figure) if hasattr(axes, "_colorbar")]


def said(figure):
    """Title and caption of a figure, on one line."""
    texts = [text.get_text() for text in (*figure.texts, figure._supxlabel, figure._suptitle) if text is not None]
    return " ".join(" ".join(texts).replace("\N{NO-BREAK SPACE}", " ").split())


def visible_texts(figure):
    """Every text that is drawn, with its axes; None for those of the figure. Ticks beyond the ends of their axis are not drawn."""
    found = [(text, None) for text in (*figure.texts, figure._supxlabel, figure._suptitle) if text is not None]
    for legend in figure.legends:
        found += [(text, None) for text in legend.get_texts()]
    for axes in all_axes(figure):
        found += [(title, axes) for title in (axes.title, axes._left_title, axes._right_title)]
        found += [(text, axes) for text in axes.texts]
        if not axes.axison:
            continue
        for axis, ends in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            low, high = sorted(ends)
            ticks = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
            found += [(label, axes) for at, label in ticks if low <= at <= high and label.get_visible()]
            found += [(axis.label, axes), (axis.offsetText, axes)]
    return [(text, axes) for text, axes in found if text.get_visible() and text.get_text().strip()]


def drawn(figure):
    """Render, check that all of it lies inside the figure, and return every text."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    renderer = canvas.get_renderer()
    width, height = canvas.get_width_height()
    texts = visible_texts(figure)
    for text, _ in texts:
        assert isinstance(text, Text)
        box = text.get_window_extent(renderer)
        assert min(box.x0, box.y0) >= -1, text.get_text()
        assert box.x1 <= width + 1, text.get_text()
        assert box.y1 <= height + 1, text.get_text()
    inside = figure.get_tightbbox(renderer)
    wide, high = figure.get_size_inches()
    slack = 1 / figure.dpi  # a pixel
    assert min(inside.x0, inside.y0) >= -slack
    assert inside.x1 <= wide + slack
    assert inside.y1 <= high + slack
    return " ".join(text.get_text() for text, _ in texts).replace("\n", " ").replace("\N{NO-BREAK SPACE}", " ")


def check_nothing_overlaps(figure):
    """Draw, and check that no text lies on another, or on another axes' picture or bar, or outside the figure."""
    drawn(figure)
    renderer = figure.canvas.get_renderer()
    texts = [(text.get_window_extent(renderer), text.get_text(), axes) for text, axes in visible_texts(figure)]
    areas = [(axes.get_window_extent(renderer), axes) for axes in (*shown(figure), *bars(figure))]
    for number, (box, words, axes) in enumerate(texts):
        for other, others, _ in texts[:number]:
            assert apart(box, other), (words, others)
        for area, of in areas:
            assert of is axes or apart(box, area), (words, "on a picture", box, area)
    for number, (area, _) in enumerate(areas):
        for other, _ in areas[:number]:
            assert apart(area, other)


def apart(one, other, slack=1.0):
    """Whether two boxes have no more than the edges in common; a pixel is allowed."""
    across = min(one.x1, other.x1) - max(one.x0, other.x0)
    down = min(one.y1, other.y1) - max(one.y0, other.y0)
    return across <= slack or down <= slack
