"""Which forward a run of a module belongs to: the forwards of one capture, told apart as they begin and end."""

from typing import Any

from torch import Tensor

from attnhook.capture.forward_records import ForwardRecord
from attnhook.capture.plan import CapturePlan
from attnhook.capture.recording import SiteRecorder
from attnhook.capture.scopes import Scope
from attnhook.errors import BlockNotCapturedError


class ForwardLog:
    """The forwards of a capture of `plan`; the last one to end is last."""

    def __init__(self, plan: CapturePlan) -> None:
        self._plan = plan
        self._records: list[ForwardRecord] = []

    def records(self) -> list[ForwardRecord]:
        """All forwards, except those in which an attention module was entered and none got to attend."""
        return [record for record in self._records if record.begun or not record.is_empty()]

    def clear(self) -> None:
        """Forget them."""
        self._records.clear()

    def _list(self, record: ForwardRecord) -> ForwardRecord:
        if not record.listed:
            record.listed = True
            self._records.append(record)
        return record

    def record_for(self, around: Scope, site: str) -> ForwardRecord:
        """The record of a run of an attention module inside the scope `around`."""
        record = around.record
        # A call after the maps were read, or after another forward, that did not pass the first module belongs to a new forward.
        past = record.listed and not record.begun and record not in self._records[-1:]
        if past or record.maps is not None:
            record = around.record = ForwardRecord(inputs=dict(record.inputs))
        called = () if record.begun else {call.site for call in record.calls}
        if site in called and len(called) == len(self._plan.sites) > 1:
            problem = (
                f"block {site!r} ran again after all blocks had run, and nothing showed that a new forward began: expected model(images), got "
                "calls of its parts. Call the model itself, or read the maps (or call clear()) after each forward."
            )
            record.errors.setdefault(site, BlockNotCapturedError(problem))
        outer = record.interrupted
        if outer is not None and record.count(site) and not outer.count(site):
            problem = (
                f"block {site!r} ran twice in one forward, and not at all in one that started earlier and has not finished: expected forwards "
                "that can be told apart. Call the model itself, model(images), where it runs inside its own forward; after an exception, call "
                "clear()."
            )
            record.errors.setdefault(site, BlockNotCapturedError(problem))
        return self._list(record)

    def begin(self, scope: Scope, inputs: tuple[Any, ...]) -> None:
        """The first module of a forward runs with these inputs."""
        record = scope.record
        shared = record.begun and scope.opener is scope.capture  # with other threads that copied the context
        if shared or not record.is_empty():
            record = ForwardRecord(inputs=dict(record.inputs))
            needed = {s.name for s in self._plan.sites if not (s.optional or s.guessed)}
            called = {call.site for call in scope.record.calls}
            if called and not needed <= called:
                record.interrupted = scope.record
            if scope.opener is scope.capture:
                scope.replace(record)
            elif isinstance(scope.listener, SiteRecorder):
                Scope(scope.capture, record).open()  # it ends with the module that it began in
            else:
                scope.record = record
        record.begun = True
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        images = next((tensor for tensor in tensors if tensor.dim() in (4, 5)), None)
        if images is not None:
            record.input_size = (images.shape[-2], images.shape[-1])
        record.batch = next((len(tensor) for tensor in tensors if tensor.dim() in (3, 4)), None)
        self._list(record)

    def end(self, scope: Scope, *_: Any) -> None:
        """A forward has ended; one that began inside it ended before it, and comes before it."""
        record, records = scope.record, self._records
        if record in records and records[-1] is not record:
            records.remove(record)
            records.append(record)
