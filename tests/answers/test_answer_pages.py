"""The page of an answer in a browser: every word shows its own map, by pointer and by keys, on a screen and on a phone."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor

from attnhook.answers.answer_reading import Answer
from attnhook.errors import GeometryError
from attnhook.zoo.image_tokens import ImageTokens, tiled, whole
from tests.open_pages import OpenPage

WORDS = ["A", "<img src=x onerror=alert(1)>", "cat", "</script>", "and", "a", "red", "&amp;", "mat", "."]
SIZE = (240, 320)
CELLS = 4


class Words:
    """A processor whose tokens are the words above."""

    image_processor = CLIPImageProcessor(
        size={"height": 64, "width": 64}, do_center_crop=False, resample=Image.Resampling.NEAREST
    )

    class tokenizer:
        @staticmethod
        def decode(ids: Any, **_: Any) -> str:
            return " ".join(WORDS[number].replace(" ", "\u00a0") for number in ids)


def answer(*, images: int = 1, tiles: bool = False, processor: Any = Words) -> Answer:
    """Word k looks at patch k of every image."""
    one = tiled((2, 2), (32, 32), (16, 16), 3, (1, 2)) if tiles else (whole((CELLS, CELLS), (64, 64), (16, 16)),)
    count = 12 if tiles else CELLS * CELLS
    places = tuple(
        ImageTokens(torch.arange(count) + count * number, one, 3 if tiles else 1) for number in range(images)
    )
    rows = torch.full((len(WORDS), 2, 2, count), 0.001)
    for number in range(len(WORDS)):
        rows[number, ..., number] = 0.3
    seen = rows.sum(-1) * images
    mass = {"image": seen, "first": (1 - seen) * 0.75, "text": (1 - seen) * 0.25, "words": seen * 0, "other": seen * 0}
    return Answer(
        token_ids=tuple(range(len(WORDS))),
        images=places,
        rows=(rows,) * images,
        mass=mass,
        layers=("a", "b"),
        processor=processor,
    )


PHOTO = Image.new("RGB", SIZE[::-1], (90, 110, 130))


class AnswerPage(OpenPage):
    """An answer open in the browser."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.page.wait_for_function("() => document.documentElement.dataset.ready === 'true'")

    def brightest(self, picture: int = 0) -> tuple[int, int]:
        """The patch in which the picture is changed most."""
        pixels = self.picture("canvas[role=img]", picture).astype(float)
        height, width, _ = pixels.shape
        changed = np.abs(pixels - np.median(pixels, axis=(0, 1))).sum(-1)
        cells = changed[: height // CELLS * CELLS, : width // CELLS * CELLS]
        cells = cells.reshape(CELLS, height // CELLS, CELLS, width // CELLS).mean((1, 3))
        return tuple(int(place) for place in np.unravel_index(cells.argmax(), cells.shape))

    def word(self) -> str:
        return self.page.locator("#word").inner_text()

    def hover(self, number: int) -> None:
        self.page.locator("#words button").nth(number).hover()
        self.settle()

    def wide(self) -> bool:
        """Whether something makes the page scroll sideways."""
        return self.page.evaluate("() => document.documentElement.scrollWidth > document.documentElement.clientWidth")


@pytest.fixture
def answer_page(browser, tmp_path):
    opened = []

    def open_(shown: Answer, photo: Any = PHOTO, **options: Any) -> AnswerPage:
        shown.to_html(tmp_path / "answer.html", photo)
        opened.append(AnswerPage(browser, tmp_path / "answer.html", **options))
        return opened[-1]

    yield open_
    for page in opened:
        page.context.close()
        assert page.complaints == []
        assert all(url.startswith(("file:", "data:")) for url in page.requests)


@pytest.mark.parametrize("width", [1280, 390])
def test_every_word_shows_its_own_patch(answer_page: Any, width: int) -> None:
    page = answer_page(answer(), viewport={"width": width, "height": 844})
    assert not page.wide()
    shown = page.page.locator("#words button").all_inner_texts()
    assert [text.replace("\u00a0", " ") for text in shown] == [word.replace("\u00a0", " ") for word in expected_words()]
    for number in range(len(shown)):
        page.hover(number)
        assert f"({number + 1} of {len(shown)})" in page.word()
    assert page.page.locator("img").count() == 0


def expected_words() -> list[str]:
    return [str(word) for word in answer().words]


def test_the_patch_of_a_word_and_the_keys(answer_page: Any) -> None:
    page = answer_page(answer())
    words = answer().words
    at = {number: word.tokens[0] for number, word in enumerate(words)}
    for key, expected in [("Home", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", len(words) - 1)]:
        page.page.keyboard.press(key)
        page.settle()
        assert f"({expected + 1} of {len(words)})" in page.word()
        assert page.brightest() == divmod(at[expected], CELLS)
    assert page.page.locator("#words button[aria-pressed=true]").inner_text() == "."
    page.check("smooth", False)
    assert page.brightest() == divmod(at[len(words) - 1], CELLS)
    page.choose("kind", "relative")
    assert page.brightest() == divmod(at[len(words) - 1], CELLS)
    assert "Times the answer's mean" in page.page.locator("#ends").inner_text()
    share = page.page.locator("#masses dd:not(.bar)").first.inner_text()
    assert share == f"{100 * float(answer().mass['image'][-1].mean()):.1f} %"


def test_two_photos_are_two_pictures(answer_page: Any) -> None:
    page = answer_page(answer(images=2), [PHOTO, PHOTO.resize((100, 200))])
    assert page.page.locator("figcaption").all_inner_texts() == [
        "image 1, image: 4 x 4 patches",
        "image 2, image: 4 x 4 patches",
    ]
    page.page.keyboard.press("End")
    page.settle()
    last = divmod(answer().words[-1].tokens[0], CELLS)
    assert page.brightest(0) == page.brightest(1) == last


def test_without_a_photo_and_without_a_processor(answer_page: Any) -> None:
    page = answer_page(answer(processor=None, tiles=True), None)
    captions = page.page.locator("figcaption").all_inner_texts()
    assert captions == ["tiles: 2 x 4 patches, without the photo", "overview: 2 x 2 patches, without the photo"]
    assert page.page.locator("#words button").first.inner_text() == "token 0"


def test_as_many_photos_as_images(tmp_path: Any) -> None:
    with pytest.raises(GeometryError, match="2 images, got 1"):
        answer(images=2).to_html(tmp_path / "answer.html", PHOTO)


def test_the_page_is_one_file_with_a_policy(tmp_path: Any) -> None:
    page = answer().to_html(tmp_path / "answer.html", PHOTO).read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert "<img src=x" not in page
    assert page.count("</script>") == 3
