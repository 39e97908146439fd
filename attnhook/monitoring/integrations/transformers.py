"""A callback of transformers' `Trainer` over `AttentionMonitor`. Importing this file imports transformers."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import TrainerCallback

from attnhook.files import replacing
from attnhook.monitoring.monitors import AttentionMonitor
from attnhook.monitoring.schedules import is_first_process

STATE_FILE = "attention_monitor.safetensors"


class TransformersMonitor(TrainerCallback):  # type: ignore[misc]
    """Steps a monitor at the start, after every optimizer step and at the end of every epoch, and stores its state in checkpoints.

    With `Trainer(model_init=...)`, the model that the trainer makes is monitored. A trainer may have several of these callbacks; when it
    resumes, pass them in the same order.

    Args:
        monitor: A monitor of the model that the trainer trains, or of one of the same class.

    Example:
        >>> from transformers import Trainer  # doctest: +SKIP
        >>> trainer = Trainer(model, arguments, callbacks=[TransformersMonitor(monitor)])  # doctest: +SKIP
    """

    def __init__(self, monitor: AttentionMonitor) -> None:
        self.monitor = monitor
        self._file = STATE_FILE

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Continue where the checkpoint stopped that training resumes from, and try the probe, or log step 0."""
        number = getattr(state, "_attention_monitors", 0)  # callbacks do not know each other, but share the state
        state._attention_monitors = number + 1
        self._file = STATE_FILE.replace(".", f".{number}.") if number else STATE_FILE
        folders = [Path(args.output_dir) / f"checkpoint-{state.global_step}"]
        if isinstance(args.resume_from_checkpoint, str):
            folders.insert(0, Path(args.resume_from_checkpoint))
        found = next((folder / self._file for folder in folders if (folder / self._file).exists()), None)
        if state.global_step and found is not None:
            self.monitor.load_state_dict(_read(found))
        self.monitor._begin(state.global_step, kwargs.get("model"))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After an optimizer step."""
        self.monitor.step(state.global_step)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After an epoch, whose number is a fraction if it was cut short or the length of the data is unknown."""
        self.monitor.end_epoch(max(0, math.ceil(state.epoch or 1) - 1), state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Into the checkpoint that was just written."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if is_first_process() and folder.is_dir():
            _write(self.monitor.state_dict(), folder / self._file)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the run."""
        self.monitor.close()


def _write(state: Mapping[str, Any], path: Path) -> None:
    """Write a monitor's state: its rows as tensors, the rest in the header; to a temporary name first."""
    rows = [(prefix, block, row) for prefix, blocks in state["rows"].items() for block, row in blocks.items()]
    header = {**state, "rows": [(prefix, block) for prefix, block, _ in rows]}
    tensors = {str(number): row.contiguous() for number, (*_, row) in enumerate(rows)}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"state": json.dumps(header)})


def _read(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            state: dict[str, Any] = json.loads(file.metadata()["state"])
            rows: dict[str, dict[str, Any]] = {}
            for number, (prefix, block) in enumerate(state["rows"]):
                rows.setdefault(prefix, {})[block] = file.get_tensor(str(number))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"cannot resume the monitor: expected its state in {path}, got a file that cannot be read ({type(error).__name__}: {error}). Resume "
            "from another checkpoint, or delete this file: the monitor then begins anew."
        ) from error
    return {**state, "rows": rows}
