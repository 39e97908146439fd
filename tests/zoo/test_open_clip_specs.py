"""`open_clip:NAME/TAG` and `open_clip:NAME@FILE.safetensors`, with tiny models of open_clip's own classes."""

import json
import logging

import pytest
import torch
from safetensors.torch import save_file

from attnhook import attend, load
from attnhook.errors import ModelLoadError
from tests.zoo.saved_models import photo

open_clip = pytest.importorskip("open_clip")

TEXT = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
VISION = {
    "tiny-vit": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "tiny-timm": {
        "timm_model_name": "test_vit",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": 160,
    },
}
SIGLIP = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic", "resize_mode": "squash"}
PLAIN = {**SIGLIP, "mean": (0.1, 0.2, 0.3), "resize_mode": "shortest"}


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Two tiny models that open_clip knows, and their weights, as their names say."""
    from open_clip import factory, pretrained

    monkeypatch.setattr(factory, "_MODEL_CONFIG_PATHS", list(factory._MODEL_CONFIG_PATHS))
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))
    (tmp_path / "configs").mkdir()
    for name, vision in VISION.items():
        config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT}
        (tmp_path / "configs" / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "configs")
    monkeypatch.setitem(pretrained._PRETRAINED, "tiny-timm", {"one": SIGLIP, "two": PLAIN})
    models = {}
    for name in VISION:
        torch.manual_seed(0)
        models[name] = open_clip.create_model(name, pretrained_text=False).eval()
        save_file(
            {key: value.contiguous() for key, value in models[name].state_dict().items()},
            tmp_path / f"{name}.safetensors",
        )
    return models


def test_a_local_file_needs_no_network_and_gives_the_models_own_features(weights, tmp_path, caplog):
    caplog.clear()
    loaded = load(f"open_clip:tiny-vit@{tmp_path / 'tiny-vit.safetensors'}")
    assert loaded.name == "open_clip:tiny-vit@tiny-vit.safetensors"
    assert not caplog.records  # open_clip's remark on random weights would be false
    pixels = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.model(pixels), weights["tiny-vit"].encode_image(pixels))
    (result,) = attend(loaded, photo())
    assert result.attention.shape == (4, 4)
    logging.getLogger().warning("initialized randomly")  # said by anyone else, it is heard again
    assert caplog.records


@pytest.mark.parametrize("tag", ["one", "two"])
def test_photos_are_prepared_as_the_tag_says(weights, tmp_path, tag):
    file = tmp_path / "tiny-timm.safetensors"
    loaded = load(f"open_clip:tiny-timm/{tag}@{file}")
    wanted = {"one": SIGLIP, "two": PLAIN}[tag]
    own = open_clip.create_model_and_transforms(
        "tiny-timm",
        pretrained_text=False,
        image_mean=wanted["mean"],
        image_std=wanted["std"],
        image_interpolation=wanted["interpolation"],
        image_resize_mode=wanted["resize_mode"],
    )[2]
    assert torch.equal(loaded.preprocess(photo())[0][0], own(photo()))
    assert attend(loaded, photo())[0].attention.shape == (10, 10)
    with pytest.raises(
        ModelLoadError, match=r"expected open_clip:tiny-timm/TAG@.* with one of the tags one, two, got 'no tag'"
    ):
        load(f"open_clip:tiny-timm@{file}")


def test_a_tag_downloads_its_weights(weights, tmp_path, monkeypatch):
    from open_clip import factory

    monkeypatch.setattr(factory, "download_pretrained", lambda *_, **__: str(tmp_path / "tiny-timm.safetensors"))
    loaded = load("open_clip:tiny-timm/one")
    pixels = torch.rand(1, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(loaded.model(pixels), weights["tiny-timm"].encode_image(pixels))


@pytest.mark.parametrize("from_file", [True, False])
def test_a_tag_says_which_activation_its_weights_were_trained_with(weights, tmp_path, monkeypatch, recwarn, from_file):
    """As OpenAI's of ViT-B-32, whose name alone stands for another activation."""
    from open_clip import factory, pretrained

    tags = {"fast": {**PLAIN, "quick_gelu": True}, "plain": PLAIN}
    monkeypatch.setitem(pretrained._PRETRAINED, "tiny-vit", tags)
    file = tmp_path / "tiny-vit.safetensors"
    monkeypatch.setattr(factory, "download_pretrained", lambda *_, **__: str(file))
    expected = open_clip.create_model("tiny-vit", force_quick_gelu=True, pretrained_text=False).eval()
    expected.load_state_dict(weights["tiny-vit"].state_dict())
    pixels = torch.rand(1, 3, 32, 32)
    for tag, own in (("fast", expected), ("plain", weights["tiny-vit"])):
        loaded = load(f"open_clip:tiny-vit/{tag}" + (f"@{file}" if from_file else ""))
        with torch.no_grad():
            assert torch.equal(loaded.model(pixels), own.encode_image(pixels))
    assert not [one for one in recwarn if "QuickGELU" in str(one.message)]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            "open_clip:tiny-vti@x.safetensors",
            r"open_clip has no model 'tiny-vti': expected one of its models \(such as tiny-vit",
        ),
        ("open_clip:tiny-timm", "expected open_clip:tiny-timm/TAG with one of the tags one, two, got 'no tag'"),
        ("open_clip:tiny-timm/three", "with one of the tags one, two, got 'three'"),
        ("open_clip:tiny-vit", r"with one of the tags \(none\), got 'no tag'"),
        ("open_clip:tiny-vit@missing.safetensors", "expected a file missing.safetensors, got none"),
    ],
)
@pytest.mark.usefixtures("weights")
def test_what_cannot_be_loaded_says_what_is_missing(spec, words):
    with pytest.raises(ModelLoadError, match=words):
        load(spec)
