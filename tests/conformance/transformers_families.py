"""Tiny models of every vision class of the installed transformers: what `coverage_timm.py` walks, and tests build a few of.

Classes are found by what their forward takes, in every family's module. Their default configuration is made small by the names of its settings
(`small_settings`), weights are random. What that does not fit stands in `transformers_inputs`.
"""

import importlib
import inspect
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from tests.conformance import transformers_inputs as given
from tests.conformance.transformers_settings import DROPPED, SETTINGS

_PIXELS = {"pixel_values", "pixel_values_videos", "flattened_patches", "image", "patch_embeds"}
_WIDTH, _FEED_FORWARD, _HEADS, _SIDE, _PATCH = 96, 48, 4, 64, 8
_WIDTHS = re.compile(
    r"(.*_)?(hidden_size|hidden_dim|embed_dim|embedding_dim|d_model|channels|conv_dim|n_embd|qk_channels|v_channels|d_latents"
    r"|(projection|output|input|fpn|mask|neck|fusion|proj|shared_image_embedding|vision|text|contrastive|class_embed)_dim"
    r"|(feature|mask_feature|fpn_feature)_size|encoder_channel|bottleneck_features)"
)
_DEPTHS = re.compile(
    r"(.*_)?(num_hidden_layers|encoder_layers|decoder_layers|num_layers|num_attention_layers|vision_layers|num_(encoder|decoder)_layers)"
    r"|depth|n_layer|num_self_attends_per_block|num_blocks|num_fusion_layers"
)
_HEAD_COUNTS = re.compile(
    r"(.*_)?(num_heads|num_attention_heads|attention_heads|num_head|n_heads?|num_key_value_heads)"
)
_INNER = re.compile(
    r"(.*_)?(intermediate_size|ffn_dim|mlp_dim|feedforward_dim|intermediate_dim|d_ff)|dim_feedforward|inner_dim"
)
_CAPS = {
    "vocab_size": 300, "max_position_embeddings": 128, "num_queries": 5, "head_dim": 24, "num_frames": 4, "frames_per_clip": 4,
    "num_latents": 6, "num_detection_tokens": 7, "n_positions": 128, "patch_size": _PATCH, "image_size": _SIDE, "crop_size": _SIDE,
    "pretrain_image_size": _SIDE, "num_experts": 2, "num_local_experts": 2, "codebook_size": 16, "num_embeddings": 16, "num_labels": 3,
    "decoder_in_channels": _WIDTH,
}  # fmt: skip
_LEFT_OUT = {
    "transformers_version",
    "id2label",
    "label2id",
    "architectures",
    "dtype",
    "torch_dtype",
    "stage_names",
    "per_layer_config",
}
_TAPS = ("out_features", "out_indices", "_out_features", "_out_indices")  # which stages a backbone hands out
_STAGES = ("depths", "layers", "num_layers", "depth")


def families() -> dict[str, list[type[Any]]]:
    """The model classes that see images, by family (its module's name)."""
    found: dict[str, list[type[Any]]] = {}
    for family, kind in _classes():
        taken = set(inspect.signature(kind.forward).parameters)
        config = kind.config_class
        text = {"input_ids", "decoder_input_ids"} & taken and kind.__name__ not in given.WITH_TEXT
        if text or kind.__name__ in given.PARTS or not inspect.isclass(config):
            continue
        if taken & _PIXELS or {"hidden_states", "grid_thw"} <= taken:
            found.setdefault(family, []).append(kind)
    return found


def _classes() -> Iterator[tuple[str, type[Any]]]:
    for file in sorted((Path(transformers.__file__).parent / "models").glob("*/modeling_*.py")):
        if "pixel" not in file.read_text() and "flattened_patches" not in file.read_text():
            continue
        if file.stem.startswith(("modeling_flax_", "modeling_tf_")):  # of transformers 4
            continue
        module = importlib.import_module(f"transformers.models.{file.parent.name}.{file.stem}")
        for kind in vars(module).values():
            own = (
                inspect.isclass(kind)
                and issubclass(kind, transformers.PreTrainedModel)
                and kind.__module__ == module.__name__
            )
            if own and not kind.__name__.endswith("PreTrainedModel"):
                yield file.parent.name, kind


def small_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a small model from those of a large one, by their names; those inside `*_config` as well."""
    staged = any(isinstance(settings.get(name), list | tuple) for name in _STAGES)
    taps = 0 if staged else max(len(settings.get(name) or ()) for name in _TAPS)
    depth = max(2, taps)
    old = set() if staged else {v for name, v in settings.items() if _DEPTHS.fullmatch(name) and isinstance(v, int)}
    small: dict[str, Any] = {}
    for name, value in settings.items():
        if name in _LEFT_OUT or (name in _TAPS and (taps or name != "out_features")):
            continue
        if isinstance(value, dict):
            small[name] = small_settings(value) if "config" in name else value
        elif name in _STAGES and isinstance(value, list | tuple):
            small[name] = [min(2, stage) if isinstance(stage, int) else stage for stage in value]
        elif isinstance(value, list | tuple) and len(value) in old and len(value) > depth:
            small[name] = _shortened(list(value), depth)
        elif isinstance(value, list | tuple):
            small[name] = [_smaller(name, part, depth) for part in value] if name in _CAPS else value
        else:
            small[name] = value if staged and _DEPTHS.fullmatch(name) else _smaller(name, value, depth)
    if taps and old:
        small["out_features"] = [f"stage{depth - taps + i + 1}" for i in range(taps)]
    return small


def _shortened(values: list[Any], depth: int) -> list[Any]:
    """The first settings of a list with one a layer, in which each kind of layer is left."""
    kinds = [value for i, value in enumerate(values) if value not in values[:i]]
    return (kinds + values)[:depth]


def _smaller(name: str, value: Any, depth: int) -> Any:
    if name == "initializer_range" and isinstance(value, float):
        return max(value, 0.02)  # some are next to nothing, and attention then uniform
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if name in _CAPS:
        return min(value, _CAPS[name])
    if name.endswith(("_token_id", "_token_index")):
        return min(value, 250)
    for pattern, cap in ((_DEPTHS, depth), (_HEAD_COUNTS, _HEADS), (_INNER, _FEED_FORWARD), (_WIDTHS, _WIDTH)):
        if pattern.fullmatch(name):
            return min(value, cap)
    return value


def configuration(kind: type[Any]) -> Any:
    """A small configuration of a model class."""
    config_class = kind.config_class
    own = SETTINGS.get(kind.__name__, SETTINGS.get(config_class.__name__, {}))
    return config_class(**_merged(small_settings(config_class().to_dict()), own))


def _merged(settings: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    merged = dict(settings)
    for name, value in more.items():
        inner = merged.get(name)
        merged[name] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return {name: value for name, value in merged.items() if value is not DROPPED}


def bare(kind: type[Any]) -> nn.Module:
    """A tiny model of a class, its weights random."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return kind(configuration(kind)).eval()


def build(kind: type[Any]) -> tuple[nn.Module, dict[str, Any]]:
    """A tiny model of a class, and the first inputs that it runs on."""
    model = bare(kind)
    config = model.config
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        problem: Exception | None = None
        for inputs in given.candidates(kind, config):
            try:
                torch.manual_seed(0)
                with torch.no_grad():
                    model(**inputs)
            except Exception as error:  # the next inputs may fit
                problem = problem or error
            else:
                return model, inputs
    raise problem or ValueError(f"no inputs are known for {kind.__name__}")
