"""`extract`: attention of a whole data set, by as many processes as there are, resumed where it stopped."""

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from attnhook import __version__
from attnhook.errors import ExtractionError
from attnhook.options import BlocksOption, RowsOption
from attnhook.workflows.extraction import indices
from attnhook.workflows.extraction.batches import PhotoBatches, load_batches
from attnhook.workflows.extraction.distributions import write_distributions
from attnhook.workflows.extraction.forwards import BatchForwards
from attnhook.workflows.extraction.listings import Listing, write_listing
from attnhook.workflows.extraction.manifests import Manifest
from attnhook.workflows.extraction.map_datasets import ExtractedMaps, open_maps
from attnhook.workflows.extraction.processes import Team, locked, team
from attnhook.workflows.extraction.settings import Settings, make_settings
from attnhook.workflows.extraction.shards import STATISTICS
from attnhook.workflows.extraction.sources import Source, open_source
from attnhook.workflows.extraction.writers import WritingThread
from attnhook.workflows.fingerprints import fingerprint
from attnhook.workflows.progress import Progress
from attnhook.workflows.versions import library_versions
from attnhook.zoo.loading import VisionModel, load

_LISTING = ".listing.arrow"


def extract(
    spec: "str | VisionModel",
    source: Any,
    out: str | Path,
    *,
    rows: RowsOption = "readout",
    blocks: BlocksOption = -1,
    heads: str | None = None,
    methods: Sequence[str] = (),
    statistics: bool = True,
    dtype: str = "float16",
    batch_size: int = 32,
    num_workers: int | None = None,
    shard_size: int = 512,
    device: str = "cpu",
    progress: bool | None = None,
) -> ExtractedMaps:
    """Extract the attention of all photos of a data set into a folder.

    Run it again to go on where it stopped: what is whole is not done again, photos that are new or have changed are. Under `torchrun` every
    process takes a part; the files are the same, byte for byte, however many there are. What cannot be read stands in the index with its
    error, and the others are done.

    The folder gets `shards/*.safetensors` (rows, statistics, maps), `index.parquet` (which photo is where), `statistics.json` (means and
    percentiles over the photos) and `manifest.json` (what made them). Each is written whole or not at all. `open_maps` reads them, also while
    the run goes on.

    Args:
        spec: What `load` takes or gives.
        source: A folder (the first folder below it is a photo's class), a glob, a text list (a path a line, relative to the list; a tab and a
            class may follow), a zip, tar (WebDataset) or Parquet file or a glob of them, a sequence of paths, or a `datasets.Dataset`.
        out: The folder; made if missing.
        rows: Whose rows, as in `AttentionCapture`: `"readout"`, `"cls"`, `"pool"`, `"mean"`, `"all"`, or tokens and patches.
        blocks: Which blocks, as in `AttentionCapture` (None: all; n: the last n); a negative number is that one block.
        heads: `"mean"` stores the mean over heads, None each head.
        methods: Names of `METHODS`: their maps are stored, too, always as float32. Class-specific ones are of each photo's highest score.
        statistics: Whether to store `attention_statistics` of the rows, one number a photo, block and head.
        dtype: How rows are stored: `"float16"` (within 1 in 2,048), `"float32"` (exact) or `"uint8"` (within 1/510 of a row's largest).
        batch_size: Photos a forward. Other sizes may change the last bit, so a resumed run needs the same.
        num_workers: Processes that read photos ahead, of each process that runs a model; None for those cores that are left.
        shard_size: About how many photos make a shard: what is lost at most when a run is killed.
        device: Where the model runs; `"cuda"` is one GPU a process.
        progress: Whether a bar shows rate and time left; None shows it on terminals.

    Returns:
        The folder, opened.

    Raises:
        ExtractionError: If there are no photos, the folder holds something else, another run writes to it, this run differs from the one
            that began it, or the disk is full (what is whole stays).
        ValueError: If an option is none of its choices.

    Example:
        >>> from attnhook import extract
        >>> maps = extract("demo@224", "photos", "maps", blocks=None)  # doctest: +SKIP
        >>> maps[0]["rows.0"].shape  # doctest: +SKIP
        torch.Size([6, 1, 257])
    """
    folder = Path(out).expanduser()
    settings = make_settings(
        rows=rows,
        blocks=blocks,
        heads=heads,
        methods=methods,
        statistics=statistics,
        dtype=dtype,
        batch_size=batch_size,
        shard_size=shard_size,
        device=torch.device(device).type,
    )
    photos = open_source(source)
    with team() as processes:
        if num_workers is None:
            num_workers = max(0, min(8, (os.cpu_count() or 1) // processes.local_size - 1))
        vision = _on_device(spec, device, processes)
        forwards = BatchForwards(vision, settings)
        wanted = _manifest(vision, photos, settings, forwards.capture.block_names)
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder) if processes.rank == 0 else nullcontext():
            manifest, pending = processes.first_does(lambda: _begin(folder, wanted, photos, settings))
            _check_same_model(manifest, wanted, processes)
            listing = Listing.read(folder / _LISTING)
            every = listing.shards()
            own = processes.share_of({shard: every[shard] for shard in pending})
            batches = PhotoBatches(photos, folder / _LISTING, replace(vision, model=torch.nn.Identity()).preprocess)
            with Progress(sum(map(len, own.values())), shown=False if processes.rank else progress) as bar:
                bar.begin(vision.name if processes.size == 1 else f"{vision.name}, 1 of {processes.size} processes")
                _run(folder, listing, forwards, batches, own, num_workers=num_workers, bar=bar)
            _meet(processes)
            processes.first_does(lambda: _end(folder, manifest))
    return open_maps(folder, source=photos)


def _on_device(spec: "str | VisionModel", device: str, processes: Team) -> VisionModel:
    where = torch.device("cuda", processes.local_rank) if device == "cuda" else torch.device(device)
    if isinstance(spec, VisionModel):
        spec.model.to(where)
        return spec
    return load(spec, device=where)


def _manifest(vision: VisionModel, source: Source, settings: Settings, blocks: tuple[str, ...]) -> Manifest:
    content = fingerprint(vision)
    return Manifest(
        model={
            "spec": vision.name,
            "weights": content.weights,
            "architecture": content.architecture,
            "preprocessing": content.preprocessing,
        },
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
    if known is None and any(path.name[0] != "." for path in folder.iterdir()):
        raise ExtractionError(
            f"cannot write to {folder}: expected an empty folder, or one of an extraction, got other files. Choose another folder."
        )
    for left in [*folder.glob("*.partial"), *folder.glob(f"{indices.SHARDS}/*.partial")]:
        left.unlink()
    manifest = wanted if known is None else known.resumed(wanted, folder)
    count = write_listing(source, folder / _LISTING, shard_size=settings.shard_size, shards=manifest.shards or None)
    manifest = replace(manifest, shards=count)
    if known is None:
        manifest.save(folder)
    listing = Listing.read(folder / _LISTING)
    pending = [shard for shard, rows in listing.shards().items() if not _whole(folder, shard, listing, rows)]
    gone = _drop_gone(folder, listing)
    if pending or gone or known is None or not known.complete:
        (folder / indices.NAME).unlink(missing_ok=True)
        manifest.save(folder)
    return manifest, pending


def _whole(folder: Path, shard: int, listing: Listing, rows: range) -> bool:
    """Whether a shard is on the disk with just these photos, none of which has changed since."""
    fragment = indices.whole_fragment(folder, shard)
    if fragment is None or len(fragment) != len(rows):
        return False
    listed = listing.table.slice(rows.start, len(rows))
    same = ("key", "container", "number", "size", "stamp", "label")
    return all(fragment.column(name).to_pylist() == listed.column(name).to_pylist() for name in same)


def _drop_gone(folder: Path, listing: Listing) -> bool:
    """Remove shards of which the source has no photo any more."""
    listed = {path.stem for path in (indices.fragment_path(folder, shard) for shard in listing.shards())}
    gone = [path for path in (folder / indices.SHARDS).glob("*") if path.stem not in listed]
    for path in gone:
        path.unlink()
    return bool(gone)


def _check_same_model(manifest: Manifest, own: Manifest, processes: Team) -> None:
    if manifest.model != own.model or manifest.versions != own.versions:
        raise ExtractionError(
            f"process {processes.rank} cannot take part: expected the model and the versions of the first process, got others. Install the "
            "same everywhere."
        )


def _run(
    folder: Path,
    listing: Listing,
    forwards: BatchForwards,
    batches: PhotoBatches,
    shards: dict[int, range],
    *,
    num_workers: int,
    bar: Progress,
) -> None:
    settings = forwards.settings
    loader = load_batches(
        batches,
        shards,
        batch_size=settings.batch_size,
        num_workers=num_workers if shards else 0,
        pinned=settings.device == "cuda",
    )
    read = iter(loader)  # worker processes begin before the thread does: a forked copy of it would hold its locks
    with WritingThread(folder, listing, settings, shards) as writing, forwards.open():
        for batch in read:
            writing.give(batch, [forwards.run(pixels) for _, pixels in batch.groups])
            bar.advance(len(batch.photos))


def _meet(processes: Team) -> None:
    if processes.size > 1:
        torch.distributed.barrier()


def _end(folder: Path, manifest: Manifest) -> None:
    if (folder / indices.NAME).exists():  # nothing was to be done
        (folder / _LISTING).unlink(missing_ok=True)
        return
    photos, failed = indices.merge_fragments(folder)
    write_distributions(folder, manifest)
    replace(manifest, photos=photos, failed=failed).save(folder)
    (folder / _LISTING).unlink(missing_ok=True)
