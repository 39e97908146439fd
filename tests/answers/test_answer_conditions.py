"""How answers are made: forwards without `generate`, loops of the user's own, sampling, ends, threads, errors, and what is refused."""

import contextlib
import copy
import threading
from typing import Any

import peft
import pytest
import timm
import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.modeling_outputs import BaseModelOutput

from attnhook import AnswerCapture, AttentionCapture
from attnhook.capture.operands import Operands
from attnhook.capture.scopes import SDPA
from attnhook.capture.torch_internals import compiler_stance
from attnhook.errors import NothingCapturedError, UnsupportedModelError
from tests.answers.families import BEFORE_5, CROSS, IMAGE, images, llava, llava_batch, pixels, prompts, qwen2_vl
from tests.answers.test_answer_rows import image_keys


def eager_matrices(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """All attention of one forward, `(batch, layers, heads, queries, keys)`."""
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        return torch.stack(eager(**inputs, output_attentions=True).attentions, dim=1)


def teacher_forced() -> tuple[Any, dict[str, Any]]:
    model, _ = llava()
    rows = [1, *images(16), 5, 6, 7, 8, 9], [1, 3, 4, *images(16), 5, 6, 7]
    return model, {**prompts(*rows), "pixel_values": pixels(2)}


def test_tokens_outside_the_sequence_are_refused() -> None:
    model, inputs = llava()
    length = inputs["input_ids"].shape[1]
    with pytest.raises(ValueError, match="expected tokens from 1, got 0"):
        AnswerCapture(model, tokens=[0])
    for wrong in (length, -length):
        with torch.no_grad(), AnswerCapture(model, tokens=[-1, wrong]) as capture:
            model(**inputs)
        with pytest.raises(IndexError, match=rf"from 1 to {length - 1}, .* got \[{wrong}\]"):
            _ = capture.answer


def test_a_loop_of_forwards_with_a_cache_is_one_answer() -> None:
    model, inputs = llava()
    ids = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4)
    with torch.no_grad(), AnswerCapture(model) as capture:
        out = model(**inputs, use_cache=True)
        for position in range(20, 23):
            out = model(input_ids=ids[:, position : position + 1], past_key_values=out.past_key_values)
    assert capture.answer.token_ids == tuple(ids[0, 17:23].tolist())
    forced = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    expected = eager_matrices(model, forced)[0][:, :, 16:22][..., 1:17].permute(2, 0, 1, 3)
    torch.testing.assert_close(capture.answer.rows, expected, rtol=0, atol=1e-5)


def crossed(model: Any, inputs: dict[str, Any], ids: torch.Tensor, number: int) -> torch.Tensor:
    """Eager cross-attention of a prompt over its images, `(tokens, layers, heads, keys)`."""
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    rows = torch.stack(eager(**inputs, decoder_input_ids=ids, output_attentions=True).cross_attentions, dim=1)[number]
    return rows[..., image_keys(model.config.model_type, inputs, number)].permute(2, 0, 1, 3)


@pytest.mark.parametrize("family", ["trocr", "florence2", "pix2struct"])
def test_an_encoder_decoder_in_forwards(family: str) -> None:
    """All tokens at once, then one after the other through a cache."""
    model, inputs = CROSS[family]()
    if family == "pix2struct":  # of integers, it looks like the mask of the words
        inputs["attention_mask"] = inputs["attention_mask"].long()
    if family == "florence2":  # the same prompts, padded on the left
        flipped = [row.roll(int((row == 0).sum())) for row in inputs["input_ids"]]
        inputs |= {"input_ids": torch.stack(flipped), "attention_mask": (torch.stack(flipped) != 0).long()}
    ids = torch.tensor([[3, 7, 9], [3, 5, 6]])
    with torch.no_grad(), AnswerCapture(model) as capture:
        out = model(**inputs, decoder_input_ids=ids)
    with torch.no_grad(), AnswerCapture(model) as loop:
        out = model(**inputs, decoder_input_ids=ids[:, :1], use_cache=True)
        mask = {name: value for name, value in inputs.items() if name == "attention_mask"}
        for position in (1, 2):
            seen = BaseModelOutput(out.encoder_last_hidden_state)
            kept = {"encoder_outputs": seen, "past_key_values": out.past_key_values}
            out = model(decoder_input_ids=ids[:, position : position + 1], **kept, **mask, use_cache=True)
    for number in range(2):
        expected = crossed(model, inputs, ids, number)[:2]
        for answer in (capture.answers[number], loop.answers[number]):
            assert answer.token_ids == tuple(ids[number, 1:].tolist())
            torch.testing.assert_close(torch.cat(answer._rows, -1), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["trocr", "florence2", "pix2struct"])
def test_sampling_several_answers_of_an_encoder_decoder(family: str) -> None:
    """The first input by position, and words to begin with."""
    model, inputs = CROSS[family]()
    begin = torch.tensor([[3, 8], [3, 4]])
    first, *rest = inputs
    options = {
        "do_sample": True,
        "num_return_sequences": 2,
        "max_new_tokens": 3,
        "min_new_tokens": 3,
        "pad_token_id": 0,
    }
    with AnswerCapture(model) as capture:
        more = {name: inputs[name] for name in rest}
        out = model.generate(inputs[first], **more, decoder_input_ids=begin, decoder_start_token_id=3, **options)
    assert len(capture.answers) == 4
    for number, answer in enumerate(capture.answers):
        assert answer.token_ids == tuple(out[number, 2:].tolist())
        ids = out[number, :-1].expand(2, -1)
        expected = crossed(model, inputs, ids, number // 2)[1:]
        torch.testing.assert_close(torch.cat(answer._rows, -1), expected, rtol=0, atol=1e-5)


def test_sampling_several_answers_of_each_prompt() -> None:
    model, inputs = llava_batch()
    options = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 4, "min_new_tokens": 4}
    torch.manual_seed(5)
    bare = model.generate(**inputs, **options)
    torch.manual_seed(5)
    with AnswerCapture(model) as capture:
        out = model.generate(**inputs, **options)
    assert torch.equal(out, bare)
    assert [len(answer.images) for answer in capture.answers] == [1, 1, 1, 2, 2, 2]
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 4, dtype=torch.long)], dim=1)
    repeated = pixels(3).repeat_interleave(3, 0)  # before transformers 5, whichever prompt they are of
    for number, answer in enumerate(capture.answers):
        assert answer.token_ids == tuple(out[number, -4:].tolist())
        own = pixels(3)[:1] if number < 3 else pixels(3)[1:]
        if BEFORE_5 and number >= 3:
            own = repeated[3 + 2 * (number - 3) :][:2]
        forced = {"input_ids": out[number : number + 1], "attention_mask": mask[number // 3 :][:1], "pixel_values": own}
        rows = eager_matrices(model, forced)[0][:, :, -5:-1][..., out[number] == IMAGE].permute(2, 0, 1, 3)
        torch.testing.assert_close(torch.cat(answer._rows, -1), rows, rtol=0, atol=1e-5)


def two_ends() -> tuple[Any, dict[str, Any], int]:
    """A batch, and a token that only the first answer has, not as its first."""
    model, inputs = llava_batch()
    free = model.generate(**inputs, max_new_tokens=6)[:, -6:]
    end = next((int(token) for n, token in enumerate(free[0]) if n >= 1 and token not in free[1]), None)
    if end is None:
        pytest.skip("the random weights of this version give no word to one prompt alone")
    return model, inputs, end


def test_an_answer_ends_with_its_end_token() -> None:
    model, inputs, end = two_ends()
    with AnswerCapture(model) as capture:
        out = model.generate(**inputs, max_new_tokens=6, eos_token_id=end)[:, -6:].tolist()
    first, second = capture.answers
    assert first.token_ids == tuple(out[0][: out[0].index(end) + 1])
    assert second.token_ids == tuple(out[1])
    assert first.rows.shape[0] == len(first.token_ids) < 6


def test_the_end_token_of_the_model_counts_with_settings_of_ones_own() -> None:
    model, inputs, end = two_ends()
    model.generation_config.eos_token_id = end
    with AnswerCapture(model) as capture:
        out = model.generate(**inputs, generation_config=GenerationConfig(max_new_tokens=6))[:, -6:].tolist()
    assert out[0][-1] == 0
    assert capture.answers[0].token_ids == tuple(out[0][: out[0].index(end) + 1])
    assert capture.answers[1].token_ids == tuple(out[1])


def test_padding_after_a_stop_is_no_part_of_the_answer() -> None:
    model, inputs, end = two_ends()

    class Stop(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **options: Any) -> torch.Tensor:
            return input_ids[:, -1] == end

    with AnswerCapture(model) as capture:
        criteria = StoppingCriteriaList([Stop()])
        out = model.generate(**inputs, max_new_tokens=6, eos_token_id=119, stopping_criteria=criteria)[:, -6:].tolist()
    assert out[0][-1] == 0
    assert capture.answers[0].token_ids == tuple(out[0][: out[0].index(end) + 1])
    assert capture.answers[1].token_ids == tuple(out[1])


@pytest.mark.parametrize(
    "options", [{"num_return_sequences": 2, "do_sample": True}, {"cache_implementation": "static"}]
)
def test_the_first_token_where_generate_finds_the_padding(options: dict[str, Any]) -> None:
    model, inputs = llava_batch()
    captures = []
    for names in (inputs.keys(), inputs.keys() - {"attention_mask"}):
        torch.manual_seed(0)
        with AnswerCapture(model) as capture:
            model.generate(**{name: inputs[name] for name in names}, max_new_tokens=3, **options)
        captures.append(capture.answers)
    for given, found in zip(*captures, strict=True):
        assert given.token_ids == found.token_ids
        assert given.mass["first"].sum() > 0
        torch.testing.assert_close(given.mass["first"], found.mass["first"], rtol=0, atol=1e-6)


def test_a_cache_that_does_not_continue_the_forward_before_is_refused() -> None:
    model, inputs = llava()
    with torch.no_grad(), AnswerCapture(model) as capture:
        prefix = model(**inputs, use_cache=True).past_key_values
        for cache in (copy.deepcopy(prefix), prefix):
            model(input_ids=torch.tensor([[5, 6]]), past_key_values=cache)
    with pytest.raises(UnsupportedModelError, match=r"expected a cache of the 22 tokens .*, got one of 20"):
        _ = capture.answer


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_beams": 2}, "beam search"),
        ({"prompt_lookup_num_tokens": 2}, "assisted decoding"),
        ({"assistant_model": True}, "assisted decoding"),
        ({"custom_generate": lambda *_, **__: None}, "custom_generate"),
    ],
)
def test_what_reorders_is_refused_by_name(options: dict[str, Any], named: str) -> None:
    model, inputs = llava()
    if "assistant_model" in options:
        options = {"assistant_model": copy.deepcopy(model)}
    with (
        AnswerCapture(model) as capture,
        contextlib.suppress(Exception),
    ):  # transformers itself may not do this with images
        model.generate(**inputs, max_new_tokens=3, **options)
    with pytest.raises(UnsupportedModelError, match=named):
        _ = capture.answer


def test_a_search_that_is_not_known_is_noticed_by_its_tokens() -> None:
    model, inputs = llava()

    class Beams(type(model)):
        def generate(self, **given: Any) -> torch.Tensor:
            super().generate(**given)
            return super().generate(**given) + 1

    searching = copy.deepcopy(model)
    searching.__class__ = Beams
    with AnswerCapture(searching) as capture:
        searching.generate(**inputs, max_new_tokens=3)
    with pytest.raises(UnsupportedModelError, match="cannot be matched to its tokens"):
        _ = capture.answer


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_processor_that_calls_the_model_with_other_pixels_is_refused_unless_it_has_a_copy(use_cache: bool) -> None:
    """Its rows are of the same tokens, but not those of the answer."""
    model, inputs = llava()
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "use_cache": use_cache}
    answers = []
    for other in (model, copy.deepcopy(model)):

        def contrast(ids: torch.Tensor, scores: torch.Tensor, other: Any = other) -> torch.Tensor:
            return 2 * scores - other(input_ids=ids, pixel_values=pixels(2)[1:]).logits[:, -1]

        with AnswerCapture(model) as capture:
            out = model.generate(**inputs, **options, logits_processor=LogitsProcessorList([contrast]))
        answers.append(capture)
    with pytest.raises(UnsupportedModelError, match=r"got two of 20 tokens.*copy\.deepcopy"):
        _ = answers[0].answer
    forced = {"input_ids": out[:, :-1], "pixel_values": inputs["pixel_values"]}
    expected = eager_matrices(model, forced)[0][:, :, -3:][..., 1:17].permute(2, 0, 1, 3)
    torch.testing.assert_close(answers[1].answer.rows, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cache", [{"use_cache": False}, {}, {"cache_implementation": "static"}])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_uniform_attention_is_over_all_keys_that_a_token_sees(cache: dict[str, Any], implementation: str) -> None:
    """Of rows that are uniform, every value is 1/N."""
    model, inputs = llava_batch()
    model.set_attn_implementation({"text_config": implementation})
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "language_model" in name and "q_proj" in name:
                weight.zero_()
    with AnswerCapture(model) as capture:
        model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, **cache)
    for answer, length in zip(capture.answers, (19, 37), strict=True):
        for token in range(3):
            found = answer.map([token])
            assert found.uniform == pytest.approx(1 / (length + token))
            torch.testing.assert_close(found.values, torch.full_like(found.values, found.uniform))


def test_a_static_cache_in_half_precision() -> None:
    """Its masks hide keys by a number that is not so low."""
    model, inputs = llava_batch()
    model.set_attn_implementation({"text_config": "eager"})
    inputs["pixel_values"] = inputs["pixel_values"].half()
    with AnswerCapture(model.half()) as capture:
        model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, cache_implementation="static")
    for answer, length in zip(capture.answers, (19, 37), strict=True):
        assert answer.map([2]).uniform == pytest.approx(1 / (length + 2))
        total = sum(answer.mass.values())
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-5)


def test_tokens_are_not_counted_from_an_end_that_is_still_to_come() -> None:
    model, inputs = llava()
    for tokens, words in (([-1], "Pass positions from 1"), ([19, 21], None)):
        with torch.no_grad(), AnswerCapture(model, tokens=tokens) as capture:
            out = model(**inputs, use_cache=True)
            model(input_ids=torch.tensor([[5, 6]]), past_key_values=out.past_key_values)
        if words is None:
            assert capture.answer.token_ids == (7, 6)
        else:
            with pytest.raises(UnsupportedModelError, match=words):
                _ = capture.answer


def test_embeddings_in_place_of_ids_are_refused() -> None:
    model, inputs = llava()
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    with torch.no_grad(), AnswerCapture(model) as capture:
        model(inputs_embeds=embeddings, pixel_values=inputs["pixel_values"])
    with pytest.raises(UnsupportedModelError, match="input_ids"):
        _ = capture.answer


def test_other_models_are_refused_with_what_is_known() -> None:
    model, _ = llava()
    with pytest.raises(UnsupportedModelError, match=r"llava_onevision.*mistral3"):
        AnswerCapture(model.model.vision_tower)
    with pytest.raises(UnsupportedModelError, match="answers of Linear"):
        AnswerCapture(torch.nn.Linear(2, 2))


def test_a_batch_has_answers_and_no_one_answer() -> None:
    model, inputs = llava_batch()
    with AnswerCapture(model) as capture:
        model.generate(**inputs, max_new_tokens=2)
    with pytest.raises(ValueError, match=r"capture\.answers"):
        _ = capture.answer


def test_nothing_captured_says_what_to_do() -> None:
    model, inputs = llava()
    with AnswerCapture(model) as capture:
        pass
    with pytest.raises(NothingCapturedError, match=r"generate\(\*\*inputs\)"):
        _ = capture.answer
    with AnswerCapture(model) as capture:
        thread = threading.Thread(target=lambda: model.generate(**inputs, max_new_tokens=2))
        thread.start()
        thread.join()
    with pytest.raises(NothingCapturedError, match="another thread"):
        _ = capture.answer


def test_two_threads_with_one_model_hold_their_own_answers() -> None:
    model, inputs = llava()
    other = {**inputs, "pixel_values": pixels(2)[1:]}
    alone = []
    for given in (inputs, other):
        with AnswerCapture(model) as capture:
            model.generate(**given, max_new_tokens=6, min_new_tokens=6)
        alone.append(capture.answer)
    found: list[Any] = [None, None]

    def ask(number: int) -> None:
        with AnswerCapture(model) as capture:
            model.generate(**(inputs, other)[number], max_new_tokens=6, min_new_tokens=6)
        found[number] = capture.answer

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, expected in zip(found, alone, strict=True):
        assert one.token_ids == expected.token_ids
        assert torch.equal(one.rows, expected.rows)


def test_the_model_is_left_as_it_was_after_an_error() -> None:
    model, inputs = llava()
    function, generate = torch.nn.functional.scaled_dot_product_attention, type(model).generate

    def stop(*_: Any) -> None:
        raise ValueError("stop here")

    handle = model.model.language_model.layers[1].register_forward_pre_hook(stop)
    with pytest.raises(ValueError, match="stop here"), AnswerCapture(model):
        model.generate(**inputs, max_new_tokens=2)
    handle.remove()
    with AnswerCapture(model) as capture:
        with pytest.raises(ValueError, match="stop here"):
            model.generate(**inputs, max_new_tokens=2, logits_processor=[stop])
        with torch.no_grad():
            model(**inputs)
    assert capture.answer.token_ids == (5, 6, 7)
    with AnswerCapture(model) as capture, contextlib.suppress(ValueError):
        model.generate(**inputs, max_new_tokens=2, logits_processor=[stop])
    with pytest.raises(NothingCapturedError, match="expected generate to return ids"):
        _ = capture.answer
    assert torch.nn.functional.scaled_dot_product_attention is function
    assert type(model).generate is generate
    assert not SDPA._holders
    with AnswerCapture(model) as capture:
        model.generate(**inputs, max_new_tokens=2)
    assert len(capture.answer) == 2


def test_the_tower_and_the_answer_are_captured_together() -> None:
    model, inputs = llava()
    with AttentionCapture(model, rows="all") as tower, AnswerCapture(model) as capture:
        model.generate(**inputs, max_new_tokens=2)
    assert tower.maps[-1].rows.shape[-1] == 17
    assert capture.answer.rows.shape == (2, 3, 4, 16)


def test_the_last_of_several_answers_is_held() -> None:
    model, inputs = qwen2_vl()
    with AnswerCapture(model) as capture:
        model.generate(**inputs, max_new_tokens=3)
        out = model.generate(**inputs, max_new_tokens=5, min_new_tokens=5)
    assert capture.answer.token_ids == tuple(out[0, -5:].tolist())


def test_a_prompt_in_pieces() -> None:
    model, inputs = llava()
    with AnswerCapture(model) as whole:
        ids = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4)
    with AnswerCapture(model) as capture, torch.no_grad():
        out = model(**{**inputs, "input_ids": ids[:, :18], "attention_mask": torch.ones(1, 18)}, use_cache=True)
        out = model(input_ids=ids[:, 18:20], past_key_values=out.past_key_values)
        for position in range(20, 24):
            out = model(input_ids=ids[:, position : position + 1], past_key_values=out.past_key_values)
    assert capture.answer.token_ids[-4:] == whole.answer.token_ids
    torch.testing.assert_close(capture.answer.rows[-4:], whole.answer.rows, rtol=0, atol=1e-5)


def test_a_compiled_model_runs_eagerly_and_is_captured() -> None:
    model, inputs = llava()
    with AnswerCapture(model) as expected:
        model.generate(**inputs, max_new_tokens=3, min_new_tokens=3)
    compiled = torch.compile(model)
    with AnswerCapture(compiled) as capture:
        compiled.generate(**inputs, max_new_tokens=3, min_new_tokens=3)
    assert torch.equal(capture.answer.rows, expected.answer.rows)
    with torch.no_grad(), AnswerCapture(compiled) as capture:
        compiled(**inputs)
    assert capture.answer.token_ids == (5, 6, 7)


def test_half_precision() -> None:
    model, inputs = llava()
    model = model.to(torch.bfloat16)
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    with AnswerCapture(model) as capture:
        ids = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3)
    answer = capture.answer
    assert answer.rows.dtype is torch.float32
    torch.testing.assert_close(sum(answer.mass.values()), torch.ones(3, 3, 4), rtol=0, atol=1e-5)
    forced = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    expected = eager_matrices(model, forced)[0][:, :, -4:-1][..., 1:17].permute(2, 0, 1, 3).float()
    torch.testing.assert_close(answer.rows, expected, rtol=0.1, atol=2e-2)


@pytest.mark.parametrize("first", ["answer", "maps"])
def test_whichever_capture_leaves_first_the_other_keeps_its_stance(first: str) -> None:
    model, _ = llava()
    vit = timm.create_model("test_vit", pretrained=False).eval()
    before = compiler_stance().stance
    answer, maps = AnswerCapture(torch.compile(model)), AttentionCapture(torch.compile(vit))
    answer.__enter__()
    maps.__enter__()
    one, other = (answer, maps) if first == "answer" else (maps, answer)
    one.__exit__(None, None, None)
    assert compiler_stance().stance == "force_eager"
    other.__exit__(None, None, None)
    assert compiler_stance().stance == before != "force_eager"


def test_a_layer_that_runs_for_some_tokens_only_is_refused() -> None:
    """As some models do in the prompt for layers that share the keys of others."""
    model, inputs = teacher_forced()
    attention = model.model.language_model.layers[-1].self_attn

    def last_token_only(_: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        places = tuple(each[:, -1:] for each in kwargs["position_embeddings"])
        cut = {"hidden_states": kwargs["hidden_states"][:, -1:], "position_embeddings": places, "attention_mask": None}
        return args, kwargs | cut

    handle = attention.register_forward_pre_hook(last_token_only, with_kwargs=True)
    with torch.inference_mode(), AnswerCapture(model) as capture:
        model(**inputs, use_cache=False)
    handle.remove()
    with pytest.raises(UnsupportedModelError, match="queries, one per token, got 1"):
        _ = capture.answers


def test_layers_of_different_numbers_of_heads_are_refused() -> None:
    model, inputs = teacher_forced()
    layers = model.model.language_model.layers
    config = copy.deepcopy(layers[-1].self_attn.config)
    config.num_attention_heads = 2
    layers[-1].self_attn = type(layers[-1].self_attn)(config, layer_idx=len(layers) - 1)
    with torch.no_grad(), AnswerCapture(model) as capture:
        model(**inputs)
    with pytest.raises(UnsupportedModelError, match=r"expected one number of heads, got \[2, 4\]"):
        _ = capture.answers


def test_an_unforeseen_error_is_told_when_the_answer_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """It never reaches the model's forward."""
    model, inputs = teacher_forced()
    with torch.no_grad():
        bare = model(**inputs).logits

        def broken(*_: Any) -> None:
            raise RuntimeError("no memory left")

        monkeypatch.setattr(Operands, "logits", broken)
        with AnswerCapture(model) as capture:
            assert torch.equal(model(**inputs).logits, bare)
    with pytest.raises(UnsupportedModelError, match="could not be recorded: RuntimeError: no memory left"):
        _ = capture.answers


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_an_adapted_model_of_peft() -> None:
    model, inputs = llava()
    settings = {"max_new_tokens": 3, "min_new_tokens": 3}
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    with torch.no_grad():
        bare = adapted.generate(**inputs, **settings)
        with AnswerCapture(adapted) as capture:
            assert torch.equal(adapted.generate(**inputs, **settings), bare)
        rows = eager_matrices(
            adapted.get_base_model(), {"input_ids": bare[:, :-1], "pixel_values": inputs["pixel_values"]}
        )
    expected = rows[0][:, :, -3:][..., bare[0, :-1] == IMAGE].permute(2, 0, 1, 3)
    torch.testing.assert_close(capture.answer.rows, expected, rtol=0, atol=1e-5)
