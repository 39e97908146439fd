"""A small comparison by hand: random maps of three models' grids and crops over two photos of scikit-image, one map missing."""

import base64
import io

import numpy as np
from PIL import Image
from skimage import data

from attnhook import ImageGeometry

NASTY = "<img src=x onerror=alert(1)>.jpg"
QUOTES = "\"quoted\" 'name' </script><script>alert(2)</script><!--"
SIZES = {
    "landscape": (174, 260),
    "portrait": (520, 400),
}  # the first is shown pixel by pixel, the second at half its size
VIEWS = [
    {"id": "raw", "label": "raw attention, last block", "mass": True},
    {"id": "norms", "label": "value norms, last block", "mass": False},
]
WHY = {2: "expected finite values", 3: "no such weights"}
MODELS = ("vit_small_patch16_224.augreg", "a wide grid", "whole photo")
GRIDS = ((14, 14), (6, 10), (5, 7))


OUTLINE = {"size": [10, 20], "path": "M5 2h10M5 8h10M5 2v6M15 2v6"}
"""A box around the middle: rows 0.2 to 0.8, columns 0.25 to 0.75 of the photo."""

MARKS = {"model": "the model's own map", "random_map": "random values", "centre_prior": "a Gaussian in the middle"}


def strips():
    """Two scores of the first view, and one of the second."""
    rows = [
        {"name": name, "guide": False, "marks": [mark("model", 0.2 + i / 10, 0.1), mark("random_map", 0.3, 0.02)]}
        for i, name in enumerate(MODELS)
    ]
    rows.append({"name": "centre prior", "guide": True, "marks": [mark("centre_prior", 0.65, 0.2)]})
    axis = {"low": 0.0, "high": 1.0, "step": 0.2, "group": "Maps against masks", "rows": rows}
    alone = [
        {"name": MODELS[0], "guide": False, "marks": [{**mark("model", -0.25, 0), "low": None, "high": None, "n": 1}]}
    ]
    return [
        {"view": 0, "title": "AUROC", "help": "the map as a detector", **axis},
        {"view": 0, "title": "energy", "help": "share of the mass", **axis},
        {"view": 1, "title": "Spearman", "help": "rank correlation", **axis, "low": -0.4, "rows": alone},
    ]


def mark(kind, value, half):
    return {"kind": kind, "n": 12, "value": value, "low": value - half, "high": value + half}


def photos():
    """Real photos at `SIZES`, upright."""
    cat, woman = Image.fromarray(data.chelsea()), Image.fromarray(data.astronaut())
    return [
        one.convert("RGB").resize(size[::-1], Image.Resampling.LANCZOS)
        for one, size in zip((cat, woman), SIZES.values(), strict=True)
    ]


def geometry_of(model, size):
    whole = ImageGeometry.identity(size)
    if model == 0:
        return whole.resize(256).center_crop(224)
    if model == 1:
        return whole.resize((96, 160))
    return whole.resize(60, longest=80).pad(top=2, left=4, right=6)


def values_of(view, model, photo):
    generator = np.random.default_rng(100 * view + 10 * model + photo)
    values = generator.gamma(0.7, size=GRIDS[model]).astype(np.float32)
    if view == 0:
        values /= values.sum() * 1.1
    if model == 2:
        values[1, 2] = values[4, 0] = np.nan
    return values


def packed(values):
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    codes = np.rint((values.astype(np.float64) - low) / (high - low or 1.0) * 65534)
    codes = np.where(np.isnan(values), 65535, codes).astype("<u2")
    return {"low": low, "high": high, "data": base64.b64encode(codes.tobytes()).decode()}


def unpacked(one):
    """What the page reads, from the contract."""
    codes = np.frombuffer(base64.b64decode(one["data"]), "<u2").astype(np.float64).reshape(one["grid"])
    return np.where(codes == 65535, np.nan, one["low"] + (one["high"] - one["low"]) * codes / 65534).astype(np.float32)


def map_of(view, model, photo, size):
    geometry, values = geometry_of(model, size), values_of(view, model, photo)
    return {
        "view": view,
        "model": model,
        "photo": photo,
        "grid": list(values.shape),
        "scale": list(geometry.scale),
        "offset": list(geometry.offset),
        "valid": list(geometry.valid),
        "area": list(geometry.input_size),
        "start": [0.0, 0.0],
        "reach": [0.0, 0.0],
        "uniform": 1 / (values.size + 1) if view == 0 else None,
        "peak": peak_of(values, geometry),
        **packed(values),
    }


def peak_of(values, geometry):
    """The centre of the highest patch, in photo pixels: one patch at a time."""
    best, where = -np.inf, None
    for row, column in np.ndindex(values.shape):
        at = [
            (i + 0.5) * n / count for i, n, count in zip((row, column), geometry.input_size, values.shape, strict=True)
        ]
        inside = all(low <= a <= high for a, low, high in zip(at, geometry.valid[:2], geometry.valid[2:], strict=True))
        if inside and values[row, column] > best:
            best, where = values[row, column], list(geometry.to_image(*at))
    return where


def photo_entry(picture, name, label):
    buffer = io.BytesIO()
    small = picture if picture.width <= 260 else picture.resize((picture.width // 2, picture.height // 2))
    small.save(buffer, "JPEG", quality=90)
    height, width = picture.height, picture.width
    boxes = [geometry_of(model, (height, width)).visible for model in range(len(GRIDS))]
    box = [max(b[0] for b in boxes), max(b[1] for b in boxes), min(b[2] for b in boxes), min(b[3] for b in boxes)]
    return {
        "name": name,
        "label": label,
        "width": width,
        "height": height,
        "jpeg": base64.b64encode(buffer.getvalue()).decode(),
        "shared": (box[2] - box[0]) * (box[3] - box[1]) / (height * width),
        "box": box,
        "outline": None if label is None else OUTLINE,
    }


def shown_photo(content, number):
    """The photo as the file has it."""
    return Image.open(io.BytesIO(base64.b64decode(content["photos"][number]["jpeg"]))).convert("RGB")


TABLE = {
    "id": "models",
    "title": "Models",
    "note": "Means over photos with their standard errors, on the part of each photo that all models saw.",
    "columns": [
        {"key": "model", "label": "model", "help": "Its name in the library.", "digits": 0},
        {
            "key": "iou",
            "label": "IoU at mass 0.6",
            "help": "Overlap with the object, patches at 60 % of mass.",
            "digits": 2,
        },
        {"key": "entropy", "label": "entropy", "help": "In bits.", "digits": 3},
        {"key": "blocks", "label": "blocks", "help": "", "digits": 0},
        {"key": "reads", "label": "reads out", "help": "What the head reads.", "digits": 0},
    ],
    "rows": [
        {
            "model": MODELS[0],
            "iou": {"value": 0.61849, "error": 0.0312, "low": None, "high": None, "n": 50},
            "entropy": {"value": 10.5, "error": None, "low": 9.25, "high": 11.125, "n": 50},
            "blocks": 12,
            "reads": "class token",
        },
        {"model": MODELS[1], "iou": {"value": -0.0004, "error": 0.1}, "entropy": 9.0, "blocks": 24, "reads": None},
        {"model": MODELS[2], "iou": None, "entropy": {"value": None, "n": 0}, "blocks": 6, "reads": "mean"},
        {
            "model": NASTY,
            "iou": {"value": 0.3, "error": 0.02, "n": 7},
            "entropy": -2.25,
            "blocks": 100,
            "reads": QUOTES,
        },
    ],
}


def content(*, names=("chelsea.jpg", "astronaut.jpg"), models=MODELS, title="Three models over two photos"):
    """All of the contract. The third model has no map of the second photo; the fourth failed altogether."""
    pictures = photos()
    entries = [photo_entry(one, name, label) for one, name, label in zip(pictures, names, ("cat", None), strict=True)]
    present = [(v, m, p) for v in range(2) for m in range(3) for p in range(2) if (m, p) != (2, 1)]
    return {
        "title": title,
        "made": "2026-11-25 15:00 UTC",
        "version": "0.1.0",
        "notes": [
            {"level": "ok", "text": "Outputs with and without capture are equal, bit for bit, on both photos."},
            {"level": "warning", "text": "One model sees 68 % of the portrait photo: agreement is measured there."},
            {"level": "info", "text": "Maps are read at the last block of each model."},
        ],
        "failures": [
            {"model": models[2], "photo": names[1], "error": "not a patch map: expected finite values, got infinity."},
            {
                "model": "broken_model",
                "photo": None,
                "error": "RuntimeError: no such weights\n  in line 2 <b>of</b> it",
            },
        ],
        "tables": [
            TABLE,
            {
                "id": "agreement",
                "title": "Agreement",
                "note": "",
                "columns": [
                    {"key": "pair", "label": "pair", "help": "", "digits": 0},
                    {"key": "rank", "label": "rank correlation", "help": "Spearman's.", "digits": 3},
                ],
                "rows": [{"pair": f"{models[0]} and {models[1]}", "rank": {"value": 0.41, "low": 0.3, "high": 0.5}}],
            },
        ],
        "strips": strips(),
        "marks": MARKS,
        "photos": entries,
        "models": [{"name": name} for name in (*models, "broken_model")],
        "views": VIEWS,
        "reasons": [
            {"view": v, "model": m, "photo": p, "text": f"{VIEWS[v]['id']}: {WHY[m]}."}
            for v in range(2)
            for m, p in [(2, 1), (3, 0), (3, 1)]
        ],
        "maps": [map_of(v, m, p, (pictures[p].height, pictures[p].width)) for v, m, p in present],
    }


def find(shown, view, model, photo):
    return next(one for one in shown["maps"] if (one["view"], one["model"], one["photo"]) == (view, model, photo))
