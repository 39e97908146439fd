"""Tiny models' attention over one photo: a square grid, a grid of 2:1, registers, and windows."""

import base64
import io

import numpy as np
import torch
from PIL import Image
from timm import create_model
from timm.models.swin_transformer import SwinTransformer

from attnhook import AttentionCapture, ImageGeometry
from attnhook.results.scenes import Scene
from tests.models import images, sharpen, timm

PHOTO = (96, 160)
INPUTS = {"square": (48, 48), "wide": (32, 64), "registers": (48, 48), "overlap": (48, 48)}
MODELS = tuple(INPUTS)


def photo(size=PHOTO):
    """Smooth colours, which JPEG keeps well."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    waves = [120 + 100 * np.sin(rows / 17 + phase) * np.cos(columns / 23 - phase) for phase in (0.0, 1.0, 2.0)]
    return Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8))


def scene(kind, rows="all", name="cat.jpg", photo_size=PHOTO, **settings):
    registers = {"reg_tokens": 4, "no_embed_class": True} if kind == "registers" else {}
    size = INPUTS[kind]
    model = timm("vision_transformer.VisionTransformer", img_size=size, **registers, **settings)()
    if kind == "overlap":  # as many patches, each half as wide again as the step to the next
        old = model.patch_embed.proj
        step = old.stride[0]
        model.patch_embed.proj = torch.nn.Conv2d(3, old.out_channels, step + step // 2, step, step // 2)
    geometry = ImageGeometry.identity(photo_size)
    geometry = geometry.resize(64).center_crop(size) if kind != "wide" else geometry.resize(size)
    return Scene(name, photo(photo_size), geometry, captured(model, size, rows))


def captured(model, size, rows="all"):
    with torch.inference_mode(), AttentionCapture(model, rows=rows) as capture:
        model(images(1, size=size))
    return capture.maps


def swin():
    torch.manual_seed(0)
    kind = SwinTransformer(
        img_size=64, window_size=4, embed_dim=12, depths=(2, 2), num_heads=(2, 3), patch_size=4, num_classes=5
    )
    return sharpen(kind)


def windowed_scene():
    """Two stages, of 16 by 16 and 8 by 8 positions."""
    return Scene(
        "cat.jpg", photo(), ImageGeometry.identity(PHOTO).resize(72).center_crop((64, 64)), captured(swin(), (64, 64))
    )


def merged_scene():
    """PVTv2: every stage has keys of 2 by 2, which lie differently because the stages' tokens do."""
    torch.manual_seed(0)
    model = create_model("pvt_v2_b0", pretrained=False, num_classes=0).eval()
    return Scene("cat.jpg", photo(), ImageGeometry.identity(PHOTO).resize((64, 64)), captured(model, (64, 64)))


def photo_of(header):
    """The photo that a scene's header holds, as the page shows it."""
    content = base64.b64decode(header["photo"].partition(",")[2])
    with Image.open(io.BytesIO(content)) as picture:
        return picture.convert("RGB")
