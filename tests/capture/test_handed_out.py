"""What a capture handed out is the user's: no later forward of the same capture writes to it."""

import pytest
import torch
from torch import Tensor, nn

from attnhook import AttentionCapture
from tests.models import TIMM, images

CASES = {case.name: case for case in TIMM}
MODES = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode, "enable_grad": torch.enable_grad}


def shared(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.share_memory_() for tensor in tensors]


def arrays(tensors: list[Tensor]) -> list[Tensor]:
    return [torch.from_numpy(tensor.numpy()) for tensor in tensors]


HOLDERS = {  # what is held of the maps while they are dropped, as tensors
    "maps": lambda maps: maps.stack(),
    "rows": lambda maps: [block.rows for block in maps],
    "arrays of rows": lambda maps: arrays([block.rows for block in maps]),
    "shared rows": lambda maps: shared([block.rows for block in maps]),
    "rows through dlpack": lambda maps: [torch.from_dlpack(block.rows) for block in maps],
    "views of rows": lambda maps: [block.rows[:, 1:3] for block in maps],
    "an image": lambda maps: [block.matrix.image(0).dense() for block in maps],
}


@pytest.fixture(params=["sdpa", "eager"])
def model(request) -> nn.Module:
    return CASES["vit"].build(request.param)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", HOLDERS)
def test_what_was_handed_out_is_never_written_again(model: nn.Module, kind: str, mode: str) -> None:
    capture = AttentionCapture(model, rows="all")
    photos = images(4).split(1)
    with MODES[mode](), capture:
        model(photos[0])
    held = list(HOLDERS[kind](capture.maps))
    before = [tensor.clone() for tensor in held]
    for photo in photos[1:]:
        with MODES[mode](), capture:
            model(photo)
        assert len(capture.maps)
    assert all(map(torch.equal, held, before))
    assert all(tensor.count_nonzero() > 0 for tensor in before)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows", ["all", "cls", "mean"])
def test_maps_of_earlier_forwards_stay_as_they_were(model: nn.Module, rows: str, mode: str) -> None:
    capture, photos, seen = AttentionCapture(model, rows=rows), images(3).split(1), []
    for photo in photos:
        with MODES[mode](), capture:
            model(photo)
        seen.append((capture.maps, capture.maps.stack().clone()))
    with MODES[mode](), capture:  # several forwards of one context, too
        for photo in photos:
            model(photo)
    for (maps, rows_then), again in zip(seen, capture.forwards, strict=True):
        assert torch.equal(maps.stack(), rows_then)
        assert torch.equal(again.stack(), rows_then)


def test_maps_of_another_size_kind_or_mode_follow_each_other(model: nn.Module) -> None:
    capture, seen = AttentionCapture(model, rows="all"), []
    modes = torch.no_grad, torch.inference_mode, torch.enable_grad, torch.inference_mode, torch.no_grad
    for batch, mode in zip((1, 2, 2, 1, 1), modes, strict=True):
        with mode(), capture:
            model(images(batch))
        seen.append(capture.maps)
    model.double()
    with torch.no_grad(), capture:
        model(images(2).double())
    for maps in seen:
        wanted = capture.maps.stack()[:, : maps[0].shape[0]]
        torch.testing.assert_close(maps.stack(), wanted, atol=1e-5, rtol=0)
