"""Inputs and settings for the tiny models of `transformers_families`: the general case, and what differs by class."""

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch

# Parts of models that are no models: they take what another part makes.
PARTS = frozenset({"UnlimitedOcrVisionEncoder", "UVDocBackbone", "InklingVisionModel", "TimmBackbone"})
# Classes that take words beside an image, and see images themselves (of a language model with a tower, the tower is walked).
WITH_TEXT = frozenset(
    {"ViltModel", "FlavaModel", "CLIPModel", "SiglipModel", "GroundingDinoModel", "MMGroundingDinoModel", "BridgeTowerModel",
     "OwlViTModel", "OwlViTForObjectDetection", "Owlv2ForObjectDetection", "GroupViTModel", "AltCLIPModel", "LayoutLMv3Model",
     "TvpModel", "BlipModel", "Sam3Model", "GitModel", "VisionTextDualEncoderModel", "XCLIPModel", "CLIPSegForImageSegmentation",
     "ChineseCLIPModel", "Aimv2Model", "UdopEncoderModel"}
)  # fmt: skip
# Modules (`path/Class`) with a softmax that is known not to be token attention, or that belong to a text tower.
REVIEWED = re.compile(
    r"MultiscaleDeformableAttention$|LinearSelfAttention$|EfficientAdditiveAttention$|Integral$|LQE$|AssignAttention$"
    r"|InterestPointDecoder$|LogBinomialSoftmax$|RecHead$|SLAHead$|AttentionGRUCell$|Ovis2VisionModel$|MHAttentionMap$|ForKeypointMatching$"
    r"|(^|\.)(text_model|text_backbone|text_encoder|language_model)\."
)


def draw(*shape: int) -> torch.Tensor:
    """Random numbers, the same for the same shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def side(config: Any) -> tuple[int, int]:
    """Height and width of the images that a configuration is for."""
    for holder in (config, *(getattr(config, name, None) for name in ("vision_config", "backbone_config"))):
        size = getattr(holder, "image_size", None)
        if isinstance(size, int):
            return size, size
        if isinstance(size, list | tuple) and len(size) >= 2:
            return int(size[-2]), int(size[-1])
    return 64, 64


def candidates(kind: type[Any], config: Any) -> Iterator[dict[str, Any]]:
    """Inputs to try, the more telling first: images that are not square, then those of the configuration."""
    if kind.__name__ in INPUTS:
        yield INPUTS[kind.__name__](config)
        return
    taken = set(inspect.signature(kind.forward).parameters)
    if grids := next((n for n in ("grid_thw", "image_grid_thw") if n in taken), None):
        yield packed(config, "hidden_states" if "hidden_states" in taken else "pixel_values", grids)
        return
    if {"pixel_position_ids", "spatial_shapes"} & taken:
        yield placed(config, taken)
        return
    more = words() if "input_ids" in taken else {}
    name = next(n for n in ("pixel_values_videos", "pixel_values", "flattened_patches", "image") if n in taken)
    height, width = side(config)
    channels = int(getattr(config, "num_channels", 3) or 3)
    frames = int(getattr(config, "num_frames", 0) or getattr(config, "frames_per_clip", 0) or 0)
    for size in ((height, 3 * width // 2), (height, width), (128, 128), (224, 224)):
        if frames:
            yield {name: draw(2, frames, channels, *size), **more}
        yield {name: draw(2, channels, *size), **more}


def words(batch: int = 2) -> dict[str, torch.Tensor]:
    """A few words an image."""
    ids = torch.tensor([[1, 5, 6, 7, 8, 2]] * batch)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


GRIDS = ((8, 12), (4, 8))  # patches of the two images that packed towers are given


def packed(config: Any, name: str, grids: str = "grid_thw", merged: int = 1) -> dict[str, Any]:
    """Patches of two images, of 8 by 12 and 4 by 8, one behind the other, as the towers of Qwen's kind take them."""
    channels = getattr(config, "in_channels", None) or getattr(config, "num_channels", 3)
    frames = getattr(config, "temporal_patch_size", getattr(config, "patch_temporal", 1))
    width = channels * frames * (merged * config.patch_size) ** 2
    sizes = torch.tensor([[1, rows // merged, columns // merged] for rows, columns in GRIDS])
    return {name: draw(int(sizes.prod(-1).sum()), width), grids: sizes}


def placed(config: Any, taken: set[str]) -> dict[str, Any]:
    """The same two images in a batch, padded, with the places of their patches: Gemma, NaFlex."""
    longest = max(rows * columns for rows, columns in GRIDS)
    inputs: dict[str, Any] = {"pixel_values": draw(2, longest, 3 * config.patch_size**2)}
    if "spatial_shapes" in taken:
        mask = torch.stack([(torch.arange(longest) < rows * columns).long() for rows, columns in GRIDS])
        return inputs | {"spatial_shapes": torch.tensor(GRIDS), "pixel_attention_mask": mask}
    return inputs | {"pixel_position_ids": torch.stack([places(grid, longest) for grid in GRIDS])}


def places(grid: tuple[int, int], length: int) -> torch.Tensor:
    """Column and row of each patch, row by row, padded with -1: `(length, 2)`."""
    cells = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1])).flip(-1)
    return torch.cat([cells, -torch.ones(length - len(cells), 2, dtype=torch.long)])


def _flattened(config: Any) -> dict[str, Any]:
    """Patches with their rows and columns in front, from 1 on, 0 for padding: Pix2Struct."""
    longest = max(rows * columns for rows, columns in GRIDS)
    there = torch.stack([places(grid, longest).flip(-1) + 1 for grid in GRIDS])
    pixels = draw(2, longest, 3 * 16**2) * (there[..., :1] > 0)
    return {"flattened_patches": torch.cat([there, pixels], dim=-1)}


def _sized(config: Any) -> dict[str, Any]:
    """Two images in one strip of patches, with their sizes in patches: MiniCPM."""
    patch, cells = config.patch_size, sum(rows * columns for rows, columns in GRIDS)
    return {"pixel_values": draw(1, 3, patch, cells * patch), "target_sizes": torch.tensor(GRIDS, dtype=torch.int32)}


def _patches(config: Any) -> dict[str, Any]:
    given = packed(config, "pixel_values")
    return given | {"pixel_values": given["pixel_values"].reshape(-1, 3, config.patch_size, config.patch_size)}


def _blocks(config: Any) -> dict[str, Any]:
    """Blocks of patches, as small images: Inkling 2."""
    merge = config.spatial_merge_size
    given = packed(config, "pixel_values", "image_grid_thw", merge)
    side = merge * config.patch_size
    return given | {"pixel_values": given["pixel_values"].reshape(-1, side, side, 3)}


def _square(config: Any) -> torch.Tensor:
    return draw(2, 3, *side(config))


def _large(config: Any) -> dict[str, Any]:
    return {"pixel_values": draw(2, 3, 192, 256)}


def _pair(config: Any) -> dict[str, Any]:
    """One pair of images to be matched."""
    return {"pixel_values": draw(1, 2, 3, 64, 96)}


def _video(config: Any) -> dict[str, Any]:
    return {"pixel_values_videos": draw(2, 3, 3, *side(config))}


def _masked_video(config: Any) -> dict[str, Any]:
    cells = (config.image_size // config.patch_size) ** 2 * (config.num_frames // config.tubelet_size)
    hidden = (torch.arange(cells) % 4 != 0).expand(2, -1)
    return {"pixel_values": draw(2, config.num_frames, 3, *side(config)), "bool_masked_pos": hidden}


def _omdet(config: Any) -> dict[str, Any]:
    ids, mask = words(4)["input_ids"], words(4)["attention_mask"]
    return {
        "pixel_values": draw(2, 3, 64, 64), "classes_input_ids": ids, "classes_attention_mask": mask, "tasks_input_ids": ids[:2],
        "tasks_attention_mask": mask[:2], "classes_structure": torch.tensor([2, 2]),
    }  # fmt: skip


def _tiles(config: Any) -> dict[str, Any]:
    """Two images, of two tiles and of one."""
    mask = torch.zeros(2, 1, config.max_num_tiles, dtype=torch.long)
    mask[0, 0, :2], mask[1, 0, :1] = 1, 1
    pixels = draw(2, 1, config.max_num_tiles, 3, *side(config))
    return {"pixel_values": pixels, "aspect_ratio_ids": torch.tensor([[2], [1]]), "aspect_ratio_mask": mask}


def _prompted(config: Any) -> dict[str, Any]:
    height, width = side(config)
    image = draw(2, 3, height // 2, width)
    return {"pixel_values": image, "prompt_pixel_values": image.flip(0), "prompt_masks": image.flip(-1)}


def _points(config: Any) -> dict[str, Any]:
    return {"pixel_values": _square(config), "input_points": torch.tensor([[[[20.0, 30.0]]]] * 2)}


def _document(config: Any) -> dict[str, Any]:
    boxes = torch.tensor([[[0, 0, 500, 500]] * 6] * 2)
    scale = 1 if hasattr(config, "input_size") else 1000  # UDOP's boxes are fractions
    size = getattr(config, "input_size", getattr(config, "image_size", 64))
    return {**words(), "bbox": boxes if scale == 1 else boxes / scale, "pixel_values": draw(2, 3, size, size)}


INPUTS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "CLIPSegForImageSegmentation": lambda c: {
        "pixel_values": draw(2, 3, 64, 64),
        "conditional_embeddings": draw(2, c.projection_dim) / 100,
    },
    "EfficientLoFTRModel": _pair,
    "EfficientLoFTRForKeypointMatching": _pair,
    "Inkling2VisionModel": _blocks,
    "JanusVQVAE": lambda c: {"pixel_values": draw(2, 3, 32, 32)},
    "Kimi_K25VisionModel": _patches,
    "Kosmos2_5VisionModel": _flattened,
    "LayoutLMv3Model": _document,
    "LightGlueForKeypointMatching": _pair,
    "Llama4VisionModel": lambda c: {"pixel_values": _square(c)},
    "MiniCPMOcrVisionModel": _sized,
    "MiniCPMV4_6VisionModel": _sized,
    "MiniCPMV4_7VisionModel": _sized,
    **dict.fromkeys(("MobileViTModel", "MobileViTForImageClassification", "MobileViTForSemanticSegmentation"), _large),
    "MllamaVisionModel": _tiles,
    "Molmo2VisionModel": lambda c: {"pixel_values": draw(2, 64, 3 * c.patch_size**2)},
    "OmDetTurboForObjectDetection": _omdet,
    "OneFormerModel": lambda c: {"pixel_values": draw(2, 3, 64, 96), "task_inputs": draw(2, c.task_seq_len)},
    "OneFormerForUniversalSegmentation": lambda c: {
        "pixel_values": draw(2, 3, 64, 96),
        "task_inputs": draw(2, c.task_seq_len),
    },
    "PaddleOCRVisionTransformer": lambda c: (g := _patches(c)) | {"pixel_values": g["pixel_values"][None]},
    "PaddleOCRVisionModel": lambda c: (g := _patches(c)) | {"pixel_values": g["pixel_values"][None]},
    "PeAudioVideoEncoder": lambda c: {**_video(c), "input_values": draw(2, 1, 1920 * 4)},
    "PeVideoEncoder": _video,
    "Pix2StructVisionModel": _flattened,
    "SamModel": _points,
    "SamHQModel": _points,
    "Sam2Model": _points,
    "Sam3TrackerModel": _points,
    "EdgeTamModel": _points,
    "SegGptModel": _prompted,
    "SegGptForImageSegmentation": _prompted,
    "Siglip2ForImageClassification": lambda c: placed(c.vision_config, {"spatial_shapes"}),
    "SuperGlueForKeypointMatching": _pair,
    "TvpModel": lambda c: {"pixel_values": draw(1, 2, 3, c.max_img_size, c.max_img_size), **words(1)},
    "UdopEncoderModel": _document,
    "VideoLlama3VisionModel": lambda c: packed(c, "pixel_values") | {"merge_sizes": torch.tensor([2, 1])},
    "VideoMAEForPreTraining": _masked_video,
    "VideomtForUniversalSegmentation": _video,
    "VisionTextDualEncoderModel": lambda c: {"pixel_values": _square(c), **words()},
    "XCLIPVisionModel": lambda c: {"pixel_values": draw(2 * c.num_frames, 3, *side(c))},
    "XCLIPModel": lambda c: {"pixel_values": draw(2, c.vision_config.num_frames, 3, *side(c)), **words()},
}
