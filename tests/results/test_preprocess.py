"""One meaning of `preprocess`: every form of it in every workflow, and what is said where it is missing."""

import logging
import pickle
from functools import partial

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from torchvision import transforms
from torchvision.models import VisionTransformer, ViT_B_16_Weights

from attnhook import AttentionMonitor, ImageGeometry, VisionModel, attend, compare, extract
from attnhook.errors import GeometryError
from attnhook.imaging import images
from attnhook.imaging.model_inputs import ModelInputs, as_inputs, batched, each_tensor, pixels_name, with_pixels
from attnhook.running.targets import run_vision
from attnhook.zoo import vision_models
from tests.comparison.zoo import photo

SIZE = 32
PHOTO = photo()
CENTRE = [transforms.Resize(40), transforms.CenterCrop(SIZE), transforms.ToTensor()]
COMPOSE = transforms.Compose([*CENTRE, transforms.Normalize([0.5] * 3, [0.5] * 3)])
CONFIG = {
    "input_size": (3, SIZE, SIZE),
    "crop_pct": 0.8,
    "mean": (0.5,) * 3,
    "std": (0.5,) * 3,
    "interpolation": "bilinear",
}
PROCESSOR = transformers.ViTImageProcessor(size={"height": SIZE, "width": SIZE})
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 8}


class Holder:
    """A processor that holds an image processor, as CLIPProcessor does."""

    image_processor = PROCESSOR

    def __call__(self, text=None, images=None, **options):
        raise AssertionError("the image processor is asked, which needs no text")


def in_a_dict(picture, **more):
    return {"pixel_values": COMPOSE(picture), "original_sizes": [picture.size], **more}


def with_geometry(picture):
    return COMPOSE(picture), ImageGeometry.identity((picture.height, picture.width)).resize(40).center_crop(SIZE)


def as_array(picture):
    return COMPOSE(picture).numpy()


def with_batch_axis(picture):
    return COMPOSE(picture)[None]


def batch_feature(picture):
    return PROCESSOR(picture, return_tensors="pt")


FORMS = {
    "transform": COMPOSE,
    "timm config": CONFIG,
    "timm transform": timm.data.create_transform(**CONFIG),
    "processor": PROCESSOR,
    "holder": Holder(),
    "weights": ViT_B_16_Weights.DEFAULT.transforms(crop_size=SIZE, resize_size=40),
    "dict": in_a_dict,
    "BatchFeature": batch_feature,
    "array": as_array,
    "batch axis": with_batch_axis,
    "with geometry": with_geometry,
}


def timm_vit(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model("test_vit", img_size=SIZE, num_classes=3, **options).eval()


def hf_vit(**options):
    config = transformers.ViTConfig(**SMALL, image_size=SIZE, **options)
    return transformers.ViTForImageClassification(config).eval()


def fed(preprocess):
    """The pixels that a form of preprocessing makes of the photo, by its own library."""
    if preprocess in (PROCESSOR, batch_feature) or isinstance(preprocess, Holder):
        return batch_feature(PHOTO)["pixel_values"]
    if preprocess is CONFIG:
        return FORMS["timm transform"](PHOTO)[None]
    return (
        COMPOSE(PHOTO)[None]
        if preprocess in (in_a_dict, as_array, with_batch_axis, with_geometry)
        else preprocess(PHOTO)[None]
    )


@pytest.mark.parametrize("make", [timm_vit, hf_vit])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_in_attend_and_in_a_vision_model(form, make):
    model, preprocess = make(), FORMS[form]
    (result,) = attend(model, PHOTO, preprocess=preprocess)
    vision = VisionModel(model, preprocess)
    (again,) = attend(vision, PHOTO)
    assert torch.equal(result.attention, again.attention)
    pixels, geometry = vision.preprocess(PHOTO)
    assert torch.equal(pixels, fed(preprocess))
    assert result.geometry == geometry
    assert geometry.image_size == (PHOTO.height, PHOTO.width)
    squashed = form in {"processor", "holder", "BatchFeature"}
    expected = ImageGeometry.identity((90, 120))
    expected = expected.resize((SIZE, SIZE)) if squashed else expected.resize(40).center_crop(SIZE)
    for one, other in (
        (geometry.scale, expected.scale),
        (geometry.offset, expected.offset),
        (geometry.valid, expected.valid),
    ):
        assert one == pytest.approx(other, abs=0.1, rel=0.02)
    with torch.no_grad():
        assert result.attention.shape == (result.maps.layout.grid)
    picture = result.overlay()
    assert picture.size == PHOTO.size


@pytest.mark.parametrize("form", FORMS)
def test_every_form_in_a_monitor(form):
    monitor = AttentionMonitor(timm_vit(), [PHOTO, photo(seed=1)], preprocess=FORMS[form], every_n_steps=1, writers=())
    assert torch.equal(monitor._probe.inputs.pixels[:1], fed(FORMS[form]))
    assert monitor.step(0)
    assert AttentionMonitor(hf_vit(), PHOTO, preprocess=FORMS[form], every_n_steps=1, strict=True, writers=()).step(0)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_in_a_comparison_and_an_extraction(form, tmp_path):
    vision = VisionModel(hf_vit(), FORMS[form], name="hf", labels=("a", "b"))
    (expected,) = attend(vision, PHOTO)
    methods = ["raw_attention", "gradient_attention"]
    found = compare([vision], [PHOTO], methods=methods, faithfulness=True, cache=None, progress=False)
    assert found.failures == ()
    torch.testing.assert_close(found.measurements[0, 0].maps["raw_attention"].values, expected.attention)
    for number in range(3):
        photo(seed=number).save(tmp_path / f"{number}.png")
    workers = 1 if form == "dict" else 0
    maps = extract(
        vision,
        tmp_path / "*.png",
        tmp_path / "out",
        methods=methods,
        dtype="float32",
        num_workers=workers,
        progress=False,
    )
    assert not maps.errors
    torch.testing.assert_close(
        maps[0][f"rows.{maps.manifest.blocks[0]}"].mean(0)[0, 1:], expected.attention.flatten(), atol=1e-5, rtol=0
    )


def test_preprocessing_goes_to_spawned_workers_without_the_model(tmp_path, monkeypatch):
    from attnhook.extraction import extract_maps as runs

    PHOTO.save(tmp_path / "0.png")
    seen = []
    kept = runs.PhotoBatches
    monkeypatch.setattr(runs, "PhotoBatches", lambda *parts: seen.append(kept(*parts)) or seen[-1])
    extract(VisionModel(hf_vit(), COMPOSE), tmp_path / "0.png", tmp_path / "out", num_workers=0, progress=False)
    sent = pickle.dumps(seen[0])
    assert b"ViTFor" not in sent
    assert len(sent) < 10_000


# What is taken where none is given ---------------------------------------------------------------------------------------------


def test_a_timm_model_brings_its_own_and_says_so(caplog, tmp_path):
    model = timm.create_model("test_vit", num_classes=3).eval()
    vision_models._log_once.cache_clear()
    with caplog.at_level(logging.INFO, "attnhook"):
        (result,) = attend(model, PHOTO)
        attend(model, PHOTO)
    words = "its own pretrained_cfg: 160 x 160 px, crop_pct 0.95"
    assert [record.message for record in caplog.records] == [
        f"no preprocess= was given: test_vit is fed photos as {words}"
    ]
    assert result.caption.startswith(f"test_vit (photos prepared as {words}): raw attention, CLS to patches")
    assert repr(VisionModel(model)) == f"VisionModel(name='test_vit', preprocess={words})"
    config = timm.data.resolve_model_data_config(model)
    (explicit,) = attend(model, PHOTO, preprocess=timm.data.create_transform(**config, is_training=False))
    assert torch.equal(explicit.attention, result.attention)
    assert explicit.caption.startswith("test_vit: raw attention")
    assert VisionModel(model).input_size == (160, 160)
    assert VisionModel(model).preprocessing is VisionModel(model).preprocessing
    found = compare([model], [PHOTO], cache=None, progress=False)
    assert [entry.name for entry in found.models] == ["test_vit"]
    assert [entry.library for entry in found.models] == ["timm"]
    torch.testing.assert_close(found.measurements[0, 0].maps["raw_attention"].values, result.attention)
    assert compare({"own": lambda: model}, [PHOTO], cache=None, progress=False).failures == ()
    PHOTO.save(tmp_path / "0.png")
    assert len(extract(model, tmp_path / "0.png", tmp_path / "out", num_workers=0, progress=False)) == 1
    monitor = AttentionMonitor(model, PHOTO, every_n_steps=1, writers=())
    assert f"1 image prepared as {words}" in repr(monitor)
    assert "prepared as" not in repr(AttentionMonitor(model, PHOTO, preprocess=COMPOSE, every_n_steps=1, writers=()))


def test_a_timm_model_of_another_size_is_fed_that_size():
    vision = VisionModel(timm_vit(dynamic_img_size=False))
    assert vision.preprocess(PHOTO)[0].shape == (1, 3, SIZE, SIZE)
    assert "32 x 32 px" in repr(vision)
    assert attend(vision, PHOTO)[0].attention.shape == (2, 2)


def test_a_compiled_or_tuned_timm_model_brings_its_own_too():
    peft = pytest.importorskip("peft")
    model = timm_vit()
    assert VisionModel(torch.compile(model, backend="eager")).name == "test_vit"
    tuned = peft.get_peft_model(timm_vit(), peft.LoraConfig(target_modules=["qkv"]))
    assert VisionModel(tuned).name == "test_vit"
    assert attend(tuned, PHOTO)[0].attention.shape == (2, 2)
    assert attend(tuned, PHOTO, preprocess=in_a_dict)[0].attention.shape == (2, 2)


def named(model, name):
    model.config._name_or_path = name
    return model


@pytest.mark.parametrize(
    ("model", "asked"),
    [
        (
            named(hf_vit(), "facebook/dinov2-small"),
            "cannot prepare photos for a bare ViTForImageClassification: expected preprocess=, got none, and the model brings no preprocessing "
            "of its own; pass preprocess=AutoImageProcessor.from_pretrained('facebook/dinov2-small'), or",
        ),
        (hf_vit(), "preprocess=AutoImageProcessor.from_pretrained('the checkpoint of the model'), or"),
        (VisionTransformer(32, 16, 1, 2, 8, 8), "preprocess=ViT_B_16_Weights.DEFAULT.transforms(), or"),
        (VisionTransformer(32, 32, 1, 2, 1024, 8), "preprocess=ViT_L_32_Weights.DEFAULT.transforms(), or"),
        (torch.nn.Sequential(timm_vit()), "for a bare Sequential: expected preprocess="),
    ],
)
def test_other_models_ask_for_it_in_one_sentence(model, asked, tmp_path):
    calls = [
        partial(attend, model, PHOTO),
        partial(VisionModel, model),
        partial(AttentionMonitor, model, PHOTO, writers=()),
        partial(compare, [model], [PHOTO]),
        partial(compare, {"own": model}, [PHOTO]),
        partial(extract, model, tmp_path, tmp_path / "out"),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="pass preprocess=") as raised:
            call()
        assert asked in str(raised.value)
        assert str(raised.value).count(". ") == 0


def test_pixels_need_no_preprocessing():
    assert AttentionMonitor(hf_vit(), torch.rand(1, 3, SIZE, SIZE), every_n_steps=1, writers=()).step(0)


@pytest.mark.parametrize("wrong", [7, None, SMALL])
def test_what_is_no_model(wrong):
    with pytest.raises(TypeError, match=r"expected a .*torch\.nn\.Module"):
        attend(wrong, PHOTO)
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module"):
        VisionModel(wrong, COMPOSE)


# What the model gets -----------------------------------------------------------------------------------------------------------


def test_names_and_labels_are_the_models():
    names = {0: "cat", 1: "dog"}
    assert VisionModel(hf_vit(id2label=names), COMPOSE).labels == ("cat", "dog")
    assert VisionModel(hf_vit(), COMPOSE).labels is None  # LABEL_0 and LABEL_1
    headless = transformers.ViTModel(transformers.ViTConfig(**SMALL, image_size=SIZE, id2label=names))
    assert VisionModel(headless, COMPOSE).labels is None
    assert VisionModel(headless, COMPOSE).name == "ViTModel"
    assert VisionModel(named(headless, "a/b"), COMPOSE).name == "a/b"
    assert VisionModel(timm_vit(), COMPOSE).labels is None
    imagenet = VisionModel(timm.create_model("test_vit"), COMPOSE).labels
    assert imagenet[281].startswith("tabby")
    own = timm_vit()
    own.pretrained_cfg["label_names"] = ["a", "b", "c"]
    assert VisionModel(own, COMPOSE).labels == ("a", "b", "c")
    assert VisionModel(own, COMPOSE, labels={1: "y", 0: "x", 2: "z"}).labels == ("x", "y", "z")
    vision = VisionModel(hf_vit(id2label=names), COMPOSE, labels=["one", "two"], name="mine")
    assert attend(vision, PHOTO, method="legrad", target="two")[0].settings.target == "two"
    assert (
        attend(hf_vit(id2label=names), PHOTO, preprocess=COMPOSE, method="legrad", target="dog")[0].settings.target
        == "dog"
    )
    assert vision.with_model(hf_vit()).labels == ("one", "two")
    assert vision.with_preprocess(CONFIG).name == "mine"


def test_another_model_keeps_what_was_assumed(caplog):
    vision = VisionModel(timm.create_model("test_vit", num_classes=3).eval())
    caplog.clear()
    with caplog.at_level(logging.INFO, "attnhook"):
        other = vision.with_model(torch.nn.Sequential(vision.model))
    assert not caplog.records
    assert other.assumed == vision.assumed == "its own pretrained_cfg: 160 x 160 px, crop_pct 0.95"
    assert (other.preprocessing, other.name, other.labels) == (vision.preprocessing, vision.name, vision.labels)
    assert vision.with_preprocess(lambda photo: photo).assumed is None
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got VisionModel"):
        vision.with_model(vision)


def test_a_models_keywords_and_no_others():
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))

        def forward(self, image, mask=None, *, grid=None, wide=False):
            return image, mask, grid, wide

    made = as_inputs(
        {
            "pixel_values": torch.rand(3, 4, 4),
            "mask": torch.ones(1, 4),
            "grid": torch.tensor([[2, 2]]),
            "original_sizes": [1],
        }
    )
    image, mask, grid, wide = run_vision(Own(), made, {"wide": True})
    assert (image.dtype, mask.dtype, grid.dtype, wide) == (torch.float64, torch.float64, torch.int64, True)
    assert image.shape == (1, 3, 4, 4)

    class Through(torch.nn.Module):
        def forward(self, **keywords):
            return keywords

    assert set(run_vision(Through(), made)) == {"pixel_values", "mask", "grid", "original_sizes"}


def test_model_kwargs_reach_the_forward():
    model = hf_vit()
    wide = transforms.Compose([transforms.Resize((48, 64)), transforms.ToTensor()])
    options = {"preprocess": wide, "model_kwargs": {"interpolate_pos_encoding": True}}
    assert attend(model, PHOTO, **options)[0].attention.shape == (6, 8)
    assert attend(model, PHOTO, method="legrad", target=0, **options)[0].attention.shape == (6, 8)
    assert attend(VisionModel(model, wide), PHOTO, model_kwargs=options["model_kwargs"])[0].attention.shape == (6, 8)
    with pytest.raises(ValueError, match="doesn't match model"):
        attend(model, PHOTO, preprocess=wide)


def test_a_clip_model_and_its_processor():
    text = {**SMALL, "vocab_size": 10, "max_position_embeddings": 8}
    text.pop("patch_size")
    config = transformers.CLIPConfig(text_config=text, vision_config={**SMALL, "image_size": SIZE})
    model = transformers.CLIPModel(config).eval()
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 40}, crop_size={"height": SIZE, "width": SIZE})
    (result,) = attend(model, PHOTO, preprocess=processor)
    assert result.attention.shape == (4, 4)
    (wider,) = attend(model, PHOTO, preprocess=COMPOSE, model_kwargs={"interpolate_pos_encoding": True})
    assert wider.attention.shape == (4, 4)
    assert compare([VisionModel(model, processor)], [PHOTO], cache=None, progress=False).failures == ()


def test_packed_patches_with_everything_that_belongs_to_them(tmp_path):
    model = transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**SMALL, num_patches=16)).eval()
    processor = transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    vision = VisionModel(model, processor)
    (result,) = attend(vision, PHOTO)
    grid = tuple(processor(PHOTO, return_tensors="pt")["spatial_shapes"][0].tolist())
    assert result.attention.shape == grid
    with pytest.raises(GeometryError, match=r"packs patches: expected pixels .* got \(1, 16, 192\)"):
        vision.preprocess(PHOTO)
    assert compare([vision], [PHOTO], cache=None, progress=False).failures == ()


# Errors ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [torch.zeros(3, 3, SIZE, SIZE), torch.zeros(1, 3, 3, SIZE, SIZE)])
def test_several_inputs_of_one_photo(made):
    for call in (partial(attend, hf_vit()), partial(AttentionMonitor, hf_vit(), writers=())):
        with pytest.raises(GeometryError, match="expected one input per photo, got 3"):
            call(PHOTO, preprocess=lambda picture: {"pixel_values": made})


def test_the_geometry_of_another_photo():
    def turned(picture):
        return COMPOSE(picture), ImageGeometry.identity(picture.size).resize(40).center_crop(SIZE)

    with pytest.raises(GeometryError, match=r"another photo: expected image_size \(90, 120\), got \(120, 90\)"):
        attend(hf_vit(), PHOTO, preprocess=turned)


def test_what_is_no_preprocessing():
    with pytest.raises(GeometryError, match="expected"):
        attend(hf_vit(), PHOTO, preprocess=7)


# Reading once ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["transform", "processor", "with geometry"])
def test_a_photo_is_read_once(form, tmp_path, monkeypatch):
    PHOTO.save(tmp_path / "photo.jpg")
    counted = {"opened": 0, "converted": 0}
    opened, converted = Image.open, images._from_pil

    def count(name, function, *arguments, **options):
        counted[name] += 1
        return function(*arguments, **options)

    monkeypatch.setattr(Image, "open", partial(count, "opened", opened))
    monkeypatch.setattr(images, "_from_pil", partial(count, "converted", converted))
    (result,) = attend(hf_vit(), tmp_path / "photo.jpg", preprocess=FORMS[form])
    assert counted == {"opened": 1, "converted": 1}
    assert result.image.size == PHOTO.size


def test_a_preprocessing_that_works_in_place_leaves_the_photo_that_is_drawn():
    def shrinks(picture):
        size = (picture.height, picture.width)
        picture.thumbnail((32, 32))
        return transforms.functional.to_tensor(picture.resize((SIZE, SIZE))), ImageGeometry.identity(size).resize(
            (SIZE, SIZE)
        )

    (result,) = attend(hf_vit(), PHOTO, preprocess=shrinks)
    assert np.array_equal(np.asarray(result.image), np.asarray(PHOTO))


# Inputs as one -----------------------------------------------------------------------------------------------------------------


def test_inputs_stay_together():
    one = as_inputs({"pixel_values": torch.rand(3, 4, 4), "names": ["a"], "scale": 2.0, "grid": torch.tensor([[1, 2]])})
    both = batched([one, one])
    assert both.pixels.shape == (2, 3, 4, 4)
    assert pixels_name(both) == "pixel_values"
    assert both.keywords["names"] == ["a", "a"]
    assert both.keywords["scale"] == 2.0
    assert both.keywords["grid"].tolist() == [[1, 2], [1, 2]]
    for changed in (
        each_tensor(both, torch.clone),
        with_pixels(both, torch.zeros(2, 3, 4, 4)),
        pickle.loads(pickle.dumps(both)),  # noqa: S301 (ours)
    ):
        assert changed.keywords["pixel_values"] is changed.pixels
    assert pixels_name(ModelInputs(torch.zeros(1))) is None
