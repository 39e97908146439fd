"""The settings of an extraction: everything that changes a number that it writes."""

from dataclasses import dataclass
from typing import Any

from attnhook.attribution.methods import check_method
from attnhook.extraction.encodings import StoredType
from attnhook.options import BlocksOption, HeadFusion, RowsOption


@dataclass(frozen=True)
class Settings:
    """Settings of one extraction, as in `extract`.

    `batch_size` is one of them because it may change the last bit; `device` is `"cpu"` or `"cuda"`.
    """

    rows: RowsOption
    blocks: BlocksOption
    heads: str | None
    methods: tuple[str, ...]
    statistics: bool
    dtype: StoredType
    batch_size: int
    shard_size: int
    device: str

    def __post_init__(self) -> None:
        check_count("batch_size", self.batch_size)
        check_count("shard_size", self.shard_size)
        for name in self.methods:
            check_method(name)
        if self.heads not in (None, HeadFusion.MEAN):
            raise ValueError(f"unknown heads: expected 'mean' or None to keep all, got {self.heads!r}.")

    def as_json(self) -> dict[str, Any]:
        """The settings in the manifest, which lists the blocks by name elsewhere."""
        return {name: value for name, value in vars(self).items() if name != "blocks"}


def check_count(name: str, value: object, least: int = 1) -> None:
    """Refuse what is not a whole number, or too small."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"bad {name}: expected a whole number of at least {least}, got {value!r}.")
