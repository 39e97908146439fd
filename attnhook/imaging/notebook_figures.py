"""The class of the library's figures: files with text as text, and pictures of a moderate size in notebooks. Imports matplotlib."""

import io
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from PIL import Image

_WIDEST, _HIGHEST = 9.0, 6.5  # inches at 100 pixels: what fits a screen beside a notebook's margins
_DPI = 150  # of what is stored, for screens with more pixels than they name
_LARGEST_BYTES = 300_000
_QUALITY = 88


class PaperFigure(Figure):
    """A figure whose PDF and SVG files hold text as text, in TrueType fonts, and of which a notebook stores at most 300 KB."""

    def savefig(self, *args: Any, **kwargs: Any) -> None:
        """Write a file, as matplotlib's figures do."""
        with mpl.rc_context({"pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none"}):
            super().savefig(*args, **kwargs)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        width, height = self.get_size_inches()
        shrink = min(1.0, _WIDEST / width, _HIGHEST / height)
        drawn = io.BytesIO()
        self.savefig(drawn, format="png", dpi=_DPI * shrink)
        kind, content, picture = "image/png", drawn.getvalue(), Image.open(drawn).convert("RGB")
        while len(content) > _LARGEST_BYTES:
            smaller = io.BytesIO()
            picture.save(smaller, format="JPEG", quality=_QUALITY, subsampling=0)
            kind, content = "image/jpeg", smaller.getvalue()
            picture = picture.reduce(2)
        shown = {"width": round(100 * shrink * width), "height": round(100 * shrink * height)}
        return {"text/plain": repr(self), kind: content}, {kind: shown}
