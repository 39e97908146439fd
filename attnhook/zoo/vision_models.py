"""A model with its preprocessing, as all uses of the library take it."""

import logging
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from PIL import Image
from torch import Tensor, nn

from attnhook._deprecated import old_attributes, replaced_arguments
from attnhook.errors import GeometryError
from attnhook.imaging.calling import timm_transform
from attnhook.imaging.geometry import ImageGeometry
from attnhook.imaging.images import ImageSource, read_image
from attnhook.imaging.prepared import Prepared, prepare, seen_size
from attnhook.options import Size
from attnhook.zoo.model_metadata import labels_of, missing_preprocess, name_of, timm_data_config

# If photos of all these sizes have the same input size, it does not depend on the photo.
_PROBES = ((480, 480), (480, 960), (960, 480))
_LOGGER = logging.getLogger("attnhook")


_GONE = {
    "library": "use attnhook.zoo.model_metadata.library_of(vision.model)",
    "transform": "use vision.preprocess(photo)[0], or vision.preprocessing, what turns a photo into the model's input",
    "geometry": "use ImageGeometry.of(vision.preprocessing, (height, width))",
}


@replaced_arguments("VisionModel(model, preprocess, name=..., labels=...)", *_GONE, "input_size", most=3)
@old_attributes({}, _GONE)
@dataclass(frozen=True, eq=False, init=False, repr=False)
class VisionModel:
    """A model, its preprocessing, and the names of its classes.

    `load` makes one, in eval mode. For your own model, pass the model and its preprocessing. The model stays in its current mode, so call
    `model.eval()` first.

    Args:
        model: The model.
        preprocess: What turns a photo into the model's input: a transform, an image processor, a timm data config, any callable that takes a
            PIL image, or a function that returns `(pixels, ImageGeometry)`. It may return a tensor or an array, with or without a batch axis,
            or a dict or `BatchFeature`, whose entries are passed to the model as keyword arguments. None: a timm model's own `pretrained_cfg`.
        name: A short name for captions; None uses the name of the architecture (timm), the checkpoint (transformers), or the class.
        labels: One name per output of the classifier, in order or by index; None reads them from the model if it knows them.

    Attributes:
        model: The model.
        preprocessing: What turns a photo into the model's input.
        name: The name.
        labels: The names of the classes, or None if there is no classifier or its classes are unknown.
        assumed: A description of the model's own preprocessing, if none was passed and it is used instead; else None.

    Raises:
        TypeError: If the model is not a module.
        ValueError: If no preprocessing was passed and the model does not bring its own, or if indices of labels are not 0, 1, 2, ...

    Example:
        >>> import timm
        >>> VisionModel(timm.create_model("test_vit"))
        VisionModel(name='test_vit', preprocess=its own pretrained_cfg: 160 x 160 px, crop_pct 0.95)
        >>> from torchvision.transforms.functional import to_tensor
        >>> own = VisionModel(nn.Identity(), to_tensor, name="mine")
        >>> pixels, geometry = own.preprocess(Image.new("RGB", (64, 48)))
        >>> pixels.shape, geometry.input_size
        (torch.Size([1, 3, 48, 64]), (48, 64))
    """

    model: nn.Module
    preprocessing: Any
    name: str
    labels: tuple[str, ...] | None
    assumed: str | None

    def __init__(
        self,
        model: nn.Module,
        preprocess: Any = None,
        *,
        name: str | None = None,
        labels: Sequence[str] | Mapping[int, str] | Mapping[str, str] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"cannot make a VisionModel: expected a torch.nn.Module, got {type(model).__name__}. Pass the model, or use load(spec)."
            )
        assumed = None
        if preprocess is None:
            preprocess, assumed = _own_preprocessing(model)
        if isinstance(labels, Mapping):
            labels = _in_order(labels)
        vars(self).update(
            model=model,
            preprocessing=preprocess,
            name=name_of(model) if name is None else name,
            labels=labels_of(model) if labels is None else tuple(labels),
            assumed=assumed,
        )
        if assumed is not None:
            _log_once(f"no preprocess= was given: {self.name} is fed photos as {assumed}")

    @cached_property
    def input_size(self) -> Size | None:
        """`(height, width)` of the model's input, in pixels; None if it depends on the photo or is unknown."""
        sizes = {seen_size(self.preprocessing, probe) for probe in _PROBES}
        return sizes.pop() if len(sizes) == 1 else None

    def prepare(self, photo: Image.Image) -> Prepared:
        """Turn a photo that has been read into the model's input.

        Args:
            photo: The photo, RGB and upright, as `read_image` returns it.

        Returns:
            The model's input, and its geometry in the photo.
        """
        return prepare(self.preprocessing, photo)

    def preprocess(self, image: ImageSource) -> tuple[Tensor, ImageGeometry]:
        """Turn a photo into the model's pixels, and say which part of the photo they show.

        Args:
            image: Anything that `attnhook.imaging.images.read_image` takes.

        Returns:
            Pixels `(1, 3, height, width)`, float32, and their geometry.

        Raises:
            GeometryError: If the pixels' size differs from the geometry's, or they are packed patches.
        """
        prepared = self.prepare(read_image(image))
        pixels, geometry = prepared.inputs.pixels, prepared.geometry
        if tuple(pixels.shape[-2:]) != tuple(geometry.input_size):
            raise GeometryError(
                f"the preprocessing of {self.name} packs patches: expected pixels (1, 3, {geometry.input_size[0]}, {geometry.input_size[1]}), "
                f"got {tuple(pixels.shape)}. Use prepare(photo).inputs, which holds everything that goes into the model."
            )
        return pixels.float(), geometry

    def with_model(self, model: nn.Module) -> "VisionModel":
        """Replace the model, for example with a copy that has other weights.

        Args:
            model: The other model.

        Returns:
            The other model with the same preprocessing, name and labels.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"cannot replace the model: expected a torch.nn.Module, got {type(model).__name__}. Pass the model itself."
            )
        other = copy(self)
        vars(other).update(model=model)
        return other

    def with_preprocess(self, preprocess: Any) -> "VisionModel":
        """Replace the preprocessing.

        Args:
            preprocess: As in `VisionModel`.

        Returns:
            The same model with the other preprocessing.
        """
        return VisionModel(self.model, preprocess, name=self.name, labels=self.labels)

    def __repr__(self) -> str:
        shown = type(self.preprocessing).__name__ if self.assumed is None else self.assumed
        return f"VisionModel(name={self.name!r}, preprocess={shown})"


def _in_order(labels: Mapping[int, str] | Mapping[str, str]) -> list[str]:
    """Labels in the order of their indices, which JSON turns into strings: `"10"` sorts before `"2"`."""
    try:
        by_number = {int(index): label for index, label in labels.items()}
    except (TypeError, ValueError):
        by_number = {}
    if sorted(by_number) != list(range(len(labels))):
        raise ValueError(
            f"bad labels: expected a name for every output of the classifier, by index from 0 to {len(labels) - 1}, got {list(labels)[:5]}. "
            "Pass id2label, or a list of names in order."
        )
    return [by_number[index] for index in range(len(labels))]


def _own_preprocessing(model: nn.Module) -> tuple[Any, str]:
    """A model's own preprocessing, and its description."""
    config = timm_data_config(model)
    if config is None:
        raise ValueError(missing_preprocess(model))
    height, width = config["input_size"][1:]
    description = f"its own pretrained_cfg: {height} x {width} px, crop_pct {config['crop_pct']:g}"
    return timm_transform(config), description  # one object per configuration: geometries are remembered per object


@cache
def _log_once(line: str) -> None:
    _LOGGER.info(line)
