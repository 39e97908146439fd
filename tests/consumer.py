"""A user's program under mypy --strict, against the installed package: what it gets is what the types say, and misuse is noticed."""

from typing import assert_type

import torch
from PIL import Image
from torch import Tensor, nn

from attnhook import (
    METHODS,
    AttentionCapture,
    AttentionMaps,
    AttentionResult,
    BlockAttention,
    ImageGeometry,
    TokenLayout,
    attend,
    heatmap,
    load,
    overlay,
    raw_attention,
    rollout,
)
from attnhook.errors import AttnhookError, NothingCapturedError


def maps_of(model: nn.Module, pixels: Tensor) -> AttentionMaps:
    with torch.inference_mode(), AttentionCapture(model, rows="all", layout=TokenLayout((14, 14))) as capture:
        model(pixels)
    assert_type(capture, AttentionCapture)
    try:
        return capture.maps
    except NothingCapturedError as error:
        raise SystemExit(str(error)) from error
    except AttnhookError:
        raise


def picture_of(photo: Image.Image, maps: AttentionMaps) -> Image.Image:
    assert_type(maps[-1], BlockAttention)
    assert_type(maps["blocks.0.attn"].rows, Tensor)
    assert_type([block.name for block in maps], list[str])
    assert_type(raw_attention(maps, heads=None).values, Tensor)
    assert_type(METHODS["rollout"](maps).values, Tensor)
    seen = ImageGeometry.identity((photo.height, photo.width)).resize(224)
    assert_type(seen, ImageGeometry)
    return assert_type(overlay(photo, heatmap(rollout(maps).values[0], seen), scale=(0.0, 1.0)), Image.Image)


def results(paths: list[str]) -> list[AttentionResult]:
    model = load("demo")
    pixels, geometry = model.preprocess(paths[0])
    assert_type((pixels, geometry), tuple[Tensor, ImageGeometry])
    return attend(model, paths, method="rollout", heads=2)


def misuse(maps: AttentionMaps, model: nn.Module) -> None:
    """Every line is an error: strict mypy complains where one of these comments is not needed."""
    AttentionCapture(model, None)  # type: ignore[call-arg]
    AttentionCapture(model, row="cls")  # type: ignore[call-arg]
    raw_attention(maps, heads=0.5)  # type: ignore[arg-type]
    rollout(maps).shape.append(1)  # type: ignore[attr-defined]
    overlay("cat.jpg", maps)  # type: ignore[arg-type]
    TokenLayout(14)  # type: ignore[arg-type]
    load(3)  # type: ignore[arg-type]
    maps.layuot  # type: ignore[attr-defined]  # noqa: B018
