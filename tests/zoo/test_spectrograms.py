"""Audio spectrograms: a map has frequencies as rows and times as columns."""

import pytest
import torch
import transformers
from PIL import Image

from attnhook import AttentionCapture, ImageGeometry, describe, raw_attention

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
MELS, TIMES, GRID = 32, 104, (2, 9)  # patches of 16 every 10


def listener(implementation: str) -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.ASTConfig(**SMALL, num_mel_bins=MELS, max_length=TIMES, attn_implementation=implementation)
    return transformers.ASTForAudioClassification(config).eval()


@pytest.fixture(scope="module")
def spectrogram() -> torch.Tensor:
    return torch.randn(2, TIMES, MELS, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_map_is_the_row_of_eager_attention_by_frequency_and_time(implementation, spectrogram) -> None:
    model, eager = listener(implementation), listener("eager")
    seen = []
    hook = eager.get_submodule(
        "audio_spectrogram_transformer.embeddings.patch_embeddings.projection"
    ).register_forward_hook(lambda *call: seen.append(call[2].shape[-2:]))
    with torch.no_grad():
        expected = eager(spectrogram, output_attentions=True).attentions[-1]
        with AttentionCapture(model) as capture:
            model(spectrogram)
    hook.remove()
    assert tuple(seen[0]) == GRID
    found = raw_attention(capture.maps)
    torch.testing.assert_close(found.values, expected[:, :, 0, 2:].mean(1).unflatten(-1, GRID), rtol=1e-4, atol=1e-6)


def test_it_is_drawn_over_the_spectrogram(spectrogram) -> None:
    model = listener("sdpa")
    with torch.no_grad(), AttentionCapture(model) as capture:
        model(spectrogram)
    picture = Image.fromarray((255 * spectrogram[0].T.sigmoid()).byte().numpy()).convert("RGB")
    drawn = raw_attention(capture.maps)[0].overlay(picture, ImageGeometry.identity((MELS, TIMES)))
    assert drawn.size == (TIMES, MELS)


def test_describe_says_what_the_grid_is(spectrogram) -> None:
    description = describe(listener("sdpa"), spectrogram)
    assert description.grid == GRID
    assert description.tokens == "1 class token, 1 distillation token, patches"
