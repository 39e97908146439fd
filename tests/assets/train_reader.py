"""Trains the tiny vision-language model of `attnhook/zoo/demo_reader.py` to name two digits from left to right.

python -m tests.assets.train_reader          # about a quarter of an hour on one core; the same weights on the same machine and versions
"""

import argparse
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from attnhook.zoo.demo_reader import READER_WEIGHTS, digit_reader
from tests.assets.train_digits import run
from tests.reading import asked, named

BATCH = 64


def train(steps: int, rate: float, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model, processor = digit_reader(trained=False)
    model.train()
    run(
        model, steps, rate, generator, lambda model, pairs: loss_of(model, processor, pairs.pixels, named(pairs)), BATCH
    )
    return model.eval()


def loss_of(model: Any, processor: Any, pixels: Tensor, answers: list[str]) -> Tensor:
    """Cross-entropy of the answers' tokens alone."""
    prompt = asked(processor)
    ends = processor.tokenizer([f"{answer} </s>" for answer in answers], return_tensors="pt")["input_ids"]
    ids = torch.cat([prompt.expand(len(pixels), -1), ends], dim=1)
    labels = ids.clone()
    labels[:, : prompt.shape[1]] = -100
    return model(input_ids=ids, pixel_values=pixels, labels=labels).loss


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = train(options.steps, options.rate, options.seed)
    with torch.no_grad():
        for (
            unused
        ) in model.model.vision_tower.encoder.parameters():  # its output is not read; zeros take no room in the wheel
            unused.zero_()
    half = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(half, READER_WEIGHTS)
    print(f"{READER_WEIGHTS.name}: {READER_WEIGHTS.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
