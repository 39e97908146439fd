"""What a comparison says of each model, beside what it measured."""

from dataclasses import dataclass

from attnhook.comparison.subjects import Subject
from attnhook.options import Size
from attnhook.running.fingerprints import Fingerprint, fingerprint
from attnhook.zoo.model_metadata import library_of, trained_grid
from attnhook.zoo.vision_models import VisionModel


@dataclass(frozen=True)
class ModelEntry:
    """One model that could be loaded.

    Attributes:
        name: What it is called.
        spec: What `load` takes, or None for an object.
        library: The library that it comes from, or None.
        architecture: The model's class.
        parameters: How many numbers it holds.
        fingerprint: Its content.
        trained_grid: The patch grid that its positions were made for, where that is known.
    """

    name: str
    spec: str | None
    library: str | None
    architecture: str
    parameters: int
    fingerprint: Fingerprint
    trained_grid: Size | None


def model_entry(subject: Subject, vision: VisionModel) -> ModelEntry:
    """Describe a model."""
    model = vision.model
    return ModelEntry(
        name=subject.name,
        spec=subject.spec,
        library=library_of(model),
        architecture=type(model).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        fingerprint=fingerprint(vision),
        trained_grid=trained_grid(model),
    )
