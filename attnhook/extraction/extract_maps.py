"""`extract`: attention of a whole data set, by as many processes as there are, resumed where it stopped."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attnhook import __version__
from attnhook.errors import ExtractionError
from attnhook.extraction import distributions, indices
from attnhook.extraction.batch_attention import BatchForwards
from attnhook.extraction.batches import PhotoBatches, explained_worker_deaths, load_batches
from attnhook.extraction.items import Item
from attnhook.extraction.listings import Listing, no_photos, write_listing
from attnhook.extraction.map_datasets import ExtractedMaps, open_maps
from attnhook.extraction.processes import ProcessGroup, locked, process_group, writing
from attnhook.extraction.settings import MANIFEST_NAME, Manifest, Settings, StoredType, check_count
from attnhook.extraction.shards import STATISTICS, BackgroundWriter
from attnhook.extraction.sources import Source, open_source
from attnhook.files import check_writable, user_path
from attnhook.options import BlocksOption, RowsOption, choose
from attnhook.running.fingerprints import fingerprint, library_versions
from attnhook.running.progress import progress_bar
from attnhook.running.training_state import untouched
from attnhook.zoo.loading import as_vision_model, load, usable_device
from attnhook.zoo.vision_models import VisionModel

_LISTING = ".listing.arrow"
# Files that a killed run may leave in the folder.
_PARTIAL = tuple(f"{name}.*partial" for name in (_LISTING, MANIFEST_NAME, indices.NAME, distributions.NAME))


def extract(
    spec: "str | VisionModel | nn.Module",
    source: Any,
    out: str | Path,
    *,
    rows: RowsOption = "readout",
    blocks: BlocksOption = 1,
    heads: str | None = None,
    methods: Sequence[str] = (),
    statistics: bool = True,
    dtype: str = "float16",
    batch_size: int = 32,
    num_workers: int | None = None,
    shard_size: int = 512,
    device: str | None = None,
    column: str | None = None,
    progress: bool | None = None,
) -> ExtractedMaps:
    """Extract the attention of all photos of a data set into a folder.

    Run it again to continue where it stopped: complete shards are kept, unless one of their photos is new, has changed, or has become
    readable. Under `torchrun` every process takes a part; the files are the same, byte for byte, however many processes there are. A photo that
    cannot be read is listed in the index with its error, and the run goes on.

    The folder gets `shards/*.safetensors` (rows, statistics, maps), `index.parquet` (which photo is where), `statistics.json` (means and
    percentiles over the photos) and `manifest.json` (what made them). Each is written whole or not at all. `open_maps` reads them, also while
    the run goes on.

    Args:
        spec: A spec as `load` takes it, a `VisionModel`, or a timm model, whose own `pretrained_cfg` then prepares the photos.
        source: A folder (the first folder below it is a photo's class), a glob, a text list (one path per line, relative to the list; a tab and
            a class may follow), a zip, tar (WebDataset) or Parquet file or a glob of them, a sequence of paths, or a `datasets.Dataset`.
        out: The folder; created if missing.
        rows: Which rows, as in `AttentionCapture`: `"readout"`, `"cls"`, `"pool"`, `"mean"`, `"all"`, or tokens and patches.
        blocks: Which blocks, as in `AttentionCapture`: None for all, n for the last n, indices, names, or a predicate over names.
        heads: `"mean"` stores the mean over heads, None each head.
        methods: Names of `METHODS` whose maps are stored, too, always as float32. Methods of one block read the last of `blocks`,
            class-specific ones explain each photo's highest score.
        statistics: Whether to store `attention_statistics` of the rows, one number per photo, block and head.
        dtype: How rows are stored: `"float16"` (within 1 in 2,048), `"float32"` (exact) or `"uint8"` (within 1/510 of a row's largest).
        batch_size: Photos per forward. It may change the last bit, so a resumed run needs the same.
        num_workers: Processes that read photos ahead, for each process that runs a model; None uses the remaining cores, at most 8.
        shard_size: About how many photos make a shard: the most that a killed run loses.
        device: Where the model runs; `"cuda"` is one GPU per process. None: your model stays where it is, a loaded one runs on the CPU. Your
            model is moved back afterwards, and is in eval mode meanwhile.
        column: The column of the photos in Parquet files and in a `datasets.Dataset`. None takes the only one that holds images, or of several
            the first called `image`, `img`, `jpg`, `jpeg`, `png`, `webp` or `bytes`, and says so.
        progress: Whether a bar shows rate and time left; None shows it on terminals.

    Returns:
        The folder, opened.

    Raises:
        ExtractionError: If there are no photos, the folder holds something else, another run writes to it, this run differs from the one
            that began it, or the disk is full (complete shards are kept).
        ValueError: If an option has an unknown value, or a module does not bring its preprocessing.

    Example:
        >>> from attnhook import extract
        >>> maps = extract("demo@224", "photos", "maps", blocks=None)  # doctest: +SKIP
        >>> maps[0]["rows.encoder.layer.11.attention"].shape  # doctest: +SKIP
        torch.Size([6, 1, 257])
    """
    folder = user_path(out)
    spec = spec if isinstance(spec, str) else as_vision_model(spec)
    settings = Settings(
        rows=rows if isinstance(rows, str) else tuple(rows),
        blocks=blocks,
        heads=heads,
        methods=(methods,) if isinstance(methods, str) else tuple(dict.fromkeys(methods)),
        statistics=statistics,
        dtype=choose(StoredType, dtype, "dtype"),
        batch_size=batch_size,
        shard_size=shard_size,
        device=(_devices(spec)[0] if device is None else usable_device(device)).type,
    )
    if num_workers is not None:
        check_count("num_workers", num_workers, 0)
    photos = open_source(source, column)
    with ExitStack() as stack, process_group() as processes:
        if num_workers is None:
            num_workers = max(0, min(8, (os.cpu_count() or 1) // processes.local_size - 1))
        processes.on_first(lambda: _check_before(folder, photos))
        vision = stack.enter_context(_on_device(spec, device, processes))
        forwards = BatchForwards(vision, settings)
        own_manifest = _manifest(vision, photos, settings, forwards.capture.block_names)
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder) if processes.rank == 0 else nullcontext():
            manifest, pending = processes.on_first(lambda: _begin(folder, own_manifest, photos, settings))
            stack.enter_context(writing(folder))
            if (manifest.model, manifest.versions) != (own_manifest.model, own_manifest.versions):
                raise ExtractionError(
                    f"process {processes.rank} cannot take part: expected the model and the versions of the first process, got others. Install "
                    "the same everywhere."
                )
            listing = Listing(folder / _LISTING)
            shards = listing.shards()
            own = processes.share_of({shard: shards[shard] for shard in pending})
            batches = PhotoBatches(photos, listing, vision.preprocessing)
            with progress_bar(sum(map(len, own.values())), shown=False if processes.rank else progress) as bar:
                others = "" if processes.size == 1 else f", 1 of {processes.size} processes"
                bar.set_description(f"{vision.name}{others}")
                _run(folder, forwards, batches, own, num_workers=num_workers, bar=bar)
            processes.wait()
            processes.on_first(lambda: _end(folder, manifest))
    return open_maps(folder, source=photos)


def _check_before(folder: Path, source: Source) -> None:
    """Refuse what could not be written, and a source without photos, before a model is loaded."""
    check_writable(folder, ExtractionError)
    if next(iter(source.items()), None) is None:
        raise no_photos(source)


def _devices(vision: "str | VisionModel") -> list[torch.device]:
    """Where a model is; one that is not loaded yet will be on the CPU."""
    tensors = () if isinstance(vision, str) else (*vision.model.parameters(), *vision.model.buffers())
    return list(dict.fromkeys(tensor.device for tensor in tensors)) or [torch.device("cpu")]


@contextmanager
def _on_device(spec: "str | VisionModel", device: str | None, processes: ProcessGroup) -> Iterator[VisionModel]:
    wanted = torch.device("cuda", processes.local_rank) if device == "cuda" else torch.device(device or "cpu")
    if isinstance(spec, str):
        yield load(spec, device=wanted)
        return
    before = _devices(spec)
    if device is None or before == [wanted]:
        yield spec
        return
    if len(before) > 1:
        found = ", ".join(map(str, before))
        raise ExtractionError(
            f"cannot move {spec.name}: expected a model on one device, got {found}. Leave device out."
        )
    spec.model.to(wanted)
    try:
        yield spec
    finally:
        spec.model.to(before[0])


def _manifest(vision: VisionModel, source: Source, settings: Settings, blocks: tuple[str, ...]) -> Manifest:
    content = fingerprint(vision)
    hashes = {name: getattr(content, name) for name in ("weights", "architecture", "preprocessing")}
    return Manifest(
        model={"spec": vision.name, **hashes},
        source=source.description(),
        settings=settings.as_json(),
        blocks=list(blocks),
        statistics=list(STATISTICS) if settings.statistics else [],
        versions={"attnhook": __version__, **library_versions()},
        shards=0,
    )


def _begin(folder: Path, wanted: Manifest, source: Source, settings: Settings) -> tuple[Manifest, list[int]]:
    """What one process does for all: the manifest, the listing, and which shards are still to be done."""
    known = Manifest.load(folder)
    if known is None and any(path.name[0] != "." and not _is_partial(path) for path in folder.iterdir()):
        raise ExtractionError(
            f"cannot write to {folder}: expected an empty folder, or one of an extraction, got other files. Choose another folder."
        )
    for partial in (*filter(_is_partial, folder.iterdir()), *folder.glob(f"{indices.SHARDS}/[!.]*.partial")):
        partial.unlink(missing_ok=True)
    manifest = wanted if known is None else known.resumed(wanted, folder)
    count = write_listing(source, folder / _LISTING, shard_size=settings.shard_size, shards=manifest.shards or None)
    manifest = replace(manifest, shards=count)
    listing = Listing(folder / _LISTING)
    shards = listing.shards()
    pending = [shard for shard, rows in shards.items() if not _is_done(folder, shard, source, listing, rows)]
    obsolete = _obsolete_files(folder, shards)
    if pending or obsolete or known is None or not known.complete:
        # First the manifest, which is no longer complete: a run that is killed from here on begins here again.
        manifest.save(folder)
        for path in (folder / indices.NAME, folder / distributions.NAME, *obsolete):
            path.unlink(missing_ok=True)
    return manifest, pending


def _is_partial(path: Path) -> bool:
    return any(map(path.match, _PARTIAL))


def _is_done(folder: Path, shard: int, source: Source, listing: Listing, rows: range) -> bool:
    """Whether a shard is on the disk with exactly these photos, and none of them has changed or has become readable since."""
    fragment = indices.whole_fragment(folder, shard)
    if fragment is None or len(fragment) != len(rows):
        return False
    listed = listing.table.slice(rows.start, len(rows))
    same = ("key", "container", "number", "size", "stamp", "label")
    if any(fragment.column(name).to_pylist() != listed.column(name).to_pylist() for name in same):
        return False
    errors, digests = (fragment.column(name).to_pylist() for name in ("error", "digest"))
    unread = [row for row, error, digest in zip(rows, errors, digests, strict=True) if error and not digest]
    return not any(_is_readable(source, listing.item(row)) for row in unread)


def _is_readable(source: Source, item: Item) -> bool:
    try:
        return item.problem is None and source.read(item) is not None
    except Exception:  # whatever it is, the photo still cannot be read
        return False


def _obsolete_files(folder: Path, shards: dict[int, range]) -> list[Path]:
    """Files of shards of which the source has no photo any more: their parts of the index, then their tensors."""
    listed = {indices.fragment_path(folder, shard).stem for shard in shards}
    files = [path for kind in ("parquet", "safetensors") for path in (folder / indices.SHARDS).glob(f"[!.]*.{kind}")]
    return [path for path in files if path.stem not in listed]


def _run(
    folder: Path,
    forwards: BatchForwards,
    batches: PhotoBatches,
    shards: dict[int, range],
    *,
    num_workers: int,
    bar: Any,
) -> None:
    settings, workers = forwards.settings, num_workers if shards else 0
    pinned = settings.device == "cuda"
    loader = load_batches(batches, shards, batch_size=settings.batch_size, num_workers=workers, pinned=pinned)
    with torch.device("cpu"):  # whatever the process's default: the loader draws a seed
        loaded = iter(loader)  # starts the worker processes, before there is a thread whose locks they would inherit
    writer = BackgroundWriter(folder, settings, shards)
    with explained_worker_deaths(), writer, untouched(forwards.vision.model), forwards.hooked():
        for batch in loaded:
            writer.add(batch, [forwards.run(inputs, len(places)) for places, inputs in batch.groups])
            bar.update(len(batch.photos))


def _end(folder: Path, manifest: Manifest) -> None:
    if not (folder / indices.NAME).exists():  # it does if there was nothing to do
        shards = {shard: len(rows) for shard, rows in Listing(folder / _LISTING).shards().items()}
        photos, failed = indices.merge_fragments(folder, shards)
        distributions.write_distributions(folder, manifest)
        replace(manifest, photos=photos, failed=failed).save(folder)
    (folder / _LISTING).unlink(missing_ok=True)
