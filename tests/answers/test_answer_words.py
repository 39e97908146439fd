"""From tokens to words, by real tokenizers; words to maps by hand-made rows."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from PIL import Image
from skimage.data import chelsea
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from attnhook import AnswerCapture
from attnhook.answers.answer_reading import Answer
from attnhook.answers.answer_words import words_of
from attnhook.errors import TokenLayoutError
from attnhook.zoo.image_tokens import ImageTokens, tiled, whole
from tests.answers.families import llava

CORPUS = [
    "A cat sits on the mat.",
    "Two cats, one dog; don't run!",
    "naïve café 猫は黒い 🐈",
    "the the cat cat on on",
]


def byte_level() -> Any:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["</s>"])
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")  # noqa: S106


def spaces_marked() -> Any:
    """As sentencepiece does it."""
    made = tokenizers.Tokenizer(models.BPE())
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    made.train_from_iterator([*CORPUS, "x\n", "plb"], trainers.BpeTrainer(vocab_size=100, special_tokens=["</s>"]))
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")  # noqa: S106


def word_pieces() -> Any:
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106
    made.pre_tokenizer, made.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece(cleanup=False)
    made.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=80, special_tokens=["</s>", "[UNK]"]))
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")  # noqa: S106


@pytest.mark.parametrize("make", [byte_level, spaces_marked])
@pytest.mark.parametrize("text", [*CORPUS, "  spaces   between", "x", "two\nlines"])
def test_words_are_those_of_the_text_and_tokens_those_of_the_words(make: Any, text: str) -> None:
    tokenizer = make()
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    read, words = words_of(lambda some: tokenizer.decode(some, skip_special_tokens=True), ids)
    assert read == text.strip()
    assert "".join(words) == "".join(text.split())
    assert list(words) == text.replace("猫は黒い", "猫 は 黒 い").split()
    assert all(word.tokens for word in words)
    for word in words:  # the tokens say the word, and the ones around them do not
        assert word in tokenizer.decode(ids[word.tokens[0] : word.tokens[-1] + 1])
    assert len(ids) - 1 not in {number for word in words for number in word.tokens}


def test_pieces_of_words_are_joined() -> None:
    tokenizer = word_pieces()
    ids = tokenizer("the cats sit")["input_ids"]
    read, words = words_of(lambda some: tokenizer.decode(some, skip_special_tokens=True), ids)
    assert read == "the cats sit"
    assert list(words) == ["the", "cats", "sit"]
    assert sorted(number for word in words for number in word.tokens) == list(range(len(ids)))
    assert len(ids) > 3


def test_a_character_of_several_tokens_is_one_word() -> None:
    tokenizer = byte_level()
    ids = tokenizer("🐕 ok")["input_ids"]
    _, words = words_of(lambda some: tokenizer.decode(some, skip_special_tokens=True), ids)
    assert list(words) == ["🐕", "ok"]
    assert len(words[0].tokens) > 1


def answer_of(text: str, rows: torch.Tensor | None = None, *, processor: Any = None, tiles: bool = False) -> Answer:
    """An answer with rows by hand over a grid of 4 x 4, or over 1 x 2 tiles of 2 x 2 and an overview."""
    tokenizer = processor or byte_level()
    ids = tuple(getattr(tokenizer, "tokenizer", tokenizer)(text)["input_ids"])
    parts = tiled((2, 2), (32, 32), (16, 16), 3, (1, 2)) if tiles else (whole((4, 4), (64, 64), (16, 16)),)
    image = ImageTokens(torch.arange(1, 17 - 4 * tiles), parts, 1 + 2 * tiles)
    torch.manual_seed(0)
    rows = torch.rand(len(ids), 3, 2, 16 - 4 * tiles) / 40 if rows is None else rows
    mass = {"image": rows.sum(-1), "first": 1 - rows.sum(-1)}
    keys = torch.tensor([[40.0, 20.0, 10.0]]).expand(len(ids), -1)
    names = ("a", "b", "c")
    return Answer(token_ids=ids, images=(image,), rows=(rows,), mass=mass, layers=names, processor=tokenizer, keys=keys)


def test_a_word_is_the_mean_of_its_tokens_over_layers_and_heads() -> None:
    answer = answer_of("Two cats, walrus dog")
    word = answer.words[2]
    assert word == "walrus"
    assert len(word.tokens) > 1
    expected = answer.rows[list(word.tokens)].mean((0, 1, 2)).reshape(4, 4)
    for key in ("walrus", "WALRUS", 2, -2):
        torch.testing.assert_close(answer[key].values, expected)
    torch.testing.assert_close(answer["cats"].values, answer[1].values)  # the word is "cats,"
    torch.testing.assert_close(
        answer.map(2, layers=-1, heads=1).values, answer.rows[list(word.tokens), -1, 1].mean(0).reshape(4, 4)
    )
    fused = answer.rows[list(word.tokens)][:, [0, 2]].amax(2).amax(1).mean(0).reshape(4, 4)
    torch.testing.assert_close(answer.map(2, layers=[0, 2], heads="max", fusion="max").values, fused)
    relative = expected / answer.rows.mean((0, 1, 2)).reshape(4, 4)
    torch.testing.assert_close(answer.map("walrus", relative=True).values, relative)
    assert answer[2].outside == pytest.approx(1 - float(expected.sum()), abs=1e-6)
    assert answer[2].uniform == pytest.approx((1 / 40 + 1 / 20 + 1 / 10) / 3)
    assert answer.map(2, layers=[0, 1], fusion="max").uniform == pytest.approx(1 / 20)
    assert answer.map(2, layers=-1).uniform == pytest.approx(1 / 10)
    assert "'walrus'" in answer["walrus"].caption
    assert "relative to all tokens" in answer.map("walrus", relative=True).description
    assert answer.map("walrus", relative=True).uniform is None


def test_a_word_that_comes_twice_has_two_maps() -> None:
    answer = pickle.loads(pickle.dumps(copy.deepcopy(answer_of("the cat on the mat"))))  # noqa: S301
    first, second = (word for word in copy.deepcopy(answer).words if word == "the")
    assert first.tokens != second.tokens
    torch.testing.assert_close(answer[second].values, answer[3].values)
    torch.testing.assert_close(answer["the"].values, answer[0].values)
    assert pickle.loads(pickle.dumps(answer)).words[3].tokens == second.tokens  # noqa: S301


def test_what_every_token_attends_to_cancels() -> None:
    rows = torch.full((4, 1, 1, 16), 0.01)
    rows[..., 0] = 0.8  # a sink
    answer = answer_of("a cat sit on")
    answer._rows[0].copy_(rows[:1].expand_as(answer._rows[0]))
    tokens = list(answer.words[1].tokens)
    answer._rows[0][tokens, ..., 9] = 0.05
    assert answer["cat"].values.flatten().argmax() == 0
    assert answer.map("cat", relative=True).values.flatten().argmax() == 9


def test_tiles_and_overview_are_both_said() -> None:
    answer = answer_of("a cat", tiles=True)
    assert answer["cat"].shape == (2, 4)
    assert answer.map("cat", part="overview").shape == (2, 2)
    assert "overview" in answer.map("cat", part="overview").caption
    assert repr(answer).endswith("tiles 2x4, overview 2x2)")
    row = answer.rows[list(answer.words[1].tokens)].mean((0, 1, 2))
    torch.testing.assert_close(answer["cat"].values, torch.cat([row[:4].reshape(2, 2), row[4:8].reshape(2, 2)], dim=1))
    with pytest.raises(TokenLayoutError, match="'tiles', 'overview'"):
        answer.map("cat", part="tile 7")


def test_unknown_words_and_tokens() -> None:
    answer = answer_of("a cat")
    with pytest.raises(KeyError, match="'a', 'cat'"):
        answer["dog"]
    with pytest.raises(IndexError, match=f"below {len(answer.words)}, the number of words, got 99"):
        answer[99]
    with pytest.raises(IndexError, match=r"below 3, the number of layers, got \[3, -4\]"):
        answer.map(0, layers=[0, 3, -4])
    with pytest.raises(IndexError, match=r"below 2, the number of heads, got \[2\]"):
        answer.map(0, heads=2)
    with pytest.raises(IndexError, match="no such tokens"):
        answer.map([99])
    with pytest.raises(IndexError, match=r"no such tokens: expected a word or numbers below \d+, got 1\.5"):
        answer[1.5]
    with pytest.raises(IndexError, match="no layers"):
        answer.map([0], layers=[])
    with pytest.raises(ValueError, match="unknown fusion"):
        answer.map("cat", fusion="median")


def test_without_a_processor_there_are_tokens_only() -> None:
    model, inputs = llava()
    with AnswerCapture(model) as capture:
        model.generate(**inputs, max_new_tokens=2, pad_token_id=0)
    with pytest.raises(ValueError, match=r"AnswerCapture\(model, processor\)"):
        _ = capture.answer.text
    assert capture.answer.map([0]).shape == (4, 4)


def test_the_figure_shows_the_words_with_most_mass_in_order() -> None:
    answer = answer_of("a cat sit on the mat")
    answer.mass["image"][:] = 0.1
    for word, share in (("mat", 0.9), ("cat", 0.8)):
        answer.mass["image"][list(next(one for one in answer.words if one == word).tokens)] = share
    figure = answer.figure(count=2)
    texts = [text.get_text() for axes in figure.axes for text in (axes.title, axes._left_title)] + [
        text.get_text() for axes in figure.axes for text in axes.texts
    ]
    said = " ".join([*texts, *(text.get_text() for text in figure.texts)])
    assert said.index("cat") < said.index("mat")
    assert "80% on the image" in said
    assert "sit" not in said


def test_the_figure_over_a_photo(tmp_path: Any) -> None:
    from transformers import CLIPImageProcessor

    class Processor:
        tokenizer = byte_level()
        image_processor = CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})

        def __call__(self, *_: Any, **__: Any) -> None: ...

    answer = answer_of("a cat sit on the mat", processor=Processor())
    photo = Image.fromarray(chelsea())
    figure = answer.figure(photo, count=3)
    figure.savefig(tmp_path / "answer.png")
    assert answer["cat"].overlay(photo).size == photo.size
    assert answer.figure(photo, relative=True, scale="minmax")


def test_mass_and_entropy_by_layer() -> None:
    rows = (
        torch.full((6, 3, 2, 16), 1 / 16) * torch.tensor([0.2, 0.5, 0.9])[:, None, None]
    )  # uniform, more of it in later layers
    rows[:, 0, :, 1:] = 0
    rows[:, 0, :, 0] = 0.2  # all on one patch
    answer = answer_of("a cat sit on the mat")
    answer._rows[0].copy_(rows[:1].expand_as(answer._rows[0]))
    for word in (None, "cat"):
        figure = answer.depth_figure(word)
        assert {axes.get_xlabel() for axes in figure.axes[:2]} == {"layer"}
        mass, entropy = ([line.get_ydata() for line in axes.lines] for axes in figure.axes[:2])
        assert any(np.allclose(line, [0.2, 0.5, 0.9]) for line in mass)
        assert any(np.allclose(line, [0, np.log(16), np.log(16)], atol=1e-5) for line in entropy if len(line) == 3)
