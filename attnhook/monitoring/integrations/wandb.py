"""Writes to a Weights & Biases run, online or offline."""

from collections.abc import Mapping
from typing import Any

from PIL import Image

from attnhook.monitoring.writers import import_library, safe_tag


class WandbWriter:
    """Weights & Biases: scalars, images and texts under their tags, over an axis of their own, `attention/step`.

    W&B drops what is logged with a `step=` below its own step, so this writer does not advance the step of a run in which you log: its values
    wait for your next `run.log`, and share its row. If you logged nothing in between, a row is closed for the next logged step; so do not
    log with a `step=` that counts more slowly than the monitor logs, such as epochs.

    Args:
        run: Your run, which `close` leaves open; None takes the one that is active at the first write, or starts one.
        **settings: Arguments of `wandb.init`, if a run is started: `project`, `dir`, `mode="offline"`.

    Raises:
        MissingPackageError: If wandb is not installed.
    """

    def __init__(self, run: Any = None, **settings: Any) -> None:
        self._wandb = import_library("wandb", needed_by="WandbWriter", extra="wandb")
        self._settings, self._run, self._started = settings, run, False
        self._prefixes: set[str] = set()
        self._waiting: tuple[int, int] | None = None

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers."""
        self._log({safe_tag(tag): value for tag, value in values.items()}, step)

    def image(self, tag: str, picture: Image.Image, step: int) -> None:
        """Log a picture."""
        self._log({safe_tag(tag): self._wandb.Image(picture.convert("RGB"), file_type="jpg")}, step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Log a text, and keep it in the run's summary."""
        self._opened().summary[safe_tag(tag)] = text

    def close(self) -> None:
        """Finish the run if this writer started it."""
        if self._started:
            self._run.finish()
            self._run, self._started, self._waiting = None, False, None

    def _log(self, values: dict[str, Any], step: int) -> None:
        run = self._opened()
        for prefix in {tag.partition("attention/")[0] for tag in values} - self._prefixes:
            run.define_metric(f"{prefix}attention/*", step_metric="attention/step")
            self._prefixes.add(prefix)
        if self._waiting is not None and self._waiting[0] == run.step and self._waiting[1] != step:
            run.log({}, commit=True)  # or these values would replace the previous ones in the same row
        run.log({**values, "attention/step": step}, commit=False)
        self._waiting = (run.step, step)

    def _opened(self) -> Any:
        if self._run is None:
            self._run = self._wandb.run
        if self._run is None:
            self._run, self._started = self._wandb.init(**self._settings), True
        return self._run
