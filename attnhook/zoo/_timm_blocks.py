"""timm's attention modules by class: how their tensors are arranged, who asks, what their tokens are.

Only facts that cannot be seen from the call stand here; a class that is missing is taken for plain attention over all tokens of the model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from attnhook.capture.layout import TokenLayout
from attnhook.capture.recognition import class_of
from attnhook.capture.sites import Arrangement, CallContext, Queries, SiteTokens
from attnhook.capture.windows import WindowLayout
from attnhook.zoo.stages import class_attention, mask_units, pair, parents, shrunk, windows

# Softmaxes that are not attention between tokens, and what they are.
NOT_TOKENS = {
    "ChannelAttention": "attention between channels",
    "ChannelAttentionV2": "attention between channels",
    "CrossCovarianceAttn": "cross-covariance attention, between channels",
    "XCA": "cross-covariance attention, between channels",
    "FactorAttnConvRelPosEnc": "factorised linear attention, with a softmax over each channel",
    "LinearSelfAttention": "separable linear attention",
    "LambdaLayer": "lambda layers",
    "SelectiveKernelAttn": "gates over convolution branches (selective kernels)",
    "RadixSoftmax": "gates over convolution branches (split attention)",
    "GlobalContext": "global context gates",
    "OutlookAttention": "outlook attention, whose weights come from the query alone",
    "HSMSSD": "state space mixing",
    "SpatialTransformerBlock": "a gate over a map of seven by seven",
}


@dataclass(frozen=True)
class Place:
    """An attention module where it stands.

    Attributes:
        model: The model.
        name: The module's path in it.
        module: The module.
    """

    model: Any
    name: str
    module: Any

    def holder(self, level: int = 0) -> Any:
        """The module around it, `level` steps further out."""
        return parents(self.model, self.name)[level]


Facts = dict[str, Any]
_TALKING = (
    "talking heads: values are multiplied by these rows after a learned mix over heads, of which no row sums to 1"
)


def facts_of(place: Place) -> Facts:
    """What `AttentionSite` is to be told about a module."""
    kind = class_of(place.module)
    key = f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"
    rule = _RULES.get(key)
    return {} if rule is None else rule(place)


def _swin(place: Place) -> Facts:
    block = place.holder()

    def cut(call: CallContext) -> WindowLayout:
        grid = (call.inputs[0][1], call.inputs[0][2])
        return WindowLayout.partition(grid, window=pair(block.window_size), shift=pair(block.shift_size))

    return _windowed(block, cut)


def _windowed(seen: nn.Module, cut: Callable[[CallContext], WindowLayout], **more: Any) -> Facts:
    return {"queries": Queries.PATCHES, "tokens_of": windows(cut), "seen_module": seen, **more}


def _maxvit(place: Place) -> Facts:
    block = place.holder()
    strided = getattr(block, "partition_block", None) is False or place.name.endswith("attn_grid")

    def cut(call: CallContext) -> WindowLayout:
        grid = (call.inputs[0][1], call.inputs[0][2])
        return WindowLayout.partition(grid, window=pair(block.partition_size), strided=strided)

    return _windowed(block, cut)


def _local(axis: int, attribute: str = "window_size", **more: Any) -> Callable[[Place], Facts]:
    """Windows of the module around, whose input has height and width at `axis`."""

    def rule(place: Place) -> Facts:
        block = place.holder()

        def cut(call: CallContext) -> WindowLayout:
            grid = (call.inputs[0][axis], call.inputs[0][axis + 1])
            window = getattr(block, attribute)
            return WindowLayout.partition(grid, window=pair(window) if window else grid)

        return _windowed(block, cut, **more)

    return rule


def _msra(place: Place) -> Facts:
    block = place.holder()

    def cut(call: CallContext) -> WindowLayout:
        grid = (call.inputs[0][2], call.inputs[0][3])
        side = getattr(place.module, "resolution", min(block.window_resolution, *grid))
        return WindowLayout.partition(grid, window=pair(side))

    return _windowed(block, cut, arrangement=Arrangement.SINGLE)


def _sam2(place: Place) -> Facts:
    block = place.holder()

    def cut(call: CallContext) -> WindowLayout:
        grid = (call.inputs[0][1], call.inputs[0][2])
        window = pair(block.window_size) if block.is_windowed else grid
        keys = WindowLayout.partition(grid, window=window)
        if block.q_stride is None:
            return keys
        stride = pair(block.q_stride)
        fewer = (-(-grid[0] // stride[0]), -(-grid[1] // stride[1]))
        asking = WindowLayout.partition(fewer, window=(window[0] // stride[0], window[1] // stride[1]))
        return WindowLayout(grid, keys.positions, asking.positions, fewer, keys.words)

    return _windowed(block, cut)


def _twins(place: Place) -> Facts:
    def cut(call: CallContext) -> WindowLayout:
        return WindowLayout.partition(pair(call.inputs[1]), window=pair(place.module.ws))

    return _windowed(place.module, cut, arrangement=Arrangement.WINDOWS)


def _nest(place: Place) -> Facts:
    level = place.holder(2)

    def cut(call: CallContext) -> WindowLayout:
        blocks, keys = call.inputs[0][1], call.inputs[0][2]
        layout = shrunk()(CallContext((), call.input_size, None, blocks * keys, blocks * keys, 0)).keys
        grid = layout.grid if isinstance(layout, TokenLayout) else (blocks, keys)
        return WindowLayout.partition(grid, window=pair(level.block_size))

    return _windowed(place.module, cut, arrangement=Arrangement.HEADS_WINDOWS)


def _mobilevit(place: Place) -> Facts:
    holders = parents(place.model, place.name)
    block = next((h for h in holders if hasattr(h, "patch_area")), None)
    if block is None:
        return _shrunk(place)

    def cut(call: CallContext) -> WindowLayout:
        patch = pair(block.patch_size)
        rows, columns = -(-call.inputs[0][2] // patch[0]), -(-call.inputs[0][3] // patch[1])
        grid = (rows * patch[0], columns * patch[1])
        return WindowLayout.partition(grid, window=(rows, columns), strided=True)

    return _windowed(block, cut)


def _halo(place: Place) -> Facts:
    module = place.module

    def cut(call: CallContext) -> WindowLayout:
        height, width = call.inputs[0][2:4]
        size, halo = module.block_size, module.halo_size
        index = torch.arange(1.0, height * width + 1, device="cpu").reshape(1, 1, height, width)
        keys = F.unfold(index, kernel_size=size + 2 * halo, padding=halo, stride=size)[0].T.long() - 1
        stride = size // module.block_size_ds
        fewer = (height // stride, width // stride)
        asking = WindowLayout.partition(fewer, window=pair(module.block_size_ds))
        words = f"blocks of {size}x{size} with a halo of {halo}"
        return WindowLayout((height, width), keys, asking.positions, fewer, words)

    return _windowed(module, cut, arrangement=Arrangement.MERGED, heads=module.num_heads)


def _bottleneck(place: Place) -> Facts:
    facts = {"queries": Queries.PATCHES, "seen_module": place.module, "tokens_of": _own_map}
    return {**facts, "arrangement": Arrangement.MERGED, "heads": place.module.num_heads}


def _own_map(call: CallContext) -> SiteTokens:
    grid = tuple(call.inputs[0][2:4])
    if grid[0] * grid[1] != call.keys:
        return SiteTokens(f"{call.keys} keys are not the {grid[0]}x{grid[1]} positions of the module's input.")
    return SiteTokens(TokenLayout(grid, cls=None))


def _hiera(place: Place) -> Facts:
    model, module = place.model, place.module

    def cut(call: CallContext) -> WindowLayout:
        return mask_units(model.unroll.size, model.unroll.schedule, call.inputs[0][1], call)

    return _windowed(module, cut, arrangement=Arrangement.HEADS_WINDOWS)


def _tnt_inner(place: Place) -> Facts:
    embed = place.model.pixel_embed

    def cut(call: CallContext) -> WindowLayout:
        inner = pair(embed.new_patch_size)
        grid = pair(embed.grid_size)
        return WindowLayout.partition((grid[0] * inner[0], grid[1] * inner[1]), window=inner)

    return _windowed(place.module, cut)


def _latent_pool(place: Place) -> Facts:
    first = {"readout_rows": slice(0, 1)} if getattr(place.module, "pool", "") == "token" else {}
    return {"queries": Queries.POOL, **first}


def _clip_pool(place: Place) -> Facts:
    def tokens_of(call: CallContext) -> SiteTokens:
        return SiteTokens(TokenLayout(tuple(call.inputs[0][2:4]), cls=0))

    facts = {"queries": Queries.POOL, "readout_rows": slice(0, 1)}
    return {**facts, "tokens_of": tokens_of, "seen_module": place.module}


def _shrunk(place: Place) -> Facts:
    return {"queries": Queries.PATCHES, "tokens_of": shrunk()}


def _single(place: Place) -> Facts:
    return {**_shrunk(place), "arrangement": Arrangement.SINGLE}


def _talking_map(place: Place) -> Facts:
    return {**_shrunk(place), "value_multiplier": _TALKING}


def _with_class_token(place: Place) -> Facts:
    """Several stages, the class token (and a distillation token) in front in each."""
    prefix = int(getattr(place.model, "num_prefix_tokens", getattr(place.model, "num_tokens", 1)))
    return {"tokens_of": shrunk(prefix, 0)}


def _class_attention(place: Place) -> Facts:
    return {"queries": Queries.CLASS, "readout_rows": slice(0, 1), "tokens_of": class_attention()}


def _mvit(place: Place) -> Facts:
    if not place.module.has_cls_token:
        return _shrunk(place)
    return {"tokens_of": shrunk(1, 0)}


def _differential(place: Place) -> Facts:
    return {
        "value_multiplier": "differential attention: values are multiplied by the first call's rows minus lambda times the second call's"
    }


# The layers that many models share mean what the model around them makes of them.
_SHARED: dict[str, Callable[[Place], Facts]] = {
    "CrossVit": _with_class_token,
    "PoolingVisionTransformer": _with_class_token,
    "PoolingVisionTransformerDistilled": _with_class_token,
    "ByobNet": _mobilevit,
    "CSATv2": _shrunk,
}


def _shared(place: Place) -> Facts:
    rule = _SHARED.get(class_of(place.model).__name__)
    return {} if rule is None else rule(place)


def _tnt(place: Place) -> Facts:
    return _tnt_inner(place) if place.name.endswith("attn_in") else {"tokens_of": shrunk(1, 0)}


_RULES: dict[str, Callable[[Place], Facts]] = {
    "attention.Attention": _shared,
    "attention_pool.AttentionPoolLatent": _latent_pool,
    "attention_pool2d.AttentionPool2d": _clip_pool,
    "attention_pool2d.RotAttentionPool2d": _clip_pool,
    "attention2d.MultiQueryAttention2d": _shrunk,
    "bottleneck_attn.BottleneckAttn": _bottleneck,
    "halo_attn.HaloAttn": _halo,
    "diff_attention.DiffAttention": _differential,
    "vision_transformer.DiffParallelScalingBlock": _differential,
    "cait.TalkingHeadAttn": lambda _: {"queries": Queries.PATCHES, "value_multiplier": _TALKING},
    "cait.ClassAttn": _class_attention,
    "convit.GPSA": lambda _: {
        "queries": Queries.PATCHES,
        "value_multiplier": "gated: values are multiplied by a learned mix of this content attention and this positional attention",
    },
    "volo.ClassAttention": _class_attention,
    "volo.Attention": _shrunk,
    "crossvit.CrossAttention": _class_attention,
    "cpubone.ConvAttention": _shrunk,
    "lowformer.ConvAttention": _shrunk,
    "davit.WindowAttention": _local(2),
    "efficientformer.Attention": _shrunk,
    "efficientformer_v2.Attention2d": _talking_map,
    "efficientformer_v2.Attention2dDownsample": _shrunk,
    "efficientvit_msra.CascadedGroupAttention": _msra,
    "fastvit.Attention": _shrunk,
    "gcvit.WindowAttentionGlobal": _local(1),
    "hiera.MaskUnitAttention": _hiera,
    "hieradet_sam2.MultiScaleAttention": _sam2,
    "iformer.SHMA": _shrunk,
    "levit.Attention": _shrunk,
    "levit.AttentionDownsample": _shrunk,
    "maxxvit.Attention2d": _shrunk,
    "maxxvit.AttentionCl": _maxvit,
    "mvitv2.MultiScaleAttention": _mvit,
    "metaformer.Attention": _shrunk,
    "nest.Attention": _nest,
    "nextvit.EfficientAttention": _shrunk,
    "pvt_v2.Attention": _shrunk,
    "shvit.SHSA": _single,
    "swin_transformer.WindowAttention": _swin,
    "swin_transformer_v2.WindowAttention": _swin,
    "swin_transformer_v2_cr.WindowMultiHeadAttention": _swin,
    "tiny_vit.Attention": _local(1),
    "tnt.Attention": _tnt,
    "twins.GlobalSubSampleAttn": _shrunk,
    "twins.LocallyGroupedAttn": _twins,
    "visformer.Attention": _shrunk,
    "vision_transformer_sam.Attention": lambda place: {
        **_local(1)(place),
        "arrangement": Arrangement.MERGED,
        "heads": place.module.num_heads,
    },
}
