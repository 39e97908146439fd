"""A preprocessing that looks at the photo, or that reads settings from elsewhere, is not placed by what it did to other photos."""

import types

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2
from torchvision.transforms.functional import to_tensor

from attnhook import ImageGeometry, PatchMap, VisionModel
from attnhook.errors import GeometryError
from attnhook.imaging.prepared import prepare

RNG = np.random.default_rng(0)
PHOTO = Image.fromarray(RNG.integers(0, 256, (12, 16, 3), np.uint8)).resize((320, 240), Image.Resampling.BICUBIC)
SETTINGS = types.SimpleNamespace(box=(20, 30, 180, 190))
BOX = (20, 30, 180, 190)


def trimmed(photo):
    """The photo without its white margin; where all is white, the whole."""
    rows, columns = np.nonzero(np.asarray(photo.convert("L")) < 250)
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else (0, 0, *photo.size)
    return to_tensor(photo.crop(box).resize((64, 64)))


def brightest(photo):
    grey = np.asarray(photo.convert("L"))
    row, column = np.unravel_index(grey.argmax(), grey.shape)
    top, left = min(row, photo.height - 90), min(column, photo.width - 90)
    return to_tensor(photo.crop((left, top, left + 90, top + 90)).resize((64, 64)))


def of_a_global(photo):
    return to_tensor(photo.crop(BOX).resize((64, 64)))


def of_an_attribute(photo):
    return to_tensor(photo.crop(SETTINGS.box).resize((64, 64)))


def scan():
    page = Image.new("RGB", (640, 480), "white")
    page.paste(PHOTO, (300, 200))
    return page


def without_dark_margins(photo):
    rows, columns = np.nonzero(np.asarray(photo.convert("L")) > 12)
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else (0, 0, *photo.size)
    return to_tensor(photo.crop(box).resize((64, 64)))


DIFFERENTLY = r"treats this photo differently.*correlation of -?0\.\d\d.*return \(pixels, ImageGeometry\)"
NOT_ALIKE = "got pixels of a photo.*of its parts.*do not add up.*cropping margins"


@pytest.mark.parametrize(
    ("preprocess", "photo", "words"),
    [
        (trimmed, scan(), NOT_ALIKE),
        (trimmed, ImageOps.expand(PHOTO, (8, 0, 0, 4), "white"), NOT_ALIKE),
        (without_dark_margins, ImageOps.expand(PHOTO, (8, 0, 0, 4), "black"), NOT_ALIKE),
        (brightest, PHOTO.resize((640, 480)), DIFFERENTLY),
    ],
)
def test_a_crop_around_what_is_found_is_refused(preprocess, photo, words):
    for use in (
        lambda: ImageGeometry.of(preprocess, photo),
        lambda: prepare(preprocess, photo),
        lambda: VisionModel(torch.nn.Identity(), preprocess).preprocess(photo),
        lambda: PatchMap(torch.rand(4, 4)).overlay(photo, preprocess),
    ):
        with pytest.raises(GeometryError, match=words):
            use()


@pytest.mark.parametrize("resample", [Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.LANCZOS])
@pytest.mark.parametrize("size", [(61, 40), (320, 240), (1500, 1000)])
def test_what_all_photos_undergo_is_followed(size, resample):
    photo = PHOTO.resize(size)

    def squashed(image):
        return (
            np.asarray(image.convert("L").resize((96, 96), resample).crop((8, 8, 88, 88)), np.float32)[None] / 255 - 0.5
        )

    def blue_first(image):
        return np.asarray(image.resize((96, 64), resample), np.float32)[:, :, ::-1].transpose(2, 0, 1).copy()

    for preprocess in (squashed, blue_first):
        prepare(preprocess, photo)
    prepare(blue_first, Image.new("RGB", size, (90, 20, 30)))  # a flat photo says nothing


@pytest.mark.parametrize("function", [of_a_global, of_an_attribute])
def test_settings_outside_of_a_function_are_noticed(function, monkeypatch):
    before = ImageGeometry.of(function, (240, 320)).visible
    assert [round(edge) for edge in before] == [30, 20, 190, 180]
    monkeypatch.setitem(globals(), "BOX", (100, 50, 260, 210))
    monkeypatch.setattr(SETTINGS, "box", (100, 50, 260, 210))
    assert [round(edge) for edge in ImageGeometry.of(function, (240, 320)).visible] == [50, 100, 210, 260]


class Slotted:
    __slots__ = ("__weakref__", "box")

    def __call__(self, photo):
        return to_tensor(photo.crop(self.box).resize((64, 64)))


def test_arrays_in_closures_and_slots_are_noticed():
    box, slotted = np.array(BOX), Slotted()
    slotted.box = BOX

    def of_an_array(photo):
        return to_tensor(photo.crop(tuple(box.tolist())).resize((64, 64)))

    for preprocess in (of_an_array, slotted):
        assert [round(edge) for edge in ImageGeometry.of(preprocess, (240, 320)).visible] == [30, 20, 190, 180]
    box[:] = slotted.box = (100, 50, 260, 210)
    for preprocess in (of_an_array, slotted):
        assert [round(edge) for edge in ImageGeometry.of(preprocess, (240, 320)).visible] == [50, 100, 210, 260]


def test_what_was_passed_in_place_of_a_preprocessing():
    patch_map = PatchMap(torch.rand(4, 4))
    for wrong in (PHOTO, torch.rand(1, 3, 64, 64), {"pixel_values": torch.rand(1, 3, 64, 64)}):
        with pytest.raises(GeometryError, match=r"expected a transform, an image processor, .*, not its output"):
            patch_map.overlay(PHOTO, wrong)
    for call in (patch_map.overlay, patch_map.figure):
        with pytest.raises(ValueError, match=r"expected where=.*got none.*overlay\(photo, patch_map, transform\)"):
            call(PHOTO)


def test_the_path_of_a_photo_that_its_exif_data_turn(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    PHOTO.save(tmp_path / "turned.jpg", exif=exif)
    with pytest.raises(GeometryError, match="got EXIF orientation 6"):
        PatchMap(torch.rand(4, 4)).overlay(tmp_path / "turned.jpg", trimmed)


def test_transforms_that_take_tensors_only():
    """As after torchvision's decode_image: a tensor, which Normalize needs, and no ToImage."""
    steps = [
        v2.Resize(96),
        v2.CenterCrop(80),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5] * 3, [0.5] * 3),
    ]
    geometry = ImageGeometry.of(v2.Compose(steps), PHOTO)
    assert geometry == ImageGeometry.identity((240, 320)).resize(96).center_crop(80)
    assert prepare(v2.Compose(steps), PHOTO).inputs.pixels.shape == (1, 3, 80, 80)
