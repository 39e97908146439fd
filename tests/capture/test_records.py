"""Maps after the context: indexing, stacking, saving."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from attnhook import AttentionCapture, AttentionMaps, raw_attention
from attnhook.errors import NothingCapturedError, RowsNotKeptError, UnknownBlockError
from tests.models import TIMM, TRANSFORMERS

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
    assert back.rows == (rows if isinstance(rows, list) else maps.rows)
    for ours, theirs in zip(maps, back, strict=True):
        assert torch.equal(ours.rows, theirs.rows)
        assert (ours.layout, ours.kernel, ours.pooling) == (theirs.layout, theirs.kernel, theirs.pooling)
        if ours.layout.order is not None:
            assert torch.equal(ours.layout.order, theirs.layout.order)
    if rows != [(0, 1), 3]:
        torch.testing.assert_close(raw_attention(back), raw_attention(maps), equal_nan=True)
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
    with pytest.raises(NothingCapturedError, match="does not hold together"):
        AttentionMaps.load(tmp_path / "maps.safetensors")


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
