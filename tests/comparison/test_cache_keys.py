"""What changes a result is never answered with what was kept of something else."""

import linecache
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

from attnhook import ImageGeometry, VisionModel, compare
from attnhook.comparison.measurements import make_map_kinds
from attnhook.running.fingerprints import fingerprint
from tests.comparison.zoo import centre, hf_dinov2, photo, timm_vit


def kept_and_new(model, folder, **asked):
    """The same with the cache and without."""
    kept = compare([model], [photo()], cache=folder, progress=False, **asked)
    new = compare([model], [photo()], cache=None, progress=False, **asked)
    return kept.measurements[0, 0], new.measurements[0, 0]


def test_strides_are_part_of_the_model(tmp_path) -> None:
    """The weights of patches that overlap are those of patches that do not."""
    vision = timm_vit(dynamic_img_size=True)
    kept_and_new(vision, tmp_path)
    vision.model.patch_embed.proj.stride, vision.model.patch_embed.proj.padding = (8, 8), (4, 4)
    kept, new = kept_and_new(vision, tmp_path)
    assert kept.maps["raw_attention"].shape == new.maps["raw_attention"].shape == (8, 8)


def edited(source, name):
    """A model with a module whose class was defined in a cell of a notebook."""
    code = f"class Edited(nn.Identity):\n    def forward(self, x):\n        return {source}\n"
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    namespace = {"nn": nn, "__name__": "notebook"}
    exec(compile(code, name, "exec"), namespace)  # noqa: S102
    vision = timm_vit()
    vision.model.extra = namespace["Edited"]()
    return fingerprint(vision)


def test_what_a_class_does_is_part_of_the_model(monkeypatch) -> None:
    """A class that was edited in a notebook keeps its name and its weights."""
    monkeypatch.setattr(linecache, "cache", dict(linecache.cache))
    again = edited("x * 2", "<cell 2>")
    assert edited("x * 2", "<cell 1>") == again
    assert again.complete
    keys = {edited(source, "<cell 3>").key for source in ("x * 2", "x * 3", "x + 2", "x.relu()", "x.tanh()")}
    assert len(keys) == 5


def test_what_has_no_source_is_not_kept(tmp_path) -> None:
    vision = timm_vit()
    vision.model.extra = type("Generated", (nn.Identity,), {"forward": eval("lambda self, x: x")})()  # noqa: S307
    assert not fingerprint(vision).complete
    assert compare([vision], [photo()], cache=tmp_path, progress=False).failures == ()
    assert not list(tmp_path.iterdir())


def test_functions_that_a_module_holds_are_part_of_it() -> None:
    keys = []
    for activation in (functional.relu, functional.gelu):
        vision = timm_vit()
        vision.model.activation = activation
        keys.append(fingerprint(vision).key)
    assert keys[0] != keys[1]


def test_a_fingerprint_is_the_same_in_another_process() -> None:
    """Sets have another order there."""
    program = (
        "from attnhook.running.fingerprints import fingerprint\n"
        "from tests.comparison.zoo import hf_dinov2, timm_vit\n"
        "print(fingerprint(timm_vit()).key, fingerprint(hf_dinov2()).architecture)"
    )
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = os.environ | {"PYTHONHASHSEED": seed}
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split()
    assert found == [fingerprint(timm_vit()).key, fingerprint(hf_dinov2()).architecture]


def test_buffers_outside_the_state_dict_are_part_of_the_model() -> None:
    first, second = timm_vit(), timm_vit()
    first.model.register_buffer("mask", torch.zeros(3), persistent=False)
    second.model.register_buffer("mask", torch.ones(3), persistent=False)
    assert fingerprint(first).key != fingerprint(second).key


def test_what_hooks_change_is_not_kept(tmp_path) -> None:
    vision = timm_vit()
    before, _ = kept_and_new(vision, tmp_path)
    hook = vision.model.blocks[0].register_forward_hook(lambda module, inputs, output: output * 0)
    kept, new = kept_and_new(vision, tmp_path)
    assert torch.equal(kept.maps["raw_attention"].values, new.maps["raw_attention"].values)
    hook.remove()
    after, _ = kept_and_new(vision, tmp_path)
    assert torch.equal(after.maps["raw_attention"].values, before.maps["raw_attention"].values)


def test_the_mode_of_a_model_is_not_its_content() -> None:
    vision = timm_vit()
    key = fingerprint(vision).key
    vision.model.train()
    assert fingerprint(vision).key == key


def test_a_name_stands_for_the_class_that_the_labels_say(tmp_path) -> None:
    vision, other = (
        VisionModel(timm_vit().model, centre(72, 64), name="timm:tiny", labels=labels)
        for labels in ("abcdefg", "gfedcba")
    )
    targets = [kept_and_new(one, tmp_path, methods="legrad", labels=["a"])[0].target for one in (vision, other)]
    assert targets == [0, 6]


def test_depths_that_take_other_blocks_are_other_maps(tmp_path) -> None:
    """0.6666667 lies beyond the fourth of six blocks, and is called as two thirds are."""
    vision = timm_vit(depth=6)
    name = "raw_attention@0.666667"
    maps = [kept_and_new(vision, tmp_path, depths=depth)[0].maps[name].values for depth in (2 / 3, 0.6666667)]
    assert not torch.equal(*maps)
    with pytest.raises(ValueError, match="expected depths further apart"):
        make_map_kinds("raw_attention", [2 / 3, 0.6666667])


@pytest.mark.parametrize("limited", [lambda size: max(size) > 10 * min(size), lambda size: max(size) > 1024])
def test_limits_of_preprocessing_are_part_of_it(limited) -> None:
    """What happens to strips or to large photos alone tells two preprocessings apart."""

    def seen(special):
        def geometry(size):
            return ImageGeometry.identity(size).resize((32, 32) if special(size) else (64, 64))

        def preprocess(shown):
            found = geometry((shown.height, shown.width))
            return torch.zeros(3, *found.input_size), found

        return fingerprint(timm_vit().with_preprocess(preprocess)).preprocessing

    assert seen(limited) != seen(lambda size: False)


def test_preprocessing_that_refuses_a_photo_still_has_a_fingerprint() -> None:
    vision = timm_vit()

    def preprocess(shown):
        if max(shown.size) > 10 * min(shown.size):
            raise ValueError("too long")
        return vision.preprocess(shown)

    found = compare([vision.with_preprocess(preprocess)], [photo()], cache=None, progress=False)
    assert found.failures == ()
