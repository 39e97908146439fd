"""Trains the small ViT of `tests/digits.py`, and writes the weights of `load("digits")`.

In a second, shorter run the class token of half of the images enters the last block as it entered the first, with nothing that it has read in
between. So the last block learns to read the classes off the patches by itself, and a map of this block alone has a truth to be held against.
(Forgetting from the start was worse: `gradient_attention` right in 67 % of the cases, and in 15 % its peak in empty patches.)

python -m tests.assets.train_digits          # about ten minutes on one core; the same weights on the same machine and versions
"""

import argparse
import math
import time
from collections.abc import Callable

import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils.hooks import RemovableHandle

from attnhook.zoo.loading import DIGITS_WEIGHTS
from tests.digits import DigitPairs, build, digits, draw

BATCH, WARMUP = 32, 200
FORGETTING = 0.5
"""Share of the training images whose class token forgets, before the last block, what it has read."""


def distorted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Digits `(n, 12, 12)`, each turned, sheared, scaled, moved by up to a pixel and dimmed a little at random."""
    count = len(images)

    def drawn(*shape: int) -> torch.Tensor:
        return 2 * torch.rand(count, *shape, generator=generator) - 1

    maps = torch.eye(2, 3).repeat(count, 1, 1)
    maps[:, :, :2] += 0.18 * drawn(2, 2)
    maps[:, :, 2] = drawn(2) / 6
    grid = nn.functional.affine_grid(maps, [count, 1, *images.shape[1:]], align_corners=False)
    moved = nn.functional.grid_sample(images[:, None], grid, align_corners=False)[:, 0]
    return moved * (0.85 + 0.15 * drawn(1, 1))


def forgetting(model: VisionTransformer, generator: torch.Generator) -> RemovableHandle:
    """Have the class token forget, before the last block, in some of the images; until the handle is removed."""

    def forget(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        tokens = inputs[0].clone()
        chosen = torch.rand(len(tokens), generator=generator) < FORGETTING
        tokens[chosen, 0] = model.cls_token[0, 0] + model.pos_embed[0, 0]
        return (tokens,)

    return model.blocks[-1].register_forward_pre_hook(forget)


def train(steps: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = build().train()
    run(model, steps, 2e-3, generator, loss_of)
    handle = forgetting(model, generator)
    run(model, steps // 2, 1e-3, generator, loss_of)
    handle.remove()
    return model.eval()


def loss_of(model: nn.Module, pairs: DigitPairs) -> torch.Tensor:
    return nn.functional.binary_cross_entropy_with_logits(model(pairs.pixels), pairs.targets)


def run(
    model: nn.Module,
    steps: int,
    rate: float,
    generator: torch.Generator,
    loss_of: Callable[[nn.Module, DigitPairs], torch.Tensor],
    batch: int = BATCH,
) -> None:
    """Train in place on distorted pairs, the rate rising to `rate` and falling to 0."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / WARMUP, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    material = digits(held_out=False)
    begin = time.process_time()
    for step in range(steps):
        pairs = draw(material, batch, generator, lambda images: distorted(images, generator))
        loss = loss_of(model, pairs)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        rates.step()
        if step % 500 == 499:
            print(
                f"step {step + 1} of {steps}: loss {loss.item():.4f}, {time.process_time() - begin:.0f} s of CPU time",
                flush=True,
            )


def accuracy(model: nn.Module, count: int = 1000) -> float:
    """Share of held-out images whose two highest logits are the two classes."""
    pairs = draw(digits(held_out=True), count, torch.Generator().manual_seed(1))
    with torch.no_grad():
        best = model(pairs.pixels).topk(2).indices
    return (best.sort().values == pairs.classes.sort().values).all(dim=1).double().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--steps", type=int, default=5000, help="of the first run; the second takes half (default: 5000)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = train(options.steps, options.seed)
    print(f"both classes right in {accuracy(model):.1%} of 1,000 held-out images")
    half = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(half, DIGITS_WEIGHTS)
    print(f"{DIGITS_WEIGHTS}: {DIGITS_WEIGHTS.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
