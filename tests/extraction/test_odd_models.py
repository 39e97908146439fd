"""Models that are not one matrix a photo and block: each photo keeps its own rows, or the run says why not; and no model notices."""

import gc
import os
import signal
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from attnhook import AttentionCapture, VisionModel, extract
from attnhook.errors import ExtractionError
from attnhook.extraction import extract_maps as runs
from attnhook.extraction.batches import explained_worker_deaths
from attnhook.extraction.processes import ProcessGroup
from tests.comparison.zoo import centre, seeing, timm_vit
from tests.extraction.photographs import rows_in
from tests.models import TRANSFORMERS, sharpen

EXACT = {"dtype": "float32", "blocks": None, "num_workers": 0, "shard_size": 5}


class Own(nn.Module):
    """A model of a user's own: 4x4 patches, in pieces of 4 that stand in the batch axis, a block that runs twice, a norm over the batch."""

    def __init__(self, pieces=1, calls=1):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.patches = nn.Conv2d(3, 16, 16, 16)
            self.norm = nn.BatchNorm2d(16)
            self.first, self.second = (nn.MultiheadAttention(16, 2, batch_first=True) for _ in range(2))
            self.pieces, self.calls = pieces, calls
            self.dropout = nn.Dropout(0.5)

    def forward(self, pixels):
        tokens = self.dropout(self.norm(self.patches(pixels)).flatten(2).transpose(1, 2))
        tokens = tokens.reshape(len(pixels) * self.pieces, -1, 16)
        for _ in range(self.calls):
            tokens = tokens + self.second(tokens, tokens, tokens, need_weights=False)[0]
        tokens = tokens + self.first(tokens, tokens, tokens, need_weights=False)[0]
        return tokens.reshape(len(pixels), -1, 16).mean(1)


def seen_alone(vision, path, **options):
    torch.manual_seed(0)
    with torch.no_grad(), AttentionCapture(vision.model, **options) as capture:
        vision.model(vision.preprocess(path)[0])
    return capture.maps


def check(maps, vision, photos, **options):
    for key in maps.keys:
        alone, stored = seen_alone(vision, photos / key, **options), maps.maps(key)
        assert stored.block_names == alone.block_names
        for one, other in zip(stored, alone, strict=True):
            torch.testing.assert_close(one.rows, other.rows, atol=2e-6, rtol=0)


def own(**settings):
    return seeing(sharpen(Own(**settings)), "own", 72, 64)


def test_pieces_of_photos_in_the_batch_axis(photos, tmp_path):
    vision = own(pieces=4)
    with pytest.raises(ExtractionError, match=r"cannot be separated by photo: .*batch_size=1"):
        extract(vision, photos, tmp_path / "many", rows="all", batch_size=4, **EXACT)
    maps = extract(vision, photos, tmp_path / "one", rows="all", batch_size=1, statistics=False, **EXACT)
    assert rows_in(maps[0], 0).shape == (4, 2, 4, 4)
    check(maps, vision, photos, rows="all")
    with pytest.raises(ExtractionError, match="expected 1 entries"):
        extract(vision, photos, tmp_path / "statistics", rows="all", batch_size=1, **EXACT)


def test_blocks_in_another_order_and_more_than_once(photos, tmp_path):
    vision = own(calls=2)
    maps = extract(vision, photos, tmp_path / "out", rows="all", batch_size=4, **EXACT)
    assert maps.maps(0).block_names == ("second", "second:1", "first")
    check(maps, vision, photos, rows="all")
    means = {(row["block"], row["statistic"]): row["mean"] for row in maps.statistics() if row["head"] == 0}
    assert {block for block, _ in means} == {"second", "second:1", "first"}
    for name in maps.maps(0).block_names:
        values = [float(maps[number][f"statistics.{name}"][0, 0]) for number in range(21)]
        assert means[name, "entropy"] == pytest.approx(np.mean(values), rel=1e-6)


def test_tokens_in_an_order_of_each_photos_own(photos, tmp_path):
    case = next(case for case in TRANSFORMERS if case.name == "ViTMAE")
    vision = seeing(case.build(), "hf:mae", 26, 24)
    with pytest.raises(ExtractionError, match="batch_size=1"):
        extract(vision, photos, tmp_path / "many", batch_size=4, **EXACT)
    maps = extract(vision, photos, tmp_path / "one", batch_size=1, **EXACT)
    check(maps, vision, photos)
    again = extract(vision, photos, tmp_path / "again", batch_size=1, **(EXACT | {"shard_size": 50}))
    assert all(torch.equal(rows_in(maps[key], 0), rows_in(again[key], 0)) for key in maps.keys)


@pytest.mark.parametrize("kind", ["dropout", "own"])
def test_a_model_in_training_is_run_in_eval_mode_and_does_not_notice(photos, tmp_path, kind):
    vision = own() if kind == "own" else timm_vit(attn_drop_rate=0.3, proj_drop_rate=0.3)
    expected = extract(vision, photos, tmp_path / "eval", rows="all", batch_size=4, **EXACT)
    vision.model.train()
    before = {name: value.clone() for name, value in vision.model.state_dict().items()}
    state, modes = torch.get_rng_state(), [module.training for module in vision.model.modules()]
    with torch.autocast("cpu", torch.bfloat16):
        maps = extract(vision, photos, tmp_path / "train", rows="all", batch_size=4, **EXACT)
    assert all(torch.equal(rows_in(maps[key], 0), rows_in(expected[key], 0)) for key in expected.keys)
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [module.training for module in vision.model.modules()]
    assert all(torch.equal(value, before[name]) for name, value in vision.model.state_dict().items())


def test_a_model_on_several_devices_stays_there():
    vision = timm_vit()
    vision.model.register_buffer("elsewhere", torch.zeros(1, device="meta"))
    with runs._on_device(vision, None, ProcessGroup()) as same:
        assert same is vision
    with (
        pytest.raises(ExtractionError, match="expected a model on one device, got cpu, meta"),
        runs._on_device(vision, "cpu", ProcessGroup()),
    ):
        pass
    assert vision.model.elsewhere.device.type == "meta"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_goes_back_from_the_gpu(photos, tmp_path):
    vision = timm_vit()
    plain = extract(vision, photos, tmp_path / "cpu", dtype="float32", num_workers=0)
    maps = extract(vision, photos, tmp_path / "gpu", dtype="float32", num_workers=0, device="cuda")
    assert {p.device.type for p in vision.model.parameters()} == {"cpu"}
    vision.model.cuda()
    stays = extract(vision, photos, tmp_path / "stays", dtype="float32", num_workers=0)
    assert {p.device.type for p in vision.model.parameters()} == {"cuda"}
    assert stays.manifest.settings["device"] == "cuda"
    for key in plain.keys:
        torch.testing.assert_close(rows_in(maps[key], 0), rows_in(plain[key], 0), atol=1e-3, rtol=0)
        assert torch.equal(rows_in(maps[key], 0), rows_in(stays[key], 0))


def test_preprocessing_that_is_a_lambda(photos, tmp_path):
    vision = timm_vit()
    lambdas = VisionModel(vision.model, lambda photo: centre(72, 64)(photo), name="own")
    assert len(extract(lambdas, photos, tmp_path / "out", num_workers=1)) == 21


def dies_in_a_worker(photo):
    if photo.size == (83, 75) and torch.utils.data.get_worker_info() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return timm_vit().preprocess(photo)


def test_a_death_that_torch_tells_of_while_another_sign_of_it_is_handled_is_one_death():
    class Reset(ConnectionResetError):
        def __str__(self) -> str:  # torch raises in whatever line runs
            raise RuntimeError("DataLoader worker (pid 912) is killed by signal: Killed.")

    with (
        pytest.raises(ExtractionError, match=r"processes that stay alive, got DataLoader worker \(pid 912\)"),
        explained_worker_deaths(),
    ):
        raise Reset
    for other in (RuntimeError("of the model"), ValueError("of a photo")):
        with pytest.raises(type(other), match=r"^of "), explained_worker_deaths():
            raise other


# torch's own clearing up after the dead one may raise where nobody can catch it: in __del__.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_worker_that_is_killed_says_what_to_do(photos, tmp_path):
    vision = timm_vit().with_preprocess(dies_in_a_worker)
    with pytest.raises(ExtractionError, match=r"expected worker processes that stay alive, got .*fewer workers"):
        extract(vision, photos, tmp_path / "out", num_workers=1, batch_size=2, shard_size=4)
    with warnings.catch_warnings():  # torch does not close what the dead one had opened
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    assert len(extract(vision, photos, tmp_path / "out", num_workers=0, batch_size=2, shard_size=4)) == 21
