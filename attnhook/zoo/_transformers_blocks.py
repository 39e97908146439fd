"""transformers' attention modules by class: how their tensors are arranged, who asks, what their tokens are.

Only facts that cannot be seen from the call stand here; of a class that is missing, the model's own layout holds if it fits.
"""

import re
from collections.abc import Callable
from typing import Any

from torch import nn

from attnhook.capture.layout import TokenLayout
from attnhook.capture.recognition import class_of
from attnhook.capture.sites import Arrangement, CallContext, Queries, SiteTokens
from attnhook.capture.windows import WindowLayout
from attnhook.zoo._transformers_windows import layer_windows, window_order, windows_with_class_tokens
from attnhook.zoo.stages import mask_units, pair, parents, shrunk, shrunk_grid, windows

# Softmaxes that are not attention between tokens, and what they are.
NOT_TOKENS = {
    "MobileViTV2LinearSelfAttention": "separable linear attention",
    "PoolFormerPooling": "average pooling in the place of attention",
    "FocalNetModulation": "focal modulation, which gathers context by convolutions and gates",
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
    """What the softmax of a class is if it is not attention between tokens; None if it is, or there is none."""
    if kind.endswith(_DEFORMABLE):
        return "deformable attention, whose weights of sampled points come from the query alone"
    if kind.endswith("MHAttentionMap"):
        return (
            "a map of where object queries look, normalised over all heads at once, with which no values are multiplied"
        )
    if kind.endswith("AttentionResidual"):
        return "a softmax over the outputs of earlier layers"
    if kind.endswith(("HungarianMatcher", "Loss")):
        return "a cost of the training loss"
    return NOT_TOKENS.get(kind)


def facts_of(model: nn.Module, name: str, module: nn.Module) -> Facts:
    """What `AttentionSite` is to be told about a module."""
    heads = next((h for a in _HEADS if isinstance(h := getattr(module, a, None), int)), 0)
    facts: Facts = {"arrangement": Arrangement.MERGED_OR_HEADS, "heads": heads} if heads else {}
    kind = class_of(module).__name__
    rule = _RULES.get(kind) or next((rule for pattern, rule in _FAMILIES if pattern.fullmatch(kind)), None)
    return facts | ((layer_windows(model, name) or {}) if rule is None else rule(model, name, module))


_HEADS = ("num_heads", "num_attention_heads", "n_heads", "nhead")


def _swin(model: nn.Module, name: str, module: Any) -> Facts:
    layer: Any = next(holder for holder in parents(model, name) if hasattr(holder, "shift_size"))

    def cut(call: CallContext) -> WindowLayout:
        window, shift = pair(layer.window_size), pair(layer.shift_size)  # set by the layer as it runs
        return WindowLayout.partition(pair(call.inputs[1]), window=window, shift=shift, pad="before")

    return {"queries": Queries.PATCHES, "tokens_of": windows(cut), "seen_module": layer}


def _hiera(model: Any, name: str, module: Any) -> Facts:
    holders: Any = parents(model, name)
    encoder = next((holder for holder in holders if hasattr(holder, "schedule")), None)
    facts = {"queries": Queries.PATCHES, "seen_module": module, "arrangement": Arrangement.HEADS_WINDOWS}
    if encoder is None:
        return _decoder(model, name, module) | {"arrangement": Arrangement.HEADS_WINDOWS}
    if not any(hasattr(holder, "unroll_schedule") for holder in holders):
        words = (
            "its patches are not put in the order of mask units, which its blocks expect. Read `.rows` without a grid."
        )
        return {**facts, "tokens_of": lambda _: SiteTokens(words)}
    schedule, size = encoder.schedule[0]
    stage = int(name.split("stages.")[1].split(".", maxsplit=1)[0])
    rows, columns = encoder.schedule[max(stage - (module.query_stride > 1), 0)][1]

    def cut(call: CallContext) -> WindowLayout | str:
        tokens = call.inputs[0][1]
        if tokens != rows * columns:
            return f"{tokens} tokens are not the {rows}x{columns} of its stage: mask units are hidden. Read `.rows` without a grid."
        return mask_units(size, schedule, tokens, call)

    return {**facts, "tokens_of": windows(cut)}


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

    def tokens_of(call: CallContext) -> SiteTokens:
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


def _detector(model: nn.Module, name: str, module: Any) -> Facts:
    """Encoders of detectors see one feature map, row by row; decoders' object queries look at it, and at each other."""
    if "decoder" not in name:
        return _shrunk(model, name, module)
    if not any(part in name.rpartition(".decoder.")[2] for part in ("encoder_attn", "cross_attn")):
        return {"queries": Queries.OTHER, "tokens_of": lambda _: SiteTokens("the tokens are object queries.")}
    of_keys = shrunk()
    return {
        "queries": Queries.OTHER,
        "tokens_of": lambda call: SiteTokens(of_keys(call).keys, "the queries are object queries"),
    }


def _conv_attention(model: nn.Module, name: str, module: Any) -> Facts:
    """Single-head attention between the positions of a feature map, amid convolutions."""
    return {**_shrunk(model, name, module), "arrangement": Arrangement.SINGLE}


def _videoprism(model: nn.Module, name: str, module: Any) -> Facts:
    if "temporal_layers" in name:
        words = "attention over time: each batch entry is one patch, its tokens are the frames."
        return {"queries": Queries.PATCHES, "tokens_of": lambda _: SiteTokens(words)}
    return {"tokens_of": _with_suffix(None)} if "spatial_layers" in name else {}


def _with_suffix(cls: int | None) -> Callable[[CallContext], SiteTokens]:
    """Patches of one frame, and whatever the model puts behind them."""

    def tokens_of(call: CallContext) -> SiteTokens:
        if call.grid is None:
            return SiteTokens("the patch grid is not known: no patch embedding was seen in this forward.")
        more = call.keys - call.grid[0] * call.grid[1] - (cls is not None)
        if more < 0:
            return SiteTokens(
                f"{call.keys} tokens are fewer than the patches of a grid of {call.grid[0]}x{call.grid[1]}."
            )
        return SiteTokens(TokenLayout(call.grid, cls, suffix=more))

    return tokens_of


def _xclip(model: nn.Module, name: str, module: Any) -> Facts:
    if "message_attn" in name:
        return {
            "queries": Queries.OTHER,
            "tokens_of": lambda _: SiteTokens("messages of a clip's frames to each other."),
        }
    seen = "mit" not in name.split(".")
    return {"tokens_of": _with_suffix(0)} if seen and "encoder.layers" in name else {}


def _groupvit(model: nn.Module, name: str, module: Any) -> Facts:
    if "stages.0.layers" in name:
        return {"queries": Queries.PATCHES, "tokens_of": _with_suffix(None)}
    if "stages.0.downsample" in name:
        rule = shrunk()
        return {
            "queries": Queries.OTHER,
            "tokens_of": lambda call: SiteTokens(rule(call).keys, "the queries are group tokens"),
        }
    return {
        "queries": Queries.OTHER,
        "tokens_of": lambda _: SiteTokens("the tokens are segments and group tokens, no patches."),
    }


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
    "VitDetAttention": lambda model, name, _: layer_windows(model, name, axis=2) or {},
    "LwDetrViTAttention": window_order,
    "RfDetrDinov2Attention": windows_with_class_tokens,
    "GroupViTAttention": _groupvit,
    "VideoPrismAttention": _videoprism,
    "XCLIPAttention": _xclip,
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

# Classes that many families copy, by their names.
_FAMILIES: tuple[tuple[re.Pattern[str], Callable[[nn.Module, str, Any], Facts]], ...] = (
    (
        re.compile(r"(\w*Detr(V2)?|DFine|Deimv2|PPDocLayoutV\d|TableTransformer)(Decoder)?(Self|Cross)?Attention"),
        _detector,
    ),
    (re.compile(r"\w+VQVAE(Encoder)?AttnBlock|\w+VisionTokenizerAttnBlock"), _conv_attention),
)
