"""What is stored is what the model computed, photo by photo, within what the type keeps."""

import json

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from attnhook import METHODS, AttentionCapture, attend, attention_statistics, extract, open_maps
from attnhook.errors import ExtractionError, ImageError
from attnhook.extraction.shards import STATISTICS, ShardFiles
from tests.comparison.zoo import hf_dinov2, seeing
from tests.extraction.photographs import rows_in
from tests.models import sharpen

BATCHED = 2e-6  # float32 products of batches of other sizes are summed in another order


def rows_of(vision, path, **options):
    pixels, _ = vision.preprocess(path)
    with torch.no_grad(), AttentionCapture(vision.model, **options) as capture:
        vision.model(pixels)
    return capture.maps


@pytest.mark.parametrize("workers", [0, 1])
def test_rows_are_those_of_a_capture_of_each_photo_alone(photos, vision, tmp_path, workers):
    maps = extract(
        vision, photos, tmp_path / "out", blocks=None, dtype="float32", batch_size=4, shard_size=6, num_workers=workers
    )
    assert len(maps) == 21
    assert maps.complete
    assert not maps.errors
    for key in maps.keys:
        alone, stored = rows_of(vision, photos / key), maps.maps(key)
        assert stored.block_names == alone.block_names
        assert stored.layout == alone.layout
        assert (stored.input_size, stored.patch_area) == (alone.input_size, alone.patch_area)
        for one, other in zip(stored, alone, strict=True):
            torch.testing.assert_close(one.rows, other.rows, atol=BATCHED, rtol=0)


@pytest.mark.parametrize(("dtype", "share"), [("float16", 1 / 2048), ("uint8", 1 / 510)])
def test_stored_types_keep_what_they_say(photos, vision, tmp_path, dtype, share):
    exact = extract(vision, photos, tmp_path / "exact", dtype="float32", num_workers=0)
    small = extract(vision, photos, tmp_path / "small", dtype=dtype, num_workers=0)
    for number in range(len(exact)):
        one, other = rows_in(exact[number], 0), rows_in(small[number], 0)
        scale = one if dtype == "float16" else one.amax(dim=-1, keepdim=True)
        assert ((one - other).abs() <= scale * share + 3.1e-8).all()


@pytest.mark.parametrize(
    "rows", ["cls", "mean", "all", [(0, 0), (3, 2)], [0, 5]], ids=["cls", "mean", "all", "patches", "tokens"]
)
def test_whichever_rows_are_wanted(photos, vision, tmp_path, rows):
    maps = extract(vision, photos, tmp_path / "out", rows=rows, blocks=2, dtype="float32", num_workers=0)
    stored, alone = maps.maps(4), rows_of(vision, photos / maps.keys[4], rows=rows, blocks=2)
    assert list(stored.selected_rows) == list(alone.selected_rows)
    for one, other in zip(stored, alone, strict=True):
        torch.testing.assert_close(one.rows, other.rows, atol=BATCHED, rtol=0)
    assert rows_in(maps[4], 1).shape == alone[1].rows.shape[1:]


def test_the_mean_over_heads(photos, vision, tmp_path):
    maps = extract(vision, photos, tmp_path / "out", heads="mean", dtype="float32", num_workers=0)
    alone = rows_of(vision, photos / maps.keys[0])[-1].rows.mean(dim=1, keepdim=True)
    torch.testing.assert_close(maps.maps(0)[-1].rows, alone, atol=BATCHED, rtol=0)
    assert maps.manifest.settings["heads"] == "mean"


def test_statistics_are_those_of_the_rows(photos, vision, tmp_path):
    maps = extract(vision, photos, tmp_path / "out", rows="all", blocks=None, num_workers=0)
    for number in (0, 11):
        alone = attention_statistics(rows_of(vision, photos / maps.keys[number], rows="all"))
        for i, block in enumerate(alone):
            for place, name in enumerate(STATISTICS):
                stored = maps[number][f"statistics.{maps.manifest.blocks[i]}"][:, place]
                torch.testing.assert_close(
                    stored, getattr(block, name)[0].float(), atol=1e-5, rtol=1e-5, equal_nan=True
                )


def between(numbers, share):
    """The percentile by its definition: linear between the two nearest of the sorted numbers."""
    ordered, place = sorted(numbers.tolist()), share * (len(numbers) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def test_means_and_percentiles_over_the_photos(photos, vision, tmp_path):
    maps = extract(vision, photos, tmp_path / "out", blocks=2, shard_size=4, num_workers=0)
    values = torch.stack([maps[i][f"statistics.{maps.manifest.blocks[1]}"] for i in range(len(maps))]).double().numpy()
    for row in maps.statistics((10, 50)):
        if row["block"] != maps.manifest.blocks[1]:
            continue
        numbers = values[:, row["head"], STATISTICS.index(row["statistic"])]
        numbers = numbers[~np.isnan(numbers)]
        assert row["photos"] == len(numbers)
        if len(numbers):
            assert row["mean"] == pytest.approx(numbers.mean(), rel=1e-12)
            assert row["std"] == pytest.approx(numbers.std(), rel=1e-9, abs=1e-15)
            assert [row["p10"], row["p50"]] == pytest.approx([between(numbers, 0.1), between(numbers, 0.5)], rel=1e-12)
        else:  # the class token has no distance
            assert row["statistic"] == "distance_patches"
            assert row["mean"] is row["p10"] is None
    written = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert written == maps.statistics()


def test_maps_of_methods_are_those_of_attend(photos, vision, tmp_path):
    maps = extract(
        vision, photos, tmp_path / "out", methods=list(METHODS), dtype="float32", batch_size=5, num_workers=0
    )
    for number in (0, 7, 20):
        for method in METHODS:
            one = attend(vision, photos / maps.keys[number], method=method)[0]
            stored = maps.attention(number, method=method)
            torch.testing.assert_close(stored.values, one.attention, atol=2e-6, rtol=1e-4)
            if method == "legrad":
                assert maps.record(number)["target"] == one.settings.target


def test_maps_of_methods_are_of_the_block_that_is_stored_and_say_so(photos, vision, tmp_path):
    wanted = ["raw_attention", "value_weighted_attention", "rollout", "legrad"]
    maps = extract(vision, photos, tmp_path / "out", blocks=[0], rows=[(1, 2)], methods=wanted, num_workers=0)
    key, (first,) = maps.keys[2], maps.manifest.blocks
    for method in wanted[1:]:
        block = {"blocks": [0]} if method == "value_weighted_attention" else {}
        alone, stored = attend(vision, photos / key, method=method, **block)[0], maps.result(key, method=method)
        torch.testing.assert_close(stored.attention, alone.attention, atol=2e-6, rtol=1e-4)
        score = alone.settings.score  # is not stored
        assert stored.caption == alone.caption.replace("" if score is None else f" (score {score:.3g})", "")
        assert stored.uniform == alone.uniform
    assert "block 1 of 3," in maps.result(key, method="value_weighted_attention", block=first, heads="mean").caption
    assert torch.equal(
        maps.attention(key, method="raw_attention").values, maps.attention(key).values
    )  # not the readout's row


def test_other_maps_than_those_that_are_stored_are_refused(photos, vision, tmp_path):
    wanted = ["value_weighted_attention", "rollout"]
    maps = extract(vision, photos, tmp_path / "out", blocks=2, heads="mean", methods=wanted, num_workers=0)
    with pytest.raises(ExtractionError, match=r"'rollout' with heads='max': expected heads='mean', which was stored"):
        maps.attention(0, method="rollout", heads="max")
    for method in wanted:
        with pytest.raises(
            ExtractionError, match=rf"no maps of '{method}' for block 0: expected the one that was stored"
        ):
            maps.overlay(0, method=method, block=0)
        maps.attention(0, method=method, block=1)
        maps.attention(0, method=method, block=maps.manifest.blocks[1])
    for heads in ("max", 0, None):
        with pytest.raises(ExtractionError, match=r"the heads are not stored: expected heads='mean'.*heads=None"):
            maps.attention(0, heads=heads)


def test_only_what_is_asked_for_is_read(photos, vision, tmp_path, monkeypatch):
    maps = extract(vision, photos, tmp_path / "out", blocks=None, methods=["rollout"], dtype="uint8", num_workers=0)
    read, tensors = [], ShardFiles.tensors
    monkeypatch.setattr(ShardFiles, "tensors", lambda *given: read.append(tensors(*given)) or read[-1])
    maps.heatmap(0, method="rollout")
    assert [list(found) for found in read] == [["maps.rollout"]]
    maps.maps(0)
    assert {name.partition(".")[0] for name in read[-1]} == {"rows", "scales"}
    assert {name.partition(".")[0] for name in maps[0]} == {"key", "label", "rows", "statistics", "maps"}


def test_parameters_get_no_gradients(photos, vision, tmp_path):
    extract(vision, photos, tmp_path / "out", methods=["gradient_rollout"], num_workers=0)
    assert all(p.grad is None and p.requires_grad for p in vision.model.parameters())


def test_pictures_fetch_the_photo_again(photos, vision, tmp_path):
    maps = extract(vision, photos, tmp_path / "out", dtype="float32", num_workers=0)
    key = maps.keys[3]
    one = attend(vision, photos / key)[0]
    torch.testing.assert_close(maps.heatmap(key), one.heatmap, atol=BATCHED, rtol=0, equal_nan=True)
    difference = np.abs(np.asarray(maps.overlay(key), dtype=int) - np.asarray(one.overlay(), dtype=int))
    assert difference.max() <= 1
    assert maps.result(key).caption == one.caption
    (photos / key).write_bytes((photos / maps.keys[4]).read_bytes())
    maps.heatmap(key)
    with pytest.raises(ImageError, match="has changed since"):
        maps.overlay(key)
    (photos / key).unlink()
    with pytest.raises(ImageError, match="source="):
        maps.overlay(key)


def test_photos_that_have_moved(photos, vision, tmp_path):
    extract(vision, photos, tmp_path / "out", num_workers=0)
    moved = photos.rename(tmp_path / "moved")
    maps = open_maps(tmp_path / "out", source=moved)
    assert maps.overlay(0).size == maps.photo(0).size


def test_it_is_a_data_set_of_torch(photos, vision, tmp_path):
    maps = extract(vision, photos, tmp_path / "out", shard_size=6, num_workers=0)
    with_workers = list(DataLoader(maps, batch_size=8, num_workers=1))
    assert [len(batch["key"]) for batch in with_workers] == [8, 8, 5]
    assert rows_in(with_workers[0], 0).shape == (8, 4, 1, 17)
    assert torch.equal(rows_in(with_workers[2], 0)[4], rows_in(maps[20], 0))
    assert {label for batch in with_workers for label in batch["label"]} == {"cats", "dogs"}
    assert [entry["key"] for entry in maps] == maps.keys


def test_by_key_by_number_and_not_at_all(photos, vision, tmp_path):
    (photos / "broken.png").write_bytes(b"no picture")
    maps = extract(vision, photos, tmp_path / "out", num_workers=0)
    assert torch.equal(rows_in(maps[maps.keys[5]], 0), rows_in(maps[5], 0))
    assert torch.equal(rows_in(maps[-1], 0), rows_in(maps[20], 0))
    with pytest.raises(IndexError, match="photo 21 does not exist"):
        maps[21]
    with pytest.raises(ExtractionError, match=r"unknown photo 'cats/no\.png': expected one of the 21 keys"):
        maps["cats/no.png"]
    with pytest.raises(ExtractionError, match=r"no attention of 'broken\.png'.*Pillow knows"):
        maps["broken.png"]
    with pytest.raises(ExtractionError, match=r"no maps of 'rollout'.*stored \(none\)"):
        maps.attention(0, method="rollout")
    frame = maps.to_pandas()
    assert list(frame["key"][frame["error"].notna()]) == ["broken.png"]
    assert maps.to_arrow().num_rows == 22
    assert "21 photos, 1 failed" in repr(maps)


def test_labels_and_geometry_of_the_index(photos, vision, tmp_path):
    maps = extract(vision, photos, tmp_path / "out", num_workers=0)
    for number, key in enumerate(maps.keys):
        record = maps.record(number)
        assert record["label"] == key.partition("/")[0]
        assert record["grid"] == [4, 4]
        _, geometry = vision.preprocess(photos / key)
        assert record["geometry"][:4] == [*geometry.image_size, *geometry.input_size]


def test_windows_stay_together(photos, tmp_path):
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(0)
        swin = timm.models.swin_transformer.SwinTransformer(
            img_size=64, patch_size=4, window_size=4, embed_dim=32, depths=(2, 2), num_heads=(2, 4), num_classes=5
        )
    vision = seeing(sharpen(swin), "timm:swin", 72, 64)
    maps = extract(
        vision, photos, tmp_path / "out", rows="all", blocks=None, dtype="float32", num_workers=0, batch_size=4
    )
    alone = rows_of(vision, photos / maps.keys[6], rows="all")
    for one, other in zip(maps.maps(6), alone, strict=True):
        torch.testing.assert_close(one.rows, other.rows, atol=BATCHED, rtol=0)
        assert torch.equal(one.token_layout.positions, other.token_layout.positions)
    assert rows_in(maps[6], 0).dim() == 4


def test_registers_and_photos_of_two_input_sizes(photos, tmp_path):
    registers = hf_dinov2()

    def preprocess(photo):
        pixels, geometry = registers.preprocess(photo)
        if photo.width % 2:
            return pixels, geometry
        return torch.nn.functional.interpolate(pixels, 70), geometry.resize((70, 70))

    both = registers.with_preprocess(preprocess)
    maps = extract(both, photos, tmp_path / "out", dtype="float32", num_workers=0, shard_size=50)
    grids = {tuple(maps.record(i)["grid"]) for i in range(len(maps))}
    assert grids == {(4, 4), (5, 5)}
    for number in range(len(maps)):
        alone = rows_of(both, photos / maps.keys[number])[-1]
        torch.testing.assert_close(maps.maps(number)[-1].rows, alone.rows, atol=BATCHED, rtol=0)


def test_the_model_is_left_as_it_was(photos, vision, tmp_path):
    vision.model.train()
    before = {name: value.clone() for name, value in vision.model.state_dict().items()}
    state = torch.get_rng_state()
    extract(vision, photos, tmp_path / "out", num_workers=0)
    assert vision.model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in vision.model.modules())
    assert all(torch.equal(value, before[name]) for name, value in vision.model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "unknown dtype: expected one of 'float16', 'float32', 'uint8'"),
        ({"heads": "max"}, "unknown heads: expected 'mean' or None"),
        ({"methods": ["grad"]}, "unknown method: expected one of 'raw_attention'"),
        ({"batch_size": 0}, "bad batch_size: expected a whole number of at least 1"),
        ({"shard_size": 1.5}, "bad shard_size"),
    ],
)
def test_bad_options(photos, vision, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        extract(vision, photos, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_no_statistics(photos, vision, tmp_path):
    maps = extract(vision, photos, tmp_path / "out", statistics=False, num_workers=0)
    assert set(maps[0]) == {"key", "label", f"rows.{maps.manifest.blocks[0]}"}
    assert not (tmp_path / "out" / "statistics.json").exists()
    with pytest.raises(ExtractionError, match="statistics=True"):
        maps.statistics()


def test_nothing_there(tmp_path):
    with pytest.raises(ExtractionError, match="no manifest"):
        open_maps(tmp_path)
