"""Writes to a run of Weights & Biases, online or offline."""

from collections.abc import Mapping
from typing import Any

from PIL import Image

from attnhook.errors import MissingPackageError


class WandbWriter:
    """Weights & Biases: scalars, images and texts under their tags, over an axis of their own, `attention/step`.

    W&B drops what is logged with `step=` behind its own step, so this writer takes no step of a run in which you log: what it writes waits for
    your next `run.log`, and comes in the same row. Only when nothing was logged in between is a row closed for the next look; so do not
    log with a `step=` that counts more slowly than looks, such as epochs.

    Args:
        run: A run of yours, which stays open on `close`; None takes the one that is active at the first write, or starts one.
        **settings: Of `wandb.init`, if one is started: `project`, `dir`, `mode="offline"`.

    Raises:
        MissingPackageError: If wandb is not installed.
    """

    def __init__(self, run: Any = None, **settings: Any) -> None:
        try:
            import wandb
        except ImportError as error:
            raise MissingPackageError(
                f"WandbWriter needs Weights & Biases: expected the package wandb, got {error}. "
                "Install it: pip install 'attnhook[wandb]'."
            ) from None
        self._wandb = wandb
        self._settings = settings
        self._run = run
        self._started = False
        self._prefixes: set[str] = set()
        self._waiting: tuple[int, int] | None = None

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers."""
        self._log(dict(values), step)

    def image(self, tag: str, picture: Image.Image, step: int) -> None:
        """Log a picture."""
        self._log({tag: self._wandb.Image(picture)}, step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Log a text, and keep it in the run's summary."""
        self._opened().summary[tag] = text

    def close(self) -> None:
        """Finish the run that this writer started."""
        if self._started:
            self._run.finish()
            self._run, self._started, self._waiting = None, False, None

    def _log(self, values: dict[str, Any], step: int) -> None:
        run = self._opened()
        for prefix in {tag.partition("attention/")[0] for tag in values} - self._prefixes:
            run.define_metric(f"{prefix}attention/*", step_metric="attention/step")
            self._prefixes.add(prefix)
        if self._waiting is not None and self._waiting[0] == run.step and self._waiting[1] != step:
            run.log({}, commit=True)  # else this look would take the place of the last one in the same row
        run.log({**values, "attention/step": step}, commit=False)
        self._waiting = (run.step, step)

    def _opened(self) -> Any:
        if self._run is None:
            self._run = self._wandb.run
        if self._run is None:
            self._run, self._started = self._wandb.init(**self._settings), True
        return self._run
