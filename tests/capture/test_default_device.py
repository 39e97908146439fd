"""`torch.set_default_device` names the device of what does not say where it is to be made: captures of a CPU model do not depend on it."""

from collections.abc import Callable
from contextlib import contextmanager, nullcontext

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

import attnhook
from attnhook import METHODS, AttentionCapture, attention_statistics
from attnhook.attribution import perturbation, scores
from attnhook.capture.operands import Operands
from attnhook.capture.softmax_matrix import SoftmaxMatrix
from tests.defaults import no_default_device
from tests.models import TIMM, TRANSFORMERS, images

CASES = {case.name: case for case in TIMM + TRANSFORMERS}


@contextmanager
def default_device(name: str):
    torch.set_default_device(name)
    try:
        yield
    finally:
        no_default_device()


def swin() -> nn.Module:
    return timm.models.swin_transformer.SwinTransformer(
        img_size=32, window_size=4, embed_dim=8, depths=(2, 2), num_heads=(2, 2), patch_size=4
    ).eval()


BUILDS: dict[str, Callable[[], nn.Module]] = {
    "vit": CASES["vit"].build,
    "vit, unfused": lambda: CASES["vit"].build("eager"),
    "pooling": CASES["vit_siglip"].build,
    "transformers": CASES["ViTModel"].build,
    "shuffled": CASES["ViTMAE"].build,
    "torchvision": lambda: VisionTransformer(32, 8, 2, 4, 32, 48, num_classes=3).eval(),
    "windows": swin,
}
ROWS = {"vit": ("readout", "mean", "all", [0, (1, 2)]), "windows": ("all",), "shuffled": ("cls", "all")}


def alike(one, other) -> None:
    if isinstance(one, Tensor):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6, equal_nan=True)
    elif isinstance(one, list | tuple):
        for first, second in zip(one, other, strict=True):
            alike(first, second)
    else:
        assert one == other


def everything(model: nn.Module, pixels: Tensor, rows) -> list:
    found: list = []
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        with AttentionCapture(model, rows=rows) as capture:
            model(pixels)
    maps = capture.maps
    found += [block.rows for block in maps]
    for statistics in attention_statistics(maps):
        found += [getattr(statistics, name) for name in ("entropy", "distance_patches", "patch_mass", "head_diversity")]
    if rows == "all":
        matrix = maps[0].matrix
        found += [matrix.entropy(), matrix.column_sums(), matrix.rows([0, 2]), matrix.mean_rows(slice(1, 3))]
        found.append(attnhook.received_attention(maps).values)
    return found


@pytest.mark.parametrize("kind", BUILDS)
def test_maps_and_statistics_do_not_depend_on_the_default_device(kind: str) -> None:
    model, pixels = BUILDS[kind](), images(2, size=(24, 24) if kind == "shuffled" else (32, 32))
    pixels = images(2) if kind in ("vit", "vit, unfused", "pooling", "transformers") else pixels
    for rows in ROWS.get(kind, ("readout", "all")):
        with default_device("meta"):  # first: layouts are remembered
            found = everything(model, pixels, rows)
        alike(found, everything(model, pixels, rows))


def test_methods_and_scores_do_not_depend_on_the_default_device() -> None:
    model, pixels = BUILDS["vit"](), images(2)
    found = []
    for context in (default_device("meta"), nullcontext()):
        results: list = []
        with context:
            with AttentionCapture(model, gradients=True) as capture:
                model(pixels)[:, 0].sum().backward()
            maps = capture.maps
            results += [method(maps).values for method in METHODS.values()]
            results.append(attnhook.rollout(maps, discard=0.5).values)
            results += [attnhook.rollout(maps, heads=heads).values for heads in ("max", "min", 1)]
            patch_map = results[0]
            mask = patch_map[0] > patch_map[0].mean()
            results += [scores.centre_prior((3, 5)), scores.random_map((3, 5))]
            results += [scores.pointing_game(patch_map[0], one) for one in (mask, mask.numpy())]
            results.append(attnhook.attention_mask(patch_map, keep=0.5))
            with torch.no_grad():
                curve = perturbation.deletion(lambda x: model(x)[:, 0], pixels, patch_map, steps=3)
            results += [curve.parts, curve.scores]
        found.append(results)
    alike(found[1], found[0])


@pytest.mark.parametrize(
    "settings", [{}, {"causal": True}, {"mask": torch.ones(1, 1, 5, 5, dtype=torch.bool)}], ids=str
)
def test_matrices_do_not_depend_on_the_default_device(settings: dict) -> None:
    query, key = torch.randn(2, 2, 4, 5, 6, generator=torch.Generator().manual_seed(0)).unbind(0)
    matrix = SoftmaxMatrix(Operands(query, key[:, :2], **settings))
    r, x = torch.rand(2, 4, 2, 5), torch.rand(2, 4, 5, 3)

    def read() -> list[Tensor]:
        fused = [rows.clone() for kind in ("mean", "max") for _, rows in matrix.fused_chunks(kind)]
        return [matrix.dense(), matrix.left_multiply(r), matrix.right_multiply(x), matrix.entropy(), *fused]

    wanted = read()
    with default_device("meta"):
        alike(read(), wanted)
