"""Maps after the context: indexing, stacking, saving."""

import json
import math
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from attnhook import AttentionCapture, AttentionMaps, raw_attention
from attnhook.errors import NothingCapturedError, RowsNotKeptError, UnknownBlockError
from tests.models import TIMM, TRANSFORMERS, images

CASES = {case.name: case for case in TIMM + TRANSFORMERS}


def maps_of(name: str, **options) -> AttentionMaps:
    case = CASES[name]
    model = case.build()
    with torch.no_grad(), AttentionCapture(model, **options) as capture:
        case.feed(model)
    return capture.maps


def test_blocks_are_found_by_index_slice_and_name() -> None:
    maps = maps_of("vit")
    assert maps[0] is maps[-2] is maps["blocks.0.attn"]
    assert [block.name for block in maps] == list(maps.block_names)
    assert maps[1:].block_names == ("blocks.1.attn",)
    assert maps[1:].readout == maps.readout
    with pytest.raises(IndexError, match="expected an index from -2 to 1"):
        maps[2]
    with pytest.raises(UnknownBlockError, match="unknown block 'x'"):
        maps["x"]


def test_stacking() -> None:
    maps = maps_of("vit")
    assert maps.stack().shape == (2, 2, 4, 1, 16)
    assert torch.equal(maps.stack()[1], maps[1].rows)
    with pytest.raises(RowsNotKeptError, match="expected one shape"):
        maps_of("vit_siglip", rows="all").stack()


@pytest.mark.parametrize(
    "name, rows",
    [
        ("vit", "readout"),
        ("vit", "all"),
        ("vit", [(0, 1), 3]),
        ("ViTMAE", "cls"),
        ("vit_siglip", "pool"),
        ("YolosModel", "cls"),
    ],
)
def test_what_is_saved_comes_back(name: str, rows, tmp_path: Path) -> None:
    maps = maps_of(name, rows=rows)
    maps.save(tmp_path / "maps.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["maps.safetensors"]
    back = AttentionMaps.load(tmp_path / "maps.safetensors")
    assert back.block_names == maps.block_names
    assert (back.readout, back.input_size, back.patch_area) == (maps.readout, maps.input_size, maps.patch_area)
    assert back.selected_rows == (rows if isinstance(rows, list) else maps.selected_rows)
    for ours, theirs in zip(maps, back, strict=True):
        assert torch.equal(ours.rows, theirs.rows)
        assert (ours.layout, ours.kernel, ours.pooling) == (theirs.layout, theirs.kernel, theirs.pooling)
        if ours.layout.order is not None:
            assert torch.equal(ours.layout.order, theirs.layout.order)
    if rows != [(0, 1), 3]:
        torch.testing.assert_close(raw_attention(back).values, raw_attention(maps).values, equal_nan=True)
    if rows == "all":
        assert torch.equal(back[0].matrix.rows([3]), back[0].weights()[:, :, [3]])


def test_files_that_are_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "maps.safetensors"
    maps = maps_of("vit")
    maps.save(path)
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"hello", b""):
        path.write_bytes(broken)
        with pytest.raises(NothingCapturedError, match="expected a safetensors file"):
            AttentionMaps.load(path)
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(NothingCapturedError, match="expected a file of format 'attnhook-maps-1', got None"):
        AttentionMaps.load(path)
    with pytest.raises(NothingCapturedError, match="nothing to save"):
        maps[:0].save(path)


@pytest.mark.parametrize(
    "header",
    ["{", "[]", "1", '{"format": "attnhook-maps-1"}', '{"format": "attnhook-maps-1", "rows": "all", "blocks": 3}'],
)
def test_a_header_that_lies_is_one_error(header: str, tmp_path: Path) -> None:
    save_file({"rows.0": torch.ones(1)}, tmp_path / "maps.safetensors", metadata={"attnhook": header})
    with pytest.raises(NothingCapturedError, match="got a damaged one"):
        AttentionMaps.load(tmp_path / "maps.safetensors")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, tuple[dict, dict]]:
    """Header and tensors of whole files: of plain blocks with gradients, of shuffled patches, of windows."""
    path, whole = tmp_path_factory.mktemp("maps") / "maps.safetensors", {}
    model = CASES["vit"].build()
    with AttentionCapture(model, gradients=True) as capture:
        model(images()).square().sum().backward()
    swin = small_swin()
    with torch.no_grad(), AttentionCapture(swin, rows="all") as windows:
        swin(images(size=(32, 32)))
    for name, maps in {"vit": capture.maps, "mae": maps_of("ViTMAE", rows="cls"), "swin": windows.maps}.items():
        maps.save(path)
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            whole[name] = json.loads(file.metadata()["attnhook"]), tensors
    return whole


def small_swin():
    return timm.models.swin_transformer.SwinTransformer(
        img_size=32, window_size=4, embed_dim=8, depths=(2,), num_heads=(2,), patch_size=4
    ).eval()


def refused(path: Path, header: str, tensors: dict) -> bool:
    """Whether loading ends in the one error that names the file; True, too, where it loads and all of it can be read."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"attnhook": header})
    try:
        maps = AttentionMaps.load(path)
    except NothingCapturedError as error:
        if str(path) in str(error):
            return True
        raise
    for block in maps:
        assert block.rows.dim() == 4
        repr(block)
        if not isinstance(block.token_layout, str):
            block.layout.describe()
    return False


LIES = {  # of the whole file of plain blocks
    "deeply nested": lambda header, tensors: ("[" * 100_000 + "]" * 100_000, tensors),
    "a nested format": lambda header, tensors: ('{"format": ' + "[" * 900 + "]" * 900 + "}", tensors),
    "rows of three axes": lambda header, tensors: (header, tensors | {"rows.0": tensors["rows.0"][0]}),
    "rows of integers": lambda header, tensors: (header, tensors | {"rows.0": tensors["rows.0"].long()}),
    "rows of bytes": lambda header, tensors: (header, tensors | {"rows.0": tensors["rows.0"].to(torch.float8_e5m2)}),
    "a key too few": lambda header, tensors: (header, tensors | {"rows.1": tensors["rows.1"][..., :-1]}),
    "a key too many in the values": lambda header, tensors: (
        header,
        tensors | {"values.0": torch.zeros(2, 4, 17, 8)},
    ),
    "values of three heads": lambda header, tensors: (header, tensors | {"values.0": torch.zeros(2, 3, 16, 8)}),
    "another gradient": lambda header, tensors: (header, tensors | {"gradient.0": torch.zeros(2, 4, 16, 9)}),
    "no gradient": lambda header, tensors: (header, {k: v for k, v in tensors.items() if k != "gradient.1"}),
    "a fraction of a row": lambda header, tensors: (header.replace('"cls": 0', '"cls": 0.0'), tensors),
    "a name of numbers": lambda header, tensors: (header.replace('"blocks.0.attn"', "7"), tensors),
    "an endless grid": lambda header, tensors: (header.replace('"grid": [3, 5]', '"grid": [3, Infinity]'), tensors),
}


@pytest.mark.parametrize("kind", LIES)
def test_a_file_that_lies_is_one_error(kind: str, saved, tmp_path: Path) -> None:
    header, tensors = saved["vit"]
    assert not refused(tmp_path / "maps.safetensors", json.dumps(header), tensors)
    assert refused(tmp_path / "maps.safetensors", *LIES[kind](json.dumps(header), tensors))


ODD = [None, True, -1, 0, 3, 10**30, 1.5, math.inf, "", "all", [], [1], [0, 0], [-1, 10**9], {}, {"grid": [3, 5]}]


def places_in(entry) -> list[tuple]:
    """Every place in what JSON gave."""
    inside = entry.items() if isinstance(entry, dict) else enumerate(entry) if isinstance(entry, list) else ()
    return [(entry, key) for key, _ in inside] + [place for _, value in inside for place in places_in(value)]


@pytest.mark.parametrize("name", ["vit", "mae", "swin"])
def test_whatever_a_header_holds_loads_or_is_that_error(name: str, saved, tmp_path: Path) -> None:
    header, tensors = saved[name]
    seen = {refused(tmp_path / "maps.safetensors", json.dumps(header), tensors)}
    for holder, key in places_in(header):
        before = holder[key]
        for odd in ODD:
            holder[key] = odd
            seen.add(refused(tmp_path / "maps.safetensors", json.dumps(header), tensors))
        holder[key] = before
    assert seen == {False, True}


@pytest.mark.parametrize("name", ["vit", "mae", "swin"])
def test_whatever_tensors_a_file_holds_it_loads_or_is_that_error(name: str, saved, tmp_path: Path) -> None:
    header, tensors = saved[name]
    for key, tensor in tensors.items():
        for odd in (tensor[:0], tensor[None], tensor[..., 1:], tensor + 100, tensor.to(torch.int8), torch.ones(())):
            refused(tmp_path / "maps.safetensors", json.dumps(header), tensors | {key: odd})
        assert refused(
            tmp_path / "maps.safetensors", json.dumps(header), {k: v for k, v in tensors.items() if k != key}
        ) or key.startswith(("values", "keys.0.order", "keys.1.order", "queries"))


def test_a_link_left_at_the_temporary_name_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "maps.safetensors.partial").symlink_to(tmp_path / "precious")
    maps_of("vit").save(tmp_path / "maps.safetensors")
    assert (tmp_path / "precious").read_text() == "kept"
    assert not (tmp_path / "maps.safetensors").is_symlink()


def test_a_failure_leaves_the_old_file_and_no_half_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "maps.safetensors"
    maps = maps_of("vit")
    maps.save(path)
    whole = path.read_bytes()

    def fail(tensors, target, metadata):
        Path(target).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        maps.save(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == whole
