"""Tiny models saved to disk, and photos, for the tests of loading."""

import numpy as np
import timm
import torch
import torchvision
import transformers
from PIL import Image
from safetensors.torch import save_file

TIMM_NAME = "test_vit"


def photo(height=60, width=90, spot=None):
    """A grey gradient; with `spot`, black with a white square of 5 px around that (row, column)."""
    if spot is None:
        rows, columns = np.mgrid[:height, :width]
        return Image.fromarray(np.stack([rows * 2, columns * 2, rows + columns], axis=-1).astype(np.uint8))
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[spot[0] - 2 : spot[0] + 3, spot[1] - 2 : spot[1] + 3] = 255
    return Image.fromarray(pixels)


def save_timm(path, name=TIMM_NAME, **options):
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, **options)
    save_file(model.state_dict(), path)
    return model


def save_hf(directory, kind=transformers.ViTForImageClassification, **options):
    torch.manual_seed(0)
    config = kind.config_class(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
        id2label={0: "cat", 1: "dog", 2: "eel"},
        label2id={"cat": 0, "dog": 1, "eel": 2},
        **options,
    )
    model = kind(config)
    model.save_pretrained(directory)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(directory)
    return model


def tiny_torchvision_vit(name, *, weights=None, **options):
    return torchvision.models.VisionTransformer(
        patch_size=16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16, **{"image_size": 224, **options}
    )
