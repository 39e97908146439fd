"""What `load` makes of each library's names, files and directories."""

import importlib
import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import timm
import torch
import torchvision
import transformers
from safetensors.torch import load_file, save_file

from attnhook.errors import GeometryError, ModelLoadError
from attnhook.imaging.geometry import ImageGeometry
from attnhook.zoo import loading
from attnhook.zoo.loading import load
from attnhook.zoo.model_metadata import library_of
from tests.zoo.saved_models import TIMM_NAME, photo, save_hf, save_timm, tiny_torchvision_vit


@pytest.fixture
def tiny_torchvision(monkeypatch):
    """Torchvision's builders, shrunk: the real ones have 86 million parameters."""
    monkeypatch.setattr(torchvision.models, "get_model", tiny_torchvision_vit)


# timm -----------------------------------------------------------------------------------------------------------------


def test_timm_file_is_loaded_with_timms_own_preprocessing(tmp_path):
    saved = save_timm(tmp_path / "weights.safetensors").eval()
    model = load(f"timm:{TIMM_NAME}.r160_in1k@{tmp_path / 'weights.safetensors'}")
    assert model.name == "timm:test_vit.r160_in1k@weights.safetensors"
    assert library_of(model.model) == "timm"
    assert model.input_size == (160, 160)
    pixels, _ = model.preprocess(photo())
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(saved), is_training=False)
    assert torch.equal(pixels, transform(photo())[None])
    with torch.no_grad():
        assert torch.equal(model.model(pixels), saved(pixels))


def test_timm_labels_are_imagenets_where_the_number_of_classes_is(tmp_path):
    save_timm(tmp_path / "weights.safetensors")
    labels = load(f"timm:{TIMM_NAME}@{tmp_path / 'weights.safetensors'}").labels
    assert len(labels) == 1000
    assert labels[281].startswith("tabby")


@pytest.mark.parametrize("num_classes", [7, 21843])
def test_timm_number_of_classes_is_read_off_the_file(tmp_path, num_classes):
    save_timm(tmp_path / "weights.safetensors", num_classes=num_classes)
    model = load(f"timm:{TIMM_NAME}@{tmp_path / 'weights.safetensors'}")
    assert model.model.num_classes == num_classes
    assert (model.labels is None) == (num_classes == 7)


def test_timm_without_a_classifier_has_no_labels(monkeypatch):
    bare = timm.create_model(TIMM_NAME, num_classes=0)
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: bare)
    assert load(f"timm:{TIMM_NAME}").labels is None


def test_timm_asks_for_pretrained_weights_with_the_tag_kept(monkeypatch):
    asked = {}
    model = timm.create_model(TIMM_NAME)
    monkeypatch.setattr(timm, "create_model", lambda name, **options: asked.update(name=name, **options) or model)
    assert load("timm:vit_base_patch16_224.augreg_in21k").name == "timm:vit_base_patch16_224.augreg_in21k"
    assert asked == {"name": "vit_base_patch16_224.augreg_in21k", "pretrained": True}


def test_unknown_timm_names_and_tags_list_what_there_is():
    with pytest.raises(ModelLoadError, match=r"no model 'vit_tiny_patch16_225'.*vit_tiny_patch16_224"):
        load("timm:vit_tiny_patch16_225")
    with pytest.raises(
        ModelLoadError,
        match=r"expected weights \(such as vit_tiny_patch16_224\.augreg_in21k.*Invalid pretrained tag \(nope\)",
    ):
        load("timm:vit_tiny_patch16_224.nope")


# transformers ---------------------------------------------------------------------------------------------------------


def test_hf_directory_gives_the_task_class_its_processor_and_its_labels(tmp_path):
    saved = save_hf(tmp_path / "cats").eval()
    model = load(f"hf:{tmp_path / 'cats'}")
    assert type(model.model) is transformers.ViTForImageClassification
    assert model.name == "hf:cats"
    assert library_of(model.model) == "transformers"
    assert model.labels == ("cat", "dog", "eel")
    assert model.input_size == (32, 32)
    pixels, _ = model.preprocess(photo())
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "cats")
    assert torch.equal(pixels, processor(images=photo(), return_tensors="pt")["pixel_values"])
    with torch.no_grad():
        assert torch.equal(model.model(pixels).logits, saved(pixels).logits)


def test_hf_attention_implementation_is_left_at_its_default(tmp_path):
    save_hf(tmp_path)
    assert load(f"hf:{tmp_path}").model.config._attn_implementation == "sdpa"


def test_hf_backbone_has_no_labels(tmp_path):
    save_hf(tmp_path, transformers.ViTModel)
    model = load(f"hf:{tmp_path}")
    assert type(model.model) is transformers.ViTModel
    assert model.labels is None


@pytest.mark.parametrize("architectures", [None, ["ClassOfSomebodyElse"]])
def test_hf_without_a_known_class_uses_auto_model(tmp_path, architectures):
    save_hf(tmp_path, transformers.ViTModel)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    config.architectures = architectures
    config.save_pretrained(tmp_path)
    assert type(load(f"hf:{tmp_path}").model) is transformers.ViTModel


def test_hf_two_towers_load_whole(tmp_path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.CLIPConfig(
        text_config={**sizes, "vocab_size": 9, "bos_token_id": 0, "eos_token_id": 1},
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    transformers.CLIPModel(config).save_pretrained(tmp_path)
    crop = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    transformers.CLIPImageProcessor(**crop).save_pretrained(tmp_path)
    model = load(f"hf:{tmp_path}")
    assert type(model.model) is transformers.CLIPModel
    assert model.labels is None


def test_hf_parameters_without_weights_are_an_error(tmp_path):
    save_hf(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["classifier.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelLoadError, match=r"do not fill a ViTForImageClassification: .* got none for classifier\.weight"
    ):
        load(f"hf:{tmp_path}")


def test_hf_pickled_weights_are_refused(tmp_path):
    model = save_hf(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match=r"expected a \.safetensors file, got .*pytorch_model\.bin.*python -c"):
        load(f"hf:{tmp_path}")


@pytest.mark.parametrize("absent", ["preprocessor_config.json", "config.json", "model.safetensors"])
def test_hf_incomplete_directory_says_what_belongs_there(tmp_path, absent):
    save_hf(tmp_path)
    (tmp_path / absent).unlink()
    with pytest.raises(
        ModelLoadError,
        match=r"expected config\.json, preprocessor_config\.json and safetensors (?s:.)*[^ .\n]\. Save the model .*save_pretrained",
    ):
        load(f"hf:{tmp_path}")


def test_hf_code_of_a_repository_is_not_run(tmp_path):
    save_hf(tmp_path)
    config = (tmp_path / "config.json").read_text()
    config = config.replace('"model_type": "vit"', '"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}')
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "mine.py").write_text("raise SystemExit('this ran')")
    with pytest.raises(ModelLoadError):
        load(f"hf:{tmp_path}")


def test_hf_config_may_not_name_what_is_no_model(tmp_path, monkeypatch):
    save_hf(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["Other"]}))
    other = SimpleNamespace(from_pretrained=lambda *given, **options: pytest.fail("it was called"))
    now = importlib.import_module("transformers")  # saving a processor has imported it anew
    monkeypatch.setattr(now, "Other", other, raising=False)
    with pytest.raises(ModelLoadError, match=r"do not fill a ViTModel"):  # AutoModel's, which has a pooler
        load(f"hf:{tmp_path}")


class Runs:
    """What a pickle can do when it is read."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_timm_pickles_of_a_hub_are_read_as_weights_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"head.weight": Runs()}, "pytorch_model.bin")
    Path("config.json").write_text(json.dumps({"architecture": "test_vit", "pretrained_cfg": {"num_classes": 10}}))

    def downloaded(repo_id, filename, **options):
        if not Path(filename).is_file():
            raise huggingface_hub.errors.EntryNotFoundError("no such file")
        return filename

    monkeypatch.setattr(timm.models._hub, "hf_hub_download", downloaded)
    with pytest.raises(ModelLoadError, match=r"(?i)weights.?only"):
        load("timm:hf-hub:somebody/something")
    assert not Path("ran").exists()
    pickle.loads(pickle.dumps(Runs()))  # noqa: S301 (ours)
    assert Path("ran").exists()  # reading it in the plain way would have shown


def test_hf_packed_patches_are_an_error_when_a_photo_comes(tmp_path):
    save_hf(tmp_path)
    for old in tmp_path.glob("*processor_config.json"):
        old.unlink()
    transformers.Siglip2ImageProcessor(patch_size=16, max_num_patches=16).save_pretrained(tmp_path)
    model = load(f"hf:{tmp_path}")
    assert model.input_size is None
    with pytest.raises(GeometryError, match=r"expected pixels .* got \(1, 16, 768\)"):
        model.preprocess(photo())


# torchvision ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [224, 384, 160])
def test_torchvision_size_and_preprocessing_follow_the_weights(tmp_path, tiny_torchvision, size):
    saved = tiny_torchvision_vit("vit_b_16", image_size=size).eval()
    save_file(saved.state_dict(), tmp_path / "weights.safetensors")
    model = load(f"torchvision:vit_b_16@{tmp_path / 'weights.safetensors'}")
    assert model.input_size == (size, size)
    assert library_of(model.model) == "torchvision"
    assert model.labels[281] == "tabby"
    pixels, _ = model.preprocess(photo())
    with torch.no_grad():
        assert torch.equal(model.model(pixels), saved(pixels))


def test_torchvision_224_is_its_own_transform(tmp_path, tiny_torchvision):
    save_file(tiny_torchvision_vit("vit_b_16").state_dict(), tmp_path / "weights.safetensors")
    pixels, geometry = load(f"torchvision:vit_b_16@{tmp_path / 'weights.safetensors'}").preprocess(photo())
    assert torch.equal(pixels[0], torchvision.models.ViT_B_16_Weights.DEFAULT.transforms()(photo()))
    assert geometry == ImageGeometry.identity((60, 90)).resize(256).center_crop(224)


def test_torchvision_fine_tuned_classes_have_no_labels(tmp_path, tiny_torchvision):
    save_file(tiny_torchvision_vit("vit_b_16", num_classes=5).state_dict(), tmp_path / "weights.safetensors")
    model = load(f"torchvision:vit_b_16@{tmp_path / 'weights.safetensors'}")
    assert model.model.heads.head.out_features == 5
    assert model.labels is None


def test_torchvision_download_is_checked_and_reads_weights_only(monkeypatch, tiny_torchvision):
    asked = {}

    def download(url, **options):
        asked.update(url=url, **options)
        return tiny_torchvision_vit("vit_b_16").state_dict()

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", download)
    assert load("torchvision:vit_b_16").name == "torchvision:vit_b_16"
    assert asked["url"] == torchvision.models.ViT_B_16_Weights.DEFAULT.url
    assert asked["check_hash"] is True
    assert asked["weights_only"] is True


def test_torchvision_swin_is_built_as_torchvision_builds_it(monkeypatch):
    saved = torchvision.models.swin_t(num_classes=4)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda url, **options: saved.state_dict())
    model = load("torchvision:swin_t")
    assert model.input_size == (224, 224)
    assert model.labels is None


def test_unknown_torchvision_names_list_what_there_is():
    with pytest.raises(ModelLoadError, match=r"torchvision has no model 'vit_b_17'.*vit_b_16"):
        load("torchvision:vit_b_17")


def test_a_process_that_may_not_ask_a_hub_is_told_so(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelLoadError, match="HF_HUB_OFFLINE is set, so no hub is asked"):
        load("hf:nobody/no-such-model")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    assert loading._offline() == ""
