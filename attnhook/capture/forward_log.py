"""Which forward a run of a module belongs to: the forwards of one capture, told apart as they begin and end."""

from typing import Any

from torch import Tensor, nn

from attnhook.capture.forward_records import ForwardRecord, why_merged, why_mixed
from attnhook.capture.plan import CapturePlan
from attnhook.capture.recording import SiteRecorder
from attnhook.capture.scopes import Scope
from attnhook.errors import BlockNotCapturedError


class ForwardLog:
    """The forwards that a capture of `plan` has seen; the last one to end is last."""

    def __init__(self, plan: CapturePlan) -> None:
        self._plan = plan
        self._records: list[ForwardRecord] = []

    def seen(self) -> list[ForwardRecord]:
        """All of them, without those of attention modules that were entered and never got to attend."""
        return [r for r in self._records if r.begun or r.maps is not None or not r.is_empty()]

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
        # What comes after maps were read, or after other forwards, past the module at which forwards begin, is of another one.
        past = record.listed and not record.begun and record not in self._records[-1:]
        if past or record.maps is not None:
            record = around.record = ForwardRecord(inputs=dict(record.inputs))
        called = () if record.begun else {call.site for call in record.calls}
        if site in called and len(called) == len(self._plan.sites) > 1:
            record.errors.setdefault(site, BlockNotCapturedError(why_merged(site)))
        outer = record.interrupted
        if outer is not None and record.count(site) and not outer.count(site):
            record.errors.setdefault(site, BlockNotCapturedError(why_mixed(site)))
        return self._list(record)

    def begin(self, scope: Scope, module: nn.Module, args: tuple[Any, ...], kwargs: Any = None) -> None:
        """The module ran at which forwards begin."""
        record = scope.record
        shared = record.begun and scope.opener is scope.entry  # with other threads that copied the context
        if shared or record.maps is not None or not record.is_empty():
            record = ForwardRecord(inputs=dict(record.inputs))
            needed = {s.name for s in self._plan.sites if not (s.optional or s.guessed)}
            called = {call.site for call in scope.record.calls}
            if called and not needed <= called:
                record.interrupted = scope.record
            if scope.opener is scope.entry:
                scope.replace(record)
            elif isinstance(scope.listener, SiteRecorder):
                Scope(scope.entry, record).open()  # it ends with the module that it began in
            else:
                scope.record = record
        record.begun = True
        given = (*args, *(kwargs or {}).values())
        images = next((a for a in given if isinstance(a, Tensor) and a.dim() in (4, 5)), None)
        if images is not None:
            record.input_size = (images.shape[-2], images.shape[-1])
        tokens = next((a for a in given if isinstance(a, Tensor) and a.dim() in (3, 4)), None)
        record.batch = None if tokens is None else len(tokens)
        self._list(record)

    def end(self, scope: Scope, *_: Any) -> None:
        """A forward has ended; one that began inside it has ended before, and stands before it."""
        record, records = scope.record, self._records
        if record in records and records[-1] is not record:
            records.remove(record)
            records.append(record)
