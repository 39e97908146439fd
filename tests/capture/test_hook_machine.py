"""Captures that are entered, left, paused, cleared and read in any order, around forwards that nest, fail and run elsewhere.

A simple model of the semantics says what each capture holds: of every forward that it saw, oldest first, the photo, or that it was left
half-way, or that it ended before anything attended.
"""

import copy
import threading
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch import nn

from attnhook import AttentionCapture
from attnhook.capture import scopes
from attnhook.errors import BlockNotCapturedError, NothingCapturedError
from tests.capture.test_contexts import other, same
from tests.capture.test_invariants import output_of, state_of
from tests.capture.test_neighbours import CAPTURED, SDPA

KINDS = ("timm", "timm, unfused", "transformers", "torchvision")
PART, NOTHING = "part", "nothing"
PLACES = (
    "first",
    "attention",
    "between",
    "end",
)  # before block 0, inside its attention, before block 1, after the model
ROWS = st.sampled_from(["readout", "all"])
PHOTOS, MODELS, NUMBERS = st.integers(0, 2), st.integers(0, 1), st.integers(0, 2)
WHERE = st.sampled_from(["here", "here", "here", "elsewhere"])


@cache
def master(kind: str) -> nn.Module:
    return CAPTURED[kind][0]()


@cache
def photo(kind: str, number: int) -> torch.Tensor:
    return other(CAPTURED[kind][1](), number)


@cache
def bare(kind: str, number: int) -> torch.Tensor:
    with torch.no_grad():
        return output_of(master(kind), photo(kind, number))


@cache
def truth(kind: str, number: int, rows: str) -> torch.Tensor:
    with torch.no_grad(), AttentionCapture(master(kind), rows=rows) as capture:
        output_of(master(kind), photo(kind, number))
    return capture.maps.stack()


@cache
def places(kind: str) -> dict[str, str]:
    """The modules of whose hooks something else happens; torchvision's attention calls no module."""
    names = AttentionCapture(master(kind)).block_names
    attention = master(kind).get_submodule(names[0])
    linear = next(name for name, one in attention.named_modules() if type(one) is nn.Linear or "out_proj" in name)
    first, between = (name.rpartition(".")[0] for name in names)
    found = {"first": first, "attention": f"{names[0]}.{linear}", "between": between, "end": ""}
    return found if kind != "torchvision" else {name: found[name] for name in PLACES if name != "attention"}


@dataclass(eq=False)
class Known:
    """A capture, and what it should hold."""

    capture: AttentionCapture
    model: int
    kind: str
    rows: str
    home: str | None = None  # the context in which it was entered; None: it is closed
    pauses: list[Any] = field(default_factory=list)
    log: list[int | str] = field(default_factory=list)

    def read(self) -> None:
        last = self.log[-1] if self.log else NOTHING
        if isinstance(last, str):
            error = NothingCapturedError if last == NOTHING else BlockNotCapturedError
            with pytest.raises(error):
                _ = self.capture.maps
        else:
            assert same(self.capture.maps.stack(), truth(self.kind, last, self.rows))
        attended = [one for one in self.log if one != NOTHING]
        if PART in attended or (self.log and not attended):
            with pytest.raises(BlockNotCapturedError if attended else NothingCapturedError):
                _ = self.capture.forwards
            return
        found = [maps.stack() for maps in self.capture.forwards]
        assert len(found) == len(attended)
        for rows, number in zip(found, attended, strict=True):
            assert same(rows, truth(self.kind, number, self.rows))


class Captures(RuleBasedStateMachine):
    @initialize(kinds=st.tuples(*[st.sampled_from(KINDS)] * 2), rows=st.tuples(ROWS, ROWS, ROWS))
    def begin(self, kinds: tuple[str, str], rows: tuple[str, ...]) -> None:
        """Two captures of one model, and one of another."""
        self.kinds, self.models = kinds, [copy.deepcopy(master(kind)) for kind in kinds]
        self.found = [state_of(model) for model in self.models]
        self.known = [
            Known(AttentionCapture(self.models[model], rows=one), model, kinds[model], one)
            for model, one in zip((0, 0, 1), rows, strict=True)
        ]
        self.contexts: dict[str, Context] = {where: copy_context() for where in ("here", "elsewhere")}
        self.inside: str | None = None

    def at(self, where: str, function: Any, *args: Any) -> Any:
        if where == self.inside:
            return function(*args)
        before, self.inside = self.inside, where
        try:
            return self.contexts[where].run(function, *args)
        finally:
            self.inside = before

    # --- what may happen between forwards, and inside of them ---------------------------------------------------------------------------

    def toggle(self, number: int, where: str, error: bool = False) -> None:
        known = self.known[number]
        if known.home is None:
            self.at(where, known.capture.__enter__)
            known.home, known.log = where, []
            return
        raised = ValueError("on purpose") if error else None
        self.at(where, known.capture.__exit__, raised and type(raised), raised, None)
        known.home = None

    def pause(self, number: int) -> None:
        known = self.known[number]
        known.pauses.append(known.capture.paused())
        known.pauses[-1].__enter__()

    def clear(self, number: int) -> None:
        self.known[number].capture.clear()
        self.known[number].log = []

    def seen_by(self, model: int, where: str) -> list[Known]:
        return [one for one in self.known if one.model == model and one.home == where and not one.pauses]

    def run(self, model: int, number: int, where: str, place: str | None = None, action: Any = None) -> None:
        """One forward, in which something else happens at a place; with none, it fails there."""
        kind, watching = self.kinds[model], self.seen_by(model, where)
        place = place if place in places(kind) else "first" if place else None
        logs = {one: one.log for one in watching}
        handles: list[Any] = []

        def end() -> None:
            for one in watching:
                one.log.append(number)

        def happens(*_: Any) -> None:
            if handles:
                handles.pop().remove()
                if place == "end":  # its hook came later than those of captures, for which the forward has ended
                    end()
                if action is None:
                    raise ZeroDivisionError
                action()

        if place is not None:
            module = self.models[model].get_submodule(places(kind)[place])
            before = place in ("first", "between")
            handles.append((module.register_forward_pre_hook if before else module.register_forward_hook)(happens))
        try:
            with torch.no_grad():
                assert torch.equal(output_of(self.models[model], photo(kind, number)), bare(kind, number))
            assert place is None or action is not None
        except ZeroDivisionError:
            assert action is None
        assert not handles
        if place is None:
            end()
        if place in (None, "end"):
            return
        half = NOTHING if place == "first" else PART
        watching_now = self.seen_by(model, where)
        for one in watching:
            if one not in watching_now:  # left or paused at the place
                one.log.append(PART if place == "between" else NOTHING)
            elif one.log is not logs[one]:  # cleared at the place
                one.log.append(number if place == "first" else PART)
            else:
                one.log.append(half if action is None else number)
        for one in watching_now:
            if one not in watching:  # entered or resumed at the place
                one.log.append(number if place == "first" else PART)

    # --- rules ---------------------------------------------------------------------------------------------------------------------------

    @rule(number=NUMBERS, where=WHERE, error=st.booleans())
    def enters_or_leaves(self, number: int, where: str, error: bool) -> None:
        self.toggle(number, where, error)

    @rule(number=NUMBERS)
    def cannot_be_entered_twice(self, number: int) -> None:
        if self.known[number].home is not None:
            with pytest.raises(NothingCapturedError, match="already open"):
                self.known[number].capture.__enter__()

    @rule(number=NUMBERS)
    def pauses_or_resumes(self, number: int) -> None:
        if self.known[number].pauses:
            self.known[number].pauses.pop().__exit__(None, None, None)
        else:
            self.pause(number)

    @rule(number=NUMBERS)
    def clears(self, number: int) -> None:
        self.clear(number)

    @rule(number=NUMBERS)
    def reads(self, number: int) -> None:
        self.known[number].read()

    @rule(model=MODELS, number=PHOTOS, where=WHERE)
    def runs(self, model: int, number: int, where: str) -> None:
        self.at(where, self.run, model, number, where)

    @rule(model=MODELS, number=PHOTOS, where=WHERE, place=st.sampled_from(PLACES))
    def fails(self, model: int, number: int, where: str, place: str) -> None:
        self.at(where, self.run, model, number, where, place)

    @rule(
        models=st.tuples(MODELS, MODELS),
        numbers=st.tuples(PHOTOS, PHOTOS),
        where=WHERE,
        place=st.sampled_from(PLACES),
        fails=st.sampled_from([None, None, *PLACES]),
    )
    def nests(self, models: Any, numbers: Any, where: str, place: str, fails: str | None) -> None:
        if place == "attention" and models[0] != models[1]:
            place = "between"  # what attends inside an attention module is taken for its own
        inner = partial(self.run, models[1], numbers[1], where, fails)
        self.at(where, self.run, models[0], numbers[0], where, place, inner)

    @rule(
        model=MODELS,
        photo_number=PHOTOS,
        where=WHERE,
        place=st.sampled_from(PLACES),
        number=NUMBERS,
        what=st.sampled_from(["toggle", "pause", "clear", "attend"]),
    )
    def is_disturbed(self, model: int, photo_number: int, where: str, place: str, number: int, what: str) -> None:
        def attend(_: int) -> None:
            F.scaled_dot_product_attention(*torch.rand(3, 1, 2, 5, 4).unbind(0))

        if what == "attend" and place == "attention":
            place = "between"  # what attends inside an attention module is taken for its own
        actions = {"attend": attend, "toggle": partial(self.toggle, where=where)}
        action = actions.get(what) or getattr(self, what)
        self.at(where, self.run, model, photo_number, where, place, partial(action, number))

    @rule(model=MODELS, number=PHOTOS)
    def runs_on_another_thread(self, model: int, number: int) -> None:
        thread = threading.Thread(target=self.run, args=(model, number, "thread"))
        thread.start()
        thread.join()

    # --- what holds after every one of them -----------------------------------------------------------------------------------------------

    @invariant()
    def all_is_as_found(self) -> None:
        assert F.scaled_dot_product_attention is SDPA
        assert torch._C._len_torch_function_stack() == 0
        for number, model in enumerate(self.models):
            if not any(one.home and one.model == number for one in self.known):
                assert state_of(model) == self.found[number]

    def open_scopes(self) -> list[scopes.Scope]:
        return [scope for scope in scopes._open.get() if not scope.capture.closed]

    @invariant()
    def a_scope_is_open_for_each_open_capture(self) -> None:
        for where in ("here", "elsewhere"):
            count = sum(one.home == where for one in self.known)
            assert len(self.at(where, self.open_scopes)) == count

    def teardown(self) -> None:
        for number, known in enumerate(self.known):
            if known.home is not None:
                self.toggle(number, known.home)
            for pause in known.pauses:
                pause.__exit__(None, None, None)
            known.read()
        self.all_is_as_found()
        for where in ("here", "elsewhere"):
            self.toggle(0, where)  # and with it what was left in another context goes
            self.toggle(0, where)
            assert self.at(where, scopes._open.get) == ()
            assert not scopes.SDPA._holders


TestCaptures = Captures.TestCase
TestCaptures.settings = settings(max_examples=40, stateful_step_count=12)
