"""`Answer`: the rows of one answer's tokens, and the words and maps made of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attnhook.answers.answer_pictures import answer_depth, answer_figure, page_content, spoken
from attnhook.answers.answer_words import Word, words_of
from attnhook.answers.placed_maps import AnswerMap
from attnhook.errors import GeometryError, TokenLayoutError, counted
from attnhook.options import HeadFusion, choose
from attnhook.pages.documents import answer_html, save_viewer
from attnhook.zoo.image_tokens import ImagePart, ImageTokens

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_JOINS: dict[HeadFusion, Callable[[Tensor, int], Tensor]] = {
    HeadFusion.MEAN: torch.mean,
    HeadFusion.MAX: torch.amax,
    HeadFusion.MIN: torch.amin,
}
_PUNCTUATION = ".,;:!?\"'()[]{}*`"


class Answer:
    """The answer to one prompt: what every one of its tokens attended to.

    Attributes:
        token_ids: The ids of the tokens, the end token included.
        images: Where each image's tokens are, and the grids that they tile.
        mass: Where the mass of each row lies, by name, each `(tokens, layers, heads)` float32; they add up to 1. "image": image tokens.
            "first": the sequence's first token, a common sink. "text": the rest of the prompt. "words": the answer so far. "other": keys of
            cross-attention that belong to no image.
        layers: The names of the layers.
        rows: For one image `(tokens, layers, heads, image tokens)` float32 on the CPU; for several images, a list of these.
        processor: Turns ids into words, and places maps in the photo; None if you passed none.
        keys: How many keys each token's query saw in each layer, `(tokens, layers)`, for the 1/N of its maps; None if unknown.
    """

    def __init__(
        self,
        *,
        token_ids: tuple[int, ...],
        images: tuple[ImageTokens, ...],
        rows: tuple[Tensor, ...],
        mass: Mapping[str, Tensor],
        layers: tuple[str, ...],
        processor: Any = None,
        keys: Tensor | None = None,
    ) -> None:
        self.token_ids, self.images, self.mass, self.layers = token_ids, images, dict(mass), layers
        self._rows, self.processor, self.keys = rows, processor, keys

    @property
    def rows(self) -> Any:
        """Rows over the image's tokens, `(tokens, layers, heads, image tokens)` float32 on the CPU; for several images a list."""
        return self._rows[0] if len(self._rows) == 1 else list(self._rows)

    @cached_property
    def _read(self) -> tuple[str, tuple[Word, ...]]:
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        if not hasattr(tokenizer, "decode"):
            raise ValueError(
                "the answer's words cannot be read: expected a processor or tokenizer, got none. Pass it: AnswerCapture(model, processor). "
                "Or choose tokens by number: answer.map([0])."
            )
        return words_of(lambda ids: tokenizer.decode(ids, skip_special_tokens=True), self.token_ids)

    @property
    def text(self) -> str:
        """The answer as text. Needs the processor."""
        return self._read[0]

    @property
    def words(self) -> tuple[Word, ...]:
        """The words of the answer, in order: strings, each with the numbers of its tokens in `tokens`. Needs the processor."""
        return self._read[1]

    def __getitem__(self, word: str | int) -> Any:
        """The `map` of a word, by its text (the first match, with or without punctuation) or its number; for several images a list."""
        maps = [self.map(word, image=number) for number in range(len(self.images))]
        return maps[0] if len(maps) == 1 else maps

    def map(
        self,
        word: str | int | Sequence[int],
        *,
        image: int = 0,
        part: str | None = None,
        layers: int | Sequence[int] | None = None,
        heads: str | int = "mean",
        fusion: str = "mean",
        relative: bool = False,
    ) -> AnswerMap:
        """The map of a word: the mean of its tokens' rows, over one image.

        Args:
            word: Its text (the first that is equal), one of `words`, its number there, or the numbers of tokens.
            image: The number of the image in the prompt.
            part: Which of the image's grids: "image", "overview", "tiles" or "tile 1"; by default the first of `images[image].parts`.
            layers: Which layers, by number, negative from the end. None: all.
            heads: "mean", "max" or "min" over heads, or the number of one.
            fusion: "mean", "max" or "min" over layers.
            relative: Whether to divide by the mean map of all tokens, so that what every token attends to (sinks, positions) cancels: 1 is
                the answer's average.

        Returns:
            The map. If the capture got a processor, `overlay(photo)` draws it.

        Raises:
            KeyError: If the answer has no such word.
            IndexError: If there is no such word number, image, layer, head or token.
        """
        tokens = self._tokens(word)
        where = self._part(image, part)
        fused = self._fused(image, layers, heads, fusion)
        one = fused[tokens].mean(0)
        if relative:
            one = one / fused.mean(0).clamp_min(torch.finfo(torch.float32).tiny)
        said = f"{word!r}" if isinstance(word, str) else f"tokens {tokens}"
        chosen = "all layers" if layers is None else f"layers {layers}"
        number = f", image {image % len(self.images) + 1} of {len(self.images)}" if len(self.images) > 1 else ""
        grid = "" if where.name == "image" else f", {where.name}"
        means = f"{heads} over heads" if isinstance(heads, str) else f"head {heads}"
        plain = not relative and heads == "mean" and fusion == "mean"
        return AnswerMap(
            one[where.index],
            input_size=where.area[2:] if any(where.area[:2]) else where.input_size,
            area=where.area[2:],
            uniform=None if relative else self._uniform(tokens, layers, fusion),
            adds_up=plain and len(self.images) == 1,
            description=f"attention of {said}{number}{grid}, {fusion} over {chosen}, {means}"
            + (", relative to all tokens" if relative else ""),
            quantity="times the answer's mean" if relative else "attention",
            overlap=where.overlap,
            part=where,
            inputs=self.images[image].inputs,
            processor=self.processor,
        )

    def _uniform(self, tokens: list[int], layers: Any, fusion: str) -> float | None:
        """What every value of a word's map would be if its rows were uniform over all keys, those of text included."""
        if self.keys is None:
            return None
        each = 1.0 / self.keys[tokens].double().clamp_min(1)
        each = each if layers is None else each[:, [layers] if isinstance(layers, int) else list(layers)]
        return float(_JOINS[choose(HeadFusion, fusion, "fusion")](each, 1).mean())

    def _fused(self, image: int, layers: Any, heads: str | int, fusion: str) -> Tensor:
        """Rows of one image after fusion, `(tokens, image tokens)`."""
        rows = self._rows[image]
        if layers is not None:
            layers = [layers] if isinstance(layers, int) else list(layers)
        for name, count, numbers in (
            ("layer", 1, layers or []),
            ("head", 2, [heads] if isinstance(heads, int) else []),
        ):
            wrong = [number for number in numbers if not -rows.shape[count] <= number < rows.shape[count]]
            if wrong:
                raise IndexError(
                    f"no such {name}: expected numbers below {rows.shape[count]}, the number of {name}s, got {wrong}."
                )
        rows = rows if layers is None else rows[:, layers]
        if not rows.shape[1]:
            raise IndexError(f"no layers to join: expected numbers of layers, got layers={layers}.")
        rows = rows[:, :, heads] if isinstance(heads, int) else _JOINS[choose(HeadFusion, heads, "heads")](rows, 2)
        return _JOINS[choose(HeadFusion, fusion, "fusion")](rows, 1)

    def _tokens(self, word: str | int | Sequence[int]) -> list[int]:
        if isinstance(word, str):
            if isinstance(word, Word) and any(one == word and one.tokens == word.tokens for one in self.words):
                return list(word.tokens)
            wanted = word.strip()
            equal = [one for one in self.words if one == wanted] or [
                one for one in self.words if one.strip(_PUNCTUATION).casefold() == wanted.strip(_PUNCTUATION).casefold()
            ]
            if not equal:
                raise KeyError(f"no such word: expected one of {', '.join(map(repr, self.words))}, got {word!r}.")
            return list(equal[0].tokens)
        if isinstance(word, int):
            if not -len(self.words) <= word < len(self.words):
                raise IndexError(
                    f"no such word: expected a number below {len(self.words)}, the number of words, got {word}."
                )
            return list(self.words[word].tokens)
        tokens = [int(token) for token in word] if isinstance(word, Iterable) else []
        if not tokens or any(not -len(self.token_ids) <= token < len(self.token_ids) for token in tokens):
            raise IndexError(f"no such tokens: expected a word or numbers below {len(self.token_ids)}, got {word!r}.")
        return tokens

    def _part(self, image: int, name: str | None) -> ImagePart:
        parts = {part.name: part for part in self.images[image].parts}
        if name is None:
            return next(iter(parts.values()))
        if name not in parts:
            raise TokenLayoutError(
                f"image {image} has no such grid: expected part= to be one of {', '.join(map(repr, parts))}, got {name!r}."
            )
        return parts[name]

    def figure(
        self, photo: Any = None, *, image: int = 0, count: int = 7, relative: bool = False, **options: Any
    ) -> "Figure":
        """Draw the photo beside the maps of the words with the most mass on the image.

        Args:
            photo: The photo, as `read_image` takes it. Without it the maps are drawn alone.
            image: The number of the image in the prompt.
            count: How many words at most.
            relative: As in `map`.
            **options: Of the look and of the figure, as `PatchMap.figure` takes them: `scale`, `colormap`, `title`, `caption`, `width`, `dpi`.

        Returns:
            The matplotlib figure.
        """
        return answer_figure(self, photo, image=image, count=count, relative=relative, **options)

    def depth_figure(
        self, word: str | int | Sequence[int] | None = None, *, image: int = 0, **options: Any
    ) -> "Figure":
        """Draw, for every layer and head, the mass on an image and the entropy of its distribution over the image's tokens.

        Args:
            word: As in `map`. None: the mean of all tokens.
            image: The number of the image in the prompt.
            **options: Of the figure: `title`, `caption`, `width`, `dpi`.

        Returns:
            The matplotlib figure.
        """
        return answer_depth(self, word, image=image, **options)

    def to_html(self, path: "str | Path", photo: Any = None, *, title: str | None = None) -> Path:
        """Write a page that shows where each word looks, as you hover over it or step through the words with the arrow keys.

        Args:
            path: The file's path. It needs nothing else, and loads nothing.
            photo: The photo; for several images a list of photos. Without it the maps are drawn alone.
            title: The page's title. None: the beginning of the answer.

        Returns:
            The path.

        Raises:
            GeometryError: If there are not as many photos as images.
        """
        photos = (
            list(photo) if isinstance(photo, list | tuple) else [photo] * (1 if photo is not None else len(self.images))
        )
        if len(photos) != len(self.images):
            raise GeometryError(
                f"cannot write the page: expected one photo for each of {len(self.images)} images, got {len(photos)}. Pass a list of them."
            )
        if title is None:
            title = f"Answer: {' '.join(text for text, _ in spoken(self)[:8])}"
        return save_viewer(answer_html(*page_content(self, photos, title)), path)

    def __len__(self) -> int:
        return len(self.token_ids)

    def __repr__(self) -> str:
        tokens, layers, heads = self.mass["image"].shape
        grids = "; ".join(
            ", ".join(f"{part.name} {part.index.shape[0]}x{part.index.shape[1]}" for part in image.parts)
            for image in self.images
        )
        return f"Answer({counted(tokens, 'token')}, {counted(layers, 'layer')}, {counted(heads, 'head')}, {grids})"
