"""`verify` over a model of each family, with every kernel, in one environment; from the results of several, the table in docs/coverage.md.

    python -m tests.conformance.verify_table --json newest.json    # two minutes, once in each environment
    python -m tests.conformance.verify_table --join newest.json oldest.json --page docs/coverage.md

Models are small, weights random and drawn so that attention is far from uniform. The figure is the largest difference of a captured row from
eager attention: that of a copy of the model with the library's own explicit softmax, as `verify` runs it. Where the library cannot switch, it is
that of the same forward: what its own softmax returned, what `nn.MultiheadAttention` returns on request, or the fused call spelt out in float64.
"""

import argparse
import datetime
import json
import platform
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
import torchvision
import transformers
from timm.layers import set_fused_attn, use_fused_attn
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from attnhook import verify
from tests.conformance.coverage_table import placed
from tests.conformance.coverage_timm import examine, sharpen

_LIBRARIES = (torch, torchvision, timm, transformers, open_clip)
_FLASH, _MATH, _EAGER = "sdpa, flash", "sdpa, math", "eager"
_BACKENDS = {_FLASH: SDPBackend.FLASH_ATTENTION, _MATH: SDPBackend.MATH}
_ABSENT = "-"  # the library has no such kernel for this model, or torch's kernel does not take its tensors
_WORST = re.compile(r"worst ([\d.e+-]+)")

_TIMM: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"depth": 4},
    "vit_base_patch16_siglip_224": {"embed_dim": 192, "num_heads": 3, "depth": 4},
    "vit_small_patch16_dinov3": {"depth": 4, "img_size": 224},
    "eva02_tiny_patch14_224": {"depth": 4},
    "beit_base_patch16_224": {"embed_dim": 192, "num_heads": 3, "depth": 4},
    "cait_xxs24_224": {},
    "swin_tiny_patch4_window7_224": {},
    "mvitv2_tiny": {},
    "hiera_tiny_224": {},
}
_SMALL = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 384}
_WIDE = _SMALL | {"image_size": 224, "patch_size": 16}
_TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViTModel": ("ViTConfig", _WIDE),
    "Dinov2WithRegistersModel": ("Dinov2WithRegistersConfig", _WIDE),
    "DINOv3ViTModel": ("DINOv3ViTConfig", _WIDE | {"num_register_tokens": 4}),
    "CLIPVisionModel": ("CLIPVisionConfig", _WIDE),
    "SiglipVisionModel": ("SiglipVisionConfig", _WIDE),
    "BeitModel": ("BeitConfig", _WIDE | {"use_relative_position_bias": True}),
    "ViTMAEModel": ("ViTMAEConfig", _WIDE),
    "SwinModel": ("SwinConfig", {"embed_dim": 48, "depths": [2, 2], "num_heads": [2, 4]}),
    "SamVisionModel": ("SamVisionConfig", _SMALL | {"image_size": 224, "window_size": 7, "global_attn_indexes": [1]}),
}


def _of_timm(name: str, kernel: str) -> nn.Module:
    before = use_fused_attn(), use_fused_attn(experimental=True)
    set_fused_attn(kernel != _EAGER, experimental=kernel != _EAGER)
    try:
        model = timm.create_model(name, **_TIMM[name])
    finally:
        set_fused_attn(*before)
    if kernel != _EAGER and not any(getattr(module, "fused_attn", False) for module in model.modules()):
        raise LookupError(f"{name} has no fused kernel")
    return model


def _of_transformers(name: str, kernel: str) -> nn.Module:
    config, settings = _TRANSFORMERS[name]
    implementation = kernel.partition(",")[0]
    try:
        return getattr(transformers, name)._from_config(
            getattr(transformers, config)(**settings), attn_implementation=implementation
        )
    except (
        ValueError
    ) as error:  # "... does not support an attention implementation through scaled_dot_product_attention"
        if "does not support" not in str(error):
            raise
        raise LookupError(str(error)) from None


def _of_torchvision(name: str, _: str) -> nn.Module:
    if name == "VisionTransformer":
        return torchvision.models.VisionTransformer(224, 16, 4, 3, 192, 384)
    return getattr(torchvision.models, name)()


def _of_open_clip(name: str, _: str) -> nn.Module:
    return getattr(open_clip.transformer, name)(224, 16, width=192, layers=4, heads=3, mlp_ratio=2.0, output_dim=64)


def cases() -> Iterator[tuple[str, str, str, Callable[[], nn.Module]]]:
    """Library, family, kernel, and what builds the model; `LookupError` where the library has no such kernel for it."""
    for name in _TIMM:
        for kernel in (_FLASH, _MATH, _EAGER):
            yield "timm", name, kernel, partial(_of_timm, name, kernel)
    for name in _TRANSFORMERS:
        for kernel in (_FLASH, _MATH, _EAGER):
            yield "transformers", name, kernel, partial(_of_transformers, name, kernel)
    for name in ("VisionTransformer", "swin_t", "swin_v2_t", "maxvit_t"):
        kernel = "nn.MultiheadAttention" if name == "VisionTransformer" else _EAGER
        yield "torchvision", name, kernel, partial(_of_torchvision, name, kernel)
    yield "open_clip", "VisionTransformer", "nn.MultiheadAttention", partial(_of_open_clip, "VisionTransformer", "")


def one(kernel: str, build: Callable[[], nn.Module]) -> dict[str, Any]:
    """The largest differences, or what happened instead."""
    try:
        torch.manual_seed(0)
        model = build().eval()
    except LookupError as error:
        return {"absent": " ".join(str(error).split())[:120]}
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    backend: AbstractContextManager[Any] = sdpa_kernel(_BACKENDS[kernel]) if kernel in _BACKENDS else nullcontext()

    def run() -> Any:
        torch.manual_seed(0)  # models that draw masks
        return model(pixels)

    with backend, torch.no_grad():
        try:
            sharpen(model, run)
            run()
        except RuntimeError as error:
            if "No available kernel" not in str(error):
                raise
            return {"absent": "torch's kernel does not take these tensors"}
        report = verify(model, pixels)
        eager = [block.explicit_error for block in report.blocks if block.explicit_error is not None]
        if len(eager) < len(report.blocks):  # nothing to switch: the forward's own softmax
            outcome, words, _ = examine(model, pixels)
            if outcome != "exact":
                return {"failed": f"{outcome}: {words}"[:200]}
            eager.append(float(_WORST.search(words)[1]))
    found = {
        "from_eager": max(eager),
        "rows_times_values": max((block.output_error or 0.0 for block in report.blocks), default=0.0),
        "blocks": len(report.blocks),
        "kernels": sorted({block.kernel for block in report.blocks}),
    }
    return found if report.passed else found | {"failed": "verify did not pass"}


def measure() -> dict[str, Any]:
    """All cases in this environment."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    results: dict[str, dict[str, Any]] = {}
    for library, family, kernel, build in cases():
        start = time.time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = one(kernel, build)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            words = " ".join(str(error).split())[:160]
            found = {"failed": f"{type(error).__name__}: {words} ({Path(where.filename).name}:{where.lineno})"}
        results[f"{library}/{family}/{kernel}"] = found
        print(f"{library:13} {family:32} {kernel:22} {found} [{time.time() - start:.0f} s]", flush=True)
    versions = {module.__name__: module.__version__ for module in _LIBRARIES}
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    return {"python": platform.python_version(), **versions, "date": today, "results": results}


def _cell(found: dict[str, Any] | None) -> str:
    if found is None or "absent" in found:
        return _ABSENT
    return f"**{found['failed']}**" if "failed" in found else f"{found['from_eager']:.0e}".replace("0e+00", "0")


def table(environments: list[dict[str, Any]]) -> str:
    """Markdown: a row for each family and kernel, a column for each environment.

    Args:
        environments: What `--json` wrote in each.
    """
    lines = [
        f"- {number}: {found['date']}, Python {found['python']}, "
        + ", ".join(f"{module.__name__} {found[module.__name__].partition('+')[0]}" for module in _LIBRARIES)
        for number, found in enumerate(environments, start=1)
    ]
    numbers = range(1, len(environments) + 1)
    lines += [
        "",
        f"| library | model | kernel | {' | '.join(map(str, numbers))} |",
        "|---|---|---|" + "---|" * len(environments),
    ]
    for case in dict.fromkeys(case for found in environments for case in found["results"]):
        cells = [_cell(found["results"].get(case)) for found in environments]
        if set(cells) != {_ABSENT}:
            lines.append(f"| {' | '.join([*case.split('/'), *cells])} |")
    return "\n".join(lines)


def main() -> int:
    """Measure, or join what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write what this environment gives")
    parser.add_argument("--join", nargs="+", type=Path, help="what was written in several environments")
    parser.add_argument("--page", type=Path, help="the page for the table; without one, it is printed")
    options = parser.parse_args()
    if options.join:
        text = table([json.loads(path.read_text(encoding="utf-8")) for path in options.join])
        if options.page is None:
            print(text)
        else:
            page = options.page.read_text(encoding="utf-8")
            options.page.write_text(placed(page, "verify", text), encoding="utf-8")
        return 0
    found = measure()
    if options.json:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return int(any("failed" in one for one in found["results"].values()))


if __name__ == "__main__":
    sys.exit(main())
