"""A Lightning callback over `AttentionMonitor`. Importing this file imports Lightning (`lightning`, else `pytorch_lightning`)."""

from typing import Any

from attnhook.monitoring.monitors import AttentionMonitor
from attnhook.monitoring.writers import import_library

try:
    from lightning.pytorch.callbacks import Callback
except ImportError:
    Callback = import_library("pytorch_lightning", needed_by="LightningMonitor", extra="lightning").Callback


class LightningMonitor(Callback):  # type: ignore[misc]
    """Steps a monitor at the start, after every optimizer step and at the end of every epoch, and stores its state in checkpoints.

    A `Trainer` may have several; when it resumes, pass them in the same order.

    Args:
        monitor: A monitor of the model inside your `LightningModule`, or of that module.

    Example:
        >>> from lightning.pytorch import Trainer  # doctest: +SKIP
        >>> trainer = Trainer(callbacks=[LightningMonitor(monitor)])  # doctest: +SKIP
    """

    def __init__(self, monitor: AttentionMonitor) -> None:
        super().__init__()
        self.monitor = monitor
        self._number: int | None = None  # among the callbacks of this class, once the trainer has them

    @property
    def state_key(self) -> str:
        """Where checkpoints hold the state: the class's name, with a number from the second callback on."""
        name = type(self).__qualname__
        if self._number is None:
            return f"{name} {id(self)}"  # the trainer compares keys before it sets callbacks up
        return f"{name} {self._number}" if self._number else name

    def setup(self, trainer: Any, *_: Any, **__: Any) -> None:
        """Before checkpoints are read."""
        self._number = [one for one in trainer.callbacks if type(one) is type(self)].index(self)

    def on_train_start(self, trainer: Any, *_: Any) -> None:
        """Try the probe, or log step 0."""
        self.monitor._begin(trainer.global_step)

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """After a batch; with accumulated gradients a step ends only after the last of its batches."""
        self.monitor.step(trainer.global_step)

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        """After an epoch."""
        self.monitor.end_epoch(trainer.current_epoch, trainer.global_step)

    def teardown(self, *_: Any, **__: Any) -> None:
        """After the run."""
        self.monitor.close()

    def state_dict(self) -> dict[str, Any]:
        """The monitor's state."""
        return self.monitor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where a checkpoint stopped."""
        self.monitor.load_state_dict(state_dict)
