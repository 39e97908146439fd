"""`open_maps`: an extraction as a data set, read a photo at a time from mapped memory."""

import hashlib
import operator
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from attnhook.attribution.methods import NEEDS
from attnhook.attribution.raw_maps import raw_attention
from attnhook.capture.block_choice import block_index
from attnhook.capture.records import AttentionMaps, maps_from
from attnhook.errors import ExtractionError, ImageError, counted
from attnhook.extraction import indices
from attnhook.extraction.distributions import PERCENTILES, over_photos
from attnhook.extraction.items import Item, require
from attnhook.extraction.settings import MANIFEST_NAME, Manifest, decode
from attnhook.extraction.shards import ShardFiles
from attnhook.extraction.sources import open_source, reopen_source
from attnhook.files import user_path
from attnhook.imaging.images import read_image
from attnhook.imaging.patch_maps import PatchMap
from attnhook.options import HeadFusion, HeadsOption
from attnhook.results.display import captioned, rows_in_words
from attnhook.results.results import AttentionResult, ResultSettings

_RAW = "raw_attention"


class ExtractedMaps(Dataset[dict[str, Any]]):
    """What `extract` wrote: a photo's rows, statistics and maps by its key or number. Made by `open_maps`.

    A torch `Dataset` of dictionaries that `DataLoader` can batch: `key`, `label` (empty if there is none), `rows.BLOCK` of each stored
    block, `(heads, queries, keys)` float32 (windowed models: `(windows, heads, queries, keys)`), `statistics.BLOCK` likewise,
    `(heads, statistics)`, `maps.METHOD` `(h, w)`. BLOCK is the block's name in the model; `manifest.blocks` lists the stored ones. Only what is
    asked for is read from the disk.

    Numbers count the photos as they are stored, which is not the order of the source: `maps[0]` need not be the first file of a list. Go by
    keys.

    Attributes:
        folder: The folder of the extraction.
        manifest: Its manifest.

    Args:
        folder: The folder of the extraction.
        manifest: Its manifest.
        source: Where the photos are; None for where the manifest says.
    """

    def __init__(self, folder: Path, manifest: Manifest, source: Any = None) -> None:
        self.folder, self.manifest = folder, manifest
        self._source = source
        self._files = ShardFiles(folder)
        compute = require("pyarrow.compute")
        table = _read_index(folder)
        failed = compute.is_valid(table.column("error"))
        self._index, self._failed = table.filter(compute.invert(failed)), table.filter(failed)

    def __len__(self) -> int:
        count: int = self._index.num_rows
        return count

    @property
    def keys(self) -> list[str]:
        """The photos' names, by number: the order in which they are stored, not that of the source."""
        names: list[str] = self._index.column("key").to_pylist()
        return names

    @property
    def errors(self) -> dict[str, str]:
        """The errors of the photos that failed, by key."""
        columns = (self._failed.column(name).to_pylist() for name in ("key", "error"))
        return dict(zip(*columns, strict=True))

    @property
    def complete(self) -> bool:
        """Whether the run had ended when this was opened, and everything it wrote was there."""
        return (self.manifest.photos, self.manifest.failed) == (len(self), self._failed.num_rows)

    def record(self, photo: int | str) -> dict[str, Any]:
        """Read a photo's row of the index.

        Args:
            photo: Its key or number.

        Returns:
            The columns of `index.parquet`.

        Raises:
            ExtractionError: If there is no such photo, or it failed.
        """
        row: dict[str, Any] = self._index.slice(self._number(photo), 1).to_pylist()[0]
        return row

    def _number(self, photo: int | str) -> int:
        if hasattr(photo, "__index__") and not isinstance(photo, bool):
            photo = operator.index(photo)
            if not -len(self) <= photo < len(self):
                problem = f"expected -{len(self)} to {len(self) - 1}" if len(self) else self._why_empty()
                raise IndexError(f"photo {photo} does not exist: {problem}.")
            return photo % len(self)
        number: int = require("pyarrow.compute").index(self._index.column("key"), str(photo)).as_py()
        if number >= 0:
            return number
        if (error := self.errors.get(str(photo))) is not None:
            raise ExtractionError(
                f"no attention of {photo!r}: expected a photo that could be read, got an error. {error}"
            )
        some = ", ".join(map(repr, self.keys[:3]))
        problem = f"expected one of the {len(self)} keys, such as {some}" if len(self) else self._why_empty()
        raise ExtractionError(f"unknown photo {photo!r}: {problem}.")

    def to_arrow(self) -> Any:
        """The index as an Arrow table, with the photos that failed at its end."""
        return require("pyarrow").concat_tables([self._index, self._failed])

    def to_pandas(self) -> Any:
        """The index as a pandas data frame, with the photos that failed at its end."""
        return self.to_arrow().to_pandas()

    def __getitem__(self, photo: int | str) -> dict[str, Any]:
        record = self.record(photo)
        tensors = self._tensors(record, "rows", "statistics", "maps")
        return _Photo({"key": record["key"], "label": record["label"] or "", **tensors})

    def _tensors(self, record: dict[str, Any], *wanted: str) -> dict[str, Tensor]:
        """A photo's tensors, by name or kind; rows are decoded."""
        stored = self._files.tensors(record, "scales", *wanted)
        tensors = {}
        for name, tensor in stored.items():
            kind, _, block = name.partition(".")
            if kind != "scales":
                tensors[name] = decode(tensor, stored.get(f"scales.{block}")) if kind == "rows" else tensor
        return tensors

    def maps(self, photo: int | str) -> AttentionMaps:
        """Read a photo's rows, as a capture returns them (within the precision of `dtype`).

        Args:
            photo: Its key or number.

        Returns:
            The maps of the stored blocks, with a batch of one.
        """
        record = self.record(photo)
        tensors, header = self._tensors(record, "rows"), self._files.header(record)
        by_number = self._files.layout(record)
        for i, block in enumerate(header["blocks"]):
            rows = tensors[f"rows.{block['name']}"]
            by_number[f"rows.{i}"] = rows if rows.dim() == 4 else rows[None]
        return maps_from(header, by_number)

    def attention(
        self, photo: int | str, *, block: int | str = -1, heads: HeadsOption = "mean", method: str | None = None
    ) -> PatchMap:
        """A photo's map on the patch grid.

        Args:
            photo: Its key or number.
            block: One of the stored blocks, by index or name; maps of other methods are stored for one block only.
            heads: As in `raw_attention`; if only the mean over heads was stored, that.
            method: One of the stored methods; None is raw attention, computed from the stored rows.

        Returns:
            A map of `(h, w)` float32, unnormalised, or of `(heads, h, w)` for `heads=None`.

        Raises:
            ExtractionError: If the method's maps were not stored, or not those of this block or these heads.
        """
        if method in (None, _RAW):
            if heads != HeadFusion.MEAN and self.manifest.settings["heads"] == HeadFusion.MEAN:
                raise ExtractionError(
                    f"the heads are not stored: expected heads='mean', the only one stored, got {heads!r}. Extract with heads=None to keep each."
                )
            return raw_attention(self.maps(photo), block=block, heads=heads)[0]
        facts, name = self._stored_facts(photo, method, block, heads), f"maps.{method}"
        return PatchMap.with_facts(self._files.tensors(self.record(photo), name)[name], facts["map"])

    def _stored_facts(self, photo: int | str, method: str, block: int | str, heads: HeadsOption) -> dict[str, Any]:
        """What is stored about a method's map, which has to be of this block and these heads."""
        if method not in self.manifest.settings["methods"]:
            stored = ", ".join(map(repr, self.manifest.settings["methods"])) or "none"
            raise ExtractionError(
                f"no maps of {method!r}: expected a method that was stored ({stored}). Extract with methods=[{method!r}]."
            )
        header = self._files.header(self.record(photo))
        facts: dict[str, Any] = header["methods"][method]
        names = [entry["name"] for entry in header["blocks"]]
        if block not in (-1, facts["block"]) and names[block_index(names, block)] != facts["block"]:
            raise ExtractionError(
                f"no maps of {method!r} for block {block!r}: expected the one that was stored, {facts['block']!r}. Leave block out, or extract "
                "the block as the last of blocks."
            )
        if heads != facts["heads"]:
            raise ExtractionError(
                f"no maps of {method!r} with heads={heads!r}: expected heads={facts['heads']!r}, which was stored. Leave heads out."
            )
        return facts

    def heatmap(self, photo: int | str, **options: Any) -> Tensor:
        """A photo's map at the photo's size, `(H, W)` float32, NaN where the model did not look; options as in `attention`, for one map."""
        return self.attention(photo, **options).heatmap(indices.geometry_from_numbers(self.record(photo)["geometry"]))

    def statistics(self, percentiles: Sequence[float] = PERCENTILES) -> list[dict[str, Any]]:
        """Exact mean and percentiles of every statistic over all photos.

        Args:
            percentiles: Which ones, 0 to 100.

        Returns:
            One row per block, head and statistic, as in `statistics.json`.

        Raises:
            ExtractionError: If no statistics were stored.
        """
        if not self.manifest.statistics:
            raise ExtractionError(
                "no statistics: expected an extraction with statistics=True. Extract again with statistics=True."
            )
        return over_photos(self.folder, self.manifest, percentiles)

    def photo(self, photo: int | str) -> Image.Image:
        """Fetch a photo from its source again.

        Args:
            photo: Its key or number.

        Returns:
            The photo, RGB, upright.

        Raises:
            ImageError: If it is gone or has changed.
        """
        record = self.record(photo)
        if self._source is None:
            self._source = reopen_source(self.manifest.source)
        names = ("key", "member", "container", "number", "size", "stamp")
        try:
            content = self._source.read(Item(**{name: record[name] for name in names}))
        except OSError as error:
            raise ImageError(
                f"cannot fetch {record['key']!r} again: expected it where extract found it, got {error}. If the photos have moved, pass "
                "open_maps(folder, source=...)."
            ) from error
        if hashlib.sha256(content).hexdigest() != record["digest"]:
            raise ImageError(
                f"{record['key']!r} has changed since its attention was extracted: expected the same bytes, got others. Run extract again."
            )
        return read_image(content)

    def result(
        self, photo: int | str, *, block: int | str = -1, heads: HeadsOption = "mean", method: str | None = None
    ) -> AttentionResult:
        """A photo with its map, as `attend` returns it: overlays, figures, captions. Options as in `attention`, for one map."""
        attention = self.attention(photo, block=block, heads=heads, method=method)
        maps, record, model = self.maps(photo), self.record(photo), self.manifest.model["spec"]
        if method in (None, _RAW):
            settings = ResultSettings(model, _RAW, maps[block].name, heads, rows_in_words(maps))
        else:
            facts = self._files.header(record)["methods"][method]
            target = record["target"] if NEEDS[method].gradients else None
            settings = ResultSettings(model, method, facts["block"], facts["heads"], facts["rows"], target)
        geometry = indices.geometry_from_numbers(record["geometry"])
        described = captioned(attention, model, settings.target)
        return AttentionResult(self.photo(photo), described, geometry, maps, settings)

    def overlay(
        self,
        photo: int | str,
        *,
        block: int | str = -1,
        heads: HeadsOption = "mean",
        method: str | None = None,
        **options: Any,
    ) -> Image.Image:
        """A photo, fetched again, with its map over it. Options as in `attention`, for one map, and as in `PatchMap.overlay`."""
        return self.result(photo, block=block, heads=heads, method=method).overlay(**options)

    def _why_empty(self) -> str:
        if not self._failed.num_rows:
            return "no photo has been extracted yet"
        ((error, count),) = Counter(self._failed.column("error").to_pylist()).most_common(1)
        return f"all {self._failed.num_rows} photos failed, {count} of them with {error!r}"

    def __repr__(self) -> str:
        state = "" if self.complete else ", still running or stopped"
        counts = f"{counted(len(self), 'photo')}, {self._failed.num_rows} failed"
        reason = f": {self._why_empty()}" if self._failed.num_rows and not len(self) else ""
        return f"ExtractedMaps({counts}, {self.manifest.model['spec']}{state}){reason}"


def open_maps(folder: str | Path, *, source: Any = None) -> ExtractedMaps:
    """Open what `extract` wrote; while it is still running, the complete shards.

    Args:
        folder: The folder of the extraction.
        source: Where the photos are now; None for where they were. Only pictures need them.

    Returns:
        The photos' attention.

    Raises:
        ExtractionError: If there is no extraction in the folder.

    Example:
        >>> from attnhook import open_maps
        >>> maps = open_maps("maps")  # doctest: +SKIP
        >>> maps.manifest.blocks  # doctest: +SKIP
        ['encoder.layer.11.attention']
        >>> maps["cats/chelsea.png"]["rows.encoder.layer.11.attention"].shape  # doctest: +SKIP
        torch.Size([6, 1, 257])
        >>> maps.overlay("cats/chelsea.png").save("overlay.png")  # doctest: +SKIP
        >>> maps.errors, maps.to_pandas()  # doctest: +SKIP
    """
    path = user_path(folder)
    manifest = Manifest.load(path)
    if manifest is None:
        raise ExtractionError(
            f"nothing to open: expected a folder that attnhook extract wrote, got {_seen_at(path)}. Pass the folder that was given to "
            "extract(..., out=...) or attnhook extract --out."
        )
    return ExtractedMaps(path, manifest, None if source is None else open_source(source, manifest.source.get("column")))


class _Photo(dict[str, Any]):
    """What is stored of one photo; an unknown name is answered with the known ones."""

    def __missing__(self, name: str) -> Any:
        raise KeyError(f"nothing is stored as {name!r}: expected one of {', '.join(map(repr, self))}.")


def _seen_at(path: Path) -> str:
    """What is where an extraction was expected."""
    if not path.exists():
        return f"no such folder, {path}"
    return f"no {MANIFEST_NAME} in {path}" if path.is_dir() else f"the file {path}"


def _read_index(folder: Path) -> Any:
    try:
        return require("pyarrow.parquet").read_table(folder / indices.NAME, partitioning=None)
    except FileNotFoundError:  # not yet, or not any more
        pass
    fragments = [indices.whole_fragment(folder, int(path.stem)) for path in indices.fragments(folder)]
    tables = [table.replace_schema_metadata(None) for table in fragments if table is not None]
    return require("pyarrow").concat_tables([indices.schema().empty_table(), *tables])
