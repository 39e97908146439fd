"""Where a map lies in the photo: a bright square through each processor and the model's own merging, and back through the map.

The token that the square changes most, by what the language model is given, gets a one-hot row by hand. The peak of its map has to be in the
square, within half a merged patch.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models
from transformers.models.mllama.image_processing_mllama import get_all_supported_aspect_ratios

from attnhook import AnswerCapture
from attnhook.answers.answer_pictures import page_content
from attnhook.errors import GeometryError
from tests.answers import families
from tests.answers.families import IMAGE, images, prompts

PHOTOS = {"square": (240, 240), "wide": (180, 420), "tall": (400, 200)}
SIDE = 8  # of the square, in photo pixels: smaller than any patch
AT = (0.37, 0.68)  # the square's centre, as a share of height and width


def photo_with(
    size: tuple[int, int], side: int, at: tuple[float, float] = AT
) -> tuple[Image.Image, tuple[float, float]]:
    """A grey photo with a bright square, and the square's centre in pixels."""
    pixels = np.full((*size, 3), 90, np.uint8)
    top, left = (int(share * length) - side // 2 for share, length in zip(at, size, strict=True))
    pixels[top : top + side, left : left + side] = 255
    return Image.fromarray(pixels), (top + side / 2, left + side / 2)


def without_mixing(model: Any) -> Any:
    """The model with vision attention that adds nothing, so that a patch's token stays about that patch."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if any(part in name for part in ("vision", "visual", "encoder")) and any(
                part in name for part in ("attn", "attention")
            ):
                weight.zero_()
    return model


def tokens_in(model: Any, ids: torch.Tensor, out: dict[str, Any]) -> torch.Tensor:
    """What the language model is given in place of the image's tokens, `(tokens, width)`."""
    seen: dict[str, Any] = {}
    inner = getattr(model, "model", model)
    parts = (getattr(inner, name, None) for name in ("language_model", "text_model"))
    language_model = next(part for part in parts if part is not None)
    handle = language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    with torch.no_grad():
        model(input_ids=ids, **out)
    handle.remove()
    if seen.get("cross_attention_states") is not None:
        states: torch.Tensor = seen["cross_attention_states"]
        return states.flatten(0, -2)
    given: torch.Tensor = seen["inputs_embeds"][0][ids[0] == IMAGE]
    return given


PLACED = ("pixel_values", "image_sizes", "image_grid_thw", "image_position_ids")


def counted(model: Any, out: dict[str, Any]) -> torch.Tensor:
    """A prompt with as many image tokens as the model makes of the photo."""
    given = {name: value for name, value in out.items() if name in PLACED}
    features = families.image_features(model, **given)
    features = (
        features.flatten(0, -2) if isinstance(features, torch.Tensor) else torch.cat(list(features)).flatten(0, -2)
    )
    return prompts([1, *images(len(features)), 5])["input_ids"]


def marked(model: Any, out: dict[str, Any]) -> torch.Tensor:
    """A prompt as Idefics3's and SmolVLM's processors write it; a tile has 16 tokens."""
    rows, columns = (int(np.ravel(out.pop(name))[0]) for name in ("rows", "cols"))
    row = [1]
    for down in range(rows):
        for across in range(columns):
            row += [90, 20 + 10 * down + across, *images(16)]
        row += [13]
    return prompts([*row, 13, 90, 91, *images(16), 90, 5])["input_ids"]


LLAMA4_WORDS = [
    "<|image_start|>",
    "<|image_end|>",
    "<|tile_x_separator|>",
    "<|tile_y_separator|>",
    "<|image|>",
    "<|patch|>",
]


def llama4_processor() -> Any:
    words = [f"word{number}" for number in range(IMAGE + 1 - len(LLAMA4_WORDS))]  # <|patch|> is the image's token
    tokenizer = Tokenizer(
        models.WordLevel({word: n for n, word in enumerate([*words, *LLAMA4_WORDS])}, unk_token="word0")  # noqa: S106
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="word0")  # noqa: S106
    tokenizer.add_special_tokens({"additional_special_tokens": LLAMA4_WORDS})
    images = transformers.Llama4ImageProcessor(**square(64), max_patches=6)
    return transformers.Llama4Processor(images, tokenizer, patch_size=8)


def llama4_prompt(model: Any, out: dict[str, Any]) -> torch.Tensor:
    """A prompt as the processor writes it; a tile has 16 tokens."""
    processor = llama4_processor()
    text = processor._prompt_split_image(out.pop("aspect_ratios")[0].tolist(), 16)
    return torch.tensor([processor.tokenizer(f"{text}word5")["input_ids"]])


def square(side: int) -> dict[str, Any]:
    return {"size": {"height": side, "width": side}}


def llava() -> tuple[Any, Any]:
    model, _ = families.llava(vision_config=families.vision("clip_vision_model", image_size=64))
    return model, transformers.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})


def vipllava() -> tuple[Any, Any]:
    config = {"vision_config": families.vision("clip_vision_model", image_size=64), "text_config": families.text()}
    more = {"image_token_index": IMAGE, "vision_feature_layers": [-1, -2]}
    return families.build("VipLlavaForConditionalGeneration", **config, **more), llava()[1]


def paligemma() -> tuple[Any, Any]:
    tower = families.vision("siglip_vision_model", projection_dim=32, image_size=64)
    config = {"vision_config": tower, "text_config": families.text("gemma")}
    model = families.build("PaliGemmaForConditionalGeneration", **config, image_token_index=IMAGE, projection_dim=32)
    return model, transformers.SiglipImageProcessor(**square(64))


def gemma3() -> tuple[Any, Any]:
    return families.gemma3()[0], transformers.Gemma3ImageProcessor(**square(64))


def qwen(name: str) -> Callable[[], tuple[Any, Any]]:
    def made() -> tuple[Any, Any]:
        options = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2}
        size = {"shortest_edge": 64 * 64, "longest_edge": 128 * 128}
        return getattr(families, name)()[0], transformers.Qwen2VLImageProcessor(**options, size=size)

    return made


def mistral3() -> tuple[Any, Any]:
    # The processor's patch is a merged one.
    return families.mistral3()[0], transformers.PixtralImageProcessor(size={"longest_edge": 64}, patch_size=16)


def pixtral() -> tuple[Any, Any]:
    return families.pixtral()[0], transformers.PixtralImageProcessor(size={"longest_edge": 64}, patch_size=8)


def _marked_tiles(name: str, kind: str) -> Callable[[], tuple[Any, Any]]:
    def made() -> tuple[Any, Any]:
        config = {"vision_config": families.vision(kind, image_size=64), "text_config": families.text()}
        model = families.build(name, **config, image_token_id=IMAGE, scale_factor=2)
        processor = getattr(transformers, name.replace("ForConditionalGeneration", "ImageProcessor"))
        sizes = {"size": {"longest_edge": 192}, "max_image_size": {"longest_edge": 64}}
        return model, processor(**sizes)

    return made


def internvl() -> tuple[Any, Any]:
    tower = families.vision("internvl_vision", image_size=[64, 64], patch_size=[8, 8])
    config = {"vision_config": tower, "text_config": families.text("qwen2"), "image_token_id": IMAGE}
    model = families.build("InternVLForConditionalGeneration", **config, downsample_ratio=0.5)
    return model, transformers.GotOcr2ImageProcessor(**square(64), crop_to_patches=True, max_patches=4)


def _any_resolution(name: str, processor: str, tower: Any, text: str) -> Callable[[], tuple[Any, Any]]:
    def made() -> tuple[Any, Any]:
        points = [[64, 128], [128, 64], [128, 128], [64, 192], [192, 64]]
        config = {"vision_config": tower(), "text_config": families.text(text), "image_token_index": IMAGE}
        model = families.build(name, **config, image_grid_pinpoints=points)
        size = {"shortest_edge": 64} if "Next" in name else {"height": 64, "width": 64}
        more = {"crop_size": {"height": 64, "width": 64}} if "Next" in name else {}
        return model, getattr(transformers, processor)(size=size, image_grid_pinpoints=points, **more)

    return made


CASES: dict[str, tuple[Callable[[], tuple[Any, Any]], Callable[..., torch.Tensor], dict[str, Any]]] = {
    "llava": (llava, counted, {}),
    "vipllava": (vipllava, counted, {}),
    "paligemma": (paligemma, counted, {}),
    "gemma3": (gemma3, counted, {}),
    "qwen2_vl": (qwen("qwen2_vl"), counted, {}),
    "qwen2_5_vl": (qwen("qwen2_5_vl"), counted, {}),
    "qwen3_vl": (qwen("qwen3_vl"), counted, {}),
    "mistral3": (mistral3, counted, {}),
    "pixtral": (pixtral, counted, {}),
    "idefics3": (
        _marked_tiles("Idefics3ForConditionalGeneration", "idefics3_vision"),
        marked,
        {"return_row_col_info": True},
    ),
    "smolvlm": (
        _marked_tiles("SmolVLMForConditionalGeneration", "smolvlm_vision"),
        marked,
        {"return_row_col_info": True},
    ),
    "llama4": (lambda: (families.llama4(image_size=64)[0], llama4_processor()), llama4_prompt, {}),
    "internvl": (internvl, counted, {}),
    "llava_next": (
        _any_resolution(
            "LlavaNextForConditionalGeneration",
            "LlavaNextImageProcessor",
            lambda: families.vision("clip_vision_model", image_size=64),
            "llama",
        ),
        counted,
        {},
    ),
    "llava_onevision": (
        _any_resolution(
            "LlavaOnevisionForConditionalGeneration",
            "LlavaOnevisionImageProcessor",
            lambda: families.vision("siglip_vision_model", vision_use_head=False, image_size=64),
            "qwen2",
        ),
        counted,
        {},
    ),
}


def processed(processor: Any, photo: Image.Image, options: dict[str, Any]) -> dict[str, Any]:
    out = dict(getattr(processor, "image_processor", processor)(photo, return_tensors="pt", **options))
    keep = (
        "pixel_values",
        "image_sizes",
        "image_grid_thw",
        "rows",
        "cols",
        "aspect_ratios",
        "pixel_attention_mask",
        "image_position_ids",
    )
    floats = {name: value.float() for name, value in out.items() if name == "pixel_values"}
    return {name: value for name, value in out.items() if name in keep} | floats


@pytest.mark.parametrize("shape", PHOTOS)
@pytest.mark.parametrize("family", CASES)
def test_a_bright_square_is_where_the_map_says(family: str, shape: str) -> None:
    check_square(*CASES[family], shape)


def check_square(make: Any, prompt: Callable[..., torch.Tensor], options: dict[str, Any], shape: str) -> None:
    model, processor = make()
    model = without_mixing(model)
    photo, centre = photo_with(PHOTOS[shape], SIDE)
    plain = Image.new("RGB", photo.size, (90, 90, 90))
    out, empty = processed(processor, photo, options), processed(processor, plain, options)
    ids = prompt(model, out)
    for name in ("rows", "cols", "aspect_ratios"):
        empty.pop(name, None)
    if "image_grid_thw" in out or "image_position_ids" in out:
        kinds = {} if families.BEFORE_5 else {"mm_token_type_ids": (ids == IMAGE).long()}
        out, empty = out | kinds, empty | kinds
    if model.config.model_type == "gemma3":
        kinds = {"token_type_ids": (ids == IMAGE).long()}
        out, empty = out | kinds, empty | kinds
    changed = (tokens_in(model, ids, out) - tokens_in(model, ids, empty)).norm(dim=-1)
    with AnswerCapture(model, processor) as capture:
        model.generate(input_ids=ids, **out, max_new_tokens=1, pad_token_id=0)
    check_places(capture.answer, changed, photo, centre)


def check_places(answer: Any, changed: torch.Tensor, photo: Image.Image, centre: tuple[float, float]) -> None:
    (image,) = answer.images
    assert sum(part.index.numel() for part in image.parts) <= len(image.keys) == len(changed)
    seen = 0
    for part in image.parts:
        hit = int(part.index.flatten()[changed[part.index.flatten()].argmax()])
        if changed[hit] < 0.5 * changed.max():
            continue  # a tile without the square
        seen += 1
        answer._rows[0].zero_()
        answer._rows[0][..., hit] = 1.0
        patch_map = answer.map([0], part=part.name)
        geometry = patch_map.geometry(photo)
        row, column = divmod(int(patch_map.values.argmax()), patch_map.grid[1])
        rows, columns = patch_map.edges(geometry)
        middle = (rows[row] + rows[row + 1]) / 2, (columns[column] + columns[column + 1]) / 2
        cell = rows[row + 1] - rows[row], columns[column + 1] - columns[column]
        for axis, edges in enumerate((rows, columns)):  # the cell and the square meet
            nearest = min(max(centre[axis], edges[0]), edges[-1])  # beyond the last cell but in its kernel: Florence-2
            assert abs(nearest - centre[axis]) <= part.overlap.reach[axis] / patch_map.area[axis] * (
                edges[-1] - edges[0]
            )
            assert abs(middle[axis] - nearest) <= (cell[axis] + SIDE) / 2, (part.name, middle, centre, cell)
        heat = patch_map.heatmap(photo=photo, mode="nearest")
        assert tuple(heat.shape) == (photo.height, photo.width)
        assert patch_map.overlay(photo).size == photo.size
    assert seen


def test_a_bright_square_in_the_tiles_of_cross_attention() -> None:
    ratios = [list(ratio) for ratio in get_all_supported_aspect_ratios(4)]
    model = families.mllama(image_size=64, supported_aspect_ratios=ratios)[0]
    model = without_mixing(model)
    processor = transformers.MllamaImageProcessor(**square(64), max_image_tiles=4)
    for size in PHOTOS.values():
        photo, centre = photo_with(size, SIDE)
        ids = torch.tensor([[1, 110, 5, 6]])
        keep = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
        out, empty = (
            {name: value for name, value in processor([[one]], return_tensors="pt").items() if name in keep}
            for one in (photo, Image.new("RGB", photo.size, (90, 90, 90)))
        )
        tiles = {"cross_attention_mask": torch.ones(1, 4, 1, 4, dtype=torch.long)}
        changed = (tokens_in(model, ids, out | tiles) - tokens_in(model, ids, empty | tiles)).norm(dim=-1)
        with AnswerCapture(model, processor) as capture:
            model.generate(input_ids=ids, **out, **tiles, max_new_tokens=1, pad_token_id=0)
        check_places(capture.answer, changed[capture.answer.images[0].keys], photo, centre)


def florence2() -> Any:
    """Symmetric kernels, so that a patch's token is about the middle of what it sees."""
    model = without_mixing(families.florence2(64)[0])
    with torch.no_grad():
        for module in model.model.vision_tower.modules():
            if isinstance(module, torch.nn.Conv2d):
                tent = torch.bartlett_window(module.kernel_size[0] + 2, periodic=False)[1:-1]
                module.weight.copy_(module.weight.sum((2, 3), keepdim=True) * torch.outer(tent, tent))
                if module.groups > 1:
                    module.weight.zero_()
    return model


ENCODERS: dict[str, tuple[Any, Any, Any]] = {
    "donut": (
        lambda: without_mixing(families.donut()[0]),
        lambda model, out: model.encoder(**out)[0],
        transformers.DonutImageProcessor(**square(64), do_align_long_axis=False, do_thumbnail=False),
    ),
    "trocr": (
        lambda: without_mixing(families.trocr()[0]),
        lambda model, out: model.encoder(**out)[0],
        transformers.ViTImageProcessor(**square(32)),
    ),
    "blip": (
        lambda: without_mixing(families.blip()[0]),
        lambda model, out: model.vision_model(**out)[0],
        transformers.BlipImageProcessor(**square(32)),
    ),
    "pix2struct": (
        lambda: without_mixing(families.pix2struct()[0]),
        lambda model, out: model.encoder(**out)[0],
        transformers.Pix2StructImageProcessor(max_patches=60, patch_size={"height": 8, "width": 8}),
    ),
    "florence2": (
        florence2,
        lambda model, out: model.get_image_features(**out).pooler_output,
        transformers.CLIPImageProcessor(**square(64), do_center_crop=False),
    ),
}


@pytest.mark.parametrize(
    ("family", "at"),
    [(family, AT) for family in ENCODERS]
    + [(family, at) for family in ("florence2", "pix2struct") for at in ((0.03, 0.03), (0.46, 0.46), (0.52, 0.97))],
)
def test_a_bright_square_in_an_encoder(family: str, at: tuple[float, float]) -> None:
    make, encoded, processor = ENCODERS[family]
    model = make()
    for size in PHOTOS.values():
        photo, centre = photo_with(size, SIDE, at)
        plain = Image.new("RGB", photo.size, (90, 90, 90))
        if family == "donut" and families.BEFORE_5:
            pytest.skip("Donut's processor of transformers 4 cannot pad what it has not made smaller")
        out = dict(processor(photo, return_tensors="pt"))
        plainly = {"do_normalize": False} if family == "pix2struct" else {}  # a mean over the photo changes all patches
        marked, empty = (dict(processor(one, return_tensors="pt", **plainly)) for one in (photo, plain))
        with torch.no_grad():
            changed = (encoded(model, marked) - encoded(model, empty))[0].norm(dim=-1)
        if family == "florence2":
            out |= prompts([*images(len(changed)), 1, 5])
        with AnswerCapture(model, processor) as capture:
            model.generate(**out, max_new_tokens=1)
        check_places(capture.answer, changed[capture.answer.images[0].keys], photo, centre)


def test_another_photo_is_refused() -> None:
    model, processor = CASES["llava_next"][0]()
    photo, _ = photo_with(PHOTOS["wide"], SIDE)
    out = processed(processor, photo, {})
    with AnswerCapture(model, processor) as capture:
        model.generate(input_ids=counted(model, out), **out, max_new_tokens=1, pad_token_id=0)
    with pytest.raises(GeometryError, match="do not match"):
        capture.answer.map([0]).overlay(Image.new("RGB", (200, 400)))


def test_without_a_processor_the_message_says_what_to_pass() -> None:
    model, inputs = families.llava()
    with AnswerCapture(model) as capture:
        model.generate(**inputs, max_new_tokens=1, pad_token_id=0)
    with pytest.raises(GeometryError, match=r"AnswerCapture\(model, processor\)"):
        capture.answer.map([0]).overlay(Image.new("RGB", (64, 64)))


def test_the_page_places_overlapping_cells_around_their_centres() -> None:
    model, inputs = families.florence2()
    with AnswerCapture(model) as capture:
        model.generate(**inputs, max_new_tokens=2)
    part = page_content(capture.answers[0], [None], "")[0]["parts"][0]
    assert (part["where"]["start"], part["where"]["reach"]) == (
        (-3.5, -3.5),
        (3.5, 3.5),
    )  # kernels of 15 pixels, 8 apart
