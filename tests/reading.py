"""Answers with a known place: pictures of two digits, which the tiny vision-language model of the package names from left to right.

python -m tests.reading          # the table of docs/answers.md
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnhook import AnswerCapture
from attnhook.answers.answer_reading import Answer
from attnhook.zoo.demo_reader import NAMES, READER_PROMPT, digit_reader
from tests.digits import DigitPairs, digits, draw

READINGS: dict[str, dict[str, Any]] = {
    "mean over layers and heads (default)": {},
    "max over layers": {"fusion": "max"},
    "max over heads and layers": {"heads": "max", "fusion": "max"},
    "first layer": {"layers": 0},
    "last layer": {"layers": -1},
    "relative": {"relative": True},
}


def reading_order(pairs: DigitPairs) -> Tensor:
    """Which digit is the left one (the upper one where columns are equal) and which the right one, `(n, 2)`."""
    return (pairs.corners[..., 1] * 100 + pairs.corners[..., 0]).argsort(dim=1)


def named(pairs: DigitPairs) -> list[str]:
    """What is to be answered: "seven and three"."""
    classes = pairs.classes.gather(1, reading_order(pairs)).tolist()
    return [f"{NAMES[first]} and {NAMES[second]}" for first, second in classes]


def asked(processor: Any) -> Tensor:
    """The ids of the prompt, `(1, tokens)`."""
    text = READER_PROMPT.replace("<image>", "<image> " * 64)
    return torch.as_tensor([processor.tokenizer(text)["input_ids"]])


@dataclass(frozen=True)
class Reading:
    """Answers to pictures of two digits."""

    pairs: DigitPairs
    answers: tuple[Answer, ...]

    @property
    def right(self) -> float:
        """The share of answers that name both digits in order."""
        pairs = zip(self.answers, named(self.pairs), strict=True)
        return sum(answer.text == text for answer, text in pairs) / len(self.answers)

    def maps(self, **reading: Any) -> Tensor:
        """The maps of both names, `(n, 2, 8, 8)`: of the first and third token, whatever they say."""
        return torch.stack(
            [torch.stack([answer.map([n], **reading).values for n in (0, 2)]) for answer in self.answers]
        )

    def peaks(self, maps: Tensor) -> tuple[float, float]:
        """How often maps peak in the digit that is named, and how often in the other one."""
        boxes = torch.stack([self.pairs.inside(0), self.pairs.inside(1)], dim=1).flatten(2)
        own = boxes.gather(1, reading_order(self.pairs)[..., None].expand_as(boxes))
        peak = maps.flatten(2).argmax(-1, keepdim=True)
        first, second = (float(inside.gather(2, peak).double().mean()) for inside in (own, own.flip(1)))
        return first, second


def read(count: int, *, trained: bool) -> Reading:
    """Let the model, or one with random weights, name the digits of pictures that no training saw."""
    pairs = draw(digits(held_out=True), count, torch.Generator().manual_seed(2024))
    torch.manual_seed(0)
    model, processor = digit_reader(trained=trained)
    ids = asked(processor).expand(count, -1)
    with torch.inference_mode(), AnswerCapture(model, processor) as capture:
        model.generate(input_ids=ids, pixel_values=pairs.pixels, max_new_tokens=4, min_new_tokens=3)
    return Reading(pairs, capture.answers)


def main() -> None:
    torch.set_num_threads(1)
    both = [read(250, trained=trained) for trained in (True, False)]
    print(*(f"{one.right:.1%} of answers right" for one in both), sep="\n")
    print("| map | in the named digit | in the other | random weights: named | other |\n|---|---|---|---|---|")
    for name, reading in READINGS.items():
        print(
            f"| {name} |", " | ".join(f"{share:.1%}" for one in both for share in one.peaks(one.maps(**reading))), "|"
        )


if __name__ == "__main__":
    main()
