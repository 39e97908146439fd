"""Maps without mass, models without maps, layouts whose blocks differ, and what users give in other shapes."""

import json
from functools import partial

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from attnhook import ImageGeometry, compare
from attnhook.comparison import measurements, reports
from attnhook.comparison.agreements import METRICS
from attnhook.comparison.measurements import Measurement
from attnhook.comparison.measuring import perturb
from attnhook.comparison.photographs import read_photos
from attnhook.comparison.sampling_grids import SamplingGrid, between_centres, common_box
from attnhook.imaging.model_inputs import ModelInputs
from attnhook.imaging.patch_maps import PatchMap
from tests.comparison.zoo import disc, photo, seeing, timm_vit

alone = partial(compare, cache=None, progress=False)


def swin(name="timm:swin"):
    return seeing(timm.create_model("swin_tiny_patch4_window7_224", num_classes=3), name, 224, 224)


# --- maps without mass --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_an_empty_map_leaves_the_other_models_alone(value: float) -> None:
    models = [timm_vit("a"), timm_vit("b", depth=2), timm_vit("c", depth=4)]
    photos = [photo(seed=seed) for seed in range(2)]
    expected = alone(models[:2], photos, methods="gradient_attention").agreements["gradient_attention"]
    with torch.no_grad():
        models[2].model.head.weight.fill_(value)
    found = alone(models, photos, methods="gradient_attention")
    assert found.agreements["gradient_attention"] == expected
    (failure,) = found.failures
    assert failure.model == "c"
    assert failure.photo is None
    assert "zero or missing" in failure.error


def test_the_box_for_maps_of_other_photos_was_seen_by_all() -> None:
    """Half cells at its edge were not, and maps that share their zeros there agree."""
    geometry = ImageGeometry.identity((90, 500)).resize(72).center_crop(64)
    measurement = Measurement(geometry, None, ("a",), 17, "cls", 0.1)
    sampling = SamplingGrid.of_photo((90, 500), 32)
    box = between_centres(common_box(sampling.seen(measurement), sampling), sampling)
    assert not SamplingGrid((48, 48), box).sample(measurement, PatchMap(torch.rand(4, 4))).isnan().any()
    assert between_centres((0.0, 0.0, 2.0, 2.0), SamplingGrid((1, 1), (0.0, 0.0, 2.0, 2.0))) == pytest.approx(
        (1, 1, 1, 1), abs=0.01
    )


def test_a_copy_is_no_other_photo() -> None:
    models = [timm_vit("a"), timm_vit("b", depth=2)]
    assert alone(models, [photo(), photo()]).agreements["raw_attention"][0].other_photo == {}
    twice = alone(models, [photo(), photo(), photo(seed=1)]).agreements["raw_attention"][0].other_photo
    assert twice["cosine"].n == 3


def test_one_photo_has_the_columns_of_several() -> None:
    table = alone([timm_vit("a"), timm_vit("b", depth=2)], [photo()]).agreement()
    for metric in METRICS:
        assert table[f"{metric}_other_photo"].dtype == float
        assert table[f"{metric}_other_photo"].isna().all()
        assert table[f"{metric}_shuffled"].notna().all()


def test_a_mask_that_goes_away_costs_its_own_scores_alone(tmp_path) -> None:
    masks = [tmp_path / f"{number}.png" for number in range(2)]
    for path in masks:
        Image.fromarray(disc()).save(path)

    def model():
        masks[0].unlink()  # after the photos were looked at
        return timm_vit()

    found = alone([model], [photo(), photo(seed=1)], masks=masks)
    (failure,) = found.failures
    assert (failure.photo, failure.what) == ("photo 0", "reading the mask")
    assert found.objects["raw_attention"][0].estimates["energy"]["model"].n == 1


# --- blocks that differ -------------------------------------------------------------------------------------------------------------------


def test_uniform_attention_is_that_of_the_block_of_the_map() -> None:
    vision = seeing(timm.create_model("pit_ti_224", num_classes=3), "timm:pit", 224, 224)
    found = alone([vision], [photo()], depths=[0.5, 1])
    measurement = found.measurements[0, 0]
    assert measurement.maps["raw_attention"].uniform == 1 / 50
    assert measurement.maps["raw_attention@0.5"].uniform == 1 / (14 * 14 + 1)
    assert [one["uniform"] for one in reports._maps(found)] == [1 / 50, 1 / 197]
    # A later stage's grid is not the one that positions were made for.
    assert found.notes == ()


def test_photos_that_are_hardly_seen_cost_nobody_else(tmp_path) -> None:
    """A strip has no point where the models looked; of a line one pixel high, a crop may show no pixel at all."""
    photos = [photo(3, 900), photo(), photo(1, 900)]
    found = alone([timm_vit("a"), timm_vit("b", depth=2)], photos, masks=[None, disc(), None])
    assert [area is None for area in found.areas] == [True, False, True]
    assert found.agreements["raw_attention"][0].values["cosine"].n == 1
    assert {failure.photo for failure in found.failures} == {"photo 2"}
    assert "less than one pixel" in found.failures[0].error
    found.save(tmp_path)


def test_positions_that_are_no_table_are_not_resampled() -> None:
    model = timm.create_model("vit_relpos_small_patch16_224", num_classes=3, img_size=64)
    assert alone([seeing(model, "timm:relative", 64, 64)], [photo()]).notes == ()


def test_a_model_without_a_readout_is_measured_without_statistics_too() -> None:
    photos = [photo(seed=seed) for seed in range(2)]
    found = alone([swin(), timm_vit()], photos, masks=[disc()] * 2, statistics=1)
    assert set(found.measurements) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    (failure,) = found.failures
    assert failure.model == "timm:swin"
    assert failure.what == "raw_attention"


# --- what is said -------------------------------------------------------------------------------------------------------------------------


def test_partly_shared_weights_are_not_called_the_same() -> None:
    first, second = timm_vit("a"), timm_vit("b")
    with torch.no_grad():
        second.model.blocks[2].attn.qkv.weight.neg_()
    (note,) = alone([first, second], [photo()]).notes
    assert note.level == "info"
    assert "share some 95% of their weights" in note.text


def test_other_pixels_are_not_called_the_same() -> None:
    first = timm_vit("a")

    def negative(shown):
        pixels, geometry = first.preprocess(shown)
        return -pixels, geometry

    second = timm_vit("b").with_preprocess(negative)
    (note,) = alone([first, second], [photo()]).notes
    assert "their preprocessing gives different pixels" in note.text


def test_the_depth_figure_counts_the_photos_of_its_statistics() -> None:
    found = alone([timm_vit()], [photo(seed=seed) for seed in range(3)], statistics=2)
    assert any("2 photos" in text.get_text() for text in found.depth_figure().texts)


def test_a_control_that_cannot_be_made_is_named_once() -> None:
    vision = timm_vit()
    vision.model.kept = torch.ones(2, requires_grad=True) * 2  # deepcopy refuses it
    found = alone([vision], [photo(seed=seed) for seed in range(2)], masks=[disc()] * 2)
    (failure,) = found.failures
    assert (failure.photo, failure.what) == (None, "measuring with random weights")
    assert len(found.measurements) == 2


def test_a_report_that_was_not_finished_has_no_manifest(tmp_path, monkeypatch) -> None:
    found = alone([timm_vit()], [photo()])
    found.save(tmp_path, pictures=False)
    assert json.loads((tmp_path / "manifest.json").read_text())["files"]
    write = reports._write

    def full(path, content):
        if path.name == "metrics.csv":
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(reports, "_write", full)
    with pytest.raises(OSError, match="No space"):
        found.save(tmp_path, pictures=False)
    assert not (tmp_path / "manifest.json").exists()


# --- what is done -------------------------------------------------------------------------------------------------------------------------


def test_pixels_beyond_the_grid_are_no_patchs() -> None:
    """A 4 x 4 grid of 14 px patches in 64 px: the highest patch is taken away where it is, and nowhere else."""
    shown = []

    class Classifier(torch.nn.Module):
        def forward(self, pixels):
            shown.append(pixels.clone())
            return pixels.mean(dim=(2, 3))

    vision = timm_vit().with_model(Classifier())
    patch_map = torch.zeros(4, 4)
    patch_map[1, 2] = 1
    areas = perturb(vision, ModelInputs(torch.ones(1, 3, 64, 64)), PatchMap(patch_map, area=(56, 56)), 0, steps=16)
    assert set(areas) == {"deletion", "insertion", "random_deletion", "random_insertion"}
    first = shown[2][0, 0]  # after the score of the whole, and of the first step, which takes nothing away
    expected = torch.ones(64, 64)
    expected[14:28, 28:42] = 0
    assert torch.equal(first, expected)


def test_loading_leaves_the_generator_alone(tmp_path) -> None:
    from safetensors.torch import save_file

    save_file(timm.create_model("vit_tiny_patch16_224", num_classes=3).state_dict(), tmp_path / "tiny.safetensors")
    before = torch.get_rng_state()
    alone([f"timm:vit_tiny_patch16_224@{tmp_path / 'tiny.safetensors'}"], [photo()])
    assert torch.equal(torch.get_rng_state(), before)


def test_masks_and_boxes_in_other_shapes() -> None:
    box, shown = (10, 10, 50, 60), photo()
    boxes = [box, np.array(box), tuple(np.array(box)), torch.tensor([box]), [box]]
    photos, failures = read_photos([shown] * len(boxes), boxes)
    assert failures == ()
    sizes = {int(one.object_mask().inside.sum()) for one in photos}
    assert sizes == {40 * 50}
    for one in (disc(), box):  # one photo, one mask
        assert read_photos(shown, one, "cat")[0][0].object_mask() is not None
    with pytest.raises(ValueError, match=r"expected one label per photo .* 3 in a list, got 'cat'"):
        read_photos([shown] * 3, labels="cat")
    with pytest.raises(ValueError, match="expected one label per photo"):
        read_photos([shown] * 3, labels=3)


@pytest.mark.parametrize("value", [0.4, float("nan")])
def test_soft_masks_are_refused(value: float) -> None:
    mask = np.full((90, 120), value)
    mask[0, 0] = 1.0
    photos, (failure,) = read_photos([photo()], [mask])
    assert photos == ()
    assert "threshold it" in failure.error


def test_photos_and_models_from_generators() -> None:
    found = alone((timm_vit(name) for name in "ab"), (photo(seed=seed) for seed in range(2)))
    assert (len(found.models), len(found.photos)) == (2, 2)
    assert [entry.name for entry in alone([lambda: timm_vit(), lambda: timm_vit()], [photo()]).models] == [
        "model 0",
        "model 1",
    ]


def test_plain_numbers_in_other_types() -> None:
    photos = [photo(seed=seed) for seed in range(2)]
    for labels in (np.array([1, 2]), torch.tensor([1, 2])):
        assert [one.label for one in read_photos(photos, labels=labels)[0]] == [1, 2]
    found = alone({1: timm_vit()}, photos, labels=np.array([1, 2]), methods="legrad")
    assert found.failures == ()
    assert found.models[0].name == "1"
    assert found.heatmap(np.int64(0), np.int64(1)).shape == (90, 120)
    assert len(found.figure(photos="photo 1").axes) == len(found.figure(photos=1).axes) == 2


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"methods": "rollout", "method": "legrad"}, "got both"),
        ({"statistics": -1}, "at least 0 photos"),
        ({"resolution": 0}, "at least 1 point"),
    ],
)
def test_options_that_say_nothing_are_refused(asked, words) -> None:
    with pytest.raises(ValueError, match=words):
        alone([timm_vit()], [photo()], **asked)


def test_two_runs_may_keep_the_same_measurement(tmp_path, monkeypatch) -> None:
    """Neither writes into what the other is writing."""
    measurement = alone([timm_vit()], [photo()]).measurements[0, 0]
    path = tmp_path / "one.safetensors"
    save_file, written = measurements.save_file, []

    def slow(tensors, at, metadata):
        written.append(at)
        save_file(tensors, at, metadata)
        if len(written) == 1:
            monkeypatch.setattr("os.getpid", lambda: -1)
            measurement.save(path)

    monkeypatch.setattr(measurements, "save_file", slow)
    measurement.save(path)
    assert len(set(written)) == 2
    assert Measurement.load(path) is not None
    assert [one.name for one in tmp_path.iterdir()] == ["one.safetensors"]


def test_patches_that_reach_beyond_the_pixels_are_taken_away_whole():
    """A patch embedding that pads 60 x 52 pixels to whole patches of 16: patch (1, 1) is rows and columns 16 to 32, as everywhere else."""
    gone = []

    class Counts(torch.nn.Module):
        def forward(self, pixels):
            gone.append((pixels == 0).all(dim=1)[0])
            return torch.zeros(1, 2)

    patch_map = torch.zeros(4, 4)
    patch_map[1, 1] = 1
    vision = timm_vit().with_model(Counts())
    perturb(vision, ModelInputs(torch.ones(1, 3, 60, 52)), PatchMap(patch_map, area=(64, 64)), 0, steps=16)
    expected = torch.zeros(60, 52, dtype=torch.bool)
    expected[16:32, 16:32] = True
    assert any(torch.equal(one, expected) for one in gone)
