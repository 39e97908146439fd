"""What a capture will record: `blocks=`, `rows=` and `layout=` resolved against the model's anatomy, before anything runs."""

import itertools
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import SupportsIndex

from torch import nn

from attnhook.capture.anatomy import ModelAnatomy, Readout
from attnhook.capture.block_choice import are_names, choose_blocks
from attnhook.capture.layout import TokenLayout
from attnhook.capture.patch_cells import overlaps
from attnhook.capture.recognition import guess_sites
from attnhook.capture.registry import find_anatomy
from attnhook.capture.sites import AttentionSite, Queries, SiteTokens
from attnhook.capture.wrapped_models import unwrapped
from attnhook.errors import NoClassTokenError, NoReadoutError, UnsupportedModelError
from attnhook.options import BlocksOption, Overlap, PatchIndex, Rows, RowsOption, Size, choose

RowsChoice = Rows | tuple[int | PatchIndex, ...]


@dataclass(frozen=True, eq=False)
class CapturePlan:
    """What to record."""

    model: nn.Module  # without its wrappers
    anatomy: ModelAnatomy  # with the user's layout applied
    sites: tuple[AttentionSite, ...]  # the chosen ones
    rows: RowsChoice  # READOUT resolved to what the head reads
    layout: TokenLayout | None  # the user's; None: the grid is read off each forward
    guessed: bool = False  # whether the sites were recognised by their code, so that there may be others
    gradients: bool = False  # whether gradients are captured
    values: bool = False  # whether values are stored; always with gradients

    @cached_property
    def overlaps(self) -> tuple[tuple[Size, Overlap], ...]:
        """How patches lie that overlap or are padded, by their steps in pixels."""
        return overlaps(self.model, self.anatomy.grid_module, self.anatomy.sites)

    @cached_property
    def site_of(self) -> dict[str, AttentionSite]:
        """The chosen attention modules by their names."""
        return {site.name: site for site in self.sites}


def make_plan(model: nn.Module, blocks: BlocksOption, rows: RowsOption, layout: TokenLayout | None) -> CapturePlan:
    """Resolve the user's options, or raise an error that says why the model has no such attention."""
    if layout is not None and not isinstance(layout, TokenLayout):
        raise TypeError(f"bad layout={layout!r}: expected a TokenLayout. Write layout=TokenLayout((rows, columns)).")
    inner = unwrapped(model)
    known = find_anatomy(inner)
    by_code = layout is not None or callable(blocks)
    anatomy = ModelAnatomy(sites=guess_sites(inner, blocks, by_code=by_code)) if known is None else known
    if not anatomy.sites:
        if layout is not None:
            raise UnsupportedModelError(
                f"{type(inner).__name__} has no attention that can be recognised: expected modules whose code calls softmax or "
                'scaled_dot_product_attention, got none. Name the modules that attend with blocks=["name", ...].'
            )
        raise UnsupportedModelError(
            f"{type(inner).__name__} has no attention that attnhook knows: expected a model from timm, transformers, torchvision or open_clip, "
            "or nn.MultiheadAttention modules. Describe its tokens with layout=TokenLayout(...) (and name the "
            "modules that attend with blocks=[...], if none is found), or register an adapter with register_adapter."
        )
    if layout is not None:
        anatomy = _with_layout(anatomy, layout)
    anatomy = _numbered(anatomy)
    kind = _resolve_rows(inner, anatomy, rows)
    candidates = _candidates(anatomy, kind)
    if not candidates:
        got = ", ".join(sorted({site.queries for site in anatomy.sites}))
        raise NoReadoutError(
            f"no attention of {type(inner).__name__} has such rows: rows={rows!r} expects {' or '.join(sorted(_queries_with(kind)))} as "
            f"queries, got {got}. Use {_legal_rows(anatomy)}."
        )
    beside = [] if known is None else _named_beside(inner, anatomy, blocks, layout)
    if beside and kind is not Rows.ALL:
        raise NoReadoutError(
            f"block {beside[0].name!r} is outside the model that attnhook knows: expected rows='all', got {rows!r}. Capture with rows='all', "
            "and read the rows that you want."
        )
    if beside:
        names = {site.name for site in beside}
        blocks = [block for block in ([blocks] if isinstance(blocks, str) else blocks) if block not in names]  # type: ignore[union-attr]
    chosen = () if beside and not blocks else choose_blocks(candidates, blocks)
    sites = tuple(_with_holder(inner, site) for site in (*chosen, *beside))
    guessed = known is None and layout is not None and not callable(blocks) and not are_names(blocks)
    return CapturePlan(inner, anatomy, sites, kind, layout, guessed)


_BESIDE = (
    "the tokens are unknown: expected a block of the model that attnhook knows, got one outside it. Read `.rows` without a grid, or pass "
    "layout=TokenLayout(...) if its keys are the patches."
)


def _named_beside(
    model: nn.Module, anatomy: ModelAnatomy, blocks: BlocksOption, layout: TokenLayout | None
) -> list[AttentionSite]:
    """The modules that the user names outside what is known of a model, such as a decoder beside its backbone."""
    named = [blocks] if isinstance(blocks, str) else blocks if isinstance(blocks, Sequence) else []
    known = [f"{site.name}." for site in anatomy.sites]  # neither they nor what holds them is beside them
    wanted = {name for name in named if isinstance(name, str) and not any(one.startswith(f"{name}.") for one in known)}
    modules = {name: module for name, module in model.named_modules() if name in wanted}
    rule = None if layout is not None else lambda _: SiteTokens(_BESIDE)
    return [AttentionSite(name, module, queries=Queries.OTHER, tokens_of=rule) for name, module in modules.items()]


def _with_layout(anatomy: ModelAnatomy, layout: TokenLayout) -> ModelAnatomy:
    readout = anatomy.readout
    fits = readout.rows is not None and (readout.rows is Rows.CLS) == (layout.cls is not None)
    if not fits and readout.rows is not Rows.POOL:
        rows = Rows.MEAN if layout.cls is None else Rows.CLS
        readout = Readout(rows, f"the layout that was passed has {'a' if rows is Rows.CLS else 'no'} class token")
    special = {field: getattr(layout, field) for field in ("cls", "registers", "distillation", "suffix")}
    return replace(anatomy, readout=readout, **special)


def _numbered(anatomy: ModelAnatomy) -> ModelAnatomy:
    """Number the blocks, except poolings. Their count is not known where they are guessed."""
    if any(site.guessed for site in anatomy.sites):
        return anatomy
    count, numbers = sum(not site.pooling for site in anatomy.sites), itertools.count(1)
    sites = [site if site.pooling else replace(site, number=(next(numbers), count)) for site in anatomy.sites]
    return replace(anatomy, sites=tuple(sites))


def _resolve_rows(model: nn.Module, anatomy: ModelAnatomy, rows: RowsOption) -> RowsChoice:
    name = type(model).__name__
    if not isinstance(rows, str):
        return _chosen(rows)
    kind = choose(Rows, rows, "rows")
    if kind is Rows.READOUT:
        if anatomy.readout.rows is None:
            raise NoReadoutError(f"rows='readout' has no meaning for this {name}: {_reason(anatomy, 'Choose')}")
        kind = anatomy.readout.rows
    if kind is Rows.CLS and anatomy.cls is None:
        reads = anatomy.readout.rows or "no such row"
        raise NoClassTokenError(
            f"{name} has no class token: rows='cls' expects one. Its head reads {reads}: {_reason(anatomy, 'Use')}"
        )
    if kind is Rows.POOL and not any(site.pooling for site in anatomy.sites):
        raise NoReadoutError(
            f"{name} has no attention pooling: rows='pool' expects a learned pooling query. Use {_legal_rows(anatomy)}."
        )
    return kind


def _reason(anatomy: ModelAnatomy, verb: str) -> str:
    """Why the head reads what it reads, and which rows the model has, unless the reason says so."""
    reason, legal = anatomy.readout.reason, _legal_rows(anatomy)
    return f"{reason}." if reason.endswith(legal) else f"{reason}. {verb} {legal}."


def _legal_rows(anatomy: ModelAnatomy) -> str:
    """The choices of `rows=` that a model has, in words."""
    patches = any(s.tokens_of is None and s.queries in (Queries.TOKENS, Queries.PATCHES) for s in anatomy.sites)
    legal = [Rows.READOUT] if anatomy.readout.rows is not None else []
    legal += [Rows.CLS] if anatomy.cls is not None and _candidates(anatomy, Rows.CLS) else []
    legal += [Rows.MEAN] if patches else []
    return "rows=" + " or ".join(repr(row.value) for row in [*legal, Rows.ALL])


def _chosen(rows: Iterable[SupportsIndex | Sequence[SupportsIndex]]) -> tuple[int | PatchIndex, ...]:
    kinds = [*map(str, Rows)]
    try:
        listed = [*rows]
    except TypeError:
        raise ValueError(
            f"bad rows={rows!r}: expected one of {kinds}, or a sequence. For one token, pass [index]."
        ) from None
    chosen: list[int | PatchIndex] = []
    for row in listed:
        try:
            chosen.append(_patch(*row) if isinstance(row, Sequence) else _token(row))
        except TypeError:
            raise ValueError(
                f"bad row {row!r}: expected a token index or a (row, column) patch. Or pass one of {kinds}."
            ) from None
    if isinstance(rows, tuple) and len(rows) == 2 and not any(isinstance(row, tuple) for row in chosen):
        raise ValueError(
            f"{rows=} may be a patch or two tokens: expected one of them. Pass rows=[{rows}] for the patch in row {rows[0]} and column "
            f"{rows[1]}, or rows={[*rows]} for the tokens {rows[0]} and {rows[1]}."
        )
    if not chosen:
        raise ValueError("rows=[] is empty: expected at least one token index or (row, column) patch. Pass some.")
    return tuple(chosen)


def _token(index: SupportsIndex) -> int:
    if isinstance(index, bool):
        raise TypeError("a bool is not an index")
    return operator.index(index)


def _patch(row: SupportsIndex, column: SupportsIndex) -> PatchIndex:
    return _token(row), _token(column)


def _with_holder(model: nn.Module, site: AttentionSite) -> AttentionSite:
    if site.holder is not None or not isinstance(site.module, nn.MultiheadAttention):
        return site
    return replace(site, holder=model.get_submodule(site.name.rpartition(".")[0]))


def _candidates(anatomy: ModelAnatomy, rows: RowsChoice) -> tuple[AttentionSite, ...]:
    """The sites that have such rows."""
    return tuple(site for site in anatomy.sites if site.queries in _queries_with(rows))


def _queries_with(rows: RowsChoice) -> set[Queries]:
    """The kinds of queries that have such rows."""
    kinds = {Rows.ALL: set(Queries), Rows.POOL: {Queries.POOL}, Rows.CLS: {Queries.TOKENS, Queries.CLASS}}
    patches = {Queries.TOKENS, Queries.PATCHES}
    return kinds.get(rows, patches) if isinstance(rows, Rows) else patches
