"""timm's attention modules by class: the arrangement of their tensors, their queries, and their tokens.

Only what the call itself does not show is listed. A class that is not listed is taken for plain attention over all tokens of the model.
"""

import re
from functools import partial

import torch
import torch.nn.functional as F

from attnhook.capture.layout import TokenLayout
from attnhook.capture.recognition import class_of
from attnhook.capture.sites import Arrangement, CallContext, Queries, SiteTokens
from attnhook.capture.windows import WindowLayout
from attnhook.zoo import token_rules as rules
from attnhook.zoo.token_rules import ModuleContext, OptionsRule, SiteOptions, in_windows, input_grid, pair

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

_TALKING_HEADS = (
    "talking heads: values are multiplied by these rows after a learned mix over heads, of which no row sums to 1"
)
_DIFFERENTIAL = (
    "differential attention: values are multiplied by the first call's rows minus lambda times the second call's"
)
_GATED = "gated: values are multiplied by a learned mix of this content attention and this positional attention"


def site_options(context: ModuleContext) -> SiteOptions:
    """Options of `AttentionSite` for a module."""
    kind = class_of(context.module)
    name = f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"
    return rules.options_of(next((rule for pattern, rule in _RULES if re.fullmatch(pattern, name)), None), context)


def _swin(context: ModuleContext) -> SiteOptions:
    block = context.parents[0]

    def cut(call: CallContext) -> WindowLayout:
        return WindowLayout.partition(input_grid(call), window=pair(block.window_size), shift=pair(block.shift_size))

    return in_windows(block, cut)


def _maxvit(context: ModuleContext) -> SiteOptions:
    block = context.parents[0]
    strided = getattr(block, "partition_block", None) is False or context.name.endswith("attn_grid")

    def cut(call: CallContext) -> WindowLayout:
        return WindowLayout.partition(input_grid(call), window=pair(block.partition_size), strided=strided)

    return in_windows(block, cut)


def _unshifted(context: ModuleContext, axis: int = 1) -> SiteOptions:
    """Windows of the module around, whose input has height and width at `axis`."""
    block = context.parents[0]

    def cut(call: CallContext) -> WindowLayout:
        grid = input_grid(call, axis)
        return WindowLayout.partition(grid, window=pair(block.window_size) if block.window_size else grid)

    return in_windows(block, cut)


def _sam(context: ModuleContext) -> SiteOptions:
    return {**_unshifted(context), "arrangement": Arrangement.MERGED, "heads": context.module.num_heads}


def _sam2(context: ModuleContext) -> SiteOptions:
    block = context.parents[0]

    def cut(call: CallContext) -> WindowLayout:
        grid = input_grid(call)
        window = pair(block.window_size) if block.is_windowed else grid
        keys = WindowLayout.partition(grid, window=window)
        if block.q_stride is None:
            return keys
        stride = pair(block.q_stride)
        return rules.pooled_queries(keys, window, stride, (-(-grid[0] // stride[0]), -(-grid[1] // stride[1])))

    return in_windows(block, cut)


def _efficientvit_msra(context: ModuleContext) -> SiteOptions:
    block = context.parents[0]

    def cut(call: CallContext) -> WindowLayout:
        grid = input_grid(call, 2)
        side = getattr(context.module, "resolution", min(block.window_resolution, *grid))
        return WindowLayout.partition(grid, window=pair(side))

    return in_windows(block, cut, arrangement=Arrangement.SINGLE)


def _twins(context: ModuleContext) -> SiteOptions:
    def cut(call: CallContext) -> WindowLayout:
        return WindowLayout.partition(pair(call.inputs[1]), window=pair(context.module.ws))

    return in_windows(context.module, cut, arrangement=Arrangement.WINDOWS)


def _nest(context: ModuleContext) -> SiteOptions:
    level = context.parents[2]

    def cut(call: CallContext) -> WindowLayout:
        blocks, keys = call.inputs[0][1:3]
        grid = rules.downsampled_grid(call.input_size, blocks * keys)
        return WindowLayout.partition((blocks, keys) if isinstance(grid, str) else grid, window=pair(level.block_size))

    return in_windows(context.module, cut, arrangement=Arrangement.HEADS_WINDOWS)


def _mobilevit(context: ModuleContext) -> SiteOptions:
    block = context.parent_with("patch_area")
    if block is None:
        return rules.ON_GRID

    def cut(call: CallContext) -> WindowLayout:
        (height, width), patch = input_grid(call, 2), pair(block.patch_size)
        rows, columns = -(-height // patch[0]), -(-width // patch[1])
        return WindowLayout.partition((rows * patch[0], columns * patch[1]), window=(rows, columns), strided=True)

    return in_windows(block, cut)


def _halo(context: ModuleContext) -> SiteOptions:
    module = context.module

    def cut(call: CallContext) -> WindowLayout:
        height, width = input_grid(call, 2)
        size, halo = module.block_size, module.halo_size
        index = torch.arange(1.0, height * width + 1, dtype=torch.float32, device="cpu").reshape(1, 1, height, width)
        keys = F.unfold(index, kernel_size=size + 2 * halo, padding=halo, stride=size)[0].T.long() - 1
        stride = size // module.block_size_ds
        query_grid = (height // stride, width // stride)
        queries = WindowLayout.partition(query_grid, window=pair(module.block_size_ds))
        words = f"blocks of {size}x{size} with a halo of {halo}"
        return WindowLayout((height, width), keys, queries.positions, query_grid, words)

    return in_windows(module, cut, arrangement=Arrangement.MERGED, heads=module.num_heads)


def _bottleneck(context: ModuleContext) -> SiteOptions:
    options = {"queries": Queries.PATCHES, "seen_module": context.module, "tokens_of": _input_positions}
    return {**options, "arrangement": Arrangement.MERGED, "heads": context.module.num_heads}


def _input_positions(call: CallContext) -> SiteTokens:
    height, width = grid = input_grid(call, 2)
    if height * width != call.keys:
        return SiteTokens(
            f"{call.keys} keys do not fit the module's input: expected {height}x{width} positions. Read `.rows` without a grid."
        )
    return SiteTokens(TokenLayout(grid, cls=None))


def _hiera(context: ModuleContext) -> SiteOptions:
    unroll = context.model.unroll

    def cut(call: CallContext) -> WindowLayout:
        return rules.mask_units(unroll.size, unroll.schedule, call.inputs[0][1], call)

    return in_windows(context.module, cut, arrangement=Arrangement.HEADS_WINDOWS)


def _tnt(context: ModuleContext) -> SiteOptions:
    if not context.name.endswith("attn_in"):
        return rules.WITH_CLASS_TOKEN
    embed = context.model.pixel_embed

    def cut(call: CallContext) -> WindowLayout:
        inner, grid = pair(embed.new_patch_size), pair(embed.grid_size)
        return WindowLayout.partition((grid[0] * inner[0], grid[1] * inner[1]), window=inner)

    return in_windows(context.module, cut)


def _latent_pool(context: ModuleContext) -> SiteOptions:
    first = slice(0, 1) if getattr(context.module, "pool", "") == "token" else None
    return {"queries": Queries.POOL, "readout_rows": first}


def _clip_pool(context: ModuleContext) -> SiteOptions:
    return {
        "queries": Queries.POOL,
        "readout_rows": slice(0, 1),
        "tokens_of": lambda call: SiteTokens(TokenLayout(input_grid(call, 2), cls=0)),
        "seen_module": context.module,
    }


def _mvit(context: ModuleContext) -> SiteOptions:
    return rules.WITH_CLASS_TOKEN if context.module.has_cls_token else rules.ON_GRID


def _with_prefix_tokens(context: ModuleContext) -> SiteOptions:
    """Several stages, each with the class token (and a distillation token) in front."""
    count = getattr(context.model, "num_prefix_tokens", getattr(context.model, "num_tokens", 1))
    return {"tokens_of": rules.downsampled(int(count), 0)}


def _common(context: ModuleContext) -> SiteOptions:
    """Timm's common attention layer, in models of several stages."""
    model = class_of(context.model).__name__
    if model == "ByobNet":
        return _mobilevit(context)
    if model == "CSATv2":
        return rules.ON_GRID
    staged = model == "CrossVit" or model.startswith("PoolingVisionTransformer")
    return _with_prefix_tokens(context) if staged else {}


# By patterns of file and class.
_RULES: tuple[tuple[str, SiteOptions | OptionsRule], ...] = (
    (r"(efficientformer|fastvit|levit|metaformer|pvt_v2|visformer|volo)\.Attention", rules.ON_GRID),
    (r"levit\.AttentionDownsample|efficientformer_v2\.Attention2dDownsample|maxxvit\.Attention2d", rules.ON_GRID),
    (r"attention2d\.MultiQueryAttention2d|(cpubone|lowformer)\.ConvAttention|iformer\.SHMA", rules.ON_GRID),
    (r"nextvit\.EfficientAttention|twins\.GlobalSubSampleAttn", rules.ON_GRID),
    (r"attention\.Attention", _common),
    (r"attention_pool\.AttentionPoolLatent", _latent_pool),
    (r"attention_pool2d\.(Rot)?AttentionPool2d", _clip_pool),
    (r"bottleneck_attn\.BottleneckAttn", _bottleneck),
    (r"halo_attn\.HaloAttn", _halo),
    (r"diff_attention\.DiffAttention|\w+\.DiffParallelScalingBlock", {"value_multiplier": _DIFFERENTIAL}),
    (r"cait\.TalkingHeadAttn", {"queries": Queries.PATCHES, "value_multiplier": _TALKING_HEADS}),
    (r"convit\.GPSA", {"queries": Queries.PATCHES, "value_multiplier": _GATED}),
    (r"cait\.ClassAttn|volo\.ClassAttention|crossvit\.CrossAttention", rules.CLASS_ATTENTION),
    (r"davit\.WindowAttention", partial(_unshifted, axis=2)),
    (r"gcvit\.WindowAttentionGlobal|tiny_vit\.Attention", _unshifted),
    (r"efficientformer_v2\.Attention2d", {**rules.ON_GRID, "value_multiplier": _TALKING_HEADS}),
    (r"efficientvit_msra\.CascadedGroupAttention", _efficientvit_msra),
    (r"hiera\.MaskUnitAttention", _hiera),
    (r"hieradet_sam2\.MultiScaleAttention", _sam2),
    (r"maxxvit\.AttentionCl", _maxvit),
    (r"mvitv2\.MultiScaleAttention", _mvit),
    (r"nest\.Attention", _nest),
    (r"shvit\.SHSA", rules.SINGLE_HEAD),
    (r"swin_transformer\w*\.Window(MultiHead)?Attention", _swin),
    (r"tnt\.Attention", _tnt),
    (r"twins\.LocallyGroupedAttn", _twins),
    (r"vision_transformer_sam\.Attention", _sam),
)
