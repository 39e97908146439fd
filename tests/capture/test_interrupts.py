"""Ctrl-C at any moment of a capture: nothing stays on the model or in torch, and the next capture is right."""

import gc
import linecache
import sys
from pathlib import Path
from types import FrameType

import pytest
import torch
import torch.nn.functional as F

import attnhook.capture
from attnhook import AttentionCapture
from attnhook.capture.torch_internals import compiler_stance
from tests.capture.test_contexts import same
from tests.capture.test_neighbours import LAYOUTS, capture_of

HERE = str(Path(attnhook.capture.__file__).parent)
SDPA = torch._C._nn.scaled_dot_product_attention
ENCODER = torch._transformer_encoder_layer_fwd, torch._native_multi_head_attention, F.multi_head_attention_forward


def traces(model) -> tuple:
    hooks = [name for name, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks]
    flags = [m._forward_hooks_with_kwargs or m._forward_hooks_always_called for m in model.modules()]
    functions = torch._transformer_encoder_layer_fwd, torch._native_multi_head_attention, F.multi_head_attention_forward
    return (
        hooks,
        any(flags) or any(m._forward_pre_hooks_with_kwargs for m in model.modules()),
        F.scaled_dot_product_attention is SDPA,
        [one is other for one, other in zip(functions, ENCODER, strict=True)],
        (torch._C._len_torch_function_stack(), torch._C._is_torch_function_all_disabled()),
        compiler_stance().stance,
        torch.is_grad_enabled(),
    )


class AtLine:
    """Raises KeyboardInterrupt before the n-th line that runs of attnhook's capture, as Ctrl-C may; remembers the lines.

    Left out is where Python itself never looks for signals: the end of a `with` block, before its context is left. And the first line of
    `__exit__`, which nothing that is written in Python can protect.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.places: list[tuple[str, int]] = []
        self._begun: set[tuple[FrameType, int]] = set()

    def __call__(self, frame, event, _):
        code, line = frame.f_code, frame.f_lineno
        if not code.co_filename.startswith(HERE):
            return None
        again = (frame, line) in self._begun
        self._begun.add((frame, line))
        ending = again and linecache.getline(code.co_filename, line).lstrip().startswith("with ")
        leaving = code.co_name == "__exit__" and line <= code.co_firstlineno + 3
        if event == "line" and not ending and not leaving:
            self.places.append((code.co_filename, line))
            if len(self.places) == self.number:
                raise KeyboardInterrupt
        return self

    def run(self, layout, called, pixels) -> AttentionCapture:
        before = sys.gettrace()
        sys.settrace(self)
        try:
            with AttentionCapture(called, layout=layout) as capture:
                called(pixels)
        finally:
            sys.settrace(before)
            self._begun.clear()  # frames that hold this object, and each other
        return capture

    def numbers(self) -> list[int]:
        """When each line ran for the first and the last time."""
        counted = list(enumerate(self.places, 1))
        first, last = ({place: number for number, place in each} for each in (reversed(counted), counted))
        return sorted({*first.values(), *last.values()})


@pytest.mark.parametrize("kind", ["timm", "timm, unfused", "transformers", "torchvision", "encoder", "compiled"])
def test_an_interrupt_before_any_line_leaves_nothing(kind: str) -> None:
    model, pixels, _ = capture_of("timm" if kind == "compiled" else kind)
    layout = LAYOUTS.get(kind)
    called = torch.compile(model, backend="eager") if kind == "compiled" else model
    with torch.no_grad():
        AtLine(0).run(layout, called, pixels)  # what is made once
        whole, clean = AtLine(0), traces(model)
        expected = whole.run(layout, called, pixels).maps.stack()
        assert len(whole.numbers()) > 600
        for number in whole.numbers():
            with pytest.raises(KeyboardInterrupt):
                AtLine(number).run(layout, called, pixels)
            assert traces(model) == clean, number
        with AttentionCapture(called, layout=layout) as capture:
            called(pixels)
        assert same(capture.maps.stack(), expected)


@pytest.mark.parametrize("caught", ["outside", "inside"])
@pytest.mark.parametrize("number", range(4))
def test_an_interrupt_while_torch_has_taken_a_mode_off_leaves_no_mode(number: int, caught: str) -> None:
    """Torch puts the mode back when the interrupted frames are dropped, which may be after the capture was left."""
    model, pixels, capture = capture_of("timm, unfused")
    seen = []

    def trace(frame, event, _) -> None:
        if frame.f_code.co_name == "__exit__" and frame.f_back.f_code.co_name == "handle_torch_function":
            seen.append(frame.f_code)
            if len(seen) == number + 1:
                raise KeyboardInterrupt

    def run() -> None:
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            model(pixels)
        finally:
            sys.settrace(before)

    with torch.no_grad():
        clean = traces(model)
        kept = None
        try:
            with capture:
                try:
                    run()
                except KeyboardInterrupt as error:
                    if caught == "outside":
                        raise
                    kept = error
        except KeyboardInterrupt as error:
            kept = error
        assert len(seen) == number + 1
        if caught == "outside":
            assert traces(model) == clean  # although the traceback is still there
        del kept
        gc.collect()
        with capture:  # at the latest, the next capture takes it off
            model(pixels)
        assert traces(model) == clean
    assert len(capture.maps) == 2
