"""What `compare` gives: several models' maps of the same photos on the same pixels, and numbers about them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from attnhook.comparison.agreements import PairAgreement
from attnhook.comparison.checks import Note
from attnhook.comparison.entries import ModelEntry
from attnhook.comparison.faithfulness import Faithfulness
from attnhook.comparison.map_kinds import View
from attnhook.comparison.measurements import Measurement
from attnhook.comparison.objects import ObjectScores
from attnhook.comparison.photographs import MEASURING, Failure, Photo
from attnhook.comparison.tables import Table
from attnhook.imaging.geometry import Box
from attnhook.options import ScaleOption
from attnhook.results.display import html_of, mimebundle, png_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE_PHOTOS = 8
"""Of how many photos a figure is, unless photos are named."""


@dataclass(frozen=True)
class SharedArea:
    """The part of a photo that every model saw which has a map of it.

    Attributes:
        part: Of the photo's area.
        box: Around it: top, left, bottom, right, in photo pixels.
    """

    part: float
    box: Box


@dataclass(frozen=True, eq=False)
class Comparison:
    """Several models on the same photos.

    A notebook shows the photos with every model's map. Raw attention is where attention went; agreement of two maps makes neither right.

    Attributes:
        models: Those that could be loaded, in order.
        photos: Those that could be read, in order.
        views: The maps: methods, and of methods of one block the relative depth.
        measurements: By index of the model and of the photo.
        areas: By photo: what all models saw.
        agreements: By view: every pair of models.
        objects: By view: scores against masks, where there are any.
        faithful: By view: deletion and insertion, where they were asked for.
        failures: What could not be done.
        notes: What the comparison found out about itself.
        settings: What it was asked.
    """

    models: tuple[ModelEntry, ...]
    photos: tuple[Photo, ...]
    views: tuple[View, ...]
    measurements: dict[tuple[int, int], Measurement]
    areas: tuple[SharedArea | None, ...]
    agreements: dict[str, tuple[PairAgreement, ...]]
    objects: dict[str, tuple[ObjectScores, ...]]
    faithful: dict[str, tuple[Faithfulness, ...]]
    failures: tuple[Failure, ...]
    notes: tuple[Note, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    def heatmap(self, model: "int | str", photo: "int | str" = 0, view: "int | str" = 0) -> Tensor:
        """One map at one photo's own pixels.

        Args:
            model: Its index or name.
            photo: Its index or name.
            view: Its index or name, such as `"rollout"` or `"raw_attention@0.5"`.

        Returns:
            `(height, width)` float32, NaN where the model did not look.

        Raises:
            KeyError: If there is no such model, photo or view, or no such map; the message says why.
        """
        where = self.model_index(model), self.photo_index(photo)
        chosen = self.view(view)
        measurement = self.measurements.get(where)
        if measurement is None or chosen.id not in measurement.maps:
            raise KeyError(
                f"{self.models[where[0]].name} has no {chosen.label} of {self.photos[where[1]].name}: {self.reason(*where, chosen)}"
            )
        return measurement.maps[chosen.id].heatmap(measurement.geometry)

    def figure(
        self,
        view: "int | str" = 0,
        *,
        photos: "Sequence[int | str] | int | str | None" = None,
        scale: ScaleOption = "minmax",
        colormap: Any = "viridis",
        alpha: float = 0.5,
        cell_width: float = 1.8,
    ) -> "Figure":
        """Photos by models: every photo beside every model's map over it.

        Args:
            view: Which maps, by index or name.
            photos: Which photos, by index or name; None for the first eight.
            scale: `"minmax"` (each map's own range), `"robust"` (each map's 1st to 99th percentile), `"uniform"` (multiples of uniform
                attention, comparable) or `(vmin, vmax)`.
            colormap: A matplotlib colormap or its name.
            alpha: Opacity of the maps, 0 to 1.
            cell_width: Of one picture, in inches.

        Returns:
            The figure; save it with `.savefig`.
        """
        from attnhook.comparison.model_figures import matrix_figure

        several = [photos] if isinstance(photos, str | int) else photos
        chosen = (
            range(min(len(self.photos), FIGURE_PHOTOS))
            if several is None
            else [self.photo_index(one) for one in several]
        )
        colors = {"scale": scale, "colormap": colormap, "alpha": alpha, "cell_width": cell_width}
        return matrix_figure(self, self.view(view), list(chosen), **colors)

    def depth_figure(self) -> "Figure":
        """Every statistic over relative depth, a line for each model: models of different depth at the same place.

        Returns:
            The figure.

        Raises:
            ValueError: If the comparison was made without statistics.
        """
        from attnhook.comparison.model_figures import depth_figure

        return depth_figure(self)

    def table(self, name: str = "models") -> Any:
        """One of the tables.

        Args:
            name: `"models"`, `"photos"`, `"agreement"`, `"objects"` (with masks), `"faithfulness"` or `"depth"` (statistics by block).

        Returns:
            A pandas DataFrame; where pandas is not installed, a list of dictionaries.

        Raises:
            KeyError: If there is no such table.
        """
        tables = {table.id: table for table in self.tables()}
        if name not in tables:
            raise KeyError(f"no table {name!r}: expected one of {', '.join(map(repr, tables))}.")
        return tables[name].frame()

    def agreement(self, view: "int | str | None" = None) -> Any:
        """How alike every two models' maps are, beside their baselines.

        Args:
            view: Of which maps; None for all.

        Returns:
            As `table("agreement")`.
        """
        from attnhook.comparison.summary_tables import agreement_table

        return agreement_table(self, self.views if view is None else (self.view(view),)).frame()

    def tables(self) -> list[Table]:
        """All tables, for `metrics.json`, the report and whoever wants them with units and notes."""
        from attnhook.comparison.summary_tables import all_tables

        return all_tables(self)

    def save(self, folder: "str | Path", *, pictures: bool = True) -> Path:
        """Write the report: `report.html` (one self-contained page), `metrics.json`, `metrics.csv`, `manifest.json` and PNGs.

        Args:
            folder: Where; made if need be. Files of an earlier report are replaced, each under a temporary name first, and those that this
                one does not have are deleted; other files stay.
            pictures: Whether to write the PNGs: each overlay and the figures.

        Returns:
            The path of `report.html`.
        """
        from attnhook.comparison.reports import save_report

        return save_report(self, Path(folder), pictures=pictures)

    def model_index(self, model: "int | str") -> int:
        """Index of a model.

        Args:
            model: Its index, negative from the end, or its name.

        Returns:
            The index.

        Raises:
            KeyError: If there is none.
        """
        return _index(model, [entry.name for entry in self.models], "model")

    def photo_index(self, photo: "int | str") -> int:
        """Index of a photo.

        Args:
            photo: Its index, negative from the end, or its name.

        Returns:
            The index.

        Raises:
            KeyError: If there is none.
        """
        return _index(photo, [one.name for one in self.photos], "photo")

    def view(self, view: "int | str") -> View:
        """One of the views.

        Args:
            view: Its index, negative from the end, or its name.

        Returns:
            The view.

        Raises:
            KeyError: If there is none.
        """
        return self.views[_index(view, [one.id for one in self.views], "view")]

    def reason(self, model: int, photo: int, view: View) -> str:
        """Why there is no map.

        Args:
            model: Index of the model.
            photo: Index of the photo.
            view: The view.

        Returns:
            In words.
        """
        measurement = self.measurements.get((model, photo))
        if measurement is not None:
            return measurement.problems.get(view.id, "it was not asked for.")
        measuring = [f for f in self.failures if (f.model, f.what) == (self.models[model].name, MEASURING)]
        own = [f.error for name in (self.photos[photo].name, None) for f in measuring if f.photo == name]
        return own[0] if own else "the model was not measured."

    def _repr_html_(self) -> str:
        return html_of(self._picture(), repr(self))

    def _repr_png_(self) -> bytes:
        return png_of(self._picture())

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return mimebundle(self._picture(), repr(self), repr(self))

    def _picture(self) -> Any:
        from attnhook.comparison.model_figures import rendered

        return rendered(self.figure(photos=list(range(min(len(self.photos), 4)))))

    def __repr__(self) -> str:
        views = ", ".join(view.id for view in self.views)
        failed = f", {len(self.failures)} failures" if self.failures else ""
        return f"Comparison({len(self.models)} models, {len(self.photos)} photos, {views}{failed})"


def _index(key: "int | str", names: Sequence[str], what: str) -> int:
    if isinstance(key, str) and key in names:
        return names.index(key)
    if isinstance(key, int | np.integer) and -len(names) <= key < len(names):
        return int(key) % len(names)
    raise KeyError(f"no {what} {key!r}: expected an index below {len(names)} or one of {', '.join(map(repr, names))}.")
