"""Preprocessings that are measured: markers land where they should, and what cannot be followed is refused."""

import gc
import random
import time

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from attnhook.errors import GeometryError
from attnhook.imaging.calling import run
from attnhook.imaging.geometry import ImageGeometry
from attnhook.imaging.geometry_cache import cache_of
from attnhook.imaging.measurement import measure
from tests.conformance.markers import misplaced
from tests.conformance.preprocessings import letterboxed, other_cases, subclass, timm_transform
from tests.conformance.walk_preprocessing import SIZES

transforms = pytest.importorskip("torchvision.transforms")
functional = pytest.importorskip("torchvision.transforms.functional")
transformers = pytest.importorskip("transformers")
timm = pytest.importorskip("timm")

to_tensor = transforms.ToTensor()


def small(photo):
    return photo.resize((112, 96))


def generator_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


def checked(preprocess, size, mirrors=False):
    each = ImageGeometry.of_each(preprocess, size)
    wrong, compared = misplaced(preprocess, size, each, np.random.default_rng(0), mirrors=mirrors)
    assert wrong is None
    assert compared or mirrors
    return each


NEEDED = {"albumentations": "albumentations", "kornia": "kornia", "OpenCV": "cv2"}


@pytest.mark.parametrize("number, case", list(enumerate(other_cases())), ids=lambda value: getattr(value, "name", ""))
def test_transforms_and_functions(number, case):
    for word, package in NEEDED.items():
        if word in case.name:
            pytest.importorskip(package)
    if "subclass mirrors" in case.name:
        with pytest.raises(GeometryError, match="mirrored left to right"):
            ImageGeometry.of(case.make(None), (61, 40))
        return
    checked(case.make(None), SIZES[number % 5], case.mirrors)
    checked(case.make(np.random.default_rng(number)), SIZES[(number + 2) % 5], case.mirrors)


PROCESSORS = [
    ("LevitImageProcessor", {"size": {"shortest_edge": 160, "longest_edge": 800}}, 0),
    (
        "DetrImageProcessor",
        {
            "size": {"shortest_edge": 200, "longest_edge": 600},
            "do_center_crop": True,
            "crop_size": {"height": 200, "width": 400},
        },
        1,
    ),
    ("BeitImageProcessor", {"do_pad": True, "pad_size": {"height": 384, "width": 384}}, 1),
    ("Owlv2ImageProcessor", {"size": {"height": 256, "width": 256}}, 0),
    ("Siglip2ImageProcessor", {}, 4),
    ("Qwen2VLImageProcessor", {"max_pixels": 200_000}, 2),
    ("Qwen2VLImageProcessor", {"max_pixels": 200_000}, 0),
    ("PixtralImageProcessor", {"size": {"longest_edge": 300}}, 3),
    ("Pix2StructImageProcessor", {"max_patches": 256}, 0),
    ("LlavaNextImageProcessor", {}, 1),
    ("Idefics3ImageProcessor", {"size": {"longest_edge": 728}}, 0),
    ("LlavaOnevisionImageProcessor", {"size": {"height": 128, "width": 128}}, 4),
    ("MllamaImageProcessor", {}, 0),
]


@pytest.mark.filterwarnings(
    "ignore:The following named arguments are not valid"
)  # by transformers 4, which leaves them out
@pytest.mark.parametrize("name, options, size", PROCESSORS)
def test_processors(name, options, size):
    if not hasattr(transformers, name):
        pytest.skip(f"no {name} here")
    checked(getattr(transformers, name)(**options), SIZES[size])


def test_padding_tiles_have_no_geometry_and_others_one_each():
    processor = transformers.MllamaImageProcessor()
    each = ImageGeometry.of_each(processor, (300, 900))
    assert [geometry is None for geometry in each] == [False, False, False, True]
    assert each[0].visible[3] < each[2].visible[1] + 1


def test_padding_rows_of_packed_patches_count():
    kind = getattr(transformers, "Glm5NextImageProcessor", None)
    if kind is None:
        pytest.skip("no processor here that counts rows of padding")
    rows, columns = run(kind(), Image.new("RGB", (640, 480))).keywords["image_grid_thw"][0, 1:].tolist()
    geometry = ImageGeometry.of(kind(), (480, 640))
    assert geometry.input_size == (rows * 14, columns * 14)
    assert geometry.valid[2] < geometry.input_size[0]
    assert geometry.visible == pytest.approx((0, 0, 480, 640), abs=1)


@pytest.mark.parametrize("shuffled", [False, True])
def test_packed_patches_in_any_order(shuffled):
    order = np.random.default_rng(3).permutation(35) if shuffled else np.arange(35)

    def preprocess(photo):
        patches = to_tensor(photo.resize((7 * 16, 5 * 16))).unfold(1, 16, 16).unfold(2, 16, 16)
        return {
            "pixel_values": patches.permute(1, 2, 0, 3, 4).reshape(35, -1)[order],
            "image_grid_thw": torch.tensor([[1, 5, 7]]),
        }

    (placement,) = measure(preprocess, (200, 300))
    assert placement.input_size == (80, 112)
    assert placement.scale == pytest.approx((80 / 200, 112 / 300))
    assert placement.offset == pytest.approx((0, 0))
    assert placement.valid == pytest.approx((0, 0, 80, 112))


@pytest.mark.parametrize("method", ["preprocess", "__call__"])
def test_a_subclass_that_pads_is_placed_where_it_pads(method):
    def square(photo):
        return letterboxed(photo, max(photo.size))

    processor = subclass(method, square, None)
    geometry = ImageGeometry.from_processor((320, 640), processor)
    assert geometry.visible == pytest.approx((0, 0, 320, 640), abs=1)
    assert geometry.valid == pytest.approx((56, 0, 168, 224), abs=0.2)


def test_an_exact_pipeline_is_exact_and_measured_equals_it():
    steps = [transforms.Resize(99), transforms.CenterCrop((90, 110)), to_tensor]
    exact = ImageGeometry.identity((301, 411)).resize(99).center_crop((90, 110))
    assert ImageGeometry.of(transforms.Compose(steps), (301, 411)) == exact
    measured = ImageGeometry.measured(transforms.Compose(steps), (301, 411))
    assert (measured.scale, measured.offset, measured.valid) == (exact.scale, exact.offset, exact.valid)


def test_a_pipeline_that_says_one_thing_and_does_another():
    class Lying(transforms.Resize):
        def forward(self, img):
            return letterboxed(img, 128)

    Lying.__module__ = "torchvision.transforms.transforms"
    Lying.__name__ = "Resize"
    geometry = ImageGeometry.of(transforms.Compose([Lying((128, 128)), to_tensor]), (300, 600))
    assert geometry.valid == pytest.approx((32, 0, 96, 128), abs=0.2)


def test_timm_models_configs_and_transforms():
    model = timm.create_model("test_vit").eval()
    config = timm.data.resolve_model_data_config(model)
    exact = ImageGeometry.from_timm((200, 333), config)
    assert ImageGeometry.from_timm((200, 333), model) == exact
    for preprocess in (model, config, timm.data.create_transform(**config), timm_transform("test_vit", "center", None)):
        assert ImageGeometry.of(preprocess, (200, 333)).input_size == exact.input_size
    assert ImageGeometry.of(model, (200, 333)) == exact
    assert run(model, Image.new("RGB", (50, 40))).pixels.shape == (1, *config["input_size"])
    with pytest.raises(GeometryError, match="data config or a timm model, got int"):
        ImageGeometry.from_timm((200, 333), 5)


def test_photos_of_every_kind_and_geometries(tmp_path):
    upright = Image.new("RGB", (60, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.save(tmp_path / "turned.jpg", exif=exif)

    def preprocess(photo):
        return to_tensor(small(photo))

    with Image.open(tmp_path / "turned.jpg") as opened:
        assert ImageGeometry.of(preprocess, opened).image_size == (60, 40)
    for photo, size in (
        (upright, (40, 60)),
        (np.zeros((40, 60, 3), np.uint8), (40, 60)),
        (tmp_path / "turned.jpg", (60, 40)),
        ((40, 60), (40, 60)),
    ):
        assert ImageGeometry.of(preprocess, photo).image_size == size
    geometry = ImageGeometry.identity((40, 60)).resize((8, 8))
    assert ImageGeometry.of(geometry, upright) == geometry
    with pytest.raises(GeometryError, match=r"of another photo: expected image_size \(41, 60\), got \(40, 60\)"):
        ImageGeometry.of(geometry, (41, 60))
    with pytest.raises(GeometryError, match=r"got \(7, 'x'\)"):
        ImageGeometry.of(preprocess, (7, "x"))
    with pytest.raises(GeometryError, match=r"expected a transform, .*got int"):
        ImageGeometry.of(5, (40, 60))


def test_a_function_that_says_where():
    def says(photo, wrong=0):
        start = ImageGeometry.identity((photo.height, photo.width)).crop((1, 2), (20, 30))
        return to_tensor(photo.crop((2, 1, 32 + wrong, 21))), start

    assert ImageGeometry.of(says, (40, 60)).offset == (-1, -2)
    assert ImageGeometry.of(says, (50, 60)).image_size == (50, 60)
    with pytest.raises(GeometryError, match=r"expected pixels of 20 x 30, the geometry's input_size, got 20 x 33"):
        ImageGeometry.of(lambda photo: says(photo, 3), Image.new("RGB", (60, 40)))
    with pytest.raises(GeometryError, match=r"expected image_size \(40, 60\), got \(4, 4\)"):
        ImageGeometry.of(lambda photo: (to_tensor(photo), ImageGeometry.identity((4, 4))), (40, 60))


OWN = np.random.default_rng()
CORNERS = [[0, 0], [111, 0], [111, 95], [0, 95]]


def standardised(photo):
    pixels = to_tensor(small(photo))
    return (pixels - pixels.mean()) / (pixels.std() + 1e-6)


def cropped_to_content(photo):
    box = photo.convert("L").point(lambda value: 255 * (value < 128)).getbbox()
    return to_tensor(small(photo.crop(box)))


REFUSED = {
    "random crop": (
        transforms.Compose([transforms.RandomResizedCrop(64), to_tensor]),
        "random transform RandomResizedCrop",
    ),
    "jitter": (transforms.Compose([transforms.ColorJitter(0.4), to_tensor]), "random transform ColorJitter"),
    "random flip": (
        transforms.Compose([transforms.RandomHorizontalFlip(), to_tensor]),
        "random transform RandomHorizontalFlip",
    ),
    "hidden crop": (lambda photo: to_tensor(transforms.RandomResizedCrop(64)(photo)), "same input every time"),
    "hidden jitter": (lambda photo: to_tensor(transforms.ColorJitter(0.4)(small(photo))), "same input every time"),
    "rare flip": (lambda photo: to_tensor(transforms.RandomHorizontalFlip(0.2)(small(photo))), "same input every time"),
    "own generator": (
        lambda photo: to_tensor(small(photo).crop((*OWN.integers(0, 30, 2), 99, 90)).resize((64, 64))),
        "same input every",
    ),
    "rotation": (
        lambda photo: to_tensor(functional.rotate(small(photo), 10)),
        r"one upright box|turned or sheared by about",
    ),
    "slight rotation": (
        lambda photo: to_tensor(functional.rotate(small(photo), 1.5)),
        r"turned or sheared by about 1\.\d degrees",
    ),
    "perspective": (
        lambda photo: functional.perspective(to_tensor(small(photo)), CORNERS, [[9, 4], *CORNERS[1:]]),
        "straight line|one upright box",
    ),
    "standardised": (standardised, "standardises the brightness|do not add up"),
    "equalised": (lambda photo: to_tensor(ImageOps.equalize(small(photo))), "do not add up|straight line"),
    "autocontrast": (lambda photo: to_tensor(ImageOps.autocontrast(small(photo))), "do not add up|straight line"),
    "gamma": (lambda photo: to_tensor(small(photo)) ** 2.2, "do not add up|straight line"),
    "content": (cropped_to_content, "depends on the photo's size alone|do not add up"),
    "mirrored": (lambda photo: to_tensor(ImageOps.mirror(small(photo))), "mirrored left to right"),
    "upside down": (lambda photo: to_tensor(ImageOps.flip(small(photo))), "mirrored top to bottom"),
    "transposed": (lambda photo: to_tensor(small(photo)).transpose(1, 2), "transposed"),
    "not finite": (lambda photo: to_tensor(small(photo)) / 0, "finite pixels"),
    "one pixel": (lambda photo: to_tensor(photo.resize((1, 1))), "4 pixels or more"),
    "not pixels": (lambda photo: {"words": 3}, "'pixel_values' in it"),
    "words": (lambda photo: "a photo", "got str"),
    "a vector": (lambda photo: to_tensor(photo).mean((1, 2)), "packed patches, got"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_what_was_seen(name):
    preprocess, seen = REFUSED[name]
    states = generator_states()
    for size in ((240, 320), (90, 900)):
        with pytest.raises(GeometryError, match=seen):
            ImageGeometry.of(preprocess, size)
    assert states == generator_states()


@pytest.mark.parametrize("name", ["rotation", "standardised", "equalised", "autocontrast", "gamma", "perspective"])
def test_the_ramps_alone_refuse_most(name):
    with pytest.raises(GeometryError):
        measure(REFUSED[name][0], (240, 320), repeats=0)


def test_generators_are_left_alone():
    def draws(photo):
        random.random()  # noqa: S311
        np.random.rand()  # noqa: NPY002
        torch.rand(1)
        return to_tensor(small(photo))

    states = generator_states()
    assert ImageGeometry.of(draws, (60, 80)).input_size == (96, 112)
    assert states == generator_states()


def test_measured_once_per_size_and_again_when_it_changes():
    class Counting:
        calls = 0

        def __init__(self):
            self.size = (50, 40)

        def __call__(self, photo):
            Counting.calls += 1
            return to_tensor(photo.resize(self.size))

    preprocess = Counting()
    first = ImageGeometry.of(preprocess, (60, 80))
    calls = Counting.calls
    began = time.process_time()
    assert ImageGeometry.of(preprocess, (60, 80)) == first == ImageGeometry.measured(preprocess, (60, 80))
    assert time.process_time() - began < 0.1
    assert Counting.calls == calls
    assert ImageGeometry.of(preprocess, (61, 80)).image_size == (61, 80)
    preprocess.size = (30, 20)
    assert ImageGeometry.of(preprocess, (60, 80)).input_size == (20, 30)
    assert cache_of(preprocess.__call__) is cache_of(preprocess.__call__)
    processor = transformers.ViTImageProcessor()
    assert ImageGeometry.of(processor, (60, 80)).input_size == (224, 224)
    processor.size = {"height": 64, "width": 96}
    assert ImageGeometry.of(processor, (60, 80)).input_size == (64, 96)


def test_what_is_remembered_goes_with_the_preprocessing():
    from attnhook.imaging import geometry_cache

    def preprocess(photo):
        return to_tensor(small(photo))

    before = len(geometry_cache._weak)
    ImageGeometry.of(preprocess, (60, 80))
    assert len(geometry_cache._weak) == before + 1
    del preprocess
    gc.collect()
    assert len(geometry_cache._weak) <= before
    for edge in range(200):
        cache_of({"input_size": (3, edge, edge)})
    assert len(geometry_cache._strong) <= 64


def test_errors_of_the_preprocessing_pass_through():
    def fails(photo):
        raise RuntimeError("no such photo")

    with pytest.raises(RuntimeError, match="no such photo"):
        ImageGeometry.of(fails, (60, 80))


def test_a_preprocessing_that_takes_no_small_photos():
    def picky(photo):
        if min(photo.size) < 100:
            raise ValueError("too small")
        return to_tensor(small(photo))

    assert ImageGeometry.of(picky, (120, 160)).input_size == (96, 112)


def test_measuring_a_photo_of_twelve_megapixels_costs_little_beside_the_calls():
    spent = 0.0

    def preprocess(photo):
        nonlocal spent
        began = time.process_time()
        made = to_tensor(photo.resize((224, 224)))
        spent += time.process_time() - began
        return made

    began = time.process_time()
    ImageGeometry.measured(preprocess, (3000, 4000))
    assert time.process_time() - began - spent < 0.5


def test_brightness_that_is_rounded_down_moves_nothing_silently():
    """Filters in whole numbers lose a grey level or two, but not of black and white: a wide photo seems to lie further on."""

    def rounded_down(photo):
        pixels = np.asarray(photo.convert("L").resize((400, 60), Image.Resampling.BOX), np.int64)
        pixels = pixels - 2 * ((pixels > 0) & (pixels < 255))
        return torch.from_numpy(pixels / 255)[None].repeat(3, 1, 1).float()

    with pytest.raises(GeometryError, match="pixels beyond the photo's end horizontally"):
        ImageGeometry.measured(rounded_down, (360, 2400))


def test_target_sizes_of_a_detector_are_no_grids():
    def detector(photo):
        pixels = to_tensor(photo.resize((96, 64)))[None]
        return {"pixel_values": pixels, "target_sizes": torch.tensor([photo.height, photo.width])}

    assert ImageGeometry.of(detector, (128, 192)).scale == (0.5, 0.5)
