"""`Comparison`, which `compare` returns: what was found, with its figures, tables and report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnhook.comparison.findings import FIGURE_PHOTOS, Findings
from attnhook.comparison.model_figures import depth_figure, matrix_figure
from attnhook.comparison.reports import save_report
from attnhook.comparison.summary_tables import agreement_table, all_tables
from attnhook.comparison.tables import Table
from attnhook.errors import counted
from attnhook.files import user_path
from attnhook.imaging.panels import rendered
from attnhook.options import ScaleOption
from attnhook.results.display import html_of, mimebundle, png_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

_NOTEBOOK_PHOTOS = 4


@dataclass(frozen=True, eq=False)
class Comparison(Findings):
    """Several models on the same photos.

    In a notebook it shows the photos with every model's map. Raw attention shows where attention went; two maps that agree may both be wrong.

    Attributes:
        models: The models that could be loaded, in order.
        photos: The photos that could be read, in order.
        views: The kinds of map: each is a method, with the relative depth of the block for methods that read a single block.
        measurements: What each model made of each photo, by the indices of model and photo.
        areas: For each photo, the part that all models saw.
        agreements: For each view, every pair of models.
        objects: For each view, the scores against masks, if there are masks.
        faithful: For each view, deletion and insertion, if requested.
        failures: What could not be done.
        notes: What the comparison noticed about the models.
        settings: The settings it was made with.
        centre_prior: With masks, the scores of a Gaussian in the middle of each photo, the same for all models; None without masks.
    """

    def figure(
        self,
        view: "int | str" = 0,
        *,
        photos: "Sequence[int | str] | int | str | None" = None,
        scale: "ScaleOption | None" = None,
        **options: Any,
    ) -> "Figure":
        """Draw a row per photo: the photo, then every model's map over it.

        Args:
            view: Which maps, by index or name.
            photos: Which photos, by index or name; None for the first eight.
            scale: `"uniform"` (multiples of uniform attention, comparable), `"robust"` (each map's 1st to 99th percentile), `"minmax"` (each
                map's own range) or `(vmin, vmax)`. None takes "uniform" for maps of attention and "robust" for others.
            **options: Of the look and of the figure, what `PatchMap.figure` takes; `cell_width` is the width of one picture, in inches.

        Returns:
            The figure; save it with `.savefig`.
        """
        photos = range(len(self.photos))[:FIGURE_PHOTOS] if photos is None else photos
        chosen = map(self.photo_index, [photos] if isinstance(photos, str | int) else photos)
        return matrix_figure(self, self.view(view), list(chosen), scale=scale, **options)

    def depth_figure(self) -> "Figure":
        """Draw every statistic over relative depth, with a line per model, so that models of different depth can be compared.

        Returns:
            The figure.

        Raises:
            ValueError: If the comparison was made without statistics.
        """
        return depth_figure(self)

    def table(self, name: str = "models") -> "DataFrame":
        """Return one of the tables.

        Args:
            name: `"models"`, `"photos"`, `"agreement"`, `"objects"` (with masks), `"faithfulness"` or `"depth"` (statistics by block).

        Returns:
            A pandas DataFrame, with NaN where there is no number.

        Raises:
            KeyError: If there is no such table.
        """
        tables = {table.id: table for table in self.tables()}
        if name not in tables:
            raise KeyError(f"no table {name!r}: expected one of {', '.join(map(repr, tables))}.")
        return tables[name].frame()

    def agreement(self, view: "int | str | None" = None) -> "DataFrame":
        """Return how similar every two models' maps are, with the baselines.

        Args:
            view: Which maps, by index or name; None for all.

        Returns:
            A pandas DataFrame, as `table("agreement")`.
        """
        return agreement_table(self, self.views if view is None else (self.view(view),)).frame()

    def tables(self) -> list[Table]:
        """Return all tables with units and notes, as the report and `metrics.json` have them."""
        return all_tables(self)

    def save(self, folder: "str | Path", *, pictures: bool = True) -> Path:
        """Write the report: `report.html` (one self-contained page), `metrics.json`, `metrics.csv`, `manifest.json` and pictures.

        Args:
            folder: Where to write; created if it does not exist. Files of an earlier report are replaced, each through a temporary file, and
                those that this report does not have are deleted; other files stay.
            pictures: Whether to write the pictures: every overlay, and the figures.

        Returns:
            The path of `report.html`.
        """
        return save_report(self, user_path(folder), pictures=pictures)

    def _repr_html_(self) -> str:
        return html_of(self._picture(), repr(self))

    def _repr_png_(self) -> bytes:
        return png_of(self._picture())

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return mimebundle(self._picture(), repr(self), repr(self))

    def _picture(self) -> Any:
        return rendered(self.figure(photos=range(len(self.photos))[:_NOTEBOOK_PHOTOS]))

    def __repr__(self) -> str:
        views = ", ".join(view.id for view in self.views)
        failed = f", {counted(len(self.failures), 'failure')}" if self.failures else ""
        return (
            f"Comparison({counted(len(self.models), 'model')}, {counted(len(self.photos), 'photo')}, {views}{failed})"
        )
