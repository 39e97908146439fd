"""transformers' attention modules by class: the arrangement of their tensors, their queries, and their tokens.

Only what the call itself does not show is listed. For a class that is not listed, the model's own layout holds if it fits.
"""

import re
import sys
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor, nn

from attnhook.capture.layout import TokenLayout
from attnhook.capture.recognition import class_of
from attnhook.capture.sites import Arrangement, CallContext, Queries, SiteTokens
from attnhook.capture.windows import WindowLayout
from attnhook.options import Size
from attnhook.zoo import token_rules as rules
from attnhook.zoo.token_rules import ModuleContext, OptionsRule, SiteOptions, in_windows, input_grid, pair

_DEFORMABLE = "deformable attention, whose weights of sampled points come from the query alone"
_MAP = "a map of where object queries look, normalised over all heads at once, with which no values are multiplied"
# Softmaxes that are not attention between tokens, and what they are, by patterns of class names.
_NOT_TOKENS = (
    (r"MobileViTV2LinearSelfAttention", "separable linear attention"),
    (r"PoolFormerPooling", "average pooling in the place of attention"),
    (r"FocalNetModulation", "focal modulation, which gathers context by convolutions and gates"),
    (r"SwiftFormerEfficientAdditiveAttention", "additive attention, which pools to one global query"),
    (r"SuperPointInterestPointDecoder", "a softmax over the pixels of a cell"),
    (r"(DFine|Deimv2)Integral", "a distribution over box edges"),
    (r"(DFine|Deimv2)LQE", "a quality estimate from box distributions"),
    (r"CHMv2FeaturesToDepth|(ZoeDepthConditional)?LogBinomialSoftmax", "a softmax over depth bins"),
    (r"GroupViTAssignAttention", "an assignment of tokens to groups"),
    (r"SLANe(t|Xt)SLAHead", "a softmax over the characters of a table"),
    (r"SLANe(t|Xt)AttentionGRUCell", "a recurrent cell's weights of the positions, without heads or queries of tokens"),
    (r"PPOCRV(5Mobile|5Server|6Small|6Tiny)RecHead", "a softmax over characters"),
    (r"Florence2VisionChannelAttention", "attention between channels"),
    (r"Ovis2VisionModel", "a softmax over a visual vocabulary"),
    (r"\w*AttentionResidual", "a softmax over the outputs of earlier layers"),
    (r"\w*(HungarianMatcher|Loss)", "a cost of the training loss"),
    (r"\w*MultiscaleDeformableAttention", _DEFORMABLE),  # every detector has its own copy
    (r"\w*MHAttentionMap", _MAP),
)

_HEADS = ("num_heads", "num_attention_heads", "n_heads", "nhead")


@cache
def not_tokens(kind: str) -> str | None:
    """What the softmax of a class is if it is not attention between tokens; otherwise None."""
    return next((words for pattern, words in _NOT_TOKENS if re.fullmatch(pattern, kind)), None)


def site_options(context: ModuleContext) -> SiteOptions:
    """Options of `AttentionSite` for a module."""
    heads = next((h for name in _HEADS if isinstance(h := getattr(context.module, name, None), int)), 0)
    options: SiteOptions = {"arrangement": Arrangement.MERGED_OR_HEADS, "heads": heads} if heads else {}
    kind = class_of(context.module).__name__
    rule = next((rule for pattern, rule in _RULES if re.fullmatch(pattern, kind)), _layer_windows)
    return options | rules.options_of(rule, context)


def _layer_windows(context: ModuleContext, axis: int = 1) -> SiteOptions:
    """Windows that the layer around cuts by a function or method `window_partition` (SAM and others), height and width at `axis`."""
    layer = context.parent_with("window_size")
    kind = class_of(layer)
    if layer is None or not any(
        hasattr(place, "window_partition") for place in (kind, sys.modules.get(kind.__module__))
    ):
        return {}
    stride = getattr(layer, "query_stride", None)

    def cut(call: CallContext) -> WindowLayout:
        grid = input_grid(call, axis)
        size = pair(layer.window_size) if layer.window_size else grid
        keys = WindowLayout.partition(grid, window=size)
        if stride is None:
            return keys
        pooled = pair(stride)
        return rules.pooled_queries(keys, size, pooled, (grid[0] // pooled[0], grid[1] // pooled[1]))

    return in_windows(layer, cut)


def _swin(context: ModuleContext) -> SiteOptions:
    layer = context.parent_with("shift_size")

    def cut(call: CallContext) -> WindowLayout:
        window, shift = pair(layer.window_size), pair(layer.shift_size)  # the layer sets them when it runs
        return WindowLayout.partition(pair(call.inputs[1]), window=window, shift=shift, pad="before")

    return in_windows(layer, cut)


def _window_order(context: ModuleContext) -> SiteOptions:
    """LW-DETR's backbone: tokens are ordered window by window from the start, and some blocks attend over all of them."""
    layer, side = context.parent_with("window"), int(context.module.config.num_windows_side)

    def tokens_of(grid: Size, call: CallContext) -> SiteTokens:
        cut = WindowLayout.partition(grid, window=(grid[0] // side, grid[1] // side))
        if layer.window:
            return rules.windows(lambda _: cut)(call)
        whole = TokenLayout(grid, cls=None, order=cut.positions.reshape(1, -1))
        if whole.num_tokens != call.keys:
            return SiteTokens(f"{call.keys} keys do not fit {whole.describe()}. Read `.rows` without a grid.")
        return SiteTokens(whole)

    return {"queries": Queries.PATCHES, "tokens_of": _with_grid(tokens_of)}


def _windows_with_class_tokens(context: ModuleContext) -> SiteOptions:
    """RF-DETR's backbone: each window starts with its own copy of the class token, and some blocks attend over all windows."""
    layer = context.parent_with("global_attention")
    side = int(layer.num_windows)

    def tokens_of(grid: Size, call: CallContext) -> SiteTokens:
        positions = nn.functional.pad(_transposed_windows(grid, side), (1, 0), value=-1)
        words = f"windows of {positions.shape[1] - 1} patches and a class token"
        if layer.global_attention:
            positions, words = positions.reshape(1, -1), "window of all tokens, window by window, a class token each,"
        return rules.windows(lambda _: WindowLayout(grid, positions, words=words))(call)

    return {"queries": Queries.PATCHES, "tokens_of": _with_grid(tokens_of)}


def _transposed_windows(grid: Size, side: int) -> Tensor:
    """Row-major index of each patch of each window, as transformers cuts them: rows and columns are swapped unless the grid is square."""
    index = torch.arange(grid[0] * grid[1], device="cpu").reshape(side, grid[1] // side, side, grid[0] // side)
    return index.transpose(1, 2).reshape(side * side, -1)


def _hiera(context: ModuleContext) -> SiteOptions:
    encoder = context.parent_with("schedule")
    arrangement = {"arrangement": Arrangement.HEADS_WINDOWS}
    if encoder is None:
        return _DECODER | arrangement
    if context.parent_with("unroll_schedule") is None:
        words = "patches are not in the order of mask units that the blocks expect. Read `.rows` without a grid."
        return rules.unknown(words) | arrangement
    schedule, size = encoder.schedule[0]
    stage = rules.stage_of(context.name, "stages")
    rows, columns = encoder.schedule[max(stage - (context.module.query_stride > 1), 0)][1]

    def cut(call: CallContext) -> WindowLayout | str:
        tokens = call.inputs[0][1]
        if tokens != rows * columns:
            return f"{tokens} tokens are not the {rows}x{columns} of the stage: mask units are hidden. Read `.rows` without a grid."
        return rules.mask_units(size, schedule, tokens, call)

    return in_windows(context.module, cut, **arrangement)


def _mobilevit(context: ModuleContext) -> SiteOptions:
    layer = context.parent_with("patch_width")

    def tokens_of(call: CallContext) -> SiteTokens:
        window = rules.downsampled_grid(call.input_size, call.keys)
        if isinstance(window, str):
            return SiteTokens(window)
        grid = (window[0] * layer.patch_height, window[1] * layer.patch_width)
        return SiteTokens(WindowLayout.partition(grid, window=window, strided=True))

    return {"queries": Queries.PATCHES, "tokens_of": tokens_of}


def _with_grid(rule: Callable[[Size, CallContext], SiteTokens]) -> Callable[[CallContext], SiteTokens]:
    """Rule of a block that needs the grid of the patch embedding."""

    def tokens_of(call: CallContext) -> SiteTokens:
        if call.grid is None:
            return SiteTokens(
                "the patch grid is unknown: no patch embedding ran in this forward. Read `.rows` without a grid."
            )
        return rule(call.grid, call)

    return tokens_of


def _with_suffix(cls: int | None, frames: Callable[[CallContext], int] = lambda _: 1) -> SiteOptions:
    """The patches of one frame, of `frames` of each clip, and the tokens that the model appends to them."""

    def tokens_of(grid: Size, call: CallContext) -> SiteTokens:
        suffix = call.keys - grid[0] * grid[1] - (cls is not None)
        if suffix < 0:
            return SiteTokens(
                f"{call.keys} tokens are too few: expected at least a grid of {grid[0]}x{grid[1]}. Read `.rows` without a grid."
            )
        return SiteTokens(TokenLayout(grid, cls, suffix=suffix, frames_in_batch=frames(call)))

    return {"tokens_of": _with_grid(tokens_of)}


def _cvt(context: ModuleContext) -> SiteOptions:
    return rules.WITH_CLASS_TOKEN if context.module.with_cls_token else rules.ON_GRID


def _pvt(context: ModuleContext) -> SiteOptions:
    embeddings = context.parent_with("patch_embeddings").patch_embeddings[rules.stage_of(context.name, "block")]
    return rules.ON_GRID if getattr(embeddings, "cls_token", None) is None else rules.WITH_CLASS_TOKEN


def _timesformer(context: ModuleContext) -> SiteOptions:
    if "temporal" in context.name:
        return _OVER_TIME
    # Unless it attends to all frames at once, each batch entry is one frame, with its own class token.
    settings = context.parent_with("config").config
    joint = settings.attention_type == "joint_space_time"
    return {} if joint else {"tokens_of": rules.downsampled(1, 0, frames=settings.num_frames)}


def _videoprism(context: ModuleContext) -> SiteOptions:
    if "temporal_layers" in context.name:
        return _OVER_TIME
    if "spatial_layers" not in context.name:
        return {}
    seen = context.parent_with("spatial_embeddings").spatial_embeddings
    return {"seen_module": seen, **_with_suffix(None, lambda call: int(call.inputs[0][1]))}


def _xclip(context: ModuleContext) -> SiteOptions:
    if "message_attn" in context.name:
        return rules.unknown("the tokens are messages between the frames of a clip.", Queries.OTHER)
    vision = "mit" not in context.name.split(".") and "encoder.layers" in context.name
    return _with_suffix(0, lambda _: int(context.parent_with("config").config.num_frames)) if vision else {}


def _groupvit(context: ModuleContext) -> SiteOptions:
    if "stages.0.layers" in context.name:
        return {"queries": Queries.PATCHES, **_with_suffix(None)}
    if "stages.0.downsample" in context.name:
        return rules.on_grid_to("group tokens")
    return rules.unknown("the tokens are segments and group tokens, not patches.", Queries.OTHER)


def _detector(context: ModuleContext) -> SiteOptions:
    """The encoder of a detector sees one feature map; object queries of its decoder attend to the map and to each other."""
    if "decoder" not in context.name:
        return rules.ON_GRID
    inner = context.name.rpartition(".decoder.")[2]
    if "encoder_attn" in inner or "cross_attn" in inner:
        return rules.on_grid_to("object queries")
    return rules.unknown("the tokens are object queries.", Queries.OTHER)


_DECODER = rules.unknown("the tokens are a decoder's: queries that are not patches, or keys from several feature maps.")
_OVER_TIME = rules.unknown("this is attention over time: each batch entry is one patch, its tokens are the frames.")

# By patterns of class names: many families copy a class of another.
_RULES: tuple[tuple[str, SiteOptions | OptionsRule], ...] = (
    (r"Swin(Self)?Attention|(Swinv2|DonutSwin|MaskFormerSwin|Swin2SR|ClapAudio)SelfAttention", _swin),
    (r"VitDetAttention", partial(_layer_windows, axis=2)),
    (r"LwDetrViTAttention", _window_order),
    (r"RfDetrDinov2Attention", _windows_with_class_tokens),
    (r"GroupViTAttention", _groupvit),
    (r"VideoPrismAttention", _videoprism),
    (r"XCLIPAttention", _xclip),
    (r"HieraMaskUnitAttention", _hiera),
    (r"SegformerAttention|(Segformer|GLPN)EfficientSelfAttention|PvtV2SelfAttention", rules.ON_GRID),
    (r"LevitAttention(Subsample)?", rules.ON_GRID),
    (r"PvtEfficientSelfAttention", _pvt),
    (r"CvtSelfAttention", _cvt),
    (r"MobileViTSelfAttention", _mobilevit),
    (r"TimesformerSelfAttention", _timesformer),
    (r"MgpstrA3Module", {"arrangement": Arrangement.SINGLE, "queries": Queries.POOL}),
    (r"Sam(HQ)?Attention", _DECODER),
    (r"(\w*Detr(V2)?|DFine|Deimv2|PPDocLayoutV\d|TableTransformer)(Decoder)?(Self|Cross)?Attention", _detector),
    (r"\w+VQVAE(Encoder)?AttnBlock|\w+VisionTokenizerAttnBlock", rules.SINGLE_HEAD),
)
