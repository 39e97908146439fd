"""Public functions work on their inputs' device and dtype, whatever the process's defaults are: same values, same pictures."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from attnhook import (
    METHODS,
    AttentionCapture,
    AttentionMaps,
    AttentionMonitor,
    DirectoryWriter,
    VisionModel,
    attend,
    attention_statistics,
    blocks_figure,
    blocks_heads_figure,
    compare,
    describe,
    dominant_heads_figure,
    extract,
    head_masks_figure,
    heads_figure,
    load,
    methods_figure,
    open_maps,
    overlay_video,
    query_figure,
    raw_attention,
    statistics_figure,
    verify,
)
from tests.defaults import no_default_device

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 160, 3)).astype(np.uint8))
MASK = np.zeros((120, 160), bool)
MASK[30:60, 40:80] = True


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return timm.create_model("test_vit", pretrained=False).eval()


@pytest.fixture(scope="module")
def pixels():
    return torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=[("meta", torch.float64), (None, torch.bfloat16)], ids=str)
def others(request) -> Iterator[None]:
    """Defaults that another part of the program set."""
    device, dtype = request.param
    torch.set_default_device(device)
    torch.set_default_dtype(dtype)
    yield
    no_default_device()
    torch.set_default_dtype(torch.float32)


def prepared(photo: Image.Image) -> torch.Tensor:
    from torchvision import transforms

    seen = transforms.Compose([transforms.Resize(160), transforms.CenterCrop(160)])(photo)
    # torchvision's ToTensor takes the default dtype, its PILToTensor the default device.
    return torch.from_numpy(np.array(seen)).permute(2, 0, 1).float() / 255


def captured(model, pixels, **options) -> AttentionMaps:
    with torch.no_grad(), AttentionCapture(model, **options) as capture:
        model(pixels)
    return capture.maps


def drawn(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=40)
    with Image.open(buffer) as picture:
        return picture.convert("RGB").tobytes()


def of_methods(model, pixels, folder: Path) -> Any:
    with AttentionCapture(model, gradients=True) as capture:
        score = model(pixels)[:, 0].sum()
    torch.autograd.grad(score, list(model.parameters()))
    return [method(capture.maps).values for method in METHODS.values()]


def of_rows(model, pixels, folder: Path) -> Any:
    whole = captured(model, pixels, rows="all")
    whole.save(folder / "maps.safetensors")
    statistics = attention_statistics(whole)
    return [
        whole[-1].weights(),
        AttentionMaps.load(folder / "maps.safetensors")[-1].weights(),
        captured(model, pixels, rows=[0, (1, 1)])[-1].rows,
        *[one for block in statistics for one in (block.entropy, block.distance_patches)],
        str(describe(model, pixels)),
        str(verify(model, pixels)),
    ]


def of_pictures(model, pixels, folder: Path) -> Any:
    single = raw_attention(captured(model, pixels))[0]
    styles = [{}, {"style": "mask", "smallest": 2}, {"style": "contours"}, {"style": "patches"}]
    return [single.overlay(PHOTO, prepared, **options).tobytes() for options in styles]


def of_results(model, pixels, folder: Path) -> Any:
    (one,) = attend(model, PHOTO, preprocess=prepared, rows="all")
    figures = (blocks_figure, heads_figure, blocks_heads_figure, methods_figure, statistics_figure)
    figures += (dominant_heads_figure, head_masks_figure, lambda result: query_figure(result, [(1, 1), (2, 2)]))
    (towards,) = attend(model, PHOTO, preprocess=prepared, method="gradient_rollout", target=1)
    scene = one.to_html()
    return [drawn(draw(one)) for draw in figures] + [towards.attention, scene.split("payload-0", 1)[1][:2000]]


def of_digits(model, pixels, folder: Path) -> Any:
    digits = load("digits").model
    canvas = VisionModel(digits, lambda photo: torch.nn.functional.avg_pool2d(prepared(photo.resize((160, 160))), 5))
    return [attend(canvas, PHOTO, method="legrad")[0].attention, *digits.parameters()]


def of_comparison(model, pixels, folder: Path) -> Any:
    models = {name: VisionModel(model, prepared) for name in ("a", "b")}
    found = compare(models, [PHOTO], masks=[MASK])
    found.save(folder / "report")
    timed = [name for name in found.table() if name.startswith("forward_ms")]
    return [found.agreement().to_csv(), found.table().drop(columns=timed).to_csv()]


def of_monitor(model, pixels, folder: Path) -> Any:
    monitor = AttentionMonitor(
        model, [PHOTO], preprocess=prepared, every_n_steps=1, writers=DirectoryWriter(folder / "log")
    )
    assert monitor.step(0)
    return [path.read_bytes() for path in sorted((folder / "log").rglob("*")) if path.is_file()]


def of_extraction(model, pixels, folder: Path) -> Any:
    PHOTO.save(folder / "a.png")
    extract(VisionModel(model, prepared), [folder / "a.png"], folder / "out")
    found = open_maps(folder / "out")
    return [found.attention(0).values, found.overlay(0).tobytes()]


def of_video(model, pixels, folder: Path) -> Any:
    values = np.random.default_rng(1).random((2, 120, 160)).astype(np.float32)
    return [overlay_video([PHOTO] * 2, values, folder / "video.gif").read_bytes()]


CASES: list[Callable[..., Any]] = [
    *(of_methods, of_rows, of_pictures, of_results, of_digits, of_comparison, of_monitor, of_extraction, of_video)
]
BEFORE: dict[str, Any] = {}


@pytest.fixture(scope="module", autouse=True)
def before(model, pixels, tmp_path_factory) -> None:
    BEFORE.update({case.__name__: case(model, pixels, tmp_path_factory.mktemp("before")) for case in CASES})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_defaults_change_nothing(case, model, pixels, tmp_path: Path, others) -> None:
    for was, now in zip(BEFORE[case.__name__], case(model, pixels, tmp_path), strict=True):
        if isinstance(was, torch.Tensor):
            assert (now.device, now.dtype) == (was.device, was.dtype)
            assert torch.equal(now.nan_to_num(), was.nan_to_num())
        else:
            assert now == was
