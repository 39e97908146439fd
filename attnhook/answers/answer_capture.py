"""`AnswerCapture`: the context manager around `generate`, or around forwards, of a vision-language model."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attnhook.answers.answer_reading import Answer
from attnhook.answers.answer_records import AnswerRecord, Step
from attnhook.answers.answer_rows import finish
from attnhook.answers.layer_listening import CurrentAnswer, LayerListener
from attnhook.capture.forward_records import ForwardRecord
from attnhook.capture.hooked_contexts import HookedContext
from attnhook.capture.interfaces import InterfaceScope, registered_function
from attnhook.capture.scopes import (
    SDPA,
    ActiveCapture,
    ModeScope,
    Scope,
    attribute,
    forget_closed,
    innermost_of_each,
)
from attnhook.capture.shared_state import EAGER, LOCK, ReplacedFunction
from attnhook.capture.sites import Kernel
from attnhook.capture.torch_internals import is_compiled
from attnhook.capture.watched_modules import shapes
from attnhook.capture.wrapped_models import unwrapped
from attnhook.errors import NothingCapturedError, UnsupportedModelError, counted
from attnhook.zoo._transformers import kernel_of
from attnhook.zoo.vision_language import describe_speaker

_CACHES = ("cache", "past_key_values")
_PIXELS = ("pixel_values", "flattened_patches")
_OTHER_MODES = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp", "penalty_alpha")


class AnswerCapture(HookedContext):
    """Capture which image tokens every token of an answer attends to, without changing one bit of the answer.

    The row of token t is that of the query whose output predicted it: the token before it or, for the first token, the last of the prompt.
    Fused kernels stay on; rows are computed in float32 from the operands of the language model's own attention calls. Memory grows with
    new tokens x layers x heads x sequence length; the whole attention matrix is never computed.

    A capture holds the last `generate` of the task or thread that entered it. Plain forwards work, too: forwards that continue each other
    through a cache are one answer, whose tokens are those that you pass.

    Args:
        model: A vision-language model of transformers.
        processor: Its processor, for words and for the place of a map in the photo. Without it there are only rows and token ids.
        tokens: For forwards without `generate`: positions of the tokens whose rows are wanted, in the sequence that goes in, from 1; negative
            ones count from its end, if it goes in at once. None: every token after the last image token (with cross-attention, every token).

    Raises:
        UnsupportedModelError: If the model's type is not supported; the message lists those that are.
        ValueError: If `tokens` contains 0: nothing predicted the first token.

    Example:
        >>> import torch
        >>> from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
        >>> vision = CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        ...                           image_size=32, patch_size=8)
        >>> text = LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=4)
        >>> config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=49)
        >>> model = LlavaForConditionalGeneration(config).eval()
        >>> ids = torch.tensor([[1, *[49] * 16, 5, 6]])
        >>> with AnswerCapture(model) as capture:
        ...     out = model.generate(input_ids=ids, pixel_values=torch.rand(1, 3, 32, 32), max_new_tokens=4, min_new_tokens=4)
        >>> capture.answer.rows.shape  # tokens, layers, heads, image tokens
        torch.Size([4, 3, 4, 16])
    """

    def __init__(self, model: nn.Module, processor: Any = None, *, tokens: Sequence[int] | None = None) -> None:
        super().__init__()
        inner = unwrapped(model)
        adapted = getattr(inner, "get_base_model", None)  # of PEFT
        self._model = inner if adapted is None else adapted()
        self._wrapped = inner is not model  # perhaps by torch.compile
        self._about = describe_speaker(self._model)
        self._names = tuple(name for name, _ in self._about.attention)
        self._processor = processor
        self._tokens = None if tokens is None else [int(token) for token in tokens]
        if self._tokens is not None and 0 in self._tokens:
            raise ValueError(
                "no row for the first token: expected tokens from 1, got 0. It is given, not predicted. Leave it out."
            )
        self._now = CurrentAnswer(self._names, self._about.cross)
        self._answers: tuple[Answer, ...] | None = None

    def _open(self) -> None:
        self._now.begin(AnswerRecord())
        self._answers = None
        active = self._active = ActiveCapture({}, lambda: False)
        compiled = self._wrapped or any(map(is_compiled, self._model.modules()))
        if compiled or next(self._model.parameters()).device.type != "cpu":  # where generate may compile the model
            EAGER.hold(active)
        forget_closed()
        Scope(active, ForwardRecord(), active, self, (_generate_of(self._about.speaker),)).open()
        with LOCK:  # torch numbers hooks without one
            self._add_hook(self._about.reader, self._read, pre=True, with_kwargs=True)
            for module in self._about.watched:
                self._add_hook(module, self._watch, pre=True, with_kwargs=True)
            for number, (_, module) in enumerate(self._about.attention):
                self._hook_attention(number, module)

    def _undo(self) -> None:
        super()._undo()
        self._now.end()

    def _hook_attention(self, number: int, module: nn.Module) -> None:
        """Have a scope open while an attention module runs."""
        kernel, listener = kernel_of(module), LayerListener(self._now, number)
        kind = {Kernel.INTERFACE: InterfaceScope, Kernel.ANY: ModeScope}.get(kernel, Scope)
        holds = {Kernel.SDPA: (SDPA,), Kernel.INTERFACE: ()}.get(kernel, ())
        if kernel is Kernel.INTERFACE:
            holds = (registered_function(module),)

        def make(around: Scope, opener: object) -> Scope | None:
            if self._record.error is not None or self._now.step is None:
                return None
            return kind(around.capture, around.record, opener, listener, holds)

        self._open_scope_during(module, make, prepend=True)

    @property
    def _record(self) -> AnswerRecord:
        return self._now.record

    def _begin(self, record: AnswerRecord) -> None:
        """Forget what came before, except what the images were if no ids came with them yet."""
        facts = {} if self._record.pieces else self._record.facts
        self._now.begin(record)
        self._answers = None
        record.facts |= facts

    def _generates(self, speaker: Any, arguments: dict[str, Any]) -> None:
        """`generate` begins."""
        if speaker is not self._about.speaker:
            return
        record = AnswerRecord(generating=True)
        self._begin(record)
        config = arguments.get("generation_config") or speaker.generation_config

        def option(name: str) -> Any:
            found = (arguments.get(name), getattr(config, name, None), getattr(speaker.generation_config, name, None))
            return next((value for value in found if value is not None), None)

        record.error = _refused(option, arguments.get("custom_generate"))
        ends = option("eos_token_id")
        record.end_ids = () if ends is None else tuple(torch.as_tensor(ends).flatten().tolist())
        pad = option("pad_token_id")
        record.pad_id = None if pad is None or int(pad) in record.end_ids else int(pad)
        record.stops = bool(record.end_ids) and any(map(option, ("stop_strings", "stopping_criteria")))
        names = ("decoder_input_ids",) if speaker.config.is_encoder_decoder else ("input_ids", "inputs")
        given = next((arguments[name] for name in names if arguments.get(name) is not None), None)
        if isinstance(given, Tensor) and given.dim() == 2:
            record.batch, record.prompt = given.shape
        record.facts |= _facts(arguments)

    def _generated(self, speaker: Any, output: Any) -> None:
        """`generate` has returned, or raised."""
        record = self._record
        if speaker is self._about.speaker and record.generating:
            record.ended = True
            self._now.end()
            sequences = getattr(output, "sequences", output)
            if isinstance(sequences, Tensor):
                record.sequences = sequences.detach()
            else:
                problem = "no answer: expected generate to return ids, got none. Fix its error, if it raised one; else let it return ids."
                record.error = record.error or NothingCapturedError(problem)

    def _read(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        """A forward begins."""
        if self._scope() is None:
            return
        given = _named(module, args, kwargs)
        ids = given.get("input_ids")
        cache = next((given[name] for name in _CACHES if given.get(name) is not None), None)
        record = self._record
        running = record.generating and not record.ended
        cached = int(cache.get_seq_length()) if cache is not None and not (running and record.pieces) else 0
        if not running and (not cached or not record.pieces or record.generating):
            self._begin(record := AnswerRecord())
        elif not running and record.error is None:
            record.error = self._not_continued(record, cached)
        if record.error is not None:
            return
        if not isinstance(ids, Tensor) or (cached and not record.pieces):
            got = "a cache that was filled before" if cached else "inputs_embeds or none"
            record.error = UnsupportedModelError(
                f"cannot tell which tokens are the answer's: expected input_ids in every forward, from the first token on, got {got}. "
                "Pass input_ids."
            )
            return
        if cache is None:  # the whole sequence again
            record.pieces.clear()
        start = record.total
        record.pieces.append(ids.detach().clone())
        record.add_facts(_facts(given))
        step = Step(start, ids.shape[1], len(ids), self._wanted(record, start, ids))
        if record.generating and any(step.queries == one.queries for one in record.steps):
            record.error = UnsupportedModelError(
                f"the answer's rows cannot be matched to its tokens: expected one forward per token, got two of {step.total} tokens. If a "
                "logits processor or stopping criterion calls the model, give it copy.deepcopy(model)."
            )
            return
        self._now.step = step if step.queries else None
        if step.queries:
            record.steps.append(step)

    def _not_continued(self, record: AnswerRecord, cached: int) -> UnsupportedModelError | None:
        """Why a forward with a cache of so many tokens does not continue the earlier ones, if it does not."""
        problem = ""
        if cached != record.total:
            problem = (
                f"cannot tell which tokens are the answer's: expected a cache of the {record.total} tokens of earlier forwards, got one of "
                f"{cached}. Use one capture for each answer, and begin with its whole prompt."
            )
        elif self._tokens is not None and min(self._tokens, default=1) < 0:
            problem = (
                f"cannot count tokens={self._tokens} from the end: expected the whole sequence in one forward, got one that continues another. "
                "Pass positions from 1."
            )
        return UnsupportedModelError(problem) if problem else None

    def _wanted(self, record: AnswerRecord, start: int, ids: Tensor) -> list[int]:
        """The positions of this forward's queries whose rows are wanted."""
        total = start + ids.shape[1]
        if record.generating:
            return [total - 1]
        if self._tokens is not None:
            chosen = {(token if token >= 0 else total + token) - 1 for token in self._tokens}
            return sorted(position for position in chosen if start <= position < total)
        if self._about.image_id is None:
            return list(range(start, total))
        record.image_id = self._about.image_id
        last = (ids == self._about.image_id).int() * torch.arange(ids.shape[1], device=ids.device)
        return list(range(start + int(last.amax(dim=1).min()), total))

    def _watch(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        """A module runs whose arguments say what the images are."""
        facts = _facts(_named(module, args, kwargs))
        if self._scope() is None or facts.keys().isdisjoint(_PIXELS):
            return
        if not self._record.generating or self._record.ended:
            self._begin(AnswerRecord())
        facts.pop("attention_mask", None)  # of the encoder's tokens
        self._record.facts |= facts

    @property
    def answer(self) -> Answer:
        """The answer to the only prompt. For a batch, see `answers`.

        Raises `NothingCapturedError` if there is none, `UnsupportedModelError` if it was generated in a way that cannot be followed, and
        `IndexError` if `tokens` lie outside the sequence.
        """
        found = self.answers
        if len(found) != 1:
            raise ValueError(
                f"a batch has one answer per prompt: expected 1 prompt, got {len(found)}. Use capture.answers."
            )
        return found[0]

    @property
    def answers(self) -> tuple[Answer, ...]:
        """The answers of the last `generate` or forwards: one per prompt (or returned sequence), in order. Raises what `answer` raises."""
        if self._answers is None:
            if self._record.error is not None:
                raise self._record.error
            total = self._record.total
            chosen = () if self._record.generating else self._tokens or ()
            if total and (wrong := [token for token in chosen if not -total < token < total]):
                raise IndexError(
                    f"no such tokens: expected positions from 1 to {total - 1}, or negative ones from the end of {total} tokens, got {wrong}."
                )
            if not self._record.steps:
                raise NothingCapturedError(
                    f"nothing captured: expected {type(self._model).__name__}.generate(**inputs), or a forward, inside the context, got none. "
                    "If you did, you called another copy of the model, or called it on another thread."
                )
            self._answers = finish(self._record, self._about, self._names, self._processor)
        return self._answers

    def __repr__(self) -> str:
        state = "closed" if self._active is None else "open"
        return f"AnswerCapture({type(self._model).__name__}, {counted(len(self._names), 'layer')}, {state})"


def _refused(option: Callable[[str], Any], custom: Any) -> UnsupportedModelError | None:
    """Why rows of this way of generating cannot be matched to tokens, if they cannot."""
    beams = option("num_beams")
    name = next((name for name in _OTHER_MODES if option(name)), None)
    if beams is not None and beams > 1:
        got = f"beam search (num_beams={beams})"
    elif custom is not None:
        got = "custom_generate"
    elif name is not None:
        got = "contrastive search (penalty_alpha)" if name == "penalty_alpha" else f"assisted decoding ({name})"
    else:
        return None
    return UnsupportedModelError(
        f"cannot capture the answer: expected greedy search or sampling, which feed every token once and in order, got {got}. Generate with "
        "num_beams=1 and no assistant."
    )


def _named(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """The arguments of a forward by their names."""
    names = inspect.signature(module.forward).parameters if args else ()
    return {**dict(zip(names, args, strict=False)), **(kwargs or {})}


def _facts(given: dict[str, Any]) -> dict[str, Any]:
    """What is kept of them: integer tensors, the shapes of floating-point ones, and rows and columns of patches that begin with them."""
    return {
        name: shapes(value[..., :2].long() if name == _PIXELS[1] and isinstance(value, Tensor) else value)
        for name, value in given.items()
        if isinstance(value, Tensor | list)
    }


_generates: dict[type, ReplacedFunction] = {}


def _generate_of(speaker: Any) -> ReplacedFunction:
    """The function `generate` of the class that defines it; the same each time, so that all captures hold one."""
    home = next(kind for kind in type(speaker).__mro__ if "generate" in vars(kind))
    with LOCK:
        return _generates.setdefault(home, attribute(home, "generate", _generate_called))


def _generate_called(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    watching = [scope.listener for scope in innermost_of_each() if isinstance(scope.listener, AnswerCapture)]
    arguments = {**dict(zip(inspect.signature(original).parameters, args, strict=False)), **kwargs}
    for capture in watching:
        capture._generates(args[0], arguments)
    output = None
    try:
        output = original(*args, **kwargs)
        return output
    finally:
        for capture in watching:
            capture._generated(args[0], output)
