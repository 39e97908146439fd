"""Walk every model of the installed timm: rows exact, refused with the reason, wrong, or crashed.

    python -m tests.conformance.coverage_timm --json coverage.json  # every architecture, hours
    python -m tests.conformance.coverage_timm --match 'swin*'
    python -m tests.conformance.coverage_timm --unique              # the smallest architecture of each set of classes: minutes

Weights are random, drawn so that attention is far from uniform; BatchNorm statistics are calibrated on the input, because activations of some
hybrids explode without. The truth is independent of attnhook: our own function mode records every softmax and the operands of every fused call
inside the modules that attend, and spells the softmax of those operands out in float64.
"""

import argparse
import collections
import json
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from attnhook import AttentionCapture
from attnhook.errors import UnsupportedModelError

TOLERANCE = 2e-5
_SDPA = torch._C._nn.scaled_dot_product_attention
_SOFTMAXES = {torch.softmax, F.softmax, torch.Tensor.softmax}
_QUERIES = ("qkv", ".q.", ".k.", ".kv.", "q_proj", "k_proj", ".qk", "query", "key", "wq", "wk", ".qs.")
_EXACT, _REFUSED, _WRONG, _CRASHED, _SKIPPED, _NOT_RUN = "exact", "refused", "wrong", "crashed", "skipped", "not run"


def multihead(module, args, kwargs, output, *, truth, name) -> None:
    """Weights of an `nn.MultiheadAttention`, by asking it for them; its fast path shows no kernel."""
    if not truth.busy:
        truth.busy = True
        with torch._C.DisableTorchFunction():
            wanted = {**kwargs, "need_weights": True, "average_attn_weights": False}
            truth.found.append(
                (name, nn.MultiheadAttention.forward(module, *args[:3], **wanted)[1].detach().double().flatten(0, -3))
            )
        truth.busy = False


class Truth(TorchFunctionMode):
    """Every softmax matrix, by the innermost module that was running: `(name, matrix (entries, queries, keys))`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.stack, self.found = [""], []
        self.handles = []
        self.busy = False
        for name, module in model.named_modules():
            if isinstance(module, nn.MultiheadAttention):
                hook = partial(multihead, truth=self, name=name)
                self.handles.append(module.register_forward_hook(hook, with_kwargs=True))
            elif not isinstance(module, nn.Softmax):
                self.handles.append(module.register_forward_pre_hook(lambda *_, name=name: self.stack.append(name)))
                self.handles.append(module.register_forward_hook(lambda *_: self.stack.pop() and None))

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            if self.busy:
                return result
            if func is _SDPA:
                self.found.append((self.stack[-1], spelt(*args, **kwargs)))
            elif func in _SOFTMAXES and result.dim() >= 3:
                self.found.append((self.stack[-1], result.detach().double().flatten(0, -3)))
        return result

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()


def spelt(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """softmax(Q K^T * scale + mask) in float64, `(entries, queries, keys)`."""
    query, key = query.detach().double(), key.detach().double()
    if query.dim() == 4 and key.shape[1] != query.shape[1]:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        hidden = attn_mask.dtype is torch.bool
        scores = scores.masked_fill(~attn_mask, float("-inf")) if hidden else scores + attn_mask
    if is_causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), float("-inf"))
    return torch.softmax(scores, dim=-1).flatten(0, -3)


def same(ours: torch.Tensor, truth: torch.Tensor) -> float:
    """Largest difference between two stacks of matrices whose first axes may be in another order; inf if shapes differ."""
    ours = ours.double().flatten(0, -3)
    if ours.shape != truth.shape:
        return float("inf")
    direct = (ours - truth).abs().max().item()
    if direct <= TOLERANCE:
        return direct
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(truth.shape[1:], generator=generator, dtype=torch.float64)
    order, theirs = ((x * probe).sum((-1, -2)).argsort() for x in (ours, truth))
    return (ours[order] - truth[theirs]).abs().max().item()


def _calibrates(norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Statistics of one value a channel are none: such a norm keeps its own."""
    norm.train(inputs[0].numel() > inputs[0].shape[1])


def sharpen(model: nn.Module, run: Callable[[], object]) -> None:
    """Queries and keys with larger weights, LayerScale at 0.5, BatchNorm statistics of this input."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if parameter.dim() == 1 and ("gamma" in name or ".ls" in name or "layer_scale" in name):
                parameter.fill_(0.5)
            elif parameter.dim() >= 2 and any(key in name for key in _QUERIES):
                parameter.copy_(torch.randn_like(parameter) * 2 / parameter[0].numel() ** 0.5)
            elif parameter.dim() == 2 and parameter.shape[0] > 1 and parameter.std() < 0.03:
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[1] ** 0.5)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in norms]
    hooks = [norm.register_forward_pre_hook(_calibrates) for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    if norms:
        with torch.no_grad():
            run()
    for hook in hooks:
        hook.remove()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum


def examine(model: nn.Module, inputs: dict | torch.Tensor) -> tuple[str, str, list[tuple[str, str]]]:
    """Capture one forward and hold it against the truth: outcome, details, class and name of modules whose softmax was not captured."""
    try:
        capture = AttentionCapture(model, rows="all")
    except UnsupportedModelError as error:
        return _REFUSED, str(error).split("got ")[-1].split(". There")[0][:90], []

    def run():
        torch.manual_seed(0)  # models that draw masks
        return model(inputs) if isinstance(inputs, torch.Tensor) else model(**inputs)

    sharpen(model, run)
    with torch.no_grad():
        bare = run()
        truth = Truth(model)
        try:
            with truth:
                run()
        finally:
            truth.remove()
        with capture:
            output = run()
    if not identical(bare, output):
        return _WRONG, "the output changed", []
    found = collections.defaultdict(list)
    for name, matrix in truth.found:
        found[name].append(matrix)
    worst, count, peak = 0.0, 0, 0.0
    seen: collections.Counter = collections.Counter()
    for block in capture.maps:
        name = block.name.partition(":")[0]
        matrices = [m for m in found.get(name, []) if m.shape[1:] == block.shape[2:]]
        number = seen[name, block.shape]
        seen[name, block.shape] += 1
        if number >= len(matrices):
            return _WRONG, f"{block.name}: the truth has {len(matrices)} calls of that shape", []
        worst = max(worst, same(block.rows, matrices[number]))
        count += 1
        peak = max(peak, (block.rows.amax(dim=-1) * block.shape[-1]).mean().item())
        if not worst <= TOLERANCE:
            return (
                _WRONG,
                f"{block.name}: error {worst:.1e}, {tuple(block.shape)} against {tuple(matrices[number].shape)}",
                [],
            )
    missed = {n for n, m in found.items() if n not in set(capture.block_names)}
    kinds = sorted({type(model.get_submodule(name)).__name__ for name in missed})
    without = sum(isinstance(block.token_layout, str) for block in capture.maps)
    words = f"{count} calls, worst {worst:.0e}, peak x{peak:.1f} uniform, readout {capture.maps.readout.rows or 'none'}"
    words += (
        f", {without} without a layout: {next(b.token_layout for b in capture.maps if isinstance(b.token_layout, str))}"
        if without
        else ""
    )
    words += f"; not token attention: {kinds}" if kinds else ""
    return _EXACT, words, [(type(model.get_submodule(name)).__name__, name) for name in sorted(missed)]


def identical(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) or (
            torch.equal(one.isnan(), other.isnan()) and torch.equal(one.nan_to_num(), other.nan_to_num())
        )
    if isinstance(one, dict):
        return all(identical(one[key], other[key]) for key in one)
    if not isinstance(one, list | tuple):
        return True
    return all(identical(a, b) for a, b in zip(one, other, strict=True))


def classes(name: str) -> tuple:
    """What an architecture is made of: its class and those of its modules, without their numbers."""
    with torch.device("meta"):
        model = timm.create_model(name)
    attending = {
        (type(m).__name__, getattr(m, "fused_attn", None))
        for m in model.modules()
        if "ttn" in type(m).__name__ or "Attention" in type(m).__name__
    }
    facts = (
        getattr(model, "global_pool", None),
        getattr(model, "num_prefix_tokens", None),
        getattr(model, "cls_token", None) is not None,
    )
    return type(model).__name__, frozenset(attending), facts, sum(p.numel() for p in model.parameters())


def one(name: str, limit: int) -> tuple[str, str]:
    try:
        with torch.device("meta"):
            meta = timm.create_model(name)
        try:
            AttentionCapture(meta, rows="all")
        except UnsupportedModelError as error:
            return _REFUSED, str(error).split("got ")[-1].split(". There")[0][:90]
        if sum(p.numel() for p in meta.parameters()) > limit:
            return _SKIPPED, "too large for this run"
        model = timm.create_model(name).eval()
        size = (
            model.pretrained_cfg["input_size"]
            if isinstance(model.pretrained_cfg, dict)
            else model.pretrained_cfg.input_size
        )
        pixels = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
        return examine(model, pixels)[:2]
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return _CRASHED, f"{type(error).__name__}: {str(error)[:200]} ({Path(where.filename).name}:{where.lineno})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--match", default="*", help="of names")
    parser.add_argument("--unique", action="store_true", help="only the smallest architecture of each set of classes")
    parser.add_argument("--max-parameters", type=float, default=1e9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = timm.list_models(options.match)
    if options.unique:
        groups: dict[tuple, tuple[int, str]] = {}
        for name in names:
            *key, parameters = classes(name)
            groups[tuple(key)] = min(groups.get(tuple(key), (parameters, name)), (parameters, name))
        names = sorted(name for _, name in groups.values())
    results = {}
    for name in names:
        start = time.time()
        results[name] = one(name, int(options.max_parameters))
        print(f"{name:55} {results[name][0]:8} {results[name][1]} [{time.time() - start:.0f} s]", flush=True)
    counts = collections.Counter(outcome for outcome, _ in results.values())
    print(dict(counts))
    if options.json:
        versions = {module.__name__: module.__version__ for module in (timm, torch)}
        options.json.write_text(json.dumps({**versions, "results": results}, indent=1))
    return int(bool(counts[_WRONG] + counts[_CRASHED]))


if __name__ == "__main__":
    sys.exit(main())
