"""Models of transformers that keep tables of their own: of text, of detections, of a first forward."""

from functools import partial
from types import SimpleNamespace

import torch
import transformers
from torch import nn

from attnhook import attend, compare
from attnhook.running.fingerprints import fingerprint
from attnhook.zoo.model_metadata import trained_grid
from tests.comparison.zoo import photo, seeing, timm_vit

alone = partial(compare, cache=None, progress=False)
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def beit():
    config = transformers.BeitConfig(
        **SMALL, image_size=64, patch_size=16, num_labels=3, use_relative_position_bias=True
    )
    return seeing(transformers.BeitForImageClassification(config), "hf:beit", 64, 64)


def test_a_model_can_be_trained_after_a_comparison() -> None:
    """BEiT keeps the indices of its first forward, which are of no use to a backward if they come from inference mode."""
    vision = beit()
    found = alone([vision], [photo()], methods=["raw_attention", "legrad"])
    assert found.failures == ()
    assert set(found.measurements[0, 0].maps) == {"raw_attention", "legrad"}
    vision.model(torch.rand(1, 3, 64, 64)).logits.sum().backward()


def test_a_model_can_be_trained_after_attend() -> None:
    vision = beit()
    attend(vision, photo())
    vision.model(torch.rand(1, 3, 64, 64)).logits.sum().backward()


def test_a_backward_that_fails_costs_its_own_maps_alone() -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(context, values):
            return values.clone()

        @staticmethod
        def backward(context, gradient):
            raise RuntimeError("out of memory")

    vision = timm_vit()
    vision.model.head = nn.Sequential(vision.model.head, SimpleModule(Broken.apply))
    found = alone([vision], [photo()], methods=["raw_attention", "legrad"])
    assert set(found.measurements[0, 0].maps) == {"raw_attention"}
    (failure,) = found.failures
    assert (failure.what, failure.error) == ("legrad", "out of memory")


class SimpleModule(nn.Module):
    """A function as a module."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, values):
        return self.function(values)


def test_positions_of_text_and_detections_are_no_patches() -> None:
    text = dict(**SMALL, vocab_size=50, max_position_embeddings=64, bos_token_id=1, eos_token_id=2)
    vision = dict(**SMALL, image_size=80, patch_size=16)
    siglip = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision))
    assert trained_grid(siglip) == (5, 5)
    yolos = transformers.YolosConfig(**SMALL, image_size=[64, 96], patch_size=16, num_detection_tokens=100)
    assert trained_grid(transformers.YolosModel(yolos)) == (4, 6)
    assert trained_grid(beit().model) is None


def test_queries_keys_and_values_are_the_same_weights_apart_and_together() -> None:
    weights = torch.rand(3 * 64, 64)
    together = nn.Linear(64, 192, bias=False)
    apart = nn.ModuleDict({name: nn.Linear(64, 64, bias=False) for name in "qkv"})
    together.load_state_dict({"weight": weights})
    apart.load_state_dict({f"{name}.weight": part for name, part in zip("qkv", weights.chunk(3), strict=True)})
    found = [fingerprint(SimpleNamespace(model=model, preprocess=None)) for model in (together, apart)]
    assert found[0].shared(found[1]) == 1
    assert found[0].shares_weights(found[1])
    assert found[0].weights != found[1].weights
