"""A user's program under mypy --strict, against the installed package: what it gets is what the types say, and misuse is noticed."""

from collections.abc import Callable
from pathlib import Path
from typing import assert_type

import torch
from PIL import Image
from torch import Tensor, nn

from attnhook import (
    METHODS,
    Answer,
    AnswerCapture,
    AttentionCapture,
    AttentionMaps,
    AttentionMonitor,
    AttentionResult,
    BlockAttention,
    Comparison,
    DirectoryWriter,
    ExtractedMaps,
    ImageGeometry,
    ModelDescription,
    PatchMap,
    TokenLayout,
    VerificationReport,
    VisionModel,
    attend,
    compare,
    describe,
    dominant_heads_figure,
    extract,
    head_masks_figure,
    heatmap,
    join_tiles,
    load,
    open_maps,
    overlay,
    raw_attention,
    results_figure,
    rollout,
    verify,
)
from attnhook.errors import AttnhookError, NothingCapturedError, ProbeError


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


def in_place(photo: Image.Image, maps: AttentionMaps, transform: Callable[[Image.Image], Tensor]) -> PatchMap:
    patch_maps = assert_type(raw_attention(maps, block="blocks.0.attn"), PatchMap)
    for one in patch_maps:
        assert_type(one, PatchMap)
    assert_type(patch_maps.values, Tensor)
    assert_type(patch_maps.outside, Tensor | None)
    assert_type(patch_maps.grid, tuple[int, int])
    assert_type(patch_maps[0].overlay(photo, transform, crop="seen"), Image.Image)
    assert_type(patch_maps[0].save("map.npz"), Path)
    seen = assert_type(ImageGeometry.of(transform, photo), ImageGeometry)
    assert_type(ImageGeometry.measured(transform, (480, 640)), ImageGeometry)
    assert_type(ImageGeometry.of_each(transform, photo), tuple[ImageGeometry | None, ...])
    assert_type(join_tiles([patch_maps[0]], [seen]), Tensor)
    return patch_maps[0].to("cpu")


def answered(model: nn.Module, processor: object, photo: Image.Image) -> list[str]:
    with AnswerCapture(model, processor) as capture:
        model(photo)
    answer = assert_type(capture.answer, Answer)
    assert_type(capture.answers, tuple[Answer, ...])
    assert_type(answer.text, str)
    assert_type(answer.mass["image"], Tensor)
    assert_type(answer.to_html("answer.html", photo), Path)
    shown: PatchMap = answer.map("cat", layers=[-1], relative=True)
    assert_type(shown.uniform, float | None)
    return [word for word in answer.words if word.tokens]


def every_use(model: nn.Module, transform: Callable[[Image.Image], Tensor], pixels: Tensor) -> Comparison:
    vision = VisionModel(model, transform, name="mine", labels=["cat", "dog"])
    assert_type(vision.labels, tuple[str, ...] | None)
    assert_type(vision.with_model(model), VisionModel)
    (result,) = attend(vision, "cat.jpg", blocks=[-1], model_kwargs={"return_dict": True})
    assert_type(result["blocks.0.attn"].patch_map, PatchMap)
    assert_type(result.settings.method, str)
    results_figure([result]).savefig("results.png")
    head_masks_figure(result, keep=0.5).savefig("heads.png")
    dominant_heads_figure(result).savefig("dominant.png")
    assert_type(describe(model), ModelDescription)
    assert_type(verify(model, pixels, layout=TokenLayout((14, 14))).passed, bool)
    assert_type(verify(model, pixels), VerificationReport)
    writer = DirectoryWriter("log")
    try:
        assert_type(AttentionMonitor(vision, "cat.jpg", writers=writer, every_n_steps=10).step(0), bool)
    except ProbeError:
        assert_type(writer.to_html("log.html"), str)
    assert_type(extract(vision, "photos", "maps", blocks=[-1], column="image"), ExtractedMaps)
    assert_type(open_maps("maps").attention("cat.jpg"), PatchMap)
    return compare([vision, "demo"], ["cat.jpg"], heads=[0, "mean"])


def misuse(maps: AttentionMaps, model: nn.Module) -> None:
    """Every line is an error: strict mypy complains where one of these comments is not needed."""
    raw_attention(maps).sum()  # type: ignore[attr-defined]
    maps[-1].kept  # type: ignore[attr-defined]  # noqa: B018
    heatmap(torch.rand(2, 2), geometry=None)  # type: ignore[call-arg]
    VisionModel(model, library="timm")  # type: ignore[call-arg]
    AnswerCapture(model, token=3)  # type: ignore[call-arg]
    ImageGeometry.of(model)  # type: ignore[call-arg]
    load("demo").preprocessor  # type: ignore[attr-defined]  # noqa: B018
    AttentionCapture(model, None)  # type: ignore[call-arg]
    AttentionCapture(model, row="cls")  # type: ignore[call-arg]
    raw_attention(maps, heads=0.5)  # type: ignore[arg-type]
    rollout(maps).shape.append(1)  # type: ignore[attr-defined]
    overlay("cat.jpg", maps)  # type: ignore[arg-type]
    TokenLayout(14)  # type: ignore[arg-type]
    load(3)  # type: ignore[arg-type]
    maps.layuot  # type: ignore[attr-defined]  # noqa: B018
