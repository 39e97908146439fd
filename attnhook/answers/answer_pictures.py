"""Pictures of an answer: a figure of the words that look at the image most, and the content of the page that shows every word's map."""

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from attnhook.answers.placed_maps import AnswerMap
from attnhook.imaging.depth_figures import depth_figure
from attnhook.imaging.encoded_pictures import encoded
from attnhook.imaging.figures import sheet, shown_at
from attnhook.imaging.geometry import ImageGeometry
from attnhook.imaging.images import read_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CELL = 24  # pixels of a patch where there is no photo
_BLANK = 236
_LONGEST = 1024
_QUALITY = 90
_COLUMNS = 4


def spoken(answer: Any) -> list[tuple[str, list[int]]]:
    """The words of an answer with their tokens; without a processor the tokens, by their numbers."""
    if answer.processor is None or not hasattr(getattr(answer.processor, "tokenizer", answer.processor), "decode"):
        return [(f"token {number}", [number]) for number in range(len(answer.token_ids))]
    return [(str(word), list(word.tokens)) for word in answer.words]


def placed_on(patch_map: AnswerMap, photo: Any) -> tuple[Image.Image, ImageGeometry]:
    """The photo and where the map lies in it; without a photo a blank one of the grid's shape."""
    if photo is not None:
        picture = read_image(photo)
        return picture, patch_map.geometry(photo)
    height, width = (_CELL * length for length in patch_map.grid)
    area = patch_map.area or (height, width)
    geometry = ImageGeometry.identity((height, width)).resize((area[0], area[1]))
    if patch_map.input_size is not None:
        geometry = geometry.pad_to(patch_map.input_size)
    return Image.new("RGB", (width, height), (_BLANK,) * 3), geometry


def answer_figure(answer: Any, photo: Any, *, image: int, count: int, relative: bool, **options: Any) -> "Figure":
    """The photo beside the maps of the words with the most mass on the image, in the order of the answer."""
    words = spoken(answer)
    mass = answer.mass["image"].mean((1, 2))
    shares = [float(mass[tokens].mean()) if tokens else 0.0 for _, tokens in words]
    most = sorted(sorted(range(len(words)), key=lambda number: -shares[number])[:count])
    if not most:
        raise ValueError("cannot draw the answer: expected at least one word, got none.")
    maps = [answer.map(words[number][1], image=image, relative=relative) for number in most]
    picture, geometry = placed_on(maps[0], photo)
    titles = [
        f"{words[number][0]}: {shares[number]:.0%} on {'the images' if len(answer.images) > 1 else 'the image'}"
        for number in most
    ]
    kind = "relative to all tokens of the answer" if relative else "mean over layers and heads"
    which = (
        "" if len(most) == len(words) else f" The {len(most)} of {len(words)} words with the most mass on image tokens."
    )
    caption = f"Attention of each word's tokens over the image, {kind}.{which}"
    heatmaps = [one.heatmap(geometry) for one in maps]
    label = maps[0].quantity
    given = {"caption": caption, "columns": min(_COLUMNS, len(most) + 1), "label": label} | options
    return sheet(picture, heatmaps, titles, photo_title="photo" if photo is not None else None, **given)


def answer_depth(answer: Any, word: Any, *, image: int, **options: Any) -> "Figure":
    """Mass on one image, and entropy over it, of a word or of the whole answer, by layer and head."""
    tokens = slice(None) if word is None else answer._tokens(word)
    rows = answer._rows[image][tokens]
    mass = rows.sum(-1)
    shares = rows / mass[..., None].clamp_min(torch.finfo(torch.float32).tiny)
    entropy = torch.special.entr(shares).sum(-1)
    statistics = {"mass on the image": mass.mean(0), "entropy over the image (nats)": entropy.mean(0)}
    said = "all tokens of the answer" if word is None else f"{word!r}" if isinstance(word, str) else f"tokens {tokens}"
    caption = f"Mean over {said}. A dot per head, a line through the layers' means; the dashed line is uniform attention over the image."
    references = {"entropy over the image (nats)": float(np.log(rows.shape[-1]))}
    return depth_figure(statistics, references=references, of="layer", **{"caption": caption} | options)


def page_content(answer: Any, photos: Sequence[Any], title: str) -> tuple[dict[str, Any], list[bytes]]:
    """What the page of an answer shows, and one JPEG file per picture."""
    words = spoken(answer)
    pictures, parts = [], []
    for number, photo in enumerate(photos):
        for part in answer.images[number].parts:
            maps = [answer.map(tokens, image=number, part=part.name) for _, tokens in words if tokens]
            if not maps:
                continue
            picture, geometry = placed_on(maps[0], photo)
            picture, geometry = shown_at(picture, geometry, _LONGEST)
            pictures.append(encoded(picture, "JPEG", quality=_QUALITY))
            values = np.stack([one.numpy().astype("<f4").ravel() for one in maps])
            name = part.name if len(photos) == 1 else f"image {number + 1}, {part.name}"
            where = {"scale": geometry.scale, "offset": geometry.offset, "valid": geometry.valid}
            where |= {"area": maps[0].area_on(geometry), **vars(maps[0].overlap)}
            size = (picture.width, picture.height)
            parts.append({"name": name, "size": size, "grid": maps[0].grid, "where": where, "blank": photo is None})
            parts[-1]["values"] = base64.b64encode(values.tobytes()).decode("ascii")
    masses = {name: values.mean((1, 2)) for name, values in answer.mass.items()}
    listed = [
        {"text": text, "mass": {name: float(mass[tokens].mean()) for name, mass in masses.items()}}
        for text, tokens in words
        if tokens
    ]
    tokens, layers, heads = answer.mass["image"].shape
    about = {"tokens": tokens, "layers": layers, "heads": heads}
    return {"title": title, "words": listed, "parts": parts, "about": about}, pictures
