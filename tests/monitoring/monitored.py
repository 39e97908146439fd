"""Training runs for the tests of the monitor: small, random in every way that training is, and told apart to the last bit."""

import contextlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.checkpoint import checkpoint

from attnhook import AttentionMonitor

SIZE, PATCH, CLASSES = 32, 8, 4
STEPS = 20


def small_vit(**settings: Any) -> nn.Module:
    """A ViT of two blocks with dropout of every kind."""
    from timm.models.vision_transformer import VisionTransformer

    defaults = {
        "img_size": SIZE,
        "patch_size": PATCH,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 4,
        "num_classes": CLASSES,
    }
    drops = {"drop_rate": 0.1, "proj_drop_rate": 0.1, "attn_drop_rate": 0.1, "drop_path_rate": 0.1}
    return VisionTransformer(**(defaults | drops | settings))


class Hybrid(nn.Module):
    """Convolutions with batch normalisation in front of a ViT; one of the norms is frozen, as in fine-tuning."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3))
        self.vit = small_vit()
        self.calls = 0
        self.register_buffer("seen", torch.zeros(()))

    def train(self, mode: bool = True) -> "Hybrid":
        super().train(mode)
        self.stem[3].eval()
        return self

    def forward(self, pixels):
        self.calls += 1  # state in a plain attribute, and in a buffer, in eval mode too
        self.seen += pixels.mean().detach()
        noise = 0.1 * torch.randn_like(pixels) + 0.001 * random.random() + 0.001 * np.random.rand()  # noqa: NPY002, S311 (what training may draw)
        return self.vit(self.stem(pixels + noise)) * (1 + 0.01 * self.calls)


class Checkpointed(nn.Module):
    """A ViT whose blocks run again in backward."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = small_vit()

    def forward(self, pixels):
        x = self.vit._pos_embed(self.vit.patch_embed(pixels))
        for block in self.vit.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return self.vit.forward_head(self.vit.norm(x))


@dataclass
class Kind:
    """One way to train."""

    build: Callable[[], nn.Module] = small_vit
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model
    autocast: bool = False
    observable: bool = True
    blocks: Any = None
    extra: dict[str, Any] = field(default_factory=dict)


KINDS = {
    "eager": Kind(),
    "autocast": Kind(autocast=True),
    "checkpointing": Kind(build=Checkpointed),
    "hybrid": Kind(build=Hybrid),
    "compiled": Kind(wrap=lambda model: torch.compile(model, backend="aot_eager"), observable=False),
    "compiled in place": Kind(wrap=lambda model: (model.compile(backend="eager"), model)[1], observable=False),
    "compiled blocks": Kind(
        wrap=lambda model: ([block.compile(backend="eager") for block in model.blocks], model)[1], observable=False
    ),
}


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images with one bright patch; the quarter that it is in is the class."""
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(CLASSES, (8,), generator=generator)
    pixels = 0.3 * torch.randn(8, 3, SIZE, SIZE, generator=generator)
    for image, label in zip(pixels, labels.tolist(), strict=True):
        row, column = divmod(label, 2)
        image[:, 16 * row + 4 : 16 * row + 12, 16 * column + 4 : 16 * column + 12] += 1.5
    return pixels, labels


def train(kind: Kind, watch: Callable[[nn.Module], AttentionMonitor] | None, *, steps: int = STEPS) -> dict[str, Any]:
    """Train, and say everything that a run leaves behind."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    bare = kind.build().train()
    model = kind.wrap(bare)
    optimizer = torch.optim.AdamW(bare.parameters(), lr=1e-3)
    monitor = watch(model) if watch else None
    losses, hooks = [], []
    for step in range(steps):
        pixels, labels = batch(step)
        look = monitor.observe(step) if monitor and kind.observable else contextlib.nullcontext()
        with torch.autocast("cpu", torch.bfloat16, enabled=kind.autocast):
            if monitor and step % 3 == 1:
                monitor.step(step)  # in the middle of things: inside autocast, before the forward
            with look:
                output = model(pixels)
            loss = nn.functional.cross_entropy(output.float(), labels)
        loss.backward()
        if monitor and step % 3 == 2:
            monitor.step(step)  # between backward and the optimizer's step
        optimizer.step()
        if monitor and step % 3 == 0:
            monitor.step(step)
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        losses.append(loss.item())
        hooks.append(hook_count(bare))
    return {
        "losses": losses,
        "weights": {name: value.clone() for name, value in bare.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "random": (torch.get_rng_state(), random.getstate(), np.random.get_state()),  # noqa: NPY002
        "modes": [module.training for module in bare.modules()],
        "hooks": hooks,
    }


def hook_count(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


def same(first: Any, second: Any) -> bool:
    """Equal to the last bit, all the way down."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, np.ndarray):
        return np.array_equal(first, second)
    if isinstance(first, Mapping):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


class MemoryWriter:
    """Keeps everything."""

    def __init__(self) -> None:
        self.numbers: dict[int, dict[str, float]] = {}
        self.pictures: dict[tuple[str, int], Image.Image] = {}
        self.texts: list[tuple[str, str, int]] = []
        self.closed = False

    def scalars(self, values, step):
        self.numbers.setdefault(step, {}).update(values)

    def image(self, tag, picture, step):
        self.pictures[tag, step] = picture

    def text(self, tag, text, step):
        self.texts.append((tag, text, step))

    def close(self):
        self.closed = True


def probe_pixels(count: int = 2) -> torch.Tensor:
    return batch(999)[0][:count]


def scale_queries(model: nn.Module, factor: float = 30.0) -> None:
    """Collapse a timm ViT's attention."""
    with torch.no_grad():
        for block in model.blocks:
            width = block.attn.qkv.out_features // 3
            block.attn.qkv.weight[:width] *= factor
            block.attn.qkv.bias[:width] *= factor
