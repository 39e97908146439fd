"""Geometries against the real preprocessing of timm, torchvision and transformers: where a marker lands, and back."""

import inspect

import numpy as np
import pytest
import torch
from PIL import Image

from attnhook.errors import GeometryError
from attnhook.imaging.geometry import ImageGeometry

timm_data = pytest.importorskip("timm.data")
transformers = pytest.importorskip("transformers")

SIZES = [(480, 640), (640, 480), (500, 300), (301, 411)]  # (height, width)


def marked(size, centre, side=25):
    """A black photo with a bright square around a point (y, x)."""
    height, width = size
    pixels = np.zeros((height, width, 3), np.uint8)
    top, left = round(centre[0] - side / 2), round(centre[1] - side / 2)
    pixels[top : top + side, left : left + side] = 255
    return Image.fromarray(pixels), (top + side / 2, left + side / 2)


def centroid(planes):
    """Centre of mass (y, x) of a (channels, height, width) picture, at pixel edges."""
    mass = planes.float().mean(0)
    rows, columns = (torch.arange(n) + 0.5 for n in mass.shape)
    return float((mass.sum(1) * rows).sum() / mass.sum()), float((mass.sum(0) * columns).sum() / mass.sum())


def check_marker(size, geometry, preprocess):
    """Markers at several places of what the model sees land where the geometry says, within half a pixel, and map back."""
    top, left, bottom, right = geometry.visible
    for down, across in ((0.5, 0.5), (0.25, 0.7), (0.8, 0.2)):
        wanted = (top + down * (bottom - top), left + across * (right - left))
        photo, point = marked(size, wanted)
        seen = preprocess(photo)
        assert tuple(seen.shape[-2:]) == geometry.input_size
        landed = centroid((seen.float() - preprocess(Image.new("RGB", size[::-1])).float()).clamp(min=0))
        assert landed == pytest.approx(geometry.to_input(*point), abs=0.3)
        back = geometry.to_image(*landed)
        assert abs(back[0] - point[0]) * geometry.scale[0] < 0.3
        assert abs(back[1] - point[1]) * geometry.scale[1] < 0.3


def valid_box(seen, background):
    """The box (top, left, bottom, right) of pixels that are not background, of a (channels, height, width) picture."""
    shown = (seen - background).abs().amax(0) > 1e-3
    rows, columns = shown.any(1).nonzero().flatten(), shown.any(0).nonzero().flatten()
    return rows[0].item(), columns[0].item(), rows[-1].item() + 1, columns[-1].item() + 1


TIMM_CONFIGS = [
    {"input_size": (3, 224, 224), "crop_pct": 0.9},
    {"input_size": (3, 224, 224), "crop_pct": 0.875, "crop_mode": "center", "interpolation": "bilinear"},
    {"input_size": (3, 518, 518), "crop_pct": 1.0},
    {"input_size": (3, 224, 224), "crop_pct": 0.95, "crop_mode": "squash"},
    {"input_size": (3, 256, 256), "crop_pct": 1.0, "crop_mode": "squash"},
    {"input_size": (3, 224, 224), "crop_pct": 1.0, "crop_mode": "border"},
    {"input_size": (3, 225, 225), "crop_pct": 0.9, "crop_mode": "border"},
    {"input_size": (3, 160, 320), "crop_pct": 0.9},
    {"input_size": (3, 320, 160), "crop_pct": 0.875, "crop_mode": "squash"},
    {"input_size": (3, 192, 256), "crop_pct": 1.0, "crop_mode": "border"},
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("config", TIMM_CONFIGS, ids=lambda config: "-".join(str(value) for value in config.values()))
def test_timm(config, size):
    config = timm_data.resolve_data_config(config)
    transform = timm_data.create_transform(**config, is_training=False, normalize=False)
    check_marker(size, ImageGeometry.from_timm(size, config), transform)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("crop_pct", [0.8, 1.0])
def test_timm_borders_are_not_photo(size, crop_pct):
    config = timm_data.resolve_data_config({"input_size": (3, 225, 224), "crop_pct": crop_pct, "crop_mode": "border"})
    transform = timm_data.create_transform(**config, is_training=False, normalize=False)
    seen = transform(Image.new("RGB", size[::-1], (255, 255, 255))).float()
    fill = torch.tensor([round(255 * v) for v in config["mean"]]).view(3, 1, 1).float()
    assert ImageGeometry.from_timm(size, config).valid == valid_box(seen, fill)


def test_timm_border_pixels_and_plain_sizes():
    config = {"input_size": 224, "crop_pct": None, "crop_mode": None, "crop_border_pixels": 20}
    transform = timm_data.create_transform(**{**config, "interpolation": "bicubic"}, normalize=False)
    check_marker((480, 640), ImageGeometry.from_timm((480, 640), config), transform)


def processors():
    dinov2 = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}
    cases = [
        ("ViTImageProcessor", {}),
        ("DeiTImageProcessor", {}),
        ("BitImageProcessor", dinov2),
        ("BitImageProcessor", {"size": {"shortest_edge": 255}, "crop_size": {"height": 224, "width": 210}}),
        ("DINOv3ViTImageProcessor", {"size": {"height": 256, "width": 320}}),
        ("CLIPImageProcessor", {}),
        ("CLIPImageProcessor", {"do_resize": False}),
        ("SiglipImageProcessor", {}),
        ("Siglip2ImageProcessor", {"max_num_patches": 196}),
        ("BeitImageProcessor", {"do_center_crop": True, "size": {"height": 256, "width": 256}}),
        ("LevitImageProcessor", {}),
        ("YolosImageProcessor", {"size": {"shortest_edge": 320, "longest_edge": 480}}),
        (
            "YolosImageProcessor",
            {"size": {"shortest_edge": 300, "longest_edge": 400}, "pad_size": {"height": 480, "width": 512}},
        ),
    ]
    for name, options in cases:
        for variant in (name, f"{name}Pil"):
            if hasattr(transformers, variant) and (variant == name or not _is_dummy(variant)):
                yield pytest.param(variant, options, id=f"{variant}-{len(options)}-{options.get('size', '')}")


def _is_dummy(name):
    return "dummy" in inspect.getmodule(getattr(transformers, name)).__name__


def pixels_of(processor, *photos):
    batch = processor(images=list(photos), return_tensors="pt", do_normalize=False)
    pixels = batch["pixel_values"][0]
    if "spatial_shapes" in batch:
        (rows, columns), side = batch["spatial_shapes"][0].tolist(), processor.patch_size
        patches = pixels[: rows * columns].reshape(rows, columns, side, side, 3)
        pixels = patches.permute(4, 0, 2, 1, 3).reshape(3, rows * side, columns * side)
    return pixels


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name, options", processors())
def test_processors(name, options, size):
    processor = getattr(transformers, name)(**options)
    geometry = ImageGeometry.from_processor(size, processor)
    check_marker(size, geometry, lambda photo: pixels_of(processor, photo))


@pytest.mark.parametrize("size", [(100, 131), (131, 100), (97, 300), (225, 223)])
@pytest.mark.parametrize("name", ["CLIPImageProcessor", "CLIPImageProcessorPil"])
def test_crops_larger_than_the_photo_are_padded_as_each_backend_does(name, size):
    if not hasattr(transformers, name):
        pytest.skip("this transformers has one backend only")
    processor = getattr(transformers, name)(do_resize=False)
    seen = pixels_of(processor, Image.new("RGB", size[::-1], (255, 255, 255)))
    geometry = ImageGeometry.from_processor(size, processor)
    assert geometry.input_size == tuple(seen.shape[-2:])
    assert geometry.valid == valid_box(seen, 0.0)


def test_padding_to_a_batch():
    processor = transformers.YolosImageProcessor(size={"shortest_edge": 320, "longest_edge": 480})
    photo, point = marked((300, 500), (100, 420))
    seen = pixels_of(processor, photo, Image.new("RGB", (300, 500)))
    geometry = ImageGeometry.from_processor((300, 500), processor, input_size=tuple(seen.shape[-2:]))
    assert geometry.input_size == tuple(seen.shape[-2:])
    assert centroid(seen) == pytest.approx(geometry.to_input(*point), abs=0.3)
    assert geometry.visible == pytest.approx((0, 0, 300, 500))
    with pytest.raises(GeometryError, match="at least"):
        ImageGeometry.from_processor((300, 500), processor, input_size=(64, 64))


@pytest.mark.parametrize("size", [*SIZES, (225, 224), (100, 150)])
@pytest.mark.parametrize("crop", [(224, 224), (191, 224), (300, 160)])
def test_torchvision_chain(size, crop):
    transforms = pytest.importorskip("torchvision.transforms")
    pipeline = transforms.Compose([transforms.Resize(232), transforms.CenterCrop(crop), transforms.ToTensor()])
    geometry = ImageGeometry.identity(size).resize(232).center_crop(crop)
    seen = pipeline(Image.new("RGB", size[::-1], (255, 255, 255)))
    assert geometry.input_size == tuple(seen.shape[-2:])
    assert geometry.valid == valid_box(seen, 0.0)
    check_marker(size, geometry, pipeline)


def test_the_example_of_the_design():
    geometry = ImageGeometry.from_timm((428, 640), {"input_size": (3, 224, 224), "crop_pct": 0.9})
    top, left, bottom, right = geometry.visible
    assert left == pytest.approx(127, abs=1)
    assert right - left == pytest.approx(387, abs=1)
    assert bottom - top == pytest.approx(387, abs=1)


def test_point_maps_are_inverse_and_take_arrays_and_tensors():
    geometry = ImageGeometry.identity((480, 640)).resize((233, 301)).center_crop((224, 310)).pad(top=3, left=5, right=2)
    y, x = np.random.default_rng(0).uniform(0, 480, (2, 50))
    assert np.allclose(geometry.to_image(*geometry.to_input(y, x)), (y, x))
    there = geometry.to_input(torch.tensor(y), torch.tensor(x))
    assert np.allclose(torch.stack(there).numpy(), geometry.to_input(y, x))


def test_steps_return_new_geometries_and_keep_track_of_the_photo():
    start = ImageGeometry.identity((100, 200))
    cropped = start.crop((10, 20), (50, 60)).pad(top=10, bottom=10)
    assert start.input_size == (100, 200)
    assert cropped.input_size == (70, 60)
    assert cropped.valid == (10, 0, 60, 60)  # what was cut away does not come back as padding
    assert cropped.visible == (10, 20, 60, 80)
    assert cropped.resize((140, 120)).visible == (10, 20, 60, 80)
    assert start.resize(50, longest=80).input_size == (40, 80)


class OwnResize(transformers.CLIPImageProcessor):
    def resize(self, image, *args, **kwargs):
        return super().resize(image, *args, **kwargs)


class Inherits(transformers.CLIPImageProcessor):
    pass


def test_processors_that_are_not_known_are_measured():
    processor = transformers.CLIPImageProcessor()
    processor.do_tile = True  # an option that its code does not read
    assert ImageGeometry.from_processor((48, 64), processor).input_size == (224, 224)
    assert ImageGeometry.from_processor((48, 64), OwnResize()).input_size == (224, 224)
    assert ImageGeometry.from_processor((48, 64), Inherits()).input_size == (224, 224)
    with pytest.raises(GeometryError, match=r"makes several inputs of one photo: expected 1, got \d+\. Use .*of_each"):
        ImageGeometry.from_processor((48, 64), transformers.Idefics3ImageProcessor())
    with pytest.raises(GeometryError, match="expected an image processor of transformers"):
        ImageGeometry.from_processor((48, 64), object())

    class Both:
        image_processor = transformers.ViTImageProcessor()

    assert ImageGeometry.from_processor((48, 64), Both()).input_size == (224, 224)


@pytest.mark.parametrize(
    "build, clause",
    [
        (lambda start: ImageGeometry.identity((0, 4)), r"\(height, width\), whole and positive, got \(0, 4\)"),
        (lambda start: ImageGeometry.identity((3, 4, 4)), r"got \(3, 4, 4\)"),
        (
            lambda start: ImageGeometry.identity(Image.new("RGB", (4, 3))),
            r"got <PIL.* pass \(image\.height, image\.width\)",
        ),
        (lambda start: ImageGeometry.from_timm(Image.new("RGB", (4, 3)), {"input_size": 8}), r"got <PIL"),
        (lambda start: ImageGeometry.from_processor(224, object()), r"got 224"),
        (lambda start: start.resize("ab"), r"got 'ab'"),
        (lambda start: start.resize((4, 2.5)), r"got \(4, 2.5\)"),
        (lambda start: start.resize((4, 4), longest=5), r"longest"),
        (lambda start: start.crop((100, 0), (5, 5)), r"window that shows photo"),
        (lambda start: start.pad(top=-1), r"top=-1"),
        (lambda start: start.pad_to((5, 500)), r"at least \(48, 64\)"),
        (lambda start: ImageGeometry.from_timm((48, 64), {}), r"input_size"),
        (
            lambda start: ImageGeometry.from_timm((48, 64), {"input_size": (3, 8, 8), "crop_mode": "spiral"}),
            r"'spiral'",
        ),
        (lambda start: ImageGeometry.from_timm((48, 64), {"input_size": (3, 8, 8), "naflex": True}), r"naflex"),
        (
            lambda start: ImageGeometry.from_timm((8, 8), {"input_size": 8, "crop_border_pixels": 4}),
            r"crop_border_pixels",
        ),
    ],
)
def test_errors(build, clause):
    with pytest.raises(GeometryError, match=clause):
        build(ImageGeometry.identity((48, 64)))


def test_unknown_rounding():
    with pytest.raises(ValueError, match="rounding"):
        ImageGeometry.identity((48, 64)).center_crop(8, rounding="up")
