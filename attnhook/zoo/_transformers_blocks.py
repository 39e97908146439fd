"""transformers' attention modules by class: how their tensors are arranged, who asks, what their tokens are.

Only facts that cannot be seen from the call stand here; of a class that is missing, the model's own layout holds if it fits.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from attnhook.capture.adapters import class_of
from attnhook.capture.sites import Arrangement, Queries, SeenCall, SiteTokens
from attnhook.capture.windows import WindowLayout
from attnhook.zoo.stages import mask_units, pair, parents, shrunk, shrunk_grid, windows

# Softmaxes that are not attention between tokens, and what they are.
NOT_TOKENS = {
    "MobileViTV2LinearSelfAttention": "separable linear attention",
    "SwiftFormerEfficientAdditiveAttention": "additive attention, which pools to one global query",
    "SuperPointInterestPointDecoder": "a softmax over the pixels of a cell",
    "DFineIntegral": "a distribution over box edges",
    "Deimv2Integral": "a distribution over box edges",
    "CHMv2FeaturesToDepth": "a softmax over depth bins",
    "LogBinomialSoftmax": "a softmax over depth bins",
    "DFineLQE": "a quality estimate from box distributions",
    "Deimv2LQE": "a quality estimate from box distributions",
    "GroupViTAssignAttention": "an assignment of tokens to groups",
    "ZoeDepthConditionalLogBinomialSoftmax": "a softmax over depth bins",
    "SLANetSLAHead": "a softmax over the characters of a table",
    "SLANeXtSLAHead": "a softmax over the characters of a table",
    "SLANetAttentionGRUCell": "a recurrent cell's weights of the positions, without heads or queries of tokens",
    "SLANeXtAttentionGRUCell": "a recurrent cell's weights of the positions, without heads or queries of tokens",
    "PPOCRV5MobileRecHead": "a softmax over characters",
    "PPOCRV5ServerRecHead": "a softmax over characters",
    "PPOCRV6SmallRecHead": "a softmax over characters",
    "PPOCRV6TinyRecHead": "a softmax over characters",
    "Florence2VisionChannelAttention": "attention between channels",
    "Ovis2VisionModel": "a softmax over a visual vocabulary",
}

_DEFORMABLE = "MultiscaleDeformableAttention"  # every detector has its own copy

Facts = dict[str, Any]


def not_tokens(kind: str) -> str | None:
    """What the softmax of a class is if it is not attention between tokens; None if it is, or there is none.

    Args:
        kind: The class's name.

    Returns:
        The words.
    """
    if kind.endswith(_DEFORMABLE):
        return "deformable attention, whose weights of sampled points come from the query alone"
    if kind.endswith(("HungarianMatcher", "Loss")):
        return "a cost of the training loss"
    return NOT_TOKENS.get(kind)


def facts_of(model: nn.Module, name: str, module: nn.Module) -> Facts:
    """What `AttentionSite` is to be told about a module.

    Args:
        model: The model.
        name: The module's path in it.
        module: The module.

    Returns:
        Keyword arguments.
    """
    heads = next((h for a in _HEADS if isinstance(h := getattr(module, a, None), int)), 0)
    facts: Facts = {"arrangement": Arrangement.MERGED_OR_HEADS, "heads": heads} if heads else {}
    rule = _RULES.get(class_of(module).__name__)
    return facts if rule is None else facts | rule(model, name, module)


_HEADS = ("num_heads", "num_attention_heads", "n_heads", "nhead")


def _swin(model: nn.Module, name: str, module: Any) -> Facts:
    layer: Any = next(holder for holder in parents(model, name) if hasattr(holder, "shift_size"))

    def cut(call: SeenCall) -> WindowLayout:
        window, shift = pair(layer.window_size), pair(layer.shift_size)  # set by the layer as it runs
        return WindowLayout.partition(pair(call.inputs[1]), window=window, shift=shift, pad="before")

    return {"queries": Queries.PATCHES, "tokens_of": windows(cut), "seen_module": layer}


def _local(axis: int) -> Callable[[nn.Module, str, Any], Facts]:
    """Windows of the layer around, whose input has height and width at `axis`."""

    def rule(model: nn.Module, name: str, module: Any) -> Facts:
        layer = next(holder for holder in parents(model, name) if hasattr(holder, "window_size"))

        def cut(call: SeenCall) -> WindowLayout:
            grid = (call.inputs[0][axis], call.inputs[0][axis + 1])
            window = getattr(layer, "window_size", 0)
            return WindowLayout.partition(grid, window=pair(window) if window else grid)

        return {"queries": Queries.PATCHES, "tokens_of": windows(cut), "seen_module": layer}

    return rule


def _hiera(model: Any, name: str, module: Any) -> Facts:
    encoder: Any = next(holder for holder in parents(model, name) if hasattr(holder, "schedule"))
    schedule, size = encoder.schedule[0]

    def cut(call: SeenCall) -> WindowLayout:
        return mask_units(size, schedule, call.inputs[0][1], call)

    facts = {"queries": Queries.PATCHES, "tokens_of": windows(cut), "seen_module": module}
    return {**facts, "arrangement": Arrangement.HEADS_WINDOWS}


def _shrunk(model: nn.Module, name: str, module: Any) -> Facts:
    return {"queries": Queries.PATCHES, "tokens_of": shrunk()}


def _cvt(model: nn.Module, name: str, module: Any) -> Facts:
    if not module.with_cls_token:
        return _shrunk(model, name, module)
    return {"tokens_of": shrunk(1, 0)}


def _pvt(model: Any, name: str, module: Any) -> Facts:
    encoder: Any = next(holder for holder in parents(model, name) if hasattr(holder, "patch_embeddings"))
    stage = int(name.split("block.")[1].split(".", maxsplit=1)[0])
    if getattr(encoder.patch_embeddings[stage], "cls_token", None) is None:
        return _shrunk(model, name, module)
    return {"tokens_of": shrunk(1, 0)}


def _mobilevit(model: nn.Module, name: str, module: Any) -> Facts:
    layer: Any = next(holder for holder in parents(model, name) if hasattr(holder, "patch_width"))

    def tokens_of(call: SeenCall) -> SiteTokens:
        if call.input_size is None:
            return SiteTokens("the size of the images is not known.")
        cut = shrunk_grid(call.input_size, call.keys)
        if isinstance(cut, str):
            return SiteTokens(cut)
        grid = (cut[0] * layer.patch_height, cut[1] * layer.patch_width)
        return SiteTokens(WindowLayout.partition(grid, window=cut, strided=True))

    return {"queries": Queries.PATCHES, "tokens_of": tokens_of}


def _timesformer(model: Any, name: str, module: Any) -> Facts:
    if "temporal" in name:
        words = "divided attention over time: each batch entry is one patch, its tokens are the frames."
        return {"queries": Queries.PATCHES, "tokens_of": lambda _: SiteTokens(words)}
    if model.config.attention_type != "divided_space_time":
        return {}
    return {"tokens_of": shrunk(1, 0)}  # each batch entry is one frame, with its copy of the class token


def _decoder(model: nn.Module, name: str, module: Any) -> Facts:
    words = "tokens of a decoder: queries that are no patches, or keys of several feature maps."
    return {"queries": Queries.PATCHES, "tokens_of": lambda _: SiteTokens(words)}


_RULES: dict[str, Callable[[nn.Module, str, Any], Facts]] = {
    "SwinAttention": _swin,
    "SwinSelfAttention": _swin,
    "Swinv2SelfAttention": _swin,
    "DonutSwinSelfAttention": _swin,
    "MaskFormerSwinSelfAttention": _swin,
    "Swin2SRSelfAttention": _swin,
    "ClapAudioSelfAttention": _swin,
    "SamVisionAttention": _local(1),
    "SamVisionSdpaAttention": _local(1),
    "SamHQVisionAttention": _local(1),
    "SamHQVisionSdpaAttention": _local(1),
    "VitDetAttention": _local(2),
    "HieraMaskUnitAttention": _hiera,
    "SegformerAttention": _shrunk,
    "SegformerEfficientSelfAttention": _shrunk,
    "GLPNEfficientSelfAttention": _shrunk,
    "PvtEfficientSelfAttention": _pvt,
    "PvtV2SelfAttention": _shrunk,
    "LevitAttention": _shrunk,
    "LevitAttentionSubsample": _shrunk,
    "CvtSelfAttention": _cvt,
    "MobileViTSelfAttention": _mobilevit,
    "TimesformerSelfAttention": _timesformer,
    "MgpstrA3Module": lambda *_: {"arrangement": Arrangement.SINGLE, "queries": Queries.POOL},
    "SamAttention": _decoder,
    "SamHQAttention": _decoder,
}
