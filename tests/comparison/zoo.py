"""Small models of three libraries with random weights, and photos with an object in them."""

import numpy as np
import timm
import torch
from PIL import Image
from torchvision import transforms

from attnhook import VisionModel
from tests.models import sharpen


def centre(size, crop):
    """Resize the shorter edge, crop the centre, scale to [-2, 2]."""
    steps = [transforms.Resize(size), transforms.CenterCrop(crop), transforms.ToTensor()]
    return transforms.Compose([*steps, transforms.Normalize([0.5] * 3, [0.25] * 3)])


def seeing(model, name, size, crop):
    """A model that sees the centre of a photo."""
    return VisionModel(model.eval(), centre(size, crop), name=name)


def timm_vit(name="timm:tiny", size=72, crop=64, patch=16, depth=3, classes=7, **settings):
    """A class token, 4 heads."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.models.vision_transformer.VisionTransformer(
            img_size=crop, patch_size=patch, embed_dim=32, depth=depth, num_heads=4, num_classes=classes, **settings
        )
    return seeing(sharpen(model), name, size, crop)


def hf_dinov2(name="hf:registers", size=56, crop=56):
    """A class token and 4 registers."""
    import transformers

    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        patch_size=14,
        image_size=crop,
        num_register_tokens=4,
    )
    return seeing(sharpen(transformers.Dinov2WithRegistersModel(config)), name, size, crop)


def torchvision_vit(name="torchvision:tiny", size=64, crop=64):
    """A class token, `nn.MultiheadAttention`."""
    from torchvision.models import VisionTransformer

    model = VisionTransformer(
        image_size=crop, patch_size=16, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=48, num_classes=7
    )
    return seeing(sharpen(model), name, size, crop)


def cnn(name="timm:cnn"):
    """No attention at all."""
    return seeing(timm.create_model("test_resnet", num_classes=3), name, 64, 64)


def photo(height=90, width=120, seed=0):
    """Noise with a bright disc left of the middle."""
    values = np.random.default_rng(seed).integers(0, 90, (height, width, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:height, :width]
    values[(rows - height / 2) ** 2 + (columns - width * 0.4) ** 2 < (height / 5) ** 2] = 250
    return Image.fromarray(values)


def disc(height=90, width=120):
    """Where that disc is."""
    rows, columns = np.mgrid[:height, :width]
    return ((rows - height / 2) ** 2 + (columns - width * 0.4) ** 2 < (height / 5) ** 2).astype(np.uint8) * 255
