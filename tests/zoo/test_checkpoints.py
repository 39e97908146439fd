"""Local weights: loaded to the last tensor, or refused with the way to put it right."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from attnhook.errors import ModelLoadError
from attnhook.zoo.checkpoints import load_strictly
from attnhook.zoo.loading import load
from tests.zoo.saved_models import TIMM_NAME, save_hf, save_timm

CONVERT_LINE = r"python -c .*torch\.load\('weights\.\w+', weights_only=True\).*'weights\.safetensors'"


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "model.module.model."])
@pytest.mark.parametrize("classes", [1000, 7])
def test_weights_of_a_wrapped_model_are_those_of_the_model(tmp_path, wrapper, classes):
    state = save_timm(tmp_path / "weights.safetensors", num_classes=classes).state_dict()
    save_file({wrapper + key: tensor for key, tensor in state.items()}, tmp_path / "weights.safetensors")
    loaded = load(f"timm:{TIMM_NAME}@{tmp_path / 'weights.safetensors'}").model.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_wrapped_weights_that_do_not_fit_name_the_prefix(tmp_path):
    state = save_timm(tmp_path / "weights.safetensors").state_dict()
    del state["norm.bias"]
    save_file({f"module.model.{key}": tensor for key, tensor in state.items()}, tmp_path / "weights.safetensors")
    with pytest.raises(
        ModelLoadError, match=r"got 1 missing \(norm\.bias\) after the prefix 'module\.model\.' that all"
    ):
        load(f"timm:{TIMM_NAME}@{tmp_path / 'weights.safetensors'}")


def test_a_wrapped_directory_of_transformers_names_the_prefix(tmp_path):
    save_hf(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file(
        {f"module.{key}": value for key, value in state.items()}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ModelLoadError, match=r"do not fill a ViTFor.* others whose names all begin with 'module\.'"):
        load(f"hf:{tmp_path}")


def test_a_prefix_before_some_names_is_no_wrapper(tmp_path):
    state = save_timm(tmp_path / "weights.safetensors").state_dict()
    first, *rest = state
    save_file({first: state[first], **{f"module.{key}": state[key] for key in rest}}, tmp_path / "weights.safetensors")
    with pytest.raises(ModelLoadError, match=rf"{len(rest)} missing .*{len(rest)} unexpected \(module\."):
        load(f"timm:{TIMM_NAME}@{tmp_path / 'weights.safetensors'}")


def test_a_prefix_of_the_models_own_stays():
    model = torch.nn.ModuleDict({"model": torch.nn.Linear(2, 2)})
    state = {f"module.{key}": tensor + 1 for key, tensor in model.state_dict().items()}
    load_strictly(model, state, name="wrapped", source="the file")
    assert torch.equal(model["model"].bias, state["module.model.bias"])


def test_weights_that_do_not_fit_name_the_tensors(tmp_path):
    path = tmp_path / "weights.safetensors"
    state = save_timm(path).state_dict()
    state["extra.weight"] = torch.zeros(1)
    state["cls_token"] = torch.zeros(1, 1, 3)
    del state["norm.bias"]
    save_file(state, path)
    expected = (
        r"1 missing \(norm\.bias\); 1 unexpected \(extra\.weight\); "
        r"1 of another shape \(cls_token \(1, 1, 3\) instead of \(1, 1, 64\)\)"
    )
    with pytest.raises(ModelLoadError, match=expected):
        load(f"timm:{TIMM_NAME}@{path}")


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".pt"])
def test_pickles_are_refused_unread_with_the_line_that_converts_them(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(b"not even read")
    with pytest.raises(ModelLoadError, match=rf"expected a \.safetensors file, got .*weights\{suffix}.*{CONVERT_LINE}"):
        load(f"timm:{TIMM_NAME}@{path}")


def test_the_line_that_converts_works(tmp_path):
    state = save_timm(tmp_path / "other.safetensors").state_dict()
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ModelLoadError) as refused:
        load(f"timm:{TIMM_NAME}@{tmp_path / 'weights.pth'}")
    code = str(refused.value).split('python -c "')[1].split('"`')[0]
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert load_file(tmp_path / "weights.safetensors").keys() == state.keys()


def test_the_line_that_converts_holds_no_code_of_the_files_name(tmp_path):
    path = tmp_path / """'); print('this ran'); ('.pth"""
    with pytest.raises(ModelLoadError) as refused:
        load(f"timm:{TIMM_NAME}@{path}")
    code = str(refused.value).split('python -c "')[1]
    assert "torch.load('FILE', weights_only=True)" in code
    assert "this ran" not in code


def test_absent_and_damaged_files_are_named(tmp_path):
    path = tmp_path / "weights.safetensors"
    with pytest.raises(ModelLoadError, match=r"expected a file .*weights\.safetensors, got none"):
        load(f"timm:{TIMM_NAME}@{path}")
    path.write_bytes(b"damaged")
    with pytest.raises(ModelLoadError, match=r"expected an intact safetensors file, got .*weights\.safetensors"):
        load(f"timm:{TIMM_NAME}@{path}")
