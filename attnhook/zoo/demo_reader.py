"""A tiny vision-language model that names the two handwritten digits in a picture, from left to right, for the demo, the docs and the tests."""

from pathlib import Path
from typing import Any

from attnhook.zoo.checkpoints import load_strictly, read_safetensors

READER_WEIGHTS = Path(__file__).with_name("digit_reader.safetensors")
"""Made by `python -m tests.assets.train_reader`."""
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
READER_PROMPT = "<s> <image> which digits ?"
_PAD, _END = "<pad>", "</s>"
_WORDS = (_PAD, "<s>", _END, "<image>", "which", "digits", "?", "and", *NAMES)
_SIZE, _PATCH, _WIDTH, _LAYERS = 32, 4, 48, 4


def digit_reader(*, trained: bool = True) -> tuple[Any, Any]:
    """A LLaVA and its processor. Asked `READER_PROMPT`, it names the digits in a picture from left to right: "seven and three".

    Its vision tower doesn't mix patches (each is embedded by itself), so the language model has to look. The weights come with attnhook and
    were trained on scikit-learn's digits. `trained=False`: random weights.

    Example:
        >>> from importlib.resources import files
        >>> from PIL import Image
        >>> model, processor = digit_reader()
        >>> photo = Image.open(files("attnhook.zoo") / "digits.png")
        >>> inputs = processor(images=photo, text=READER_PROMPT, return_tensors="pt")
        >>> processor.decode(model.generate(**inputs, max_new_tokens=4)[0, -4:], skip_special_tokens=True)
        'five and zero'
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    vision = CLIPVisionConfig(
        image_size=_SIZE,
        patch_size=_PATCH,
        hidden_size=48,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
    text = LlamaConfig(
        vocab_size=len(_WORDS),
        hidden_size=_WIDTH,
        intermediate_size=2 * _WIDTH,
        num_hidden_layers=_LAYERS,
        num_attention_heads=4,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=3, vision_feature_layer=-2)
    ).eval()
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(_WORDS)}, unk_token=_PAD))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token=_PAD, eos_token=_END, extra_special_tokens={"image_token": "<image>"}
    )
    size = {"height": _SIZE, "width": _SIZE}
    images = CLIPImageProcessor(size=size, do_center_crop=False, resample=2, image_mean=[0.5] * 3, image_std=[1.0] * 3)
    processor = LlavaProcessor(
        images, tokenizer, patch_size=_PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    if trained:
        state = read_safetensors(READER_WEIGHTS)
        load_strictly(model, state, name="digit_reader", source=READER_WEIGHTS.name)
    return model, processor
