"""`load`: what comes back, that its geometry tells the truth, what it refuses, and the demo."""

import dataclasses
import socket
import sys

import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers
from PIL import Image
from safetensors.torch import save_file

from attnhook.errors import GeometryError, MissingPackageError, ModelLoadError
from attnhook.imaging.geometry import ImageGeometry
from attnhook.zoo import loading
from attnhook.zoo.loading import DIGITS_WEIGHTS, load
from attnhook.zoo.model_metadata import library_of
from attnhook.zoo.vision_models import VisionModel
from tests.zoo.saved_models import TIMM_NAME, photo, save_hf, save_timm, tiny_torchvision_vit


@pytest.fixture(scope="module")
def demo_cache(tmp_path_factory):
    """A cache of these tests' own: nothing is read from, or left in, the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTNHOOK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(params=["timm", "hf squash", "hf crop", "torchvision", "demo"])
def any_model(request, tmp_path, monkeypatch):
    if request.param == "timm":
        save_timm(tmp_path / "weights.safetensors")
        return load(f"timm:{TIMM_NAME}@{tmp_path / 'weights.safetensors'}")
    if request.param == "torchvision":
        monkeypatch.setattr(torchvision.models, "get_model", tiny_torchvision_vit)
        save_file(tiny_torchvision_vit("vit_b_16").state_dict(), tmp_path / "weights.safetensors")
        return load(f"torchvision:vit_b_16@{tmp_path / 'weights.safetensors'}")
    if request.param == "demo":
        request.getfixturevalue("demo_cache")
        return load("demo")
    save_hf(tmp_path)
    if request.param == "hf crop":
        crop = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
        transformers.CLIPImageProcessor(**crop).save_pretrained(tmp_path)
    return load(f"hf:{tmp_path}")


# What comes back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (64, 64), (301, 200)])
def test_pixels_have_the_shape_that_the_geometry_tells(any_model, shape):
    pixels, geometry = any_model.preprocess(photo(*shape))
    assert pixels.shape == (1, 3, *geometry.input_size)
    assert geometry.input_size == any_model.input_size
    assert geometry.image_size == shape
    assert pixels.dtype == torch.float32
    assert not pixels.requires_grad


@pytest.mark.parametrize("shape", [(120, 200), (200, 120)])
def test_a_spot_in_the_pixels_lies_where_the_geometry_says(any_model, shape):
    for spot in [(60, 60), (shape[0] // 2 + 20, shape[1] // 2 - 25)]:
        pixels, geometry = any_model.preprocess(photo(*shape, spot=spot))
        bright = pixels[0].mean(0)
        weight = (bright - bright.median()).clamp(min=0) / (bright - bright.median()).clamp(min=0).sum()
        row, column = (weight.sum(1 - axis) @ (torch.arange(weight.shape[axis]) + 0.5) for axis in (0, 1))
        found = geometry.to_image(row.item(), column.item())
        assert found == pytest.approx((spot[0] + 0.5, spot[1] + 0.5), abs=1.0)


def test_model_is_in_eval_mode_and_takes_the_pixels(any_model):
    assert not any(module.training for module in any_model.model.modules())
    pixels, _ = any_model.preprocess(photo())
    pixels = pixels[..., :112, :112] if any_model.name == "demo" else pixels
    with torch.no_grad():
        any_model.model(pixels)


def test_preprocess_takes_paths_arrays_and_tensors_alike(tmp_path):
    save_hf(tmp_path)
    model = load(f"hf:{tmp_path}")
    picture = photo()
    picture.save(tmp_path / "picture.png")
    array = np.asarray(picture)
    expected, _ = model.preprocess(picture)
    for image in (tmp_path / "picture.png", str(tmp_path / "picture.png"), array, torch.tensor(array).permute(2, 0, 1)):
        assert torch.equal(model.preprocess(image)[0], expected)


def test_vision_model_is_frozen_and_short_in_print(any_model):
    with pytest.raises(dataclasses.FrozenInstanceError):
        any_model.name = "other"
    assert repr(any_model).startswith(f"VisionModel(name='{any_model.name}', preprocess=")
    assert "Linear" not in repr(any_model)


def test_pixels_that_the_geometry_does_not_foretell_are_an_error():
    wrong = VisionModel(torch.nn.Identity(), lambda image: (torch.zeros(3, 8, 9), ImageGeometry.identity((60, 90))))
    with pytest.raises(GeometryError, match=r"a photo of 60 x 90 do not match: .* 60 x 90, .* got 8 x 9"):
        wrong.preprocess(photo())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("library", ["timm", "hf"])
def test_dtype_is_the_models_and_not_the_pixels(tmp_path, library, dtype):
    save_hf(tmp_path)
    save_timm(tmp_path / "weights.safetensors")
    spec = f"hf:{tmp_path}" if library == "hf" else f"timm:{TIMM_NAME}@{tmp_path / 'weights.safetensors'}"
    model = load(spec, dtype=dtype, device="cpu")
    assert {parameter.dtype for parameter in model.model.parameters()} == {dtype}
    assert model.preprocess(photo())[0].dtype == torch.float32


def test_half_precision_checkpoints_become_float32_unless_told(tmp_path):
    save_hf(tmp_path).half().save_pretrained(tmp_path)
    assert {parameter.dtype for parameter in load(f"hf:{tmp_path}").model.parameters()} == {torch.float32}


# Specs, hubs and packages ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec", ["", "vit_base_patch16_224", "tim:x", "timm:", "hf:", "torchvision:", "demo:", "demo:hf", "TIMM:x", None, 3]
)
def test_malformed_specs_list_the_forms(spec):
    with pytest.raises(ModelLoadError, match="expected one of the forms") as raised:
        load(spec)
    assert all(form in str(raised.value) for form in loading.SPEC_FORMS)
    assert repr(spec) in str(raised.value)


def test_a_bare_name_is_told_to_say_whose_it_is():
    with pytest.raises(ModelLoadError, match="Did you mean 'timm:vit_base_patch16_224' or 'hf:vit_base_patch16_224'"):
        load("vit_base_patch16_224")
    for library in ("timm", "hf:", "open_clip:"):
        with pytest.raises(ModelLoadError, match="Add the model's name"):
            load(library)


@pytest.mark.parametrize("path", ["/no/such/directory", "./no/such/directory", "~/no/such/directory"])
def test_paths_that_do_not_exist_are_not_looked_for_on_the_hub(path):
    with pytest.raises(ModelLoadError, match="expected a directory made by save_pretrained, got none"):
        load(f"hf:{path}")


@pytest.mark.parametrize(
    ("spec", "place", "name"),
    [
        ("timm:vit_tiny_patch16_224", timm, "create_model"),
        ("torchvision:vit_b_16", torchvision.models._api, "load_state_dict_from_url"),
        ("hf:google/vit-base-patch16-224", transformers.AutoImageProcessor, "from_pretrained"),
    ],
)
def test_a_hub_that_does_not_answer_is_a_load_error(monkeypatch, spec, place, name):
    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(place, name, fail)
    with pytest.raises(ModelLoadError, match=r"got OSError: no route to host.*connection") as raised:
        load(spec)
    assert isinstance(raised.value.__cause__, OSError)


@pytest.mark.parametrize(
    ("spec", "package"), [("timm:x", "timm"), ("hf:x/y", "transformers"), ("torchvision:x", "torchvision")]
)
def test_a_missing_package_carries_its_install_line(monkeypatch, spec, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.models", None)
    with pytest.raises(MissingPackageError, match=rf"Run `pip install {package}`"):
        load(spec)


@pytest.mark.parametrize("options", [{"device": "no-such-device"}, {"dtype": torch.int8}])
def test_impossible_devices_and_types_are_a_load_error(tmp_path, options):
    save_timm(tmp_path / "weights.safetensors")
    with pytest.raises(ModelLoadError, match=r"cannot (use the device .*|move timm:test_vit@.*): expected a device"):
        load(f"timm:{TIMM_NAME}@{tmp_path / 'weights.safetensors'}", **options)


# The demo -------------------------------------------------------------------------------------------------------------


def test_both_demos_see_the_pixels_that_timm_would_make(demo_cache):
    picture = photo(151, 230)
    ours, geometry = load("demo").preprocess(picture)
    timms = load("demo:timm")
    assert torch.equal(timms.preprocess(picture)[0], ours)
    config = timm.data.resolve_model_data_config(timms.model)
    assert torch.equal(timm.data.create_transform(**config, is_training=False)(picture)[None], ours)
    assert geometry == ImageGeometry.from_timm((151, 230), config)


@pytest.mark.slow
def test_both_demos_are_one_network(demo_cache):
    ours, timms = load("demo"), load("demo:timm")
    assert type(ours.model).__name__ == "Dinov2Model"
    assert (library_of(ours.model), library_of(timms.model)) == ("transformers", "timm")
    assert ours.labels is None
    pixels = torch.randn(1, 3, 518, 518, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            ours.model(pixels).last_hidden_state, timms.model.forward_features(pixels), atol=1e-5, rtol=0
        )


def test_digits_come_with_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and the photo's ten-fold pixels give back the pixels they were made of, within the photo's 8 bits."""
    monkeypatch.setattr(socket, "socket", None)
    digits = load("digits")
    assert digits.labels == tuple("0123456789")
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8))
    inputs = digits.prepare(small.resize((320, 320), Image.Resampling.NEAREST).convert("RGB")).inputs
    expected = torch.tensor(np.asarray(small), dtype=torch.float32) / 255 - 0.5
    assert (inputs.pixels - expected).abs().max() < 1.5 / 255
    with Image.open(DIGITS_WEIGHTS.with_name("digits.png")) as photo:
        scores = digits.model(digits.prepare(photo.convert("RGB")).inputs.pixels)[0]
    assert set(scores.topk(2).indices.tolist()) == {5, 0}
