"""When a monitor logs, what it remembers of that, and which process writes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class Schedule:
    """Which steps are logged; none twice, also after a resume.

    Attributes:
        every_n_steps: Multiples of this; None for all, unless epochs are counted.
        every_n_epochs: Multiples of this, counted from 1; None for none.
        last_step: The last step that was logged.
        last_observed: The last step whose own batch was.

    Example:
        >>> schedule = Schedule(every_n_steps=10)
        >>> schedule.due(20), schedule.due(21)
        (True, False)
    """

    every_n_steps: int | None = None
    every_n_epochs: int | None = None
    last_step: int | None = None
    last_observed: int | None = None

    def __post_init__(self) -> None:
        for name in ("every_n_steps", "every_n_epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"bad {name}: expected at least 1, or None, got {value}.")

    def due(self, step: int) -> bool:
        """Whether the probe is to be looked at after this step."""
        if self.every_n_steps is None:
            return self.every_n_epochs is None and _later(step, self.last_step)
        return step % self.every_n_steps == 0 and _later(step, self.last_step)

    def observation_due(self, step: int) -> bool:
        """Whether this step's own batch is to be looked at."""
        return step % (self.every_n_steps or 1) == 0 and _later(step, self.last_observed)

    def epoch_due(self, epoch: int, step: int) -> bool:
        """Whether the probe is to be looked at after this epoch, the first being 0."""
        return (
            self.every_n_epochs is not None and (epoch + 1) % self.every_n_epochs == 0 and _later(step, self.last_step)
        )

    def logged(self, step: int) -> None:
        """This step was logged."""
        self.last_step = step

    def observed(self, step: int) -> None:
        """This step's own batch was."""
        self.last_observed = step

    def state_dict(self) -> dict[str, Any]:
        """What was logged."""
        return {"last_step": self.last_step, "last_observed": self.last_observed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.last_step, self.last_observed = state["last_step"], state["last_observed"]

    def __str__(self) -> str:
        if self.every_n_epochs is not None:
            return f"every {self.every_n_epochs} epochs"
        return f"every {self.every_n_steps or 1} steps"


def _later(step: int, last: int | None) -> bool:
    return last is None or step > last


def is_first_process() -> bool:
    """Whether this is the process that writes: the only one, or the one of rank 0."""
    distributed = torch.distributed
    return not distributed.is_available() or not distributed.is_initialized() or distributed.get_rank() == 0
