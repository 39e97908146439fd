"""Attention while training: `AttentionMonitor` looks at fixed images every so many steps, or at the training's own batches.

Between the steps that are logged nothing is attached to the model. On those that are, a probe runs the model as it is in eval mode, out of its
DDP or compile wrapper, and everything that training could notice is put back (`untouched`). Every process runs the probe, as FSDP needs;
the first one writes. What is logged under which tag, `reports` says.

Limits: methods that need a backward are not offered. `observe` sees the batch of the first process only, and refuses compiled models.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from attnhook.attribution.alarms import AlarmThresholds
from attnhook.attribution.methods import METHODS, NEEDS
from attnhook.attribution.summaries import BlockSummary, summarise_block
from attnhook.capture.layout import TokenLayout
from attnhook.capture.plan import unwrapped
from attnhook.capture.records import AttentionMaps
from attnhook.capture.session import AttentionCapture
from attnhook.capture.streaming import MeasuringCapture
from attnhook.errors import NoReadoutError
from attnhook.imaging.images import ImageSource
from attnhook.imaging.overlays import check_scale
from attnhook.monitoring.probes import ProbeBatch
from attnhook.monitoring.schedules import Schedule, is_first_process
from attnhook.monitoring.tags import RECEIVED, Painter, scalars_of
from attnhook.monitoring.writers import Writer, WriterGroup
from attnhook.options import BlocksOption, Rows, ScaleOption
from attnhook.running.forward_passes import run_vision
from attnhook.running.training_state import untouched
from attnhook.zoo.loading import as_vision_model
from attnhook.zoo.vision_models import VisionModel

LIVE = "live/"


class AttentionMonitor:
    """Logs attention while a model trains, without changing the training by a bit.

    Args:
        model: The model that trains, wrapped (DDP, FSDP2, `torch.compile`, PEFT) or not; or what `load` gives.
        images: The probe: photos, or pixels `(batch, 3, height, width)`.
        preprocess: For photos: what turns one into what the model is fed, as in `attend`. None: what the `VisionModel` brings, or a timm
            model's own `pretrained_cfg`, which `repr` and the text "attention/probe" then say.
        mean: Of pixels: what was subtracted from each channel, to draw them.
        std: Of pixels: what each channel was divided by.
        every_n_steps: `step` and `observe` log when the step is a multiple; with neither this nor the next, whenever they are called.
        every_n_epochs: `end_epoch` logs when the number of epochs done is a multiple; without `every_n_steps`, `step` then does nothing, and
            `observe` logs whenever it is entered.
        blocks: Which blocks, as in `AttentionCapture`.
        layout: What the tokens are, for models that attnhook does not know.
        methods: What overlays show: names in `METHODS`, or `"received_attention"`; nothing for no pictures.
        statistics: Whether to log numbers and alarms.
        writers: Where to; see `attnhook.monitoring.writers.Writer`.
        also: Further models to look at with the same probe, such as `{"ema": averaged}`; their names stand in front of their tags.
        thresholds: From where on an alarm is raised.
        scale: Of pictures, as in `overlay`; the default is the same at every step.
        picture_size: Pictures are no larger than this.
        sheets: Of how many images a sheet of all heads is drawn.
        strict: Whether errors of writers and of probes are raised. If not, each is reported once and training goes on; only an error of the
            first probe, which shows that something is not set up right, is always raised.

    Raises:
        ValueError: If a method is unknown, needs gradients, or is no attention while `scale` is `"uniform"`, photos need
            `preprocess` and come without it, or a name in `also` is taken.
        NoReadoutError: If a method needs a readout that the model does not have.
        UnsupportedModelError: If a model has no attention that can be captured.

    Example:
        >>> import timm, torch
        >>> from attnhook import AttentionMonitor
        >>> model = timm.create_model("test_vit", num_classes=5)
        >>> monitor = AttentionMonitor(model, torch.rand(2, 3, 160, 160), every_n_steps=100)
        >>> [monitor.step(step) for step in (0, 1, 99, 100, 100)]
        [True, False, False, True, False]
    """

    def __init__(
        self,
        model: nn.Module | VisionModel,
        images: "ImageSource | Iterable[ImageSource]",
        *,
        preprocess: Any = None,
        mean: Any = None,
        std: Any = None,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        blocks: BlocksOption = None,
        layout: TokenLayout | None = None,
        methods: Sequence[str] = ("raw_attention",),
        statistics: bool = True,
        writers: Sequence[Writer] = (),
        also: Mapping[str, nn.Module] | None = None,
        thresholds: AlarmThresholds | None = None,
        scale: ScaleOption = "uniform",
        picture_size: int = 512,
        sheets: int = 1,
        strict: bool = False,
    ) -> None:
        self._model = model.model if isinstance(model, VisionModel) else model
        self._also = dict(also or {})
        if LIVE.removesuffix("/") in self._also:
            raise ValueError(
                "a model in also= cannot be called 'live': that is in front of what observe logs. Choose another name."
            )
        self._blocks, self._layout = blocks, layout
        self._methods, self._statistics = tuple(methods), statistics
        self._thresholds = thresholds or AlarmThresholds()
        self._strict = strict
        self._schedule = Schedule(every_n_steps, every_n_epochs)
        self._writers = WriterGroup(writers, strict=strict)
        self._probe, self._assumed = _probe_of(model, images, preprocess, mean, std)
        shown = self._probe.sized(picture_size)
        self._painter = Painter(shown.photos, shown.geometries, scale, sheets)
        self._rows: dict[str, dict[str, Tensor]] = {}
        self._described = self._looked = self._warned = False
        self._observing: AttentionCapture | None = None
        for each in self.models.values():
            _check(self._capture(each), self._methods, scale)

    @property
    def models(self) -> dict[str, nn.Module]:
        """The models that are looked at, by the prefix of their tags."""
        return {"": self._model} | {f"{name}/": model for name, model in self._also.items()}

    @property
    def digest(self) -> str:
        """SHA-256 of the probe's pixels."""
        return self._probe.digest

    # --- the probe --------------------------------------------------------------------------------------------------------------------------

    def step(self, step: int) -> bool:
        """Look at the probe if this step is one to log. Call it in every process, between steps (after `optimizer.step()`).

        Args:
            step: The number of the step, counted on from epoch to epoch.

        Returns:
            Whether it was logged. A step at or before the last one that was logged is not logged again; a warning says so if numbers start
            over.
        """
        if not self._schedule.due(step):
            return False
        self._log(step)
        return True

    def end_epoch(self, epoch: int, step: int) -> bool:
        """Look at the probe if this epoch is one to log.

        Args:
            epoch: Its number, counted from 0.
            step: The number of the step that ended it, under which it is logged.

        Returns:
            Whether it was logged.
        """
        if not self._schedule.epoch_due(epoch, step):
            return False
        self._log(step)
        return True

    def _log(self, step: int) -> None:
        self._schedule.logged(step)
        self._describe(step)
        for prefix, model in self.models.items():
            try:
                maps = self._look(model)
                self._write(prefix, maps, step)
            except Exception as error:
                if self._strict or not self._looked:
                    raise
                self._report(error, step)
        self._looked = True

    def _look(self, model: nn.Module) -> AttentionMaps:
        """Run the probe: in every process."""
        runner = unwrapped(model)  # but still in FSDP, without which it has no parameters
        capture = self._capture(runner)
        aside = nullcontext() if self._observing is None else self._observing.paused()
        with aside, untouched(runner), capture:
            run_vision(runner, self._probe.inputs)
        return capture.maps

    def _capture(self, model: nn.Module) -> AttentionCapture:
        values = any(NEEDS[method].values for method in self._methods if method in NEEDS)
        return AttentionCapture(model, blocks=self._blocks, rows="all", layout=self._layout, values=values)

    def _write(self, prefix: str, maps: AttentionMaps, step: int) -> None:
        if not is_first_process():
            return
        if self._statistics:
            summaries = [summary.cpu() for summary in _summaries(maps)]
            self._writers.scalars(scalars_of(summaries, self._rows.get(prefix), self._thresholds, prefix), step)
            self._rows[prefix] = {one.name: one.readout for one in summaries}
        if not len(self._writers):
            return
        for tag, picture in self._painter.pictures(maps, self._methods, prefix):
            self._writers.image(tag, picture, step)

    def _describe(self, step: int) -> None:
        """Say once what is logged, and which images are looked at."""
        if self._described or not is_first_process():
            return
        self._described = True
        images = len(self._probe)
        words = "" if self._assumed is None else f", prepared as {self._assumed}"
        self._writers.text("attention/probe", f"{images} images{words}, sha256 of the pixels {self.digest}", step)

    def _report(self, error: Exception, step: int) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"the attention probe failed at step {step}: {type(error).__name__}: {error}. Training goes on; further failures of the probe "
                "are not reported. strict=True raises instead.",
                stacklevel=4,
            )

    # --- the live batch ---------------------------------------------------------------------------------------------------------------------

    @contextmanager
    def observe(self, step: int, *, rows: str = "all") -> Iterator[None]:
        """Context around the training's own forward: numbers of the live batch, without another forward.

        Each block is summed up while its attention runs; no matrix, no query and no key is kept. What the forward computes is the same to the
        last bit. On steps that are not logged, in all processes but the first, and inside itself it does nothing. Of several forwards the last
        one counts; probes are none of them.

        Args:
            step: The number of the step.
            rows: `"all"` sums up whole matrices. `"readout"` keeps the readout's row of each block (class token, pooling), which costs next
                to nothing; alarms judge whole matrices and are then left out.

        Yields:
            Nothing.

        Raises:
            UnsupportedModelError: If the model is compiled: observed, it would run eagerly and train on other roundings. `step` can look at it.
            NothingCapturedError: If the model did not run inside.
        """
        if self._observing is not None or not self._schedule.observation_due(step) or not is_first_process():
            yield
            return
        if rows == Rows.ALL:
            capture: AttentionCapture = MeasuringCapture(
                self._model, summarise_block, blocks=self._blocks, layout=self._layout, strict=True
            )
        else:
            capture = AttentionCapture(self._model, blocks=self._blocks, rows=rows, layout=self._layout, strict=True)
        self._observing = capture
        try:
            with capture:
                yield
        finally:
            self._observing = None
        self._schedule.observed(step)
        values = scalars_of([one.cpu() for one in _observed(capture)], None, self._thresholds, LIVE)
        self._writers.scalars(values, step)

    # --- state ------------------------------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: which steps were logged, and the rows that the next change is measured from. Tensors and plain values."""
        rows = {prefix: dict(blocks) for prefix, blocks in self._rows.items()}
        return {**self._schedule.state_dict(), "rows": rows, "digest": self.digest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another run stopped. Rows of other probe images are left out.

        Args:
            state: What `state_dict` gave.
        """
        self._schedule.load_state_dict(state)
        same = state["digest"] == self.digest
        rows = state["rows"] if same else {}
        self._rows = {
            prefix: {name: row.cpu() for name, row in blocks.items()} for prefix, blocks in rows.items()
        }  # a checkpoint may have been read onto a GPU
        self._described = same

    def close(self) -> None:
        """Close the writers."""
        if is_first_process():
            self._writers.close()

    def __repr__(self) -> str:
        words = "" if self._assumed is None else f" prepared as {self._assumed}"
        return f"AttentionMonitor({type(self._model).__name__}, {len(self._probe)} images{words}, {self._schedule})"


def _probe_of(
    model: nn.Module | VisionModel,
    images: "ImageSource | Iterable[ImageSource]",
    preprocess: Any,
    mean: Any,
    std: Any,
) -> tuple[ProbeBatch, str | None]:
    """The probe, and the preprocessing that was assumed, in words."""
    if isinstance(images, Tensor):
        return ProbeBatch.of_pixels(images, mean, std), None
    vision = as_vision_model(model, preprocess)
    return ProbeBatch.of_photos(images, vision.preprocessing), vision.assumed


def _check(capture: AttentionCapture, methods: Sequence[str], scale: ScaleOption) -> None:
    """Refuse at construction what would fail at the first step that is logged."""
    legal = [name for name in METHODS if not NEEDS[name].gradients] + [RECEIVED]
    for method in methods:
        if method not in legal:
            raise ValueError(f"cannot monitor {method!r}: expected methods among {', '.join(map(repr, legal))}.")
        check_scale(scale, mass=method == RECEIVED or NEEDS[method].mass, shown=method)
    readout = capture.plan.anatomy.readout
    if readout.rows is None and any(method != RECEIVED for method in methods):
        raise NoReadoutError(
            f"{type(capture.plan.model).__name__} has no readout to draw: {readout.reason}. Use methods=({RECEIVED!r},), or methods=() for "
            "numbers alone."
        )


def _observed(capture: AttentionCapture) -> list[BlockSummary]:
    if isinstance(capture, MeasuringCapture):
        return [summary for _, summary in capture.measured]
    return _summaries(capture.maps)


def _summaries(maps: AttentionMaps) -> list[BlockSummary]:
    known: dict[Any, Any] = {}
    return [summarise_block(block, maps.readout, maps.selected_rows, known=known) for block in maps]
