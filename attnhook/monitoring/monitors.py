"""Attention while training: `AttentionMonitor` runs a few fixed images through the model every n steps, or reads the training's own batches.

Between logged steps nothing is attached to the model. At a logged step the probe runs the model in eval mode, without its DDP or compile
wrapper, and everything that training could notice is put back (`untouched`). Every process runs the probe, because FSDP needs that; the first
one writes. Methods that need a backward are not offered.
"""

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from attnhook.attribution.methods import METHODS, NEEDS
from attnhook.attribution.summaries import AlarmThresholds, BlockSummary, summarise_block
from attnhook.capture.layout import TokenLayout
from attnhook.capture.records import AttentionMaps
from attnhook.capture.session import AttentionCapture, MeasuringCapture
from attnhook.capture.wrapped_models import unwrapped
from attnhook.errors import GeometryError, NoReadoutError, ProbeError, UnsupportedModelError, counted
from attnhook.imaging.images import ImageSource
from attnhook.imaging.overlays import check_scale
from attnhook.monitoring.integrations.tensorboard import TensorBoardWriter
from attnhook.monitoring.logged_values import pictures_of, scalars_of
from attnhook.monitoring.probes import ProbeBatch
from attnhook.monitoring.schedules import Schedule, is_first_process
from attnhook.monitoring.trained_models import matching
from attnhook.monitoring.writers import Writer, WriterGroup
from attnhook.options import BlocksOption, Rows, ScaleOption
from attnhook.running.targets import run_vision
from attnhook.running.training_state import untouched
from attnhook.zoo.loading import as_vision_model
from attnhook.zoo.vision_models import VisionModel

LIVE = "live/"
_LOGGER = logging.getLogger("attnhook")


class AttentionMonitor:
    """Logs attention while a model trains, without changing the training by a single bit.

    Args:
        model: The model that trains, wrapped (DDP, FSDP2, `torch.compile`, PEFT) or not; or what `load` returns.
        images: The probe: photos, or pixels `(batch, 3, height, width)`.
        preprocess: For photos: what turns one into the model's input, as in `attend`. None: what the `VisionModel` brings, or a timm model's own
            `pretrained_cfg`, which `repr` and the text "attention/probe" then name.
        model_kwargs: Keyword arguments that the model's forward needs beside pixels, such as `{"labels": labels}` for the images of the probe.
        mean: For pixels: what was subtracted from each channel, to draw them.
        std: For pixels: what each channel was divided by.
        every_n_steps: Log at steps that are multiples of this. If both this and `every_n_epochs` are None, log at every call.
        every_n_epochs: `end_epoch` logs when the number of finished epochs is a multiple; without `every_n_steps`, `step` then does nothing, and
            `observe` logs whenever it is entered.
        blocks: Which blocks, as in `AttentionCapture`.
        layout: What the tokens are, for models that attnhook does not know.
        methods: What overlays show: one or several names in `METHODS` that need no gradient; empty for no pictures.
        statistics: Whether to log numbers and alarms.
        writers: Where to log: a writer such as `TensorBoardWriter`, a `SummaryWriter` of your own, or several; `()` to log nothing. To get the
            values yourself, pass an object with the methods of `attnhook.monitoring.writers.Writer`.
        also: Further models to run the same probe on, such as `{"ema": averaged}`; their tags begin with their names.
        thresholds: When alarms are raised.
        scale: The scale of pictures, as in `overlay`; the default is the same at every step.
        picture_size: The largest side of a photo in a picture, in pixels.
        sheets: The number of images for which a sheet of all heads is drawn.
        strict: Whether errors of writers and probes are raised. If not, each is reported once and training goes on; only an error of the
            first probe, which means that something is not set up correctly, is always raised. The first call of `step` runs it.

    Raises:
        ValueError: If a method is unknown, needs gradients, or does not return attention while `scale` is `"uniform"`, photos come without the
            `preprocess` they need, or a name in `also` is taken.
        NoReadoutError: If a method needs a readout that the model does not have.
        UnsupportedModelError: If a model has no attention that can be captured.

    Example:
        >>> import timm, torch
        >>> from attnhook import AttentionMonitor
        >>> model = timm.create_model("test_vit", num_classes=5)
        >>> monitor = AttentionMonitor(model, torch.rand(2, 3, 160, 160), every_n_steps=100, writers=())
        >>> [monitor.step(step) for step in (0, 1, 99, 100, 100)]
        [True, False, False, True, False]
    """

    def __init__(
        self,
        model: nn.Module | VisionModel,
        images: "ImageSource | Iterable[ImageSource]",
        *,
        preprocess: Any = None,
        model_kwargs: Mapping[str, Any] | None = None,
        mean: Any = None,
        std: Any = None,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        blocks: BlocksOption = None,
        layout: TokenLayout | None = None,
        methods: Sequence[str] = ("raw_attention",),
        statistics: bool = True,
        writers: Any = None,
        also: Mapping[str, nn.Module] | None = None,
        thresholds: AlarmThresholds | None = None,
        scale: ScaleOption = "uniform",
        picture_size: int = 448,
        sheets: int = 1,
        strict: bool = False,
    ) -> None:
        self._model = model.model if isinstance(model, VisionModel) else model
        self._also, self._model_kwargs = dict(also or {}), dict(model_kwargs or {})
        if LIVE.removesuffix("/") in self._also:
            raise ValueError(
                "a model in also= cannot be called 'live': the tags of observe begin with that. Choose another name."
            )
        self._blocks, self._layout = blocks, layout
        self._methods, self._statistics = (methods,) if isinstance(methods, str) else tuple(methods), statistics
        self._thresholds = thresholds or AlarmThresholds()
        self._strict = strict
        self._schedule = Schedule(every_n_steps, every_n_epochs)
        self._assumed: str | None = None  # the preprocessing that was assumed, in words
        if isinstance(images, Mapping):
            raise GeometryError(
                f"bad probe images: expected pixels (batch, 3, height, width) or photos, got a mapping with {', '.join(map(str, images))}. "
                "Pass its pixels, such as inputs['pixel_values'], and its other entries as model_kwargs=."
            )
        if isinstance(images, Tensor):
            self._probe = ProbeBatch.of_pixels(images, mean, std)
        else:
            vision = as_vision_model(model, preprocess)
            self._probe, self._assumed = ProbeBatch.of_photos(images, vision.preprocessing), vision.assumed
        self._drawn, self._scale, self._sheets = self._probe.resized(picture_size), scale, sheets
        self._last_rows: dict[str, dict[str, Tensor]] = {}
        self._described = self._probed = self._warned = self._begun = False
        self._observing: AttentionCapture | None = None
        for monitored in self.models.values():
            _check(self._capture(monitored), self._methods, scale)
        self._writers = WriterGroup(_as_writers(writers), strict=strict)

    @property
    def models(self) -> dict[str, nn.Module]:
        """The monitored models, by the prefix of their tags."""
        return {"": self._model} | {f"{name}/": model for name, model in self._also.items()}

    @property
    def digest(self) -> str:
        """SHA-256 of the probe's pixels."""
        return self._probe.digest

    def step(self, step: int) -> bool:
        """Run the probe if this step is due. Call it in every process, between steps (after `optimizer.step()`).

        Args:
            step: The number of the step, counted on from epoch to epoch.

        Returns:
            Whether it was logged. Steps at or before the last logged one are not logged again; a warning says so if numbers start over.

        Raises:
            ProbeError: If the model does not run on the probe. The first call runs it even if its step is not due, so that a mistake shows
                at the start of training.
        """
        if self._schedule.due(step):
            return self._log(step)
        if not self._probed:
            for model in self.models.values():
                self._run_probe(model, step)
            self._probed = True
        return False

    def end_epoch(self, epoch: int, step: int) -> bool:
        """Run the probe if this epoch is due.

        Args:
            epoch: Its number, counted from 0.
            step: The number of its last step, under which it is logged.

        Returns:
            Whether it was logged.
        """
        return self._log(step) if self._schedule.epoch_due(epoch, step) else False

    def _log(self, step: int) -> bool:
        self._schedule.last_step = step
        self._describe(step)
        for prefix, model in self.models.items():
            try:
                self._write(prefix, self._run_probe(model, step), step)
            except Exception as error:
                if self._strict or not self._probed:
                    raise
                if not self._warned:
                    self._warned = True
                    failed = f"attention probe failed at step {step}: {type(error).__name__}: {error}."
                    warnings.warn(
                        f"{error if isinstance(error, ProbeError) else failed} Training goes on; further failures of the probe are not "
                        "reported. strict=True raises instead.",
                        stacklevel=3,
                    )
        self._probed = True
        return True

    def _run_probe(self, model: nn.Module, step: int) -> AttentionMaps:
        """Run the probe, in every process."""
        inner = unwrapped(model)  # but still in FSDP, without which it has no parameters
        capture = self._capture(inner)
        paused = nullcontext() if self._observing is None else self._observing.paused()
        try:
            with paused, untouched(inner), capture:
                run_vision(inner, self._probe.inputs, self._model_kwargs)
            maps = capture.maps
        except Exception as error:
            given = "".join(f" and {name}" for name in self._model_kwargs)
            got = f"{type(error).__name__}: {error}".rstrip(".: ")
            raise ProbeError(
                f"attention probe failed at step {step}: expected {type(inner).__name__} to run on pixels "
                f"{tuple(self._probe.inputs.pixels.shape)}{given}, got {got}. Pass the inner model, which takes pixels alone; or what "
                "else its forward needs, as model_kwargs={...}; or probe images of the size that it is trained on."
            ) from error
        return maps

    def _capture(self, model: nn.Module) -> AttentionCapture:
        values = any(NEEDS[method].values for method in self._methods if method in NEEDS)
        return AttentionCapture(model, blocks=self._blocks, rows="all", layout=self._layout, values=values)

    def _write(self, prefix: str, maps: AttentionMaps, step: int) -> None:
        if not is_first_process():
            return
        if self._statistics:
            summaries = [summary.cpu() for summary in _summaries(maps)]
            values = scalars_of(summaries, self._last_rows.get(prefix), self._thresholds, prefix)
            self._last_rows[prefix] = {block.name: block.readout for block in summaries}
            self._writers.call("scalars", values, step)
        if len(self._writers):
            for tag, image in pictures_of(maps, self._drawn, self._methods, scale=self._scale, sheets=self._sheets):
                self._writers.call("image", f"{prefix}{tag}", image, step)

    def _describe(self, step: int) -> None:
        """Log once which images the probe consists of."""
        if self._described or not is_first_process():
            return
        self._described = True
        text = f"{self._images_in_words(', ')}, sha256 of the pixels {self.digest}"
        self._writers.call("text", "attention/probe", text, step)

    def _images_in_words(self, separator: str = " ") -> str:
        prepared = "" if self._assumed is None else f"{separator}prepared as {self._assumed}"
        return f"{counted(len(self._probe), 'image')}{prepared}"

    def _begin(self, step: int, trained: nn.Module | None = None) -> None:
        """For callbacks, at the start of training: say what a resumed run lost, and try the probe or log its first step.

        If `trained` is another model than the monitor's, as one that a trainer made by `model_init`, it is monitored instead.
        """
        if trained is not None:
            found = matching(self._model, trained)
            if found is not self._model and is_first_process():
                _LOGGER.warning(
                    "the monitor's model is not trained: the %s that the trainer trains is monitored instead, as with model_init. Pass models "
                    "that are not trained, such as averages, in also=.",
                    type(found).__name__,
                )
            self._model = found
        if step and not self._begun:
            warnings.warn(
                f"training continues at step {step}, but the monitor begins anew: expected its state in the checkpoint, found none. Steps may "
                "be logged again, and `change` begins at the next logged step. Resume from a checkpoint that a run with this callback saved; "
                "with transformers' Trainer, pass its path to TrainingArguments(resume_from_checkpoint=...), too.",
                stacklevel=3,
            )
        self._begun = True
        self.step(step)

    @contextmanager
    def observe(self, step: int, *, rows: str = "all") -> Iterator[None]:
        """Context around the training's own forward: numbers of the live batch, without another forward.

        Each block is summarised while its attention runs; no matrix, query or key is kept. The output of the forward is the same to the last
        bit. At steps that are not due, in all processes but the first, and inside itself it does nothing. Of several forwards the last one
        counts; probes do not count.

        Args:
            step: The number of the step.
            rows: `"all"` summarises whole matrices. `"readout"` keeps the readout's row of each block (class token, pooling), which costs next
                to nothing; alarms need whole matrices and are left out.

        Yields:
            Nothing.

        Raises:
            UnsupportedModelError: If the model is compiled: observed, it would run eagerly, and training would round differently. `step` accepts
                compiled models.
            NothingCapturedError: If the model did not run inside.
        """
        if self._observing is not None or not self._schedule.observation_due(step) or not is_first_process():
            yield
            return
        options: dict[str, Any] = {"blocks": self._blocks, "layout": self._layout, "strict": True}
        capture = (
            MeasuringCapture(self._model, summarise_block, **options)
            if rows == Rows.ALL
            else AttentionCapture(self._model, rows=rows, **options)
        )
        with ExitStack() as stack:
            stack.callback(setattr, self, "_observing", None)
            self._observing = capture
            try:
                stack.enter_context(capture)
            except UnsupportedModelError:
                raise UnsupportedModelError(
                    f"cannot observe {type(self._model).__name__}: expected an eager model, got one that is compiled, in whole or in part, and "
                    "would run eagerly here and round differently. Call monitor.step(step) instead: its probe accepts compiled models."
                ) from None
            yield
        self._schedule.last_observed = step
        measured = capture.measured if isinstance(capture, MeasuringCapture) else None
        summaries = _summaries(capture.maps) if measured is None else [summary for _, summary in measured]
        values = scalars_of([block.cpu() for block in summaries], None, self._thresholds, LIVE)
        self._writers.call("scalars", values, step)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, in tensors and plain values: which steps were logged, and the rows that the next change is measured from."""
        rows = {prefix: dict(blocks) for prefix, blocks in self._last_rows.items()}
        return {**self._schedule.state_dict(), "rows": rows, "digest": self.digest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned in another run. Rows of other probe images are ignored; "attention/probe" is logged again."""
        self._schedule.load_state_dict(state)
        self._begun = True
        self._last_rows = {
            prefix: {name: row.cpu() for name, row in blocks.items()}  # a checkpoint may have been read onto a GPU
            for prefix, blocks in (state["rows"] if state["digest"] == self.digest else {}).items()
        }

    def close(self) -> None:
        """Close the writers."""
        if is_first_process():
            self._writers.call("close")

    def __repr__(self) -> str:
        return f"AttentionMonitor({type(self._model).__name__}, {self._images_in_words()}, {self._schedule})"


def _as_writers(writers: Any) -> list[Any]:
    """One writer or several, where a `SummaryWriter` counts as one; refuses None, which would log nothing."""
    if writers is None:
        raise ValueError(
            "the monitor would log nothing: expected writers, got none. Pass writers=TensorBoardWriter('runs/1') or DirectoryWriter('log'), or "
            "writers=() to log nothing on purpose."
        )
    several = writers if isinstance(writers, Sequence) else [writers]
    return [
        TensorBoardWriter(one) if hasattr(one, "add_scalar") and not isinstance(one, Writer) else one for one in several
    ]


def _check(capture: AttentionCapture, methods: Sequence[str], scale: ScaleOption) -> None:
    """Refuse at construction what would fail at the first logged step."""
    legal = [name for name in METHODS if not NEEDS[name].gradients]
    for method in methods:
        if method not in legal:
            raise ValueError(f"cannot monitor {method!r}: expected methods among {', '.join(map(repr, legal))}.")
        check_scale(scale, mass=NEEDS[method].mass, shown=method)
    readout = capture.plan.anatomy.readout
    if readout.rows is None and any(NEEDS[method].readout for method in methods):
        raise NoReadoutError(
            f"{type(capture.plan.model).__name__} has no readout to draw: {readout.reason}. Use methods=('received_attention',), or "
            "methods=() for numbers alone."
        )


def _summaries(maps: AttentionMaps) -> list[BlockSummary]:
    known: dict[Any, Any] = {}
    return [summarise_block(block, maps.readout, maps.selected_rows, known=known) for block in maps]
