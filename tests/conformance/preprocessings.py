"""Preprocessings of every kind, at default and at random settings."""

import importlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

TIMM_MODELS = (
    "vit_base_patch16_224",
    "vit_small_patch14_dinov2",
    "vit_base_patch16_clip_224",
    "vit_base_patch16_siglip_256",
    "deit3_small_patch16_384",
    "eva02_tiny_patch14_336",
    "swin_tiny_patch4_window7_224",
    "beit_base_patch16_384",
    "efficientvit_m0",
    "vit_medium_patch16_reg4_gap_256",
)


@dataclass
class Case:
    """One preprocessing; `make(rng)` makes it, at random settings where a generator is given."""

    name: str
    make: Any
    patch: int = 16

    @property
    def mirrors(self):
        """Whether it may put a mirrored border around the photo, in which a marker is seen again."""
        return any(word in self.name for word in ("reflect", "Swin2SR", "ZoeDepth"))


def processor_classes():
    import transformers
    from transformers.image_processing_base import ImageProcessingMixin

    root = Path(transformers.__file__).parent
    for path in sorted(root.glob("models/*/image_processing*.py")):
        name = f"transformers.models.{path.parent.name}.{path.stem}"
        if name.endswith("_auto"):
            continue
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        for kind in vars(module).values():
            if inspect.isclass(kind) and kind.__module__ == name and issubclass(kind, ImageProcessingMixin):
                yield kind


def processor_cases():
    for kind in processor_classes():
        yield Case(kind.__name__, lambda rng, kind=kind: processor(kind, rng))


def processor(kind, rng):
    """An image processor; what needs more than one photo is wrapped in a function."""
    stem = kind.__name__.removesuffix("Pil").removesuffix("ImageProcessor")
    first = {}
    if stem == "TimmWrapper":
        first = {"pretrained_cfg": {"input_size": (3, 224, 224), "crop_pct": 0.9, "interpolation": "bicubic"}}
    if stem == "ImageGPT":
        first = {"clusters": np.linspace(-1, 1, 24).reshape(8, 3).tolist()}
    if stem.startswith("LayoutLMv"):
        first = {"apply_ocr": False}
    made = kind(**first)
    if rng is not None and stem != "TimmWrapper":
        made = kind(**first, **random_options(made, rng))
    if stem in {"EfficientLoFTR", "LightGlue", "SuperGlue"}:
        return lambda photo: made(images=[photo, photo], return_tensors="pt")
    if stem == "VitMatte":
        return lambda photo: made(images=photo, trimaps=photo.convert("L"), return_tensors="pt")["pixel_values"][:, :3]
    if stem == "VitPose":
        return lambda photo: made(images=photo, boxes=[[[0, 0, *photo.size]]], return_tensors="pt")
    return made


def random_options(made, rng):
    """Settings near the default: sizes, crops, padding, resampling."""
    options = {}
    known = set(inspect.signature(type(made).__init__).parameters) | set(
        getattr(getattr(type(made), "valid_kwargs", None), "__annotations__", {})
    )
    factor = float(rng.uniform(0.6, 1.4))
    for name in ("size", "crop_size", "pad_size"):
        value = getattr(made, name, None)
        if value is None or isinstance(value, int):
            continue
        entries = {key: one for key, one in dict(value).items() if isinstance(one, int)}
        own = factor if rng.random() < 0.7 else float(rng.uniform(0.6, 1.4))
        if entries and rng.random() < 0.8:
            options[name] = {
                key: max(32, int(one * own) if one < 5000 else int(one * own * own)) for key, one in entries.items()
            }
    for name in ("do_resize", "do_center_crop", "do_pad", "do_rescale", "do_normalize"):
        if isinstance(getattr(made, name, None), bool) and rng.random() < 0.2:
            options[name] = not getattr(made, name)
    if getattr(made, "resample", None) is not None and rng.random() < 0.6:
        options["resample"] = int(rng.choice([0, 2, 3]))
    for name in (
        "do_image_splitting",
        "do_thumbnail",
        "do_align_long_axis",
        "crop_to_patches",
        "do_pan_and_scan",
        "keep_aspect_ratio",
    ):
        if isinstance(getattr(made, name, None), bool) and name in known | set(vars(made)) and rng.random() < 0.3:
            options[name] = not getattr(made, name)
    if options.get("do_center_crop") and getattr(made, "crop_size", None) is None:
        options["crop_size"] = {"height": 200, "width": 240}
    if options.get("do_pad") and getattr(made, "pad_size", None) is None and rng.random() < 0.5:
        options["pad_size"] = {"height": 1400, "width": 1400}
    return options


def timm_cases():
    for name in TIMM_MODELS:
        for mode in ("center", "squash", "border"):
            patch = 14 if "patch14" in name else 16
            yield Case(f"timm {name} {mode}", lambda rng, n=name, m=mode: timm_transform(n, m, rng), patch)


def timm_transform(name, mode, rng):
    import timm

    config = dict(timm.data.resolve_data_config(timm.get_pretrained_cfg(name).to_dict()), crop_mode=mode)
    if rng is not None:
        edges = rng.integers(90, 400, 2) if rng.random() < 0.5 else [int(rng.integers(90, 400))] * 2
        config |= {"input_size": (3, *map(int, edges)), "crop_pct": float(rng.uniform(0.8, 1.0))}
        config["interpolation"] = str(rng.choice(["bilinear", "bicubic", "lanczos"]))
    if rng is None or rng.random() < 0.5:
        return config
    return timm.data.create_transform(**config, is_training=False)


def _edge(rng, default):
    return default if rng is None else int(rng.integers(100, 420))


def composed(version, kind, rng):
    from torchvision import transforms
    from torchvision.transforms import InterpolationMode, v2

    library = transforms if version == "v1" else v2
    last = [transforms.ToTensor()] if version == "v1" else [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    modes = [InterpolationMode.BILINEAR, InterpolationMode.BICUBIC, InterpolationMode.NEAREST]
    mode = modes[0] if rng is None else modes[int(rng.integers(3))]
    edge, crop = _edge(rng, 256), _edge(rng, 224)
    steps = {
        "shortest": [library.Resize(edge, mode), library.CenterCrop(crop)],
        "squash": [library.Resize((edge, crop), mode)],
        "pad": [library.Resize((edge, crop), mode), library.Pad((3, 5, 7, 11), fill=90)],
        "crop first": [library.CenterCrop(min(edge, 60)), library.Resize((crop, crop), mode)],
        "longest": [library.Resize(edge, mode, max_size=edge + 40), library.CenterCrop(crop)],
        "reflect": [library.Resize((edge, edge), mode), library.Pad(12, padding_mode="reflect")],
        "two resizes": [
            library.Resize((edge + 61, edge + 30), mode),
            library.CenterCrop(crop),
            library.Resize(160, mode),
        ],
        "function": [transforms.Lambda(lambda photo: letterboxed(photo, edge)), library.Resize((crop, crop), mode)],
    }[kind]
    if version == "v2" and kind != "function" and (rng is None or rng.random() < 0.5):
        steps, last = [*last[:1], *steps], last[1:]  # on tensors, not on PIL images
    return library.Compose([*steps, *last, library.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])


def letterboxed(photo, edge, fill=(124, 116, 104)):
    factor = edge / max(photo.size)
    width, height = (max(1, round(length * factor)) for length in photo.size)
    canvas = Image.new("RGB", (edge, edge), fill)
    canvas.paste(photo.resize((width, height), Image.Resampling.BICUBIC), ((edge - width) // 2, (edge - height) // 2))
    return canvas


def channels_first(pixels):
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 255


def letterbox_by_hand(rng):
    edge = _edge(rng, 384)
    return lambda photo: channels_first(np.asarray(letterboxed(photo, edge)))


def numpy_function(rng):
    """Strided slices: no antialiasing, the top left corner of a whole multiple."""
    edge = _edge(rng, 30)

    def preprocess(photo):
        pixels = np.asarray(photo)
        step = max(1, min(pixels.shape[:2]) // edge)
        return (pixels[step // 2 :: step, step // 2 :: step].astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)[None]

    return preprocess


def opencv(flag, rng):
    import cv2

    height, width = _edge(rng, 224), _edge(rng, 256)
    mode = getattr(cv2, flag)

    def preprocess(photo):
        bgr = np.asarray(photo)[..., ::-1]
        scaled = cv2.resize(np.ascontiguousarray(bgr), (width, height), interpolation=mode).astype(np.float32)
        return {"pixel_values": ((scaled - (103.5, 116.3, 123.7)) / 58).astype(np.float32).transpose(2, 0, 1)}

    return preprocess


def albumentations(rng):
    import albumentations as library

    edge = _edge(rng, 256)
    steps = [
        library.LongestMaxSize(edge),
        library.PadIfNeeded(edge, edge, border_mode=0, fill=(90, 90, 90)),
        library.CenterCrop(min(edge, 224), min(edge, 200)),
    ]
    if rng is not None and rng.random() < 0.5:
        steps = [library.SmallestMaxSize(edge), library.CenterCrop(min(edge, 224), min(edge, 200))]
    return library.Compose([*steps, library.Normalize()])


def kornia(rng):
    import kornia.augmentation as library

    edge = _edge(rng, 256)
    transform = library.AugmentationSequential(
        library.Resize((edge, edge + 20), antialias=True), library.CenterCrop(min(edge, 224)), data_keys=["input"]
    )
    return lambda photo: transform(channels_first(np.asarray(photo))[None])


def preset(rng):
    from torchvision.transforms._presets import ImageClassification

    return ImageClassification(crop_size=_edge(rng, 224), resize_size=_edge(rng, 256))


def other_cases():
    kinds = ("shortest", "squash", "pad", "crop first", "longest", "reflect", "two resizes", "function")
    for version in ("v1", "v2"):
        for kind in kinds:
            yield Case(f"torchvision {version} {kind}", lambda rng, v=version, k=kind: composed(v, k, rng))
    yield Case("torchvision preset", preset)
    yield Case("letterbox by hand", letterbox_by_hand)
    yield Case("numpy function", numpy_function)
    for flag in ("INTER_AREA", "INTER_LINEAR", "INTER_NEAREST", "INTER_CUBIC"):
        yield Case(f"OpenCV {flag}", lambda rng, f=flag: opencv(f, rng))
    yield Case("albumentations", albumentations)
    yield Case("kornia", kornia)
    yield Case("subclass pads in preprocess", lambda rng: subclass("preprocess", square, rng))
    yield Case("subclass pads in call", lambda rng: subclass("__call__", square, rng))
    yield Case("subclass mirrors in preprocess", lambda rng: subclass("preprocess", ImageOps.mirror, rng))


def square(photo):
    edge = max(photo.size)
    canvas = Image.new("RGB", (edge, edge))
    canvas.paste(photo, ((edge - photo.width) // 2, (edge - photo.height) // 2))
    return canvas


def subclass(method, change, rng):
    from transformers import ViTImageProcessor

    def changed(self, images, *args, **kwargs):
        images = images if isinstance(images, list) else [images]
        return getattr(super(kind, self), method)([change(image) for image in images], *args, **kwargs)

    kind = type("Own", (ViTImageProcessor,), {method: changed})
    return kind(size={"height": _edge(rng, 224), "width": _edge(rng, 224)})


def all_cases():
    yield from other_cases()
    yield from timm_cases()
    yield from processor_cases()
