"""Photos in, pictures out, with a tiny model."""

import inspect
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from attnhook import METHODS, AttentionMonitor, ImageGeometry, VisionModel, attend, raw_attention, rollout
from attnhook.attribution.methods import NEEDS
from attnhook.errors import GeometryError
from attnhook.options import Style
from attnhook.results.results import save_image
from tests.imaging.expected import differs_little, greyed, painted, robust
from tests.models import GRID, IMAGE, TIMM
from tests.zoo.saved_models import photo

PHOTO = photo(48, 100)  # halved and cropped at the centre: 10 columns to either side are not seen


@pytest.fixture(scope="module")
def module():
    return next(case for case in TIMM if case.name == "vit").build()


def seen(size):
    return ImageGeometry.identity(size).resize(IMAGE[0]).center_crop(IMAGE)


def pixels_of(picture):
    small = picture.resize((50, 24))
    return to_tensor(small.crop((5, 0, 45, 24)))


def prepare(picture):
    return pixels_of(picture)[None], seen((picture.height, picture.width))


@pytest.fixture(scope="module")
def model(module):
    return VisionModel(module, prepare, name="tiny")


@pytest.fixture(scope="module")
def result(model):
    return attend(model, PHOTO)[0]


def test_fields(result):
    assert result.attention.shape == GRID
    assert result.heatmap.shape == (48, 100)
    assert result.settings.block == "blocks.1.attn"
    assert result.uniform == 1 / 16
    row = result.maps[-1].rows[0].mean(0)[0]
    torch.testing.assert_close(result.attention.flatten(), row[1:])
    assert result.outside == pytest.approx(float(row[0]), abs=1e-5)


def test_caption(result):
    assert result.caption.startswith(
        "tiny: raw attention, CLS to patches, block 2 of 2, mean of 4 heads, centre crop; "
    )
    assert "% of the attention outside the patches" in result.caption


def test_overlay_leaves_the_rest_of_the_photo(result):
    plain = {"alpha": 0.5, "weighted": False, "scale": "minmax", "fade": 0, "colormap": "viridis"}
    before, after = np.asarray(PHOTO), np.asarray(result.overlay(**plain))
    assert (before[:, :10] == after[:, :10]).all()
    assert (before[:, 90:] == after[:, 90:]).all()
    assert (before[:, 10:90] != after[:, 10:90]).any(-1).mean() > 0.9


def test_overlay_greys_the_rest_of_the_photo_behind_a_frame(result):
    after, grey = np.asarray(result.overlay()), greyed(PHOTO)
    assert (after[:, [9, 90]] == 96).all()
    for rest in (slice(0, 9), slice(91, 100)):
        assert np.abs(after[:, rest] - grey[:, rest]).max() <= 1.2
    values = np.asarray(result.heatmap)
    low, high, floor = robust([values])
    inside = slice(10, 90)
    assert differs_little(after[:, inside], painted(PHOTO, values, low, high, floor)[:, inside])
    cropped = result.overlay(crop="seen")
    assert cropped.size == (80, 48)
    assert (np.asarray(cropped) == after[:, inside]).all()


def test_notebook_picture(result):
    with Image.open(io.BytesIO(result._repr_png_())) as picture:
        assert (picture.format, picture.size) == ("PNG", (100, 48))


def test_a_caption_is_no_markup(result):
    nasty = replace(result, patch_map=replace(result.patch_map, description='<img src=x onerror=alert(1)>"'))
    page = nasty._repr_html_()
    assert page.count("<") == result._repr_html_().count("<")
    assert "onerror=alert(1)&gt;&quot;" in page


def test_save(result, tmp_path):
    assert result.save(tmp_path / "a.png", alpha=1.0) == tmp_path / "a.png"
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_save_refuses_an_unknown_suffix(result, tmp_path):
    with pytest.raises(ValueError, match=r"suffix such as \.png"):
        result.save(tmp_path / "a.picture")
    assert not list(tmp_path.iterdir())


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "a.png"
    target.write_bytes(b"old")

    def half(self, path, format):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OSError, match="disk full"):
        save_image(PHOTO, target)
    assert target.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_one_patch_one_head(model):
    (one,) = attend(model, PHOTO, rows=[(2, 4)], heads=1, blocks=[0])
    assert one.maps.selected_rows == ((2, 4),)
    torch.testing.assert_close(one.attention.flatten(), one.maps[0].rows[0, 1, 0, 1:])
    assert "patch (2, 4) to patches, block 1 of 2, head 1" in one.caption


def test_rollout_captures_what_it_needs(model):
    (one,) = attend(model, PHOTO, method="rollout", heads="max", discard=0.5)
    assert one.maps.selected_rows == "all"
    torch.testing.assert_close(one.attention, rollout(one.maps, heads="max", discard=0.5).values[0])
    assert one.settings.options == {"discard": 0.5}
    assert one.caption.startswith("tiny: rollout, CLS to patches, blocks 1 to 2 of 2, max of 4 heads, centre crop")
    with pytest.raises(
        ValueError, match=r"method 'rollout' follows attention to the model's own readout.*Leave rows out"
    ):
        attend(model, PHOTO, method="rollout", rows="mean")
    with pytest.raises(ValueError, match="have no option 'blok': expected residual, discard, start"):
        attend(model, PHOTO, method="rollout", blok=1)
    with pytest.raises(ValueError, match="method 'raw_attention' have no option 'discard'"):
        attend(model, PHOTO, discard=0.5)


@pytest.mark.parametrize(
    ("style", "option"),
    [
        ("contours", {"alpha": 0.8}),
        ("mask", {"colormap": "magma"}),
        ("mask", {"scale": (0, 1)}),
        ("heat", {"keep": 0.5}),
        ("contours", {"keep": 0.5}),
        ("patches", {"mode": "nearest"}),
        ("patches", {"smallest": 2}),
        ("heat", {"smallest": 2}),
        ("contours", {"weighted": False}),
        ("contours", {"floor": 0.1}),
        ("mask", {"weighted": False}),
        ("mask", {"floor": 0.1}),
        ("mask", {"mode": "nearest"}),
    ],
)
def test_options_that_a_style_does_not_take_are_refused(result, style, option):
    with pytest.raises(
        ValueError, match=f"style '{style}' does not take {next(iter(option))}: expected one of .*Leave it out"
    ):
        result.overlay(style=style, **option)


def test_defaults_of_styles_are_those_of_overlay(result):
    taken = inspect.signature(result.patch_map.overlay).parameters
    named = {name: taken[name].default for name in taken if name not in {"photo", "where", "style", "look"}}
    look = {"colormap": "plasma", "alpha": 0.85, "scale": "robust", "weighted": True, "floor": None, "fade": 0.4}
    for style in Style:
        options = named | look | {"crop": "photo"}
        options |= {"alpha": 0.6} if style is Style.MASK else {}  # a mask's shade has a default of its own
    assert result.overlay(style=style, **options) == result.overlay(style=style)


def test_every_method_says_what_it_needs():
    assert METHODS.keys() == NEEDS.keys()


def test_bare_module(module, result):
    with pytest.raises(ValueError, match="preprocess="):
        attend(torch.nn.Sequential(module), PHOTO)
    several = attend(module, iter([PHOTO, PHOTO]), preprocess=prepare)
    assert len(several) == 2
    torch.testing.assert_close(several[1].attention, result.attention)


def test_geometry_that_is_not_the_preprocessings(module):
    with pytest.raises(GeometryError, match=r"do not match: expected pixels of 48 x 100, .* got 24 x 40"):
        attend(module, PHOTO, preprocess=lambda one: (pixels_of(one)[None], ImageGeometry.identity((48, 100))))


@pytest.mark.parametrize(
    ("preprocess", "got"),
    [
        (lambda one: None, "NoneType"),
        (lambda one: (pixels_of(one)[None], one.size), "tuple"),
        (lambda one: (seen((48, 100)), pixels_of(one)[None]), "tuple"),
    ],
)
def test_preprocessing_that_gives_something_else(module, preprocess, got):
    words = rf"expected a tensor, .* or \(pixels, ImageGeometry\), got {got}\. Let the preprocessing return the model's input"
    with pytest.raises(GeometryError, match=words):
        attend(module, PHOTO, preprocess=preprocess)
    with pytest.raises(GeometryError, match=words):
        AttentionMonitor(module, PHOTO, every_n_steps=1, writers=[], preprocess=preprocess)


@pytest.mark.parametrize("options", [{"method": "grad_cam"}, {"heads": None}, {"mode": "cubic"}])
def test_bad_options(model, options):
    with pytest.raises(ValueError, match="expected"):
        attend(model, PHOTO, **options)


def test_a_block_for_a_method_that_follows_all_is_refused(model):
    with pytest.raises(ValueError, match="follows all captured blocks"):
        attend(model, PHOTO, method="rollout")[0][1]


def test_one_result_holds_several_blocks(model):
    (both,) = attend(model, PHOTO)
    for block in (0, 1, -1, "blocks.0.attn"):
        one = both[block]
        assert one.settings.block == both.maps[block].name
        torch.testing.assert_close(one.attention, raw_attention(both.maps, block=block).values[0])
        assert one.overlay().tobytes() == attend(model, PHOTO, blocks=[block])[0].overlay().tobytes()
        assert f"block {both.maps[block].number[0]} of 2" in one.caption
    assert both[-1].overlay().tobytes() == both.overlay().tobytes()
    assert attend(model, PHOTO, blocks=1)[0].maps.block_names == ("blocks.1.attn",)
    assert "block 2 of 2" in attend(model, PHOTO, blocks=1)[0].caption  # of the model, not of what was captured
    assert "through blocks 2 to 2 of 2" not in attend(model, PHOTO, method="rollout", blocks=1)[0].caption
    with pytest.raises(IndexError, match="block 2 was not captured"):
        both[2]
    with pytest.raises(ValueError, match=r"expected blocks=, got block=3\. Pass blocks=\[3\], .*result\[3\]"):
        attend(model, PHOTO, block=3)


def test_several_results_show_their_pictures_in_a_notebook(model):
    several = attend(model, [PHOTO] * 9)
    shown = several._repr_html_()
    assert isinstance(several, list)
    assert shown.count("<img ") == 8
    assert "and 1 more" in shown
    assert several[0]._repr_html_() in shown
