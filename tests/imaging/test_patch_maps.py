"""Patch maps know where they lie: no argument can be left out, and what does not match is an error with both sizes."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from attnhook import ImageGeometry, PatchMap, heatmap, overlay
from attnhook.errors import GeometryError

SIZE = (96, 160)
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8))
SEEN = ImageGeometry.identity(SIZE).resize(64).center_crop(56)  # 56 x 56 pixels
VALUES = torch.rand(2, 3, 7, 7, generator=torch.Generator().manual_seed(0)) / 49


def of_heads(**facts):
    return PatchMap(VALUES, **({"input_size": (56, 56), "area": (56, 56), "uniform": 1 / 50, "adds_up": True} | facts))


def test_indexing_follows_the_first_axis():
    found = of_heads(description="raw attention")
    assert (found.shape, len(found), found.grid) == ((2, 3, 7, 7), 2, (7, 7))
    assert torch.equal(found[1].values, VALUES[1])
    assert torch.equal(found[-1][2].values, VALUES[1, 2])
    assert [one.shape for one in found] == [(3, 7, 7)] * 2
    assert found[:1].shape == (1, 3, 7, 7)
    assert torch.equal(found[::-1].values, VALUES.flip(0))
    assert (found[0].area, found[0].uniform, found[0].description) == ((56, 56), 1 / 50, "raw attention")
    with pytest.raises(IndexError, match="map 2 does not exist: expected -2 to 1"):
        found[2]
    single = found[0][0]
    for misuse in (len, list, lambda one: one[0]):
        with pytest.raises(TypeError, match="single map"):
            misuse(single)
    assert single


def test_numpy_and_torch_read_it():
    found = of_heads()
    assert np.array_equal(np.asarray(found), VALUES.numpy())
    assert np.asarray(found, dtype=np.float64).dtype == np.float64
    np.array(found)[:] = 0  # a copy, as of any array
    np.array(found, dtype=np.float32)[:] = 0
    assert float(found.values.min()) > 0
    assert found.to("cpu").values.dtype == torch.float32
    grown = PatchMap(VALUES.clone().requires_grad_())
    assert np.array_equal(grown.numpy(), VALUES.numpy())
    for copied in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):  # noqa: S301 (its own)
        assert torch.equal(copied.values, VALUES)
        assert copied.facts() == found.facts()


def test_mass_outside_the_patches():
    found = of_heads()
    torch.testing.assert_close(found.outside, 1 - VALUES.double().sum(dim=(-2, -1)).float(), atol=1e-6, rtol=0)
    dropped = VALUES.clone()
    dropped[..., 0, 0] = math.nan
    torch.testing.assert_close(PatchMap(dropped, adds_up=True).outside, 1 - dropped.nan_to_num().sum(dim=(-2, -1)))
    assert PatchMap(VALUES).outside is None
    single = of_heads(description="raw attention of block 3 of 3 (c)")[0][0]
    assert (
        single.caption
        == f"raw attention of block 3 of 3 (c); {float(single.outside):.0%} of the attention outside the patches"
    )
    assert "outside" not in of_heads().caption


def test_the_area_moves_the_map_without_being_asked_for():
    """A model that drops the last 8 pixels: the same values lie elsewhere than over the whole input."""
    short = PatchMap(VALUES[0, 0], input_size=(56, 56), area=(49, 49))
    whole = PatchMap(VALUES[0, 0], input_size=(56, 56), area=(56, 56))
    got, wrong = short.heatmap(SEEN), whole.heatmap(SEEN)
    assert torch.equal(got.isnan(), heatmap(VALUES[0, 0], SEEN, patch_area=(49, 49)).isnan())
    assert got.isnan().sum() > wrong.isnan().sum()
    assert torch.equal(heatmap(short, SEEN).nan_to_num(), got.nan_to_num())
    # A marker at the centre of one patch of 7 pixels, by the geometry alone.
    marked = torch.zeros(7, 7)
    marked[4, 5] = 1
    heat = PatchMap(marked, area=(49, 49)).heatmap(SEEN, mode="nearest").nan_to_num()
    y, x = SEEN.to_image(4.5 * 7, 5.5 * 7)
    assert heat[int(y), int(x)] == 1
    top, left, bottom, right = PatchMap(marked, area=(49, 49)).box(SEEN, (4, 5))
    assert (top + bottom) / 2 == pytest.approx(y)
    assert (left + right) / 2 == pytest.approx(x)


def test_a_geometry_of_another_input_is_refused_with_both_sizes():
    found = of_heads()[0][0]
    other = ImageGeometry.identity(SIZE).resize(64).center_crop(63)
    for use in (
        found.heatmap,
        found.edges,
        lambda where: found.overlay(PHOTO, where),
        lambda where: found.figure(PHOTO, where),
    ):
        with pytest.raises(
            GeometryError, match=r"expected an input of 56 x 56 pixels, .* got a geometry for an input of 63 x 63"
        ):
            use(other)


def test_a_geometry_of_another_photo_is_refused():
    found = of_heads()[0][0]
    with pytest.raises(
        GeometryError,
        match=r"expected image_size \(160, 96\), got \(96, 160\)\. Height and width look swapped",
    ):
        found.overlay(PHOTO.transpose(Image.Transpose.ROTATE_90), SEEN)
    with pytest.raises(GeometryError, match=r"expected image_size \(80, 160\), got \(96, 160\)"):
        found.overlay(PHOTO.crop((0, 0, 160, 80)), SEEN)


def test_a_bare_grid_that_cannot_cover_the_input_needs_its_area():
    for use in (
        lambda **area: heatmap(torch.rand(6, 6), SEEN, **area),
        lambda **area: overlay(PHOTO, torch.rand(6, 6), SEEN, **area),
    ):
        with pytest.raises(GeometryError, match=r"cover the input of 56 x 56 pixels exactly, got 6 x 6 patches"):
            use()
        use(patch_area=(48, 48))
    with pytest.raises(GeometryError, match="cannot place the patch grid"):
        PatchMap(torch.rand(6, 6)).heatmap(SEEN)
    with pytest.raises(GeometryError, match="cannot place the patch grid"):
        PatchMap(torch.rand(6, 6)).edges(SEEN)


def test_what_a_patch_map_knows_is_not_to_be_said_again():
    found = of_heads()[0][0]
    with pytest.raises(ValueError, match="knows its own patch_area"):
        heatmap(found, SEEN, patch_area=(48, 48))
    with pytest.raises(ValueError, match="knows its own uniform"):
        overlay(PHOTO, found, SEEN, uniform=0.1)
    with pytest.raises(
        ValueError,
        match=r"expected where=, what turned the photo into pixels, got none.*overlay\(photo, patch_map, transform\)",
    ):
        overlay(PHOTO, found)


@pytest.mark.parametrize("style", ["heat", "patches", "contours", "mask"])
def test_method_and_function_and_bare_tensor_draw_the_same(style):
    found = of_heads()[0][0]
    picture = found.overlay(PHOTO, SEEN, style=style)
    assert picture.tobytes() == overlay(PHOTO, found, SEEN, style=style).tobytes()
    assert picture.tobytes() == overlay(PHOTO, found.values, SEEN, style=style).tobytes()
    assert picture.tobytes() != PHOTO.tobytes()
    assert of_heads()[:1][0][:1].overlay(PHOTO, SEEN, style=style).tobytes() == picture.tobytes()  # (1, h, w)
    if style == "heat":
        assert picture.tobytes() == overlay(PHOTO, found.heatmap(SEEN)).tobytes()
        uniform = found.overlay(PHOTO, SEEN, scale="uniform")
        assert uniform.tobytes() == overlay(PHOTO, found.values, SEEN, scale="uniform", uniform=1 / 50).tobytes()


def test_one_map_at_a_time():
    for found in (of_heads(), of_heads()[0]):
        with pytest.raises(GeometryError, match=r"expected one map, got shape \((2, )?3, 7, 7\)"):
            found.overlay(PHOTO, SEEN)


def test_uniform_is_for_attention():
    with pytest.raises(ValueError, match="expected a map of attention, got one of legrad"):
        of_heads(uniform=None, quantity="legrad")[0][0].overlay(PHOTO, SEEN, scale="uniform")


def test_figures_say_what_the_map_is():
    figure = of_heads(description="raw attention of block 3 of 3 (c)")[0][0].figure(PHOTO, SEEN, scale="robust")
    words = " ".join(text.get_text() for text in figure.texts).replace("\n", " ")
    assert "raw attention of block 3 of 3" in words
    assert "outside the patches. Colours from the 1st to the 99th percentile" in words
    axes = figure.axes[0]
    assert of_heads()[0][0].figure(PHOTO, SEEN, ax=axes) is figure


def test_saved_whole_or_not_at_all(tmp_path, monkeypatch):
    found = of_heads(description="raw attention")
    path = found.save(tmp_path / "map.npz")
    with np.load(path) as saved:
        assert np.array_equal(saved["values"], VALUES.numpy())
        assert saved["input_size"].tolist() == saved["area"].tolist() == [56, 56]
        assert float(saved["uniform"]) == 1 / 50
        assert np.array_equal(saved["outside"], found.outside.numpy())
        assert str(saved["caption"]) == "raw attention"
    with np.load(PatchMap(VALUES).save(tmp_path / "bare.npz")) as saved:
        assert saved.files == ["values"]
    with pytest.raises(ValueError, match=r"expected the suffix \.npz, got '\.png'"):
        found.save(tmp_path / "map.png")

    def full_disk(file, **arrays):
        file.write(b"half")
        raise OSError("no space left on device")

    before = path.read_bytes()
    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="no space left"):
        found.save(path)
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bare.npz", "map.npz"]


def test_a_photo_that_its_exif_data_turn_is_refused_where_a_preprocessing_is_given(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    PHOTO.save(tmp_path / "turned.jpg", exif=exif)
    turned = Image.open(tmp_path / "turned.jpg")
    with pytest.raises(GeometryError, match=r"got EXIF orientation 6.*ImageOps\.exif_transpose"):
        of_heads()[0][0].overlay(turned, lambda photo: photo)
