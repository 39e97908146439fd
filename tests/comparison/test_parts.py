"""The parts of a comparison, each against something slower."""

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image

from attnhook import ImageGeometry, heatmap
from attnhook.comparison.agreements import METRICS, pair_agreements, photo_agreement
from attnhook.comparison.measurements import MapKind, Measurement, make_map_kinds
from attnhook.comparison.model_runs import as_subjects, shuffle_weights
from attnhook.comparison.objects import read_mask, score_photo, score_prior
from attnhook.comparison.photographs import read_photos
from attnhook.comparison.sampling_grids import SamplingGrid, at_patches, common_box
from attnhook.comparison.tables import Column, Table, as_csv, estimate
from attnhook.errors import ImageError, ScoreError
from attnhook.imaging.patch_maps import PatchMap
from attnhook.running.fingerprints import fingerprint
from tests.comparison.slow_metrics import SLOW
from tests.comparison.zoo import disc, hf_dinov2, photo, timm_vit


def measured(geometry, **fields):
    plain = {"area": None, "blocks": ("a", "b"), "tokens": 17, "readout": "cls", "seconds": 0.5}
    return Measurement(geometry=geometry, **(plain | fields))


def cropped(size=(90, 120), shorter=72, crop=64):
    return ImageGeometry.identity(size).resize(shorter).center_crop(crop)


# --- sampling grids ----------------------------------------------------------------------------------------------------------------------


def test_a_sampling_of_every_pixel_gives_the_heatmap() -> None:
    one, values = measured(cropped()), PatchMap(torch.rand(4, 4))
    sampling = SamplingGrid.of_photo((90, 120), None)
    assert sampling.size == (90, 120)
    torch.testing.assert_close(sampling.sample(one, values), heatmap(values, one.geometry), equal_nan=True)


def test_points_of_a_coarser_sampling_are_pixels_of_the_heatmap() -> None:
    one, values = measured(cropped()), PatchMap(torch.rand(4, 4))
    sampling = SamplingGrid.of_photo((90, 120), 40)
    assert sampling.size == (30, 40)
    # Each cell is three pixels wide, so its middle is the middle one's.
    torch.testing.assert_close(sampling.sample(one, values), heatmap(values, one.geometry)[1::3, 1::3], equal_nan=True)
    assert torch.equal(
        sampling.nearest(torch.arange(90 * 120).view(90, 120)), torch.arange(90 * 120).view(90, 120)[1::3, 1::3]
    )


def test_the_box_of_a_photo_is_sampled_in_place() -> None:
    one, values = measured(cropped()), PatchMap(torch.rand(4, 4))
    box = SamplingGrid((10, 20), (20.0, 40.0, 30.0, 60.0))
    torch.testing.assert_close(box.sample(one, values), heatmap(values, one.geometry)[20:30, 40:60])


def test_the_common_box_is_what_all_saw() -> None:
    sampling = SamplingGrid.of_photo((90, 120), None)
    wide, narrow = measured(cropped()), measured(cropped(shorter=90))
    seen = sampling.seen(wide) & sampling.seen(narrow)
    top, left, bottom, right = common_box(seen, sampling)
    visible = narrow.geometry.visible
    assert all(abs(a - b) <= 1 for a, b in zip((top, left, bottom, right), visible, strict=True))
    assert seen.double().mean() == pytest.approx((bottom - top) * (right - left) / (90 * 120))


def test_what_lies_under_a_patch() -> None:
    """Against one patch at a time."""
    one, placed = measured(cropped()), PatchMap(torch.rand(5, 4), area=(60, 64))
    values = torch.from_numpy(disc() > 0)
    found = at_patches(one, placed, values)
    for row in range(5):
        for column in range(4):
            y, x = one.geometry.to_image((row + 0.5) * 12, (column + 0.5) * 16)
            assert bool(found[row, column]) == bool(values[int(y), int(x)])
    padded = measured(ImageGeometry.identity((90, 120)).pad(bottom=90))
    assert not at_patches(padded, PatchMap(torch.rand(4, 4), area=(180, 120)), torch.ones(90, 120, dtype=torch.bool))[
        2:
    ].any()


# --- agreements ---------------------------------------------------------------------------------------------------------------------------


def three_maps(seed, size=(90, 120)):
    generator = torch.Generator().manual_seed(seed)
    geometries = [cropped(size), cropped(size, 90), ImageGeometry.identity(size).resize((56, 56))]
    grids = [(4, 4), (5, 5), (4, 6)]
    measurements = {m: measured(g) for m, g in enumerate(geometries)}
    maps = {
        m: PatchMap(torch.rand(grid, generator=generator), area=geometries[m].input_size)
        for m, grid in enumerate(grids)
    }
    return measurements, maps


def compared(seed, models=(0, 1, 2), **options):
    measurements, maps = three_maps(seed)
    sampling = SamplingGrid.of_photo((90, 120), 60)
    seen = torch.stack([sampling.seen(measurements[m]) for m in models]).all(dim=0)
    chosen = {m: maps[m] for m in models}
    return (
        photo_agreement(sampling, seen, measurements, chosen, seed=seed, **options),
        sampling,
        seen,
        measurements,
        maps,
    )


def test_agreement_is_that_of_the_heat_maps_over_the_common_area() -> None:
    found, sampling, seen, measurements, maps = compared(3)
    for first, second in itertools.product(range(3), repeat=2):
        a, b = (sampling.sample(measurements[m], maps[m]).masked_fill(~seen, math.nan) for m in (first, second))
        for name, slow in SLOW.items():
            assert found.values[first, second][name] == pytest.approx(slow(a, b), abs=1e-9)


def test_shuffled_points_agree_by_chance_alone() -> None:
    found, sampling, seen, measurements, maps = compared(4, shuffles=50)
    a, b = (sampling.sample(measurements[m], maps[m])[seen].double() for m in (0, 1))
    assert abs(found.shuffled[0, 1]["spearman"]) < 0.02
    expected = len(a) * a.mean() * b.mean() / (a.norm() * b.norm())  # over all orders
    assert found.shuffled[0, 1]["cosine"] == pytest.approx(float(expected), abs=0.005)


def test_pairs_average_over_the_photos_that_both_have() -> None:
    photos = [compared(1)[0], compared(2)[0], compared(5, models=(0, 2))[0], None]
    pairs = {(pair.first, pair.second): pair for pair in pair_agreements(photos, 3)}
    assert set(pairs) == {(0, 1), (0, 2), (1, 2)}
    assert pairs[0, 1].values["cosine"].n == 2
    last = pairs[0, 2].values["cosine"]
    by_hand = [p.values[0, 2]["cosine"] for p in photos[:3]]
    assert last.n == 3
    assert last.value == pytest.approx(np.mean(by_hand))
    assert min(by_hand) - 1e-12 <= last.low <= last.value <= last.high <= max(by_hand) + 1e-12
    assert set(pairs[0, 2].other_photo) == set(METRICS)
    assert pairs[0, 2].other_photo["cosine"].n == 3


def test_a_map_with_negative_values_is_refused() -> None:
    measurements, maps = three_maps(0)
    sampling = SamplingGrid.of_photo((90, 120), 60)
    with pytest.raises(ScoreError, match="at least 0"):
        photo_agreement(
            sampling, sampling.seen(measurements[0]), measurements, {0: maps[0], 1: maps[1].like(-maps[1].values)}
        )


def test_maps_that_share_nothing_are_not_compared() -> None:
    measurements, maps = three_maps(0)
    sampling = SamplingGrid.of_photo((90, 120), 60)
    assert photo_agreement(sampling, torch.zeros(sampling.size, dtype=torch.bool), measurements, maps) is None


# --- estimates ----------------------------------------------------------------------------------------------------------------------------


def test_an_estimate_leaves_out_what_is_not_known() -> None:
    found = estimate(torch.tensor([1.0, math.nan, 2.0, 6.0]), interval=True)
    assert (found.value, found.n) == (3.0, 3)
    assert found.error == pytest.approx(np.std([1, 2, 6], ddof=1) / math.sqrt(3))
    assert 1.0 <= found.low < 3.0 < found.high <= 6.0
    assert estimate([math.nan]).plain() == {"n": 0}
    assert estimate([2.0], interval=True).plain() == {"value": 2.0, "n": 1}


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    generator = torch.Generator().manual_seed(0)
    found = [estimate(torch.randn(40, generator=generator), interval=True, seed=n) for n in range(200)]
    assert (
        0.88 <= np.mean([one.low <= 0 <= one.high for one in found]) <= 0.985
    )  # 95 % less what 40 draws of a bootstrap lack


# --- photos and masks ---------------------------------------------------------------------------------------------------------------------


def test_photos_that_cannot_be_read_are_reported(tmp_path) -> None:
    photo().save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    photos, failures = read_photos([tmp_path / "good.png", tmp_path / "bad.png", tmp_path / "none.png", photo()])
    assert [one.name for one in photos] == ["good.png", "photo 3"]
    assert [one.photo for one in failures] == ["bad.png", "none.png"]
    assert photos[0].digest == photos[1].digest


def test_photos_of_one_name_are_told_apart(tmp_path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        photo(seed=ord(folder)).save(tmp_path / folder / "x.png")
    paths = [tmp_path / "a" / "x.png", tmp_path / "b" / "x.png", tmp_path / "a" / "x.png"]
    names = [one.name for one in read_photos(paths)[0]]
    assert len(set(names)) == 3
    assert "b" in names[1]


def test_a_photo_that_changes_is_noticed(tmp_path) -> None:
    photo().save(tmp_path / "x.png")
    (one,), _ = read_photos(tmp_path / "x.png")
    photo(seed=1).save(tmp_path / "x.png")
    with pytest.raises(OSError, match="has changed"):
        one.read()


def test_masks_of_every_kind_are_the_same(tmp_path) -> None:
    truth = disc()
    Image.fromarray(truth).save(tmp_path / "mask.png")
    sources = [tmp_path / "mask.png", Image.fromarray(truth), truth, torch.from_numpy(truth), truth > 0, truth // 255]
    for source in sources:
        mask = read_mask(source, (90, 120), "x")
        assert torch.equal(mask.inside, torch.from_numpy(truth > 0))
        assert not mask.ignored.any()
    truth[:10] = 128
    mask = read_mask(truth, (90, 120), "x")
    assert mask.ignored[:10].all()
    assert not mask.ignored[10:].any()
    assert not mask.inside[:10].any()


def test_boxes_are_masks() -> None:
    mask = read_mask((10, 20, 30, 25), (90, 120), "x")
    assert mask.inside[20:25, 10:30].all()
    assert mask.inside.sum() == 5 * 20
    several = read_mask([(10, 20, 30, 25), (0, 0, 1, 1)], (90, 120), "x")
    assert several.inside.sum() == 5 * 20 + 1


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (np.zeros((90, 120), np.uint8), "empty"),
        (np.ones((90, 121), np.uint8), "expected the photo's height and width"),
        (np.full((90, 120), 7, np.uint8), "expected 0 and 1"),
        ((200, 0, 300, 10), "contains no pixel"),
        ("nowhere.png", "expected a file"),
        (np.zeros(5), "expected \\(height, width\\)"),
        (object(), "expected \\(height, width\\)"),
    ],
)
def test_what_is_no_mask_is_refused(source, words) -> None:
    with pytest.raises(ImageError, match=words):
        read_mask(source, (90, 120), "x.jpg")


def test_masks_are_guarded_as_photos_are(tmp_path, monkeypatch) -> None:
    Image.new("L", (120, 90), 255).save(tmp_path / "large.png")
    Image.new("L", (120, 90), 255).save(tmp_path / "program.eps")
    (tmp_path / "cut.png").write_bytes((tmp_path / "large.png").read_bytes()[:60])
    for name, words in {"program.eps": "PostScript", "cut.png": "cannot be read"}.items():
        with pytest.raises(ImageError, match=words):
            read_mask(tmp_path / name, (90, 120), "x.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 120 * 90 - 1)
    with pytest.raises(ImageError, match="MAX_IMAGE_PIXELS"):
        read_mask(tmp_path / "large.png", (90, 120), "x.jpg")


def test_masks_and_labels_go_with_photos() -> None:
    with pytest.raises(ValueError, match="one mask per photo"):
        read_photos([photo(), photo()], masks=[None])
    with pytest.raises(ValueError, match="one label per photo"):
        read_photos([photo()], labels=["cat", "dog"])
    with pytest.raises(ValueError, match="at least one photo"):
        read_photos([])


# --- models -------------------------------------------------------------------------------------------------------------------------------


def test_models_are_named(tmp_path) -> None:
    (tmp_path / "model").mkdir()
    given = [f"hf:{tmp_path / 'model'}", f"timm:vit_tiny@{tmp_path}/w.safetensors", timm_vit(), hf_dinov2]
    assert [one.name for one in as_subjects(given)] == [
        "hf:model",
        "timm:vit_tiny@w.safetensors",
        "timm:tiny",
        "hf_dinov2",
    ]
    assert [one.owned for one in as_subjects(given)] == [True, True, False, False]
    assert as_subjects({"mine": timm_vit})[0].open().name == "timm:tiny"


def test_specs_that_look_alike_keep_their_folders(tmp_path) -> None:
    for folder in "ab":
        (tmp_path / folder / "model").mkdir(parents=True)
    names = [one.name for one in as_subjects([f"hf:{tmp_path / 'a' / 'model'}", f"hf:{tmp_path / 'b' / 'model'}"])]
    assert names == [f"hf:{tmp_path / 'a' / 'model'}", f"hf:{tmp_path / 'b' / 'model'}"]


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"for a bare Linear: expected preprocess=, got none.*; pass preprocess="):
        as_subjects([torch.nn.Linear(2, 2)])
    with pytest.raises(TypeError, match="expected a spec"):
        as_subjects([7])
    with pytest.raises(ValueError, match="at least one model"):
        as_subjects([])
    with pytest.raises(ValueError, match="expected different names"):
        as_subjects([timm_vit(), timm_vit()])
    with pytest.raises(TypeError, match="to return a spec or a VisionModel"):
        as_subjects({"x": lambda: 3})[0].open()


def test_a_fingerprint_is_of_content() -> None:
    first, again = fingerprint(timm_vit()), fingerprint(timm_vit("another name"))
    assert first.key == again.key
    other = timm_vit()
    other.model.blocks[0].attn.qkv.weight.data[0, 0] += 1e-3
    assert fingerprint(other).weights != first.weights
    assert fingerprint(other).shares_weights(first)
    heads = timm_vit()
    for block in heads.model.blocks:
        block.attn.num_heads = 2
    assert fingerprint(heads).weights == first.weights
    assert fingerprint(heads).architecture != first.architecture
    assert fingerprint(timm_vit(size=64)).preprocessing != first.preprocessing
    assert not fingerprint(hf_dinov2()).shares_weights(first)


def test_shuffled_weights_have_the_numbers_and_not_the_order() -> None:
    before, model = timm_vit().model, timm_vit().model
    state = torch.random.get_rng_state()
    shuffle_weights(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    for (name, old), (_, new) in zip(before.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(old.flatten().sort().values, new.flatten().sort().values)
        assert old.dim() < 2 or old.shape[-1] == 1 or not torch.equal(old, new), name


def test_of_weights_that_share_memory_the_first_is_shuffled_whole() -> None:
    model = torch.nn.Module()
    model.table = torch.nn.Parameter(torch.arange(400.0).view(100, 4))
    model.first = torch.nn.Parameter(model.table.data[:2])
    before = model.table.detach().clone()
    shuffle_weights(model)
    assert torch.equal(model.table.flatten().sort().values, before.flatten())
    assert int((model.table != before).sum()) > 350


# --- map kinds, tables, files -----------------------------------------------------------------------------------------------------------------


def test_views_are_methods_at_depths() -> None:
    views = make_map_kinds(["raw_attention", "rollout"], [0.5, 1])
    assert [view.id for view in views] == ["raw_attention", "raw_attention@0.5", "rollout"]
    assert [MapKind("raw_attention", part).block(12) for part in (0.01, 1 / 12, 0.5, 0.51, 11 / 12, 1)] == [
        0,
        0,
        5,
        6,
        10,
        11,
    ]
    assert MapKind("raw_attention", 0.5).block(1) == 0
    for methods, depths, words in (
        ("gradcam", 1, "unknown method"),
        ([], 1, "at least one method"),
        (["rollout", "rollout"], 1, "no duplicates"),
        ("rollout", 0, "relative depths"),
        ("rollout", [], "relative depths"),
    ):
        with pytest.raises(ValueError, match=words):
            make_map_kinds(methods, depths)


def test_a_measurement_comes_back_from_disk(tmp_path) -> None:
    one = measured(
        cropped(),
        area=(60, 62),
        target=3,
        maps={
            "raw_attention": PatchMap(torch.rand(4, 4), (64, 64), (60, 62), 1 / 17),
            "raw_attention@0.5": PatchMap(torch.rand(4, 4)),
        },
        grids=((8, 8), (4, 4)),
        statistics={"entropy": torch.rand(3, 4, dtype=torch.float64)},
        areas={"raw_attention": {"deletion": 0.25}},
        problems={"legrad": "no gradient"},
    )
    path = tmp_path / "one.safetensors"
    one.save(path)
    back = Measurement.load(path)
    for name in (
        "geometry",
        "area",
        "blocks",
        "grids",
        "tokens",
        "readout",
        "target",
        "areas",
        "problems",
    ):
        assert getattr(back, name) == getattr(one, name), name
    assert all(torch.equal(back.statistics[key], value) for key, value in one.statistics.items())
    for key, value in one.maps.items():
        assert torch.equal(back.maps[key].values, value.values)
        assert back.maps[key].facts() == value.facts()
    assert list(tmp_path.iterdir()) == [path]
    path.write_bytes(path.read_bytes()[:200])
    assert Measurement.load(path) is None
    assert Measurement.load(tmp_path / "none") is None


def test_a_table_is_flat_for_pandas_and_csv() -> None:
    columns = (Column("model", "model"), Column("score", "score"), Column("tokens", "tokens"))
    rows = (
        {"model": "a, b", "score": {"value": 0.5, "error": 0.1, "n": 3}, "tokens": 17},
        {"model": "c", "score": None, "tokens": 5},
    )
    table = Table("t", "T", "", columns, rows)
    frame = table.frame()
    assert frame.iloc[0].to_dict() == {"model": "a, b", "score": 0.5, "score_error": 0.1, "score_n": 3, "tokens": 17}
    assert math.isnan(frame["score"][1])
    lines = as_csv([table]).splitlines()
    assert lines[0] == "table,row,column,value,error,low,high,n"
    assert 't,"a, b",score,0.5,0.1,,,3' in lines
    assert len(lines) == 4


# --- objects ------------------------------------------------------------------------------------------------------------------------------


def scored(patch_map, mask, geometry=None):
    one = measured(geometry or ImageGeometry.identity((90, 120)))
    sampling = SamplingGrid.of_photo((90, 120), None)
    maps = {"model": PatchMap(torch.as_tensor(patch_map))}
    return score_photo(sampling, sampling.seen(one), read_mask(mask, (90, 120), "x"), one, maps)


def test_scores_against_a_mask() -> None:
    """A 3 x 4 grid of 30 px patches; the object is the patch at row 1, column 2."""
    box = (60, 30, 90, 60)
    hit = torch.full((3, 4), 0.01)
    hit[1, 2] = 0.5
    found = scored(hit, box)
    assert found["pointing"]["model"] == 1.0
    assert found["auroc"]["model"] > 0.95
    inside = heatmap(hit, ImageGeometry.identity((90, 120)))[30:60, 60:90].sum()
    assert found["energy"]["model"] == pytest.approx(
        float(inside / heatmap(hit, ImageGeometry.identity((90, 120))).sum())
    )
    assert set(found["pointing"]) == {"model"}
    whole = SamplingGrid.of_photo((90, 120), None), torch.ones(90, 120, dtype=torch.bool)
    prior = score_prior(*whole, read_mask(box, (90, 120), "x"))
    assert float(prior["pointing"]["centre_prior"]) in {
        0.0,
        0.25,
        0.5,
    }  # the middle of the photo is a corner of the box
    miss = torch.full((3, 4), 0.01)
    miss[1, 1] = miss[1, 2] = 0.5
    assert scored(miss, box)["pointing"]["model"] == 0.5  # two highest patches, one of them right


def test_an_object_between_the_patches_centres_is_missed_and_not_left_out() -> None:
    assert scored(torch.rand(3, 4), (0, 0, 5, 5))["pointing"]["model"] == 0.0


def test_what_is_ignored_counts_neither_way() -> None:
    values = torch.full((3, 4), 0.01)
    values[0, 0] = 0.9
    mask = np.zeros((90, 120), np.uint8)
    mask[30:60, 60:90] = 255
    assert scored(values, mask)["pointing"]["model"] == 0.0
    mask[:30, :30] = 128
    values[1, 2] = 0.5
    assert scored(values, mask)["pointing"]["model"] == 1.0


def test_an_object_out_of_sight_gives_no_score() -> None:
    found = scored(torch.rand(4, 4), (0, 0, 5, 5), cropped(shorter=64))
    assert all(math.isnan(value) for controls in found.values() for value in controls.values())
