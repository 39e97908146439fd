"""What `read_image` makes of every kind of image, and how it refuses the rest."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, ImageCms

from attnhook.errors import ImageError
from attnhook.imaging.images import each_image, read_image

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def two_tone(height=20, width=30):
    """Red above blue."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2] = RED
    pixels[height // 2 :] = BLUE
    return pixels


def saved(image, path, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize("kind", ["png", "pil", "numpy", "tensor", "float tensor", "gradients", "bfloat16"])
def test_every_source_gives_the_same_pixels(kind, tmp_path):
    pixels = two_tone()
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    source = {
        "png": saved(Image.fromarray(pixels), tmp_path / "a.png"),
        "pil": Image.fromarray(pixels),
        "numpy": pixels,
        "tensor": tensor,
        "float tensor": tensor / 255,
        "gradients": (tensor / 255).requires_grad_(),
        "bfloat16": (tensor / 255).bfloat16(),
    }[kind]
    image = read_image(source)
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("as_path", [True, False])
def test_exif_orientation_is_honoured(as_path, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: turn it clockwise to see it upright
    path = saved(Image.fromarray(two_tone(20, 30)), tmp_path / "turned.png", exif=exif)
    if as_path:
        image = read_image(path)
    else:
        with Image.open(path) as opened:
            image = read_image(opened)
            assert opened.size == (30, 20)  # the caller's image is as it was
            assert opened.getexif()[0x0112] == 6
    assert image.size == (20, 30)
    assert image.getpixel((2, 15)) == BLUE
    assert image.getpixel((17, 15)) == RED


def test_damaged_exif_does_not_cost_the_picture(tmp_path):
    path = saved(Image.fromarray(two_tone()), tmp_path / "a.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert read_image(path).size == (30, 20)


def test_the_callers_image_is_neither_changed_nor_aliased():
    source = Image.fromarray(two_tone())
    image = read_image(source)
    image.paste(WHITE, (0, 0, 30, 20))
    assert np.array_equal(np.asarray(source), two_tone())


def test_transparency_is_composited_on_white():
    rgba = np.dstack([two_tone(), np.full((20, 30), 255, np.uint8)])
    rgba[:, 15:, 3] = 0
    rgba[:, 14, 3] = 128
    for source in (Image.fromarray(rgba), rgba, torch.from_numpy(rgba).permute(2, 0, 1)):
        image = read_image(source)
        assert image.getpixel((0, 0)) == RED
        assert image.getpixel((20, 0)) == WHITE
        assert image.getpixel((14, 0))[1] == pytest.approx(127, abs=1)


def test_palettes_with_and_without_transparency(tmp_path):
    palette = Image.fromarray(two_tone()).quantize(2)
    assert np.array_equal(np.asarray(read_image(palette)), two_tone())
    first = palette.getpixel((0, 0))
    path = saved(palette, tmp_path / "p.png", transparency=first)
    image = read_image(path)
    assert image.getpixel((0, 0)) == WHITE
    assert image.getpixel((0, 19)) == BLUE
    assert read_image(Image.fromarray(two_tone()).convert("PA")).mode == "RGB"


def test_colour_keys_grey_alpha_and_premultiplied_modes(tmp_path):
    path = saved(Image.fromarray(two_tone()), tmp_path / "key.png", transparency=RED)
    assert read_image(path).getpixel((0, 0)) == WHITE
    grey_alpha = Image.merge("LA", [Image.new("L", (4, 4), 10), Image.new("L", (4, 4), 0)])
    assert read_image(grey_alpha).getpixel((0, 0)) == WHITE
    assert read_image(grey_alpha.convert("La")).getpixel((0, 0)) == WHITE
    assert read_image(grey_alpha.convert("RGBA").convert("RGBa")).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("value, expected", [(0, 0), (257, 1), (32896, 128), (65535, 255)])
def test_sixteen_bits_are_scaled_not_clipped(value, expected, tmp_path):
    array = np.full((6, 5), value, np.uint16)
    path = saved(Image.fromarray(array), tmp_path / "deep.png")
    for source in (
        path,
        array,
        Image.fromarray(array),
        Image.fromarray(array.astype(np.int32)),
        torch.from_numpy(array),
    ):
        assert read_image(source).getpixel((0, 0)) == (expected,) * 3
    assert read_image(np.dstack([array] * 3)).getpixel((0, 0)) == (expected,) * 3


def test_one_bit_bool_grey_and_float_modes():
    mask = np.zeros((4, 6), bool)
    mask[:, 3:] = True
    for source in (mask, torch.from_numpy(mask), Image.fromarray(mask), mask.astype(np.float32), mask[..., None]):
        image = read_image(source)
        assert (image.getpixel((0, 0)), image.getpixel((5, 0))) == ((0, 0, 0), WHITE)
    assert read_image(Image.fromarray(np.full((4, 4), 0.5, np.float32))).getpixel((0, 0)) == (128, 128, 128)
    assert read_image(torch.full((1, 4, 4), 0.5)).getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "CMYK", "RGBX"])
def test_other_colour_spaces(mode, tmp_path):
    image = read_image(Image.new("RGB", (8, 8), RED).convert(mode))
    assert image.getpixel((4, 4)) == pytest.approx(RED, abs=3)


def test_cmyk_files_with_unusable_profiles(tmp_path):
    cmyk = Image.new("RGB", (16, 16), (200, 40, 40)).convert("CMYK")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain = read_image(saved(cmyk, tmp_path / "plain.jpg", quality=100))
    assert plain.getpixel((8, 8)) == pytest.approx((200, 40, 40), abs=6)
    for name, profile in (("not_cmyk", srgb), ("damaged", b"no profile")):
        image = read_image(saved(cmyk, tmp_path / f"{name}.jpg", icc_profile=profile, quality=100))
        assert image.getpixel((8, 8)) == plain.getpixel((8, 8))


def test_of_an_animation_the_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    path = saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(path).getpixel((0, 0)) == RED


# --- refusals -------------------------------------------------------------------------------------------------------------------------


def test_missing_empty_foreign_and_truncated_files(tmp_path):
    good = saved(
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)), tmp_path / "good.jpg"
    )
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("this is no picture")
    (tmp_path / "cut.jpg").write_bytes(good.read_bytes()[:1500])
    for name, clause in (
        ("absent.jpg", "no file at this path"),
        ("empty.jpg", "empty file"),
        ("text.jpg", "Convert it to PNG or JPEG"),
        ("cut.jpg", "damaged or cut short"),
        ("", "directory"),
    ):
        with pytest.raises(ImageError, match=clause) as raised:
            read_image(str(tmp_path / name))
        assert str(tmp_path / name) in str(raised.value)


def test_any_damage_is_an_image_error(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 24, 3), np.uint8)).save(buffer, "PNG")
    good = bytearray(buffer.getvalue())
    path = tmp_path / "damaged.png"
    random = np.random.default_rng(1)
    refused = 0
    for _ in range(150):
        damaged = good.copy()
        for place in random.integers(0, len(good), 3):
            damaged[place] ^= int(random.integers(1, 256))
        path.write_bytes(damaged)
        try:
            read_image(path)
        except ImageError as error:
            refused += str(path) in str(error)
    assert refused > 100


def test_a_closed_pil_image():
    image = Image.fromarray(two_tone())
    image.close()
    with pytest.raises(ImageError, match="PIL image"):
        read_image(image)


@pytest.mark.parametrize("name", ["program.eps", "photo.jpg"])
def test_postscript_is_not_run(name, tmp_path, monkeypatch):
    Image.fromarray(two_tone()).save(tmp_path / "program.eps")
    (tmp_path / "program.eps").rename(tmp_path / name)
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given, **options: pytest.fail("Ghostscript was started"))
    with pytest.raises(ImageError, match=r"expected pixels, got PostScript, a program"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("times", [1.5, 4])
def test_decompression_bombs(times, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    path = tmp_path / "bomb.png"
    width = int(1000 * times)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, 1, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(width + 1))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    with pytest.raises(ImageError, match=r"MAX_IMAGE_PIXELS = 1000.*raise that limit"):
        read_image(path)


@pytest.mark.parametrize(
    "source, clauses",
    [
        (torch.randn(3, 8, 8), r"in \[0, 1\].*values from -.*normalisation"),
        (np.full((8, 8, 3), 200.0), r"in \[0, 1\].*to 200.*uint8"),
        (torch.rand(3, 8, 8) * 255, r"Divide by the largest"),
        (np.full((8, 8), np.nan), r"finite.*NaN"),
        (np.full((8, 8), np.inf), r"finite.*infinity"),
        (np.zeros((3, 8, 9), np.uint8), r"\(3, 8, 9\).*transpose\(1, 2, 0\)"),
        (torch.zeros(8, 9, 3), r"\(8, 9, 3\).*permute\(2, 0, 1\)"),
        (torch.zeros(2, 3, 8, 9), r"\(2, 3, 8, 9\).*tensor\[0\]"),
        (np.zeros((2, 8, 9, 3), np.uint8), r"\(2, 8, 9, 3\).*array\[0\]"),
        (np.zeros(7, np.uint8), r"\(7,\)"),
        (np.zeros((0, 8, 3), np.uint8), r"at least one pixel.*\(0, 8, 3\)"),
        (torch.zeros(3, 0, 8), r"at least one pixel"),
        (np.zeros((8, 8), np.int64), r"uint8, uint16, bool or floating point, got int64"),
        (Image.fromarray(np.full((4, 4), 70000, np.int32)), r"0\.\.65535.*70000"),
        (Image.fromarray(np.full((4, 4), 99.0, np.float32)), r"to 99"),
        (Image.new("RGB", (0, 4)), r"at least one pixel"),
        ("https://example.org/cat.jpg", r"local file.*URL"),
        ([1, 2, 3], r"expected a path.*got list"),
        (None, r"NoneType"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(source, clauses):
    with pytest.raises(ImageError, match=clauses):
        read_image(source)


def test_modes_that_pillow_cannot_convert(monkeypatch):
    def refuse(*_, **__):
        raise ValueError("conversion not supported")

    source = Image.new("L", (4, 4))
    monkeypatch.setattr(Image.Image, "convert", refuse)
    with pytest.raises(ImageError, match=r"mode L.*conversion not supported.*Convert it yourself"):
        read_image(source)


def test_resampling_overshoot_is_tolerated():
    assert read_image(np.array([[-0.001, 1.001]])).getpixel((1, 0)) == WHITE


def test_one_image_or_several(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "cat.png")
    several = [tmp_path / "cat.png", "dog.png", b"bytes", Image.new("L", (2, 2)), np.zeros((2, 2)), torch.zeros(2, 2)]
    for one in several:
        assert each_image(one)[0] is one
        assert len(each_image(one)) == 1
    for many in (several, tuple(several), iter(several)):
        assert all(one is other for one, other in zip(each_image(many), several, strict=True))
    assert each_image(tmp_path.glob("*.png")) == [tmp_path / "cat.png"]
    assert each_image(7) == [7]  # read_image says what is wrong with it


def test_a_refused_pil_image_is_named_by_its_mode():
    with pytest.raises(ImageError, match=r"^cannot read a PIL image of mode F as an image: "):
        read_image(Image.new("F", (4, 4), 254.8))
