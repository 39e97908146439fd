"""Rows of every generated token against eager attention with the same tokens forced; ids and logits with and without the capture."""

import copy
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from attnhook import AnswerCapture
from attnhook.capture.watched_modules import CaptureHook
from tests.answers.families import BEFORE_5, CROSS, FAMILIES, IMAGE

NEW = 5
GENERATE = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
LENGTHS = ("max_new_tokens", "min_new_tokens")


def generated(model: Any, inputs: dict[str, Any], **options: Any) -> Any:
    given = {name: value.clone() for name, value in inputs.items()}
    return model.generate(**given, **{**GENERATE, **options}, return_dict_in_generate=True, output_logits=True)


def eager_rows(model: Any, inputs: dict[str, Any], sequences: torch.Tensor, **lengths: int) -> list[torch.Tensor]:
    """Per prompt, `(tokens, layers, heads, keys)`: each step's last query, of an eager copy that is made to say the same."""
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    out = eager.generate(
        **inputs,
        **{**GENERATE, **lengths},
        return_dict_in_generate=True,
        output_attentions=True,
        use_cache=False,
        prefix_allowed_tokens_fn=lambda row, ids: [int(sequences[row, len(ids)])],
    )
    assert torch.equal(out.sequences, sequences)
    return [
        [torch.stack([layer[row, :, -1] for layer in step]) for step in out.attentions] for row in range(len(sequences))
    ]


def assert_sharp(rows: torch.Tensor) -> None:
    """Some keys get at least twice the mean: uniform rows would agree whatever keys they are of."""
    assert (rows.amax(-1) > 2 * rows.mean(-1)).float().mean() > (0.01 if BEFORE_5 else 0.1)


def check(model: Any, inputs: dict[str, Any], **options: Any) -> tuple[Any, ...]:
    bare = generated(model, inputs, **options)
    with AnswerCapture(model) as capture:
        out = generated(model, inputs, **options)
    assert torch.equal(out.sequences, bare.sequences)
    assert all(torch.equal(a, b) for a, b in zip(out.logits, bare.logits, strict=True))
    left = [
        hook for one in model.modules() for hook in (*one._forward_hooks.values(), *one._forward_pre_hooks.values())
    ]
    assert not any(isinstance(hook, CaptureHook) for hook in left)
    answers = capture.answers
    lengths = {name: options[name] for name in LENGTHS if name in options}
    expected = eager_rows(model, inputs, out.sequences, **lengths)
    length = inputs["input_ids"].shape[1]
    assert len(answers) == len(expected)
    for number, (answer, steps) in enumerate(zip(answers, expected, strict=True)):
        assert answer.token_ids == tuple(out.sequences[number, length:].tolist())
        is_image = inputs["input_ids"][number] == IMAGE
        got = torch.cat(answer._rows, dim=-1)
        want = torch.stack([step[..., :length][..., is_image] for step in steps])
        assert got.shape == want.shape
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
        if int(is_image.sum()) >= 16:
            assert_sharp(want)
        first = int(inputs["attention_mask"][number].argmax())
        masses = {"words": torch.stack([step[..., length:].sum(-1) for step in steps])}
        masses["image"] = want.sum(-1)
        masses["first"] = torch.stack([step[..., first] for step in steps]) * (not is_image[first])
        for name, mass in masses.items():
            torch.testing.assert_close(answer.mass[name], mass, rtol=0, atol=1e-5)
        torch.testing.assert_close(sum(answer.mass.values()), torch.ones_like(masses["image"]), rtol=0, atol=1e-5)
    return answers


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_every_family_equal_eager_attention(family: str) -> None:
    if family == "paligemma" and BEFORE_5:
        pytest.skip("PaliGemma of transformers 4 computes something else with a cache than without one")
    check(*FAMILIES[family]())


def image_keys(family: str, inputs: dict[str, Any], row: int) -> torch.Tensor:
    """Where the keys of a prompt's images are among those of cross-attention."""
    if family == "florence2":
        return (inputs["input_ids"][row] == IMAGE).nonzero()[:, 0]
    counts = {"mllama": (2 * 17, 17), "donut": (64, 64), "pix2struct": (20, 24)}
    return torch.arange(counts.get(family, (17, 17))[row])


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("cache", ["none", "dynamic", "static"])
@pytest.mark.parametrize("family", CROSS)
def test_rows_of_cross_attention_equal_eager_attention(family: str, cache: str, implementation: str) -> None:
    """Only the last query of each step, as `generate` returns it; BLIP's own generate returns no attention: its decoder is asked."""
    if cache == "static" and family in ("donut", "blip"):
        pytest.skip("transformers itself cannot do this")
    model, inputs = CROSS[family]()
    model.set_attn_implementation(implementation)
    options: dict[str, Any] = {} if family == "blip" else {"pad_token_id": 0}
    options |= GENERATE
    options |= {"use_cache": False} if cache == "none" else {"use_cache": True, "cache_implementation": cache}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    bare = model.generate(**inputs, **options)
    with AnswerCapture(model) as capture:
        made = model.generate(**inputs, **options)
    out = made.sequences
    assert torch.equal(out, bare.sequences)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(made.logits, bare.logits, strict=True))
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    if family == "blip":
        seen = eager.vision_model(inputs["pixel_values"]).last_hidden_state
        forward = eager.text_decoder(out[:, :-1], encoder_hidden_states=seen, output_attentions=True, return_dict=True)
        layers = forward.cross_attentions
    elif family == "mllama":
        more = inputs["cross_attention_mask"]
        mask = torch.cat([more, more[:, -1:].expand(-1, NEW - 1, -1, -1)], dim=1)
        ones = torch.ones(2, NEW - 1, dtype=torch.long)
        given = {**inputs, "input_ids": out[:, :-1], "cross_attention_mask": mask}
        given["attention_mask"] = torch.cat([inputs["attention_mask"], ones], dim=1)
        forward = eager(**given, output_attentions=True)
        layers = [forward.attentions[number] for number in (1, 3)]
    else:
        layers = eager(**inputs, decoder_input_ids=out[:, :-1], output_attentions=True).cross_attentions
    expected = torch.stack(list(layers), dim=1)[:, :, :, -NEW:].permute(0, 3, 1, 2, 4)
    for number, answer in enumerate(capture.answers):
        assert answer.token_ids == tuple(out[number, -NEW:].tolist())
        want = expected[number][..., image_keys(family, inputs, number)]
        got = torch.cat(answer._rows, -1)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
        torch.testing.assert_close(answer.mass["other"], 1 - want.sum(-1), rtol=0, atol=1e-5)
        assert_sharp(got)


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "of our own"])
@pytest.mark.parametrize("cache", ["none", "dynamic", "static"])
@pytest.mark.parametrize("family", ["llava", "llava batch", "llava windows", "gemma3", "qwen2_vl", "llama4"])
def test_caches_and_kernels(family: str, cache: str, implementation: str) -> None:
    model, inputs = FAMILIES[family]()
    if implementation == "of our own":
        AttentionInterface.register("of our own", without_softmax)
        AttentionMaskInterface.register("of our own", ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    for part in (getattr(model, "model", model).language_model, model):
        part.set_attn_implementation({"text_config": implementation} if part is model else implementation)
    options = {"use_cache": False} if cache == "none" else {"cache_implementation": f"{cache}"}
    check(model, inputs, **options)


def without_softmax(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float, **_: Any
) -> Any:
    """A kernel that calls neither scaled_dot_product_attention nor a softmax."""
    groups = query.shape[1] // key.shape[1]
    logits = query @ key.repeat_interleave(groups, 1).mT * scaling
    logits = logits if attention_mask is None else logits + attention_mask[..., : key.shape[2]]
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    weights = weights / weights.sum(-1, keepdim=True)
    return (weights @ value.repeat_interleave(groups, 1)).transpose(1, 2), None
