"""Vision-language models of transformers: which modules attend to images while words are made, and where each image's tokens lie.

Which tokens are an image's is read off the ids; their grid follows from the shapes of the pixels and the model's own merging. What cannot be
placed is refused with what was looked for.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from attnhook.capture.patch_cells import overlaps
from attnhook.capture.recognition import attends, class_of
from attnhook.errors import TokenLayoutError, UnsupportedModelError
from attnhook.options import Size
from attnhook.zoo._transformers import names_in_forward
from attnhook.zoo._transformers_towers import text_parts
from attnhook.zoo.image_tokens import ImagePart, ImageTokens, cut_images, joined_tiles, tiled, unpacked, whole
from attnhook.zoo.token_rules import pair

Facts = Mapping[str, Any]
"""Keyword arguments of the model's first forward and of its vision tower; shapes in place of floating-point tensors."""

_CALLS = frozenset({"ALL_ATTENTION_FUNCTIONS", "scaled_dot_product_attention", "softmax", "Softmax"})
_CROSS = ("cross", "encoder_attn", "encoder_decoder_attention")


@dataclass(frozen=True, eq=False)
class VisionLanguageModel:
    """What an answer's capture needs to know of a model.

    Attributes:
        speaker: The module whose `generate` makes the answer.
        reader: The module whose forward gets the ids.
        attention: Attention modules over the image's tokens, by their names in the model, in order.
        watched: Modules whose arguments say what the images were.
        image_id: The id of the image's tokens; None where they are not in the sequence.
        cross: Whether the image's tokens are the keys of cross-attention, not part of the sequence.
        images: Finds each prompt's images from the prompts' ids, `(batch, tokens)`, the facts, and the number of keys.
    """

    speaker: Any
    reader: Any
    attention: tuple[tuple[str, nn.Module], ...]
    watched: tuple[nn.Module, ...]
    image_id: int | None
    cross: bool
    images: Callable[[Tensor, Facts, int], list[list[ImageTokens]]]


def describe_speaker(model: Any) -> VisionLanguageModel:
    """Describe a vision-language model; `UnsupportedModelError` with what was looked for if it is none that is known."""
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", type(model).__name__)
    place, modules = _PLACES.get(kind), dict(model.named_modules())
    parts: list[Any] = [modules.get(name) for name in _PARTS.get(kind, ("", ""))]
    if place is None or None in parts or not hasattr(parts[0], "generate") or "text_encoder" in modules:
        raise UnsupportedModelError(
            f"cannot capture answers of {type(model).__name__} (model_type {kind!r}): expected a model with generate whose words attend to the "
            f"image, of one of these model_types: {', '.join(sorted(_PLACES))}. For a vision model or a vision tower "
            "alone, use AttentionCapture."
        )
    if shared := getattr(getattr(config, "text_config", None), "num_kv_shared_layers", 0):
        raise UnsupportedModelError(
            f"cannot capture answers of {type(model).__name__}: expected layers that run for every token, got num_kv_shared_layers={shared}, "
            "layers that skip all tokens of the prompt but the last. For its vision tower alone, use AttentionCapture."
        )
    (speaker, reader, *watched), cross = parts, kind in _PARTS
    image_id = None if cross else _image_id(config)

    def images(ids: Tensor, facts: Facts, keys: int) -> list[list[ImageTokens]]:
        prompt = _Prompt(model, config, ids, image_id, facts, keys)
        found = place(prompt)
        if not cross:
            _check_all_placed(found, prompt)
        return [one for one in found for _ in range(len(ids) // len(found))]

    return VisionLanguageModel(speaker, reader, _attention(model, cross=cross), tuple(watched), image_id, cross, images)


def _attention(model: nn.Module, *, cross: bool) -> tuple[tuple[str, nn.Module], ...]:
    """The attention modules of the language model: those that call transformers' attention interface if any does."""
    found = [
        (name, module)
        for part in text_parts(model)
        for name, module in model.get_submodule(part).named_modules(prefix=part)
        if any(word in name for word in _CROSS) == cross and attends(module, calls=_CALLS, base="PreTrainedModel")
    ]
    calling = [(name, module) for name, module in found if "ALL_ATTENTION_FUNCTIONS" in names_in_forward(module)]
    if not found:
        raise UnsupportedModelError(
            f"cannot capture answers of {type(model).__name__}: expected {'cross-' if cross else ''}attention in its language model, got none "
            "that its code shows."
        )
    return tuple(calling or found)


def _image_id(config: Any) -> int:
    for name in ("image_token_id", "image_token_index"):
        if isinstance(number := getattr(config, name, None), int):
            return number
    raise UnsupportedModelError(
        "cannot tell which tokens are the image's: expected image_token_id or image_token_index in the configuration of model_type "
        f"{config.model_type!r}, got neither."
    )


@dataclass(frozen=True, eq=False)
class _Prompt:
    """A batch of prompts as it went in."""

    model: Any
    config: Any
    ids: Tensor
    image_id: int | None
    facts: Facts
    keys: int

    def positions(self) -> list[Tensor]:
        """Where each prompt's image tokens are."""
        return [(row == self.image_id).nonzero()[:, 0].cpu() for row in self.ids]

    def pixels(self) -> Size:
        """Height and width of the pixels."""
        shape = self.facts.get("pixel_values")
        if shape is None:
            raise TokenLayoutError(
                "the image's tokens cannot be placed: expected pixel_values in the first forward, got none. Put an image in every prompt, "
                "and pass it as pixel_values, not as features or embeddings."
            )
        return int(shape[-2]), int(shape[-1])

    def merge(self) -> float:
        """How many patches a cell merges along each axis."""
        config = self.config
        factor = getattr(config, "scale_factor", 0) or getattr(config, "downsample_factor", 0)
        return factor or 1 / (getattr(config, "downsample_ratio", 0) or config.vision_config.pixel_shuffle_ratio)

    def grid(self, merge: float = 1) -> tuple[Size, Size, Size]:
        """The grid of one input, of which each cell merges `merge` x `merge` patches, its pixels, and the pixels of a cell."""
        pixels, patch = self.pixels(), pair(self.config.vision_config.patch_size)
        step = (round(patch[0] * merge), round(patch[1] * merge))
        return (pixels[0] // step[0], pixels[1] // step[1]), pixels, step

    def fact(self, name: str) -> list[Any]:
        """An integer tensor, as a list."""
        value = self.facts.get(name)
        if value is None:
            raise TokenLayoutError(
                f"the image's tokens cannot be placed: expected {name} in the first forward, got none. Pass what the processor returned."
            )
        return torch.as_tensor(value).tolist()


def _check_all_placed(found: list[list[ImageTokens]], prompt: _Prompt) -> None:
    for number, (images, positions) in enumerate(zip(found, prompt.positions(), strict=True)):
        need = [sum(part.index.numel() for part in image.parts) for image in images]
        got = [len(image.keys) for image in images]
        if sum(got) != len(positions) or any(map(int.__lt__, got, need)):
            raise TokenLayoutError(
                f"the image's tokens of prompt {number} cannot be placed: expected {len(positions)} tokens {prompt.image_id} in images of the "
                f"model's grids, got grids of {need} patches on {got} tokens. Please report it with the model's configuration."
            )


def _one_grid(prompt: _Prompt) -> list[list[ImageTokens]]:
    """A grid of patches as the tower sees them: LLaVA, PaliGemma."""
    vision = prompt.config.vision_config
    if prompt.facts.get("image_sizes") is not None:  # a Pixtral tower
        return _sized(prompt)
    grid, pixels, patch = prompt.grid()
    full = getattr(prompt.config, "vision_feature_select_strategy", "default") == "full"
    first = int(full and vision.model_type in ("clip_vision_model", "chinese_clip_vision_model"))
    part = whole(grid, pixels, patch, first=first)
    return cut_images(prompt.positions(), lambda _: (first + grid[0] * grid[1], (part,), 1))


def _pooled(prompt: _Prompt) -> list[list[ImageTokens]]:
    """Patches averaged to a square of fixed size: Gemma 3. Every crop of pan and scan is an image of its own."""
    side, (grid, pixels, patch) = math.isqrt(prompt.config.mm_tokens_per_image), prompt.grid()
    step = (grid[0] // side * patch[0], grid[1] // side * patch[1])
    part = whole((side, side), pixels, step)
    return cut_images(prompt.positions(), lambda _: (side * side, (part,), 1))


def _packed(prompt: _Prompt) -> list[list[ImageTokens]]:
    """Packed patches merged into blocks, with `image_grid_thw` (Qwen, GLM, PaddleOCR), or columns and rows of all patches (Gemma 4)."""
    vision, places = prompt.config.vision_config, prompt.facts.get("image_position_ids")
    grids = prompt.fact("image_grid_thw") if places is None else [(1, y + 1, x + 1) for x, y in places.amax(1).tolist()]
    merge, patch = getattr(vision, "spatial_merge_size", 0) or vision.pooling_kernel_size, int(vision.patch_size)

    def parts_of(number: int) -> tuple[int, tuple[ImagePart, ...], int]:
        frames, rows, columns = grids[number] if number < len(grids) else (0, 0, 0)
        if frames != 1:
            raise TokenLayoutError(
                f"image {number} cannot be placed: expected one frame in image_grid_thw, got {grids}. Videos are not supported."
            )
        grid, pixels = (rows // merge, columns // merge), (rows * patch, columns * patch)
        return grid[0] * grid[1], (whole(grid, pixels, (merge * patch, merge * patch)),), 1

    return cut_images(prompt.positions(), parts_of)


def _sized(prompt: _Prompt) -> list[list[ImageTokens]]:
    """Images of their own sizes, rows of tokens with ends between them: Pixtral towers, Mistral 3."""
    sizes, merge = prompt.fact("image_sizes"), int(getattr(prompt.config, "spatial_merge_size", 1))
    step = int(pair(prompt.config.vision_config.patch_size)[0]) * merge

    def parts_of(number: int) -> tuple[int, tuple[ImagePart, ...], int]:
        pixels = (int(sizes[number][0]), int(sizes[number][1]))
        grid = (pixels[0] // step, pixels[1] // step)
        return grid[0] * grid[1], (whole(grid, pixels, (step, step)),), 1

    return cut_images(prompt.positions(), parts_of)


def _marked_tiles(prompt: _Prompt) -> list[list[ImageTokens]]:
    """Tiles row by row, each marked in the text, and the overview last: Idefics3, SmolVLM, Llama 4; Aya Vision does not mark rows."""
    grid, pixels, step = prompt.grid(prompt.merge())
    length = grid[0] * grid[1]
    found = []
    for row, keys in zip(prompt.ids.cpu(), prompt.positions(), strict=True):
        starts = keys[::length].tolist()
        if len(keys) % length or bool((keys.reshape(-1, length).diff() != 1).any()):
            raise TokenLayoutError(
                f"the image's tokens cannot be placed: expected runs of {length} tokens {prompt.image_id}, one for each tile, got {len(keys)} "
                "tokens in other runs. Pass the ids that the processor made."
            )
        # What precedes the last tile precedes every overview, which ends an image.
        mark = [int(row[at - 1]) if at else -1 for at in starts]
        images, first = [], 0
        for last in (number for number, before in enumerate(mark) if before == mark[-1]):
            tiles = starts[first : last + 1]
            # What follows the last tile ends every row, unless it was joined with what comes next; then there are more tokens between rows.
            ends = row[[at + length for at in tiles[:-1]]]
            more = [after - before - length > 2 for before, after in itertools.pairwise(tiles[:-1])]
            breaks = sum(more) or int((ends[:-1] == ends[-1:]).sum())
            rows = None if prompt.config.model_type == "aya_vision" else (breaks + 1, (len(tiles) - 1) // (breaks + 1))
            parts = tiled(grid, pixels, step, len(tiles), rows)
            images.append(ImageTokens(keys[first * length : (last + 1) * length], parts, len(tiles)))
            first = last + 1
        found.append(images)
    return found


def _plain_tiles(prompt: _Prompt) -> list[list[ImageTokens]]:
    """All tiles of an image in one run, the overview last; their arrangement is not in the ids: InternVL, Cohere."""
    grid, pixels, step = prompt.grid(prompt.merge())
    length = grid[0] * grid[1]
    found, near = [], 2 if prompt.config.model_type == "cohere2_vision" else 1  # Cohere has a token after each tile
    for keys in prompt.positions():
        runs = torch.tensor_split(keys, (keys.diff() > near).nonzero()[:, 0] + 1) if len(keys) else ()
        found.append([ImageTokens(run, tiled(grid, pixels, step, n := len(run) // length, None), n) for run in runs])
    return found


def _any_resolution(prompt: _Prompt) -> list[list[ImageTokens]]:
    """An overview, then tiles joined, cut to the photo's shape, with an end after each row: LLaVA-NeXT, LLaVA-OneVision.

    The model's own packing is run on coordinates in place of features.
    """
    sizes, vision = prompt.fact("image_sizes"), prompt.config.vision_config
    grid, pixels, _ = prompt.grid()
    inner = getattr(prompt.model, "model", prompt.model)
    arrangement = class_of(inner).pack_image_features.__globals__["get_anyres_image_grid_shape"]
    several = torch.as_tensor(prompt.facts.get("batch_num_images", [1] * len(sizes))).tolist()
    alone = [count == 1 for count in several for _ in range(count)]

    def parts_of(number: int) -> tuple[int, tuple[ImagePart, ...], int]:
        size = torch.tensor(sizes[number])
        points = prompt.config.image_grid_pinpoints
        tiles = arrangement(size, points, vision.image_size) if alone[number] else (1, 1)
        packed = _pack(inner, grid, tiles, size, alone=alone[number])
        return unpacked(packed, grid, pixels, (int(tiles[0]), int(tiles[1])), alone=alone[number])

    return cut_images(prompt.positions(), parts_of)


def _pack(inner: Any, grid: Size, tiles: Size, size: Tensor, *, alone: bool) -> Tensor:
    """What the model's packing makes of the rows and columns of patches on the joined tiles, -1 for ends of rows: `(tokens, 2)`."""
    height, width = grid[0] * tiles[0], grid[1] * tiles[1]
    places = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), -1).double()
    cut = places.reshape(tiles[0], grid[0], tiles[1], grid[1], 2).transpose(1, 2).reshape(-1, grid[0] * grid[1], 2)
    overview = torch.zeros(1, grid[0] * grid[1], 2, dtype=torch.float64)
    features = torch.cat([overview, cut]) if alone else overview
    options = {"image_newline": torch.full((2,), -1.0, dtype=torch.float64)}
    if "vision_feature_select_strategy" in class_of(inner).pack_image_features.__code__.co_varnames:
        options["vision_feature_select_strategy"] = "default"  # type: ignore[assignment]
    packed: Tensor = inner.pack_image_features([features], size[None], **options)[0][0]
    return packed


def _cross_tiles(prompt: _Prompt) -> list[list[ImageTokens]]:
    """For each image and tile, a class token and the tile's patches: Mllama."""
    config, ratios = prompt.config.vision_config, prompt.fact("aspect_ratio_ids")
    grid, pixels, _ = prompt.grid()
    each, tiles = grid[0] * grid[1] + 1, int(config.max_num_tiles)
    if prompt.keys < max((len(row) for row in ratios), default=0) * tiles * each:
        raise TokenLayoutError(
            f"the image's tokens cannot be placed: expected {len(ratios[0])} images of {tiles} tiles of {each} keys, got {prompt.keys} keys."
        )
    found = []
    for row in ratios:
        place: list[ImageTokens] = []
        for number, ratio in enumerate(row):
            if ratio == 0:  # a place that this prompt leaves empty
                continue
            rows, columns = config.supported_aspect_ratios[ratio - 1]
            keys = number * tiles * each + torch.arange(rows * columns * each)
            place.append(ImageTokens(keys, (joined_tiles(grid, pixels, (rows, columns), name="image", first=1),), 0))
        found.append(place)
    return found


def _encoded(prompt: _Prompt) -> list[list[ImageTokens]]:
    """One image per prompt: special tokens first, then a grid row by row: Donut, TrOCR, BLIP."""
    config = getattr(prompt.config, "vision_config", None) or prompt.config.encoder
    pixels, patch = prompt.pixels(), pair(config.patch_size)
    # Swin halves between stages.
    merges = len(getattr(config, "depths", ())) - 1 if hasattr(config, "window_size") else 0
    grid = (pixels[0] // patch[0], pixels[1] // patch[1])
    for _ in range(merges):
        grid = (-(-grid[0] // 2), -(-grid[1] // 2))
    special = prompt.keys - grid[0] * grid[1]
    if not 0 <= special <= 2:
        raise TokenLayoutError(
            f"the encoder's tokens cannot be placed: expected a grid of {grid[0]}x{grid[1]} and up to 2 special tokens for pixels of "
            f"{pixels[0]}x{pixels[1]}, got {prompt.keys} tokens."
        )
    part = whole(grid, pixels, (patch[0] * 2**merges, patch[1] * 2**merges), first=special)
    return [[ImageTokens(torch.arange(prompt.keys), (part,))]]


def _numbered(prompt: _Prompt) -> list[list[ImageTokens]]:
    """Patches that come with their rows and columns, from 1 on, 0 for padding: Pix2Struct."""
    side = math.isqrt(prompt.config.vision_config.patch_embed_hidden_size // 3)
    found = []
    for number, places in enumerate(torch.tensor(prompt.fact("flattened_patches"))):
        real = places[(places > 0).all(-1)]
        grid = tuple(real.amax(0).tolist()) if len(real) else (0, 0)
        expected = torch.cartesian_prod(*(torch.arange(1, length + 1) for length in grid))
        if not torch.equal(places[: len(expected)], expected) or len(expected) != len(real):
            raise TokenLayoutError(
                f"the patches of prompt {number} cannot be placed: expected each of {grid[0]} x {grid[1]} once, row by row, got {len(real)} in "
                "another order. Pass the flattened_patches that the processor made."
            )
        part = whole(grid, (grid[0] * side, grid[1] * side), (side, side))
        found.append([ImageTokens(torch.arange(len(real)), (part,))])
    return found


def _convolved(prompt: _Prompt) -> list[list[ImageTokens]]:
    """In the encoder's text, for each image the mean of all patches, then the grid that convolutions leave: Florence-2."""
    grid = pixels = prompt.pixels()
    for one in (convolutions := prompt.model.model.vision_tower.convs):
        kernel, stride, padding = one.conv.kernel_size, one.conv.stride, one.conv.padding
        grid = tuple((grid[n] + 2 * padding[n] - kernel[n]) // stride[n] + 1 for n in (0, 1))
    step, overlap = overlaps(prompt.model, convolutions, ())[-1]
    part = replace(whole(grid, pixels, step, first=1), overlap=overlap)
    ids = prompt.facts.get("inputs", prompt.facts.get("input_ids", prompt.ids))
    given = replace(prompt, ids=ids, image_id=_image_id(prompt.config))
    found = cut_images(given.positions(), lambda _: (1 + part.index.numel(), (part,), 1))
    _check_all_placed(found, given)
    return found


_PLACES: dict[str, Callable[[_Prompt], list[list[ImageTokens]]]] = {
    **dict.fromkeys(("llava", "vipllava", "paligemma", "janus", "deepseek_vl"), _one_grid),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"), _packed),
    **dict.fromkeys(("glm4v", "glm4v_moe", "glm46v", "glm_ocr", "paddleocr_vl", "gemma4"), _packed),
    **dict.fromkeys(("mistral3", "lighton_ocr"), _sized),
    **dict.fromkeys(("idefics3", "smolvlm", "llama4", "aya_vision"), _marked_tiles),
    **dict.fromkeys(("internvl", "cohere2_vision"), _plain_tiles),
    **dict.fromkeys(("llava_next", "llava_next_video", "llava_onevision"), _any_resolution),
    **dict.fromkeys(("vision-encoder-decoder", "blip"), _encoded),
    "gemma3": _pooled,
    "mllama": _cross_tiles,
    "pix2struct": _numbered,
    "florence2": _convolved,
}

# Where the image's tokens are keys of cross-attention: what generates, what gets the ids, and what gets the image.
_PARTS = {
    "mllama": ("", ""),
    "vision-encoder-decoder": ("", "decoder", "encoder"),
    "blip": ("text_decoder", "text_decoder", "vision_model"),
    "pix2struct": ("", "decoder", "encoder"),
    "florence2": ("", "model.language_model.decoder", ""),
}
