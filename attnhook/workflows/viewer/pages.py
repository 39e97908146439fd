"""Scenes to one HTML file."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attnhook import __version__
from attnhook.files import replacing
from attnhook.options import BlocksOption
from attnhook.workflows.documents import document, embedded_palettes
from attnhook.workflows.viewer.packing import LETTERS
from attnhook.workflows.viewer.scenes import AUTO, MATRIX_BITS, ROW_BITS, Scene, pack_scene


def viewer_html(
    scenes: Sequence[Scene],
    *,
    model: str,
    matrices: BlocksOption = AUTO,
    matrix_heads: str = AUTO,
    longest: int = 1280,
) -> str:
    """Make the viewer's page.

    Args:
        scenes: Photos with their attention.
        model: What the model is called; any text.
        matrices: The blocks whose whole matrices the file holds, so that patches can be asked where they look; timm's meaning, `()` for
            none. `"auto"` takes the last block where all rows were captured, none otherwise.
        matrix_heads: Whether matrices keep `"all"` heads or their `"mean"`; `"auto"` keeps all where that is at most `MOST_VALUES` values a
            photo.
        longest: The most pixels that the photos' longer edges keep in the file.

    Returns:
        The HTML, complete; there must be a scene.
    """
    choices: dict[str, Any] = {"matrices": matrices, "matrix_heads": matrix_heads, "longest": longest}
    return packed_html([pack_scene(scene, **choices) for scene in scenes], model=model)


def packed_html(packed: Sequence[tuple[dict[str, Any], str]], *, model: str) -> str:
    """Make the viewer's page of photos that are packed already: what was captured of them need not be kept until then.

    Args:
        packed: What `pack_scene` gave of each photo.
        model: What the model is called; any text.

    Returns:
        The HTML, complete.

    Raises:
        ValueError: If there are no photos.
    """
    if not packed:
        raise ValueError("cannot make a viewer: expected at least one photo, got none.")
    title = f"{model}: {', '.join(one['name'] for one, _ in packed[:3])}{' …' if len(packed) > 3 else ''}"
    payloads = "\n".join(
        f'<script type="text/plain" id="payload-{number}">{text}</script>' for number, (_, text) in enumerate(packed)
    )
    header = {
        "model": model,
        "version": __version__,
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "letters": LETTERS,
        "bits": {"rows": ROW_BITS, "matrices": MATRIX_BITS},
        "palettes": embedded_palettes(),
        "scenes": [one for one, _ in packed],
    }
    return document(
        "attnhook.workflows.viewer",
        page="viewer.html",
        style="viewer.css",
        scripts=("reading.js", "drawing.js", "controls.js"),
        title=title,
        header=header,
        parts={"payloads": payloads},
    )


def save_viewer(page: str, path: str | Path) -> Path:
    """Write a page to a temporary name, then rename: never half a file.

    Args:
        page: What `viewer_html` gave.
        path: The file's path.

    Returns:
        The path.
    """
    target = Path(path)
    with replacing(target) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")
    return target
