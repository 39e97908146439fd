"""Models as people run them: wrapped, adapted, quantised, distributed, in pipelines; each exact, or refused by name."""

import copy
import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from attnhook import AttentionCapture, describe, raw_attention
from attnhook.errors import NothingCapturedError, UnsupportedModelError
from tests.models import GRID, IMAGE, TIMM, TRANSFORMERS, images

CASES = {case.name: case for case in TIMM + TRANSFORMERS}


def explicit_rows(model: nn.Module, run) -> list[torch.Tensor]:
    """Class-token rows of every fused call, spelt out in float64 from its operands."""
    import torch.nn.functional as F

    fused, rows = F.scaled_dot_product_attention, []

    def spy(query, key, value, attn_mask=None, scale=None, **kwargs):
        q, k = query.detach().double(), key.detach().double()
        scores = q[:, :, :1] @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
        rows.append(torch.softmax(scores if attn_mask is None else scores + attn_mask, dim=-1))
        return fused(query, key, value, attn_mask=attn_mask, scale=scale, **kwargs)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(F, "scaled_dot_product_attention", spy)
        run()
    return rows


def check(model: nn.Module, run=None, *, atol: float = 2e-5, blocks: int = 2) -> None:
    run = run or (lambda: model(images()))
    with torch.no_grad():
        bare = run()
        with AttentionCapture(model) as capture:
            output = run()
    first, second = (x if isinstance(x, torch.Tensor) else x[0] for x in (bare, output))
    assert torch.equal(first, second)
    expected = explicit_rows(model, run)
    assert len(capture.maps) == blocks
    for block, row in zip(capture.maps, expected, strict=True):
        torch.testing.assert_close(block.rows.double(), row, atol=atol, rtol=0)
    assert raw_attention(capture.maps).values.shape == (2, *GRID)


def test_channels_last_and_wrappers() -> None:
    model = CASES["vit"].build()
    check(model, lambda: model(images().contiguous(memory_format=torch.channels_last)))
    wrapped = nn.Sequential(model.to(memory_format=torch.channels_last))
    check(wrapped, lambda: wrapped(images()))


@pytest.mark.parametrize("call", ["forward_features", "get_intermediate_layers", "forward_intermediates"])
def test_partial_forwards_of_timm_show_the_grid(call: str) -> None:
    model = CASES["vit_registers"].build()
    with torch.no_grad(), AttentionCapture(model) as capture:
        getattr(model, call)(images())
        getattr(model, call)(images())
    assert raw_attention(capture.maps).values.shape == (2, *GRID)
    assert len(capture.maps) == 2
    assert len(capture.forwards) == 2
    assert capture.maps.input_size == tuple(images().shape[-2:])


def test_features_only_models_of_both_kinds() -> None:
    vit = timm.create_model("test_vit", features_only=True, img_size=64).eval()
    with torch.no_grad(), AttentionCapture(vit) as capture:
        vit(torch.randn(1, 3, 64, 64))
    assert raw_attention(capture.maps).values.shape == (1, 4, 4)
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224",
        features_only=True,
        img_size=64,
        window_size=4,
        embed_dim=12,
        depths=(2, 2, 2, 2),
    ).eval()
    with torch.no_grad(), AttentionCapture(swin, rows="all") as capture:
        swin(torch.randn(1, 3, 64, 64))
    assert len(capture.maps) == 8
    assert capture.maps[1].layout.describe() == "16 windows of 4x4 shifted by 2, 2 on a grid of 16x16"


def test_timm_inside_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.TimmWrapperConfig(
        architecture="test_vit", model_args={"img_size": IMAGE, "patch_size": 8}, num_labels=3
    )
    for kind in ("TimmWrapperModel", "TimmWrapperForImageClassification"):
        model = getattr(transformers, kind)(config).eval()
        check(model, lambda model=model: model(images(), return_dict=False), blocks=6)
        assert set(AttentionCapture(model).block_names) <= {name for name, _ in model.named_modules()}


def test_a_pipeline_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    from PIL import Image

    model = CASES["ViTForImageClassification"].build()
    processor = transformers.ViTImageProcessor(size={"height": IMAGE[0], "width": IMAGE[1]})
    run = transformers.pipeline("image-classification", model=model, image_processor=processor)
    with AttentionCapture(model) as capture:
        answers = run(Image.new("RGB", (50, 40), "red"))
    assert answers
    assert raw_attention(capture.maps).values.shape == (1, *GRID)


def test_lora_of_peft_draws_no_extra_random_numbers() -> None:
    peft = pytest.importorskip("peft")
    for name, target in (("vit", ["qkv"]), ("ViTModel", ["q_proj", "v_proj", "query", "value"])):
        config = peft.LoraConfig(target_modules=target, lora_dropout=0.5, r=2, init_lora_weights=False)
        model = peft.get_peft_model(CASES[name].build(), config).eval()
        check(model)
        model.train()
        torch.manual_seed(3)
        with torch.no_grad():
            bare = model(images())
            state = torch.get_rng_state()
            torch.manual_seed(3)
            with AttentionCapture(model):
                output = model(images())
        first, second = (x if isinstance(x, torch.Tensor) else x[0] for x in (bare, output))
        assert torch.equal(first, second)
        assert torch.equal(state, torch.get_rng_state())


def test_dynamically_quantised_linears() -> None:
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("this build of torch has no engine for quantised linears")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(CASES["vit"].build(), {nn.Linear}, dtype=torch.qint8)
        check(model)


def maps_or_error(capture: AttentionCapture):
    try:
        return capture.maps
    except UnsupportedModelError as error:
        return error


def test_flex_attention_is_refused_naming_the_kernel() -> None:
    model = CASES["ViTModel"].build()
    try:
        model.set_attn_implementation("flex_attention")
    except (ValueError, ImportError) as error:
        pytest.skip(f"transformers refuses it here: {error}")
    # Compiled, the kernel takes half a minute of a C++ compiler, and gets the same mask.
    with warnings.catch_warnings(), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        warnings.simplefilter("ignore")
        try:
            bare = model(images()).last_hidden_state
        except Exception as error:  # the kernel itself does not run on this machine
            pytest.skip(f"flex attention does not run here: {error}")
        with AttentionCapture(model) as capture:
            assert torch.equal(model(images()).last_hidden_state, bare)
    if not isinstance(seen := maps_or_error(capture), UnsupportedModelError):  # transformers 4 passes no mask
        reference = CASES["ViTModel"].build()
        with torch.no_grad(), AttentionCapture(reference) as expected:
            reference(images())
        torch.testing.assert_close(seen.stack(), expected.maps.stack(), atol=2e-5, rtol=0)
    else:
        assert "'flex_attention' got a mask of type BlockMask" in str(seen)


def test_a_model_on_meta_can_be_described() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_large_patch14_reg4_dinov2")
    description = describe(model)
    assert len(description.blocks) == 24
    assert "4 register tokens" in description.tokens


def test_saving_and_copying_inside_a_context() -> None:
    for name in ("vit", "ViTModel"):
        model, buffer = CASES[name].build(), io.BytesIO()
        if name == "vit":
            model.blocks[0].attn.fused_attn = False  # a hooked block, too
        with torch.no_grad(), AttentionCapture(model) as capture:
            twin = copy.deepcopy(model)
            torch.save(model, buffer)
            twin(images())
            with pytest.raises(NothingCapturedError):
                _ = capture.maps
            model(images())
        assert len(capture.maps) == 2
        buffer.seek(0)
        again = torch.load(buffer, weights_only=False)  # our own bytes of a moment ago
        with torch.no_grad():
            expected, got = model(images()), again(images())
        first, second = (x if isinstance(x, torch.Tensor) else x[0] for x in (expected, got))
        assert torch.equal(first, second)


def test_exported_models_are_refused_by_name() -> None:
    model = CASES["vit"].build()
    with torch.no_grad():
        exported = torch.export.export(model, (images(),)).module()
    with pytest.raises(UnsupportedModelError, match=r"torch\.export"):
        AttentionCapture(exported)


@pytest.mark.slow
def test_two_processes_of_torchrun() -> None:
    # FSDP2 of torch 2.6 does not run on a CPU: 'Stream' object has no attribute 'record_event'.
    ways = ["ddp"] if torch.__version__.startswith("2.6.") else ["ddp", "fsdp2"]
    script = Path(__file__).with_name("distributed_run.py")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), *ways,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500, env=environment)
    assert run.returncode == 0, run.stdout + run.stderr
    for how in ways:
        assert run.stdout.count(f"rows exact under {how}") == 2
