"""What it costs to capture an answer: CPU time and peak memory of `generate`, beside eager attention with `output_attentions`.

    python benchmarks/answering.py
    python benchmarks/answering.py --repeats 3 --no-memory --json answering.json

A LLaVA with random weights: a language model of 24 layers, width 512, 8 heads, an image of 20 x 30 tokens, 64 new tokens by greedy search.
Measured as in `overhead.py`: candidates interleaved, each time over the bare `generate` of the same round, `bare again` is the noise floor,
peaks from fresh processes. The measured region of attnhook is entering the context, `generate`, leaving it and reading the answer's rows. The
rows are checked first, against those of eager attention that `generate` returns for the same ids.
"""

import argparse
import json
import sys
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from overhead import Result, bases_of, configuration, measure, table_head, table_row
from overhead_cases import Candidate, CheckError
from peaks import peak_of_second_run, spawn
from timing import extra_memory
from torch import Tensor
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, PixtralVisionConfig

from attnhook import AnswerCapture

LAYERS, WIDTH, GRID, NEW = 24, 512, (20, 30), 64
TOLERANCE = 1e-5
IMAGE = 5


class AnswerCase:
    """The model, its eager copy, and the ways to make an answer."""

    def __init__(self, layers: int = LAYERS, width: int = WIDTH, grid: tuple[int, int] = GRID, new: int = NEW) -> None:
        self.layers, self.width, self.grid, self.new = layers, width, grid, new

    @cached_property
    def model(self) -> Any:
        """A LLaVA with a Pixtral tower, whose grid may have any shape."""
        torch.manual_seed(0)
        tower = PixtralVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=1,
            num_attention_heads=4,
            image_size=512,
            patch_size=8,
        )
        words = LlamaConfig(
            vocab_size=8192,
            hidden_size=self.width,
            intermediate_size=self.width * 11 // 4,
            num_hidden_layers=self.layers,
            num_attention_heads=8,
            max_position_embeddings=2048,
        )
        settings = {"image_token_index": IMAGE, "vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
        model = LlavaForConditionalGeneration(LlavaConfig(vision_config=tower, text_config=words, **settings)).eval()
        model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
        return model

    @cached_property
    def eager(self) -> Any:
        """The same weights with eager attention."""
        config = LlavaConfig(**self.model.config.to_dict())
        eager = LlavaForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
        eager.load_state_dict(self.model.state_dict(), assign=True)
        eager.generation_config = self.model.generation_config
        return eager

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """One prompt with one image."""
        rows, columns = self.grid
        ids = torch.tensor([[1, *[IMAGE] * (rows * columns), 7, 8, 9]])
        size = (rows * 8, columns * 8)
        return {"input_ids": ids, "pixel_values": torch.rand(1, 3, *size), "image_sizes": torch.tensor([size])}

    def bare(self) -> Tensor:
        """`generate` alone."""
        ids: Tensor = self.model.generate(**self.inputs, max_new_tokens=self.new)
        return ids

    def captured(self) -> tuple[Tensor, Tensor]:
        """`generate` and the rows of every new token."""
        with AnswerCapture(self.model) as capture:
            ids = self.bare()
        return ids, capture.answer.rows

    def returned(self) -> Any:
        """Eager attention with everything that it returns."""
        return self.eager.generate(
            **self.inputs, max_new_tokens=self.new, output_attentions=True, return_dict_in_generate=True
        )

    def check(self, made: tuple[Tensor, Tensor]) -> float:
        """Compare ids with the bare run's, and rows with eager attention's."""
        ids, rows = made
        if not torch.equal(ids, self.bare()):
            raise CheckError("the answer has changed")
        expected = self.returned()
        if not torch.equal(expected.sequences, ids):
            raise CheckError("eager attention gives another answer")
        count = self.grid[0] * self.grid[1]
        wanted = torch.stack(
            [torch.stack([layer[0, :, -1, 1 : 1 + count] for layer in step]) for step in expected.attentions]
        )
        error = float((rows - wanted).abs().max())
        if not error < TOLERANCE:
            raise CheckError(f"rows are off by {error:.2e}")
        return error

    def candidates(self) -> dict[str, Candidate]:
        """What is measured, by name."""
        return {
            "bare": Candidate(self.bare),
            "bare again": Candidate(self.bare, "bare"),
            "attnhook, rows of every token": Candidate(self.captured, "bare", self.check),
            "eager, output_attentions": Candidate(self.returned, "bare"),
        }


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--repeats", type=int, default=9)
    made.add_argument("--warmup", type=int, default=1)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--processes", type=int, default=3, help="processes for the peak of each candidate")
    made.add_argument("--no-memory", action="store_true")
    made.add_argument("--json", type=Path, default=None)
    made.add_argument("--probe", default=None, help=argparse.SUPPRESS)
    return made


def main(arguments: list[str] | None = None, case: AnswerCase | None = None) -> int:
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    case = case or AnswerCase()
    if options.probe:
        print(peak_of_second_run(case.candidates()[options.probe].run))
        return 0
    candidates, about = case.candidates(), configuration(options.threads) | {"warmup": options.warmup}
    print(*(f"{key}: {value}" for key, value in about.items()), "", sep="\n", flush=True)
    try:
        results: list[Result] = measure("answer", candidates, options.repeats, warmup=options.warmup)
    except CheckError as error:
        print(f"wrong result: {error}", file=sys.stderr)
        return 1
    if not options.no_memory:
        probe = lambda name: spawn(__file__, "--probe", name, "--threads", options.threads)  # noqa: E731
        weighed = [name for name in candidates if name != "bare again"]
        extra = extra_memory(weighed, bases_of(candidates), probe, options.processes)
        results = [replace(result, extra_bytes=extra.get(result.candidate)) for result in results]
    print(table_head(), *map(table_row, results), sep="\n")
    if options.json:
        content = {"configuration": about, "results": [asdict(result) for result in results]}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
