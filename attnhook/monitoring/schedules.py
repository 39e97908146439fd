"""When a monitor logs, what it remembers of that, and which process writes."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Schedule:
    """Which steps are logged. None is logged twice, also after a resume."""

    every_n_steps: int | None = None  # None: every step, unless epochs are counted
    every_n_epochs: int | None = None
    last_step: int | None = None  # the last step that was logged
    last_observed: int | None = None  # the last step whose own batch was logged
    _resumed_after: int = field(default=-1, init=False, repr=False)
    _warned: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("every_n_steps", "every_n_epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"bad {name}: expected at least 1, or None, got {value}.")

    def due(self, step: int) -> bool:
        """Whether the probe runs after this step."""
        wanted = self.every_n_epochs is None if self.every_n_steps is None else step % self.every_n_steps == 0
        return wanted and self._is_new(step, self.last_step)

    def observation_due(self, step: int) -> bool:
        """Whether this step's own batch is observed."""
        return step % (self.every_n_steps or 1) == 0 and self._is_new(step, self.last_observed)

    def epoch_due(self, epoch: int, step: int) -> bool:
        """Whether the probe runs after this epoch, the first being 0."""
        wanted = self.every_n_epochs is not None and (epoch + 1) % self.every_n_epochs == 0
        return wanted and self._is_new(step, self.last_step)

    def state_dict(self) -> dict[str, Any]:
        """What was logged."""
        return {"last_step": self.last_step, "last_observed": self.last_observed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        self.last_step, self.last_observed = state["last_step"], state["last_observed"]
        self._resumed_after = max(-1 if last is None else last for last in (self.last_step, self.last_observed))

    def _is_new(self, step: int, last: int | None) -> bool:
        """Whether a step comes after the last one. Warns once if numbers start over, except where a resumed run repeats steps."""
        if last is not None and self._resumed_after < last and step < last and not self._warned:
            self._warned = True
            warnings.warn(
                f"step {step} comes after step {last}, and is not logged: expected a larger number. Keep counting across epochs; for "
                "another run create another AttentionMonitor.",
                stacklevel=4,
            )
        return last is None or step > last

    def __str__(self) -> str:
        if self.every_n_epochs is not None:
            return f"every {self.every_n_epochs} epochs" if self.every_n_epochs > 1 else "every epoch"
        return f"every {self.every_n_steps} steps" if (self.every_n_steps or 1) > 1 else "every step"


def is_first_process() -> bool:
    """Whether this is the process that writes: the only one, or the one of rank 0."""
    distributed = torch.distributed
    return not distributed.is_available() or not distributed.is_initialized() or distributed.get_rank() == 0
