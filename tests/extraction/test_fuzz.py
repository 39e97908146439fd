"""A thousand files that are no photos, or not quite: each stands in the index, as a result or with its error."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from attnhook import extract
from tests.extraction.photographs import rows_in

KINDS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")


def whole(draw, kind):
    rng = np.random.default_rng(draw.randrange(2**32))
    mode = draw.choice(["RGB", "L", "P", "RGBA"] if kind in {"PNG", "TIFF", "WEBP"} else ["RGB"])
    picture = Image.fromarray(rng.integers(0, 256, (draw.randint(1, 60), draw.randint(1, 60), 3), dtype=np.uint8))
    file = io.BytesIO()
    picture.convert(mode).save(file, kind)
    return file.getvalue()


def flipped(draw, kind):
    content = bytearray(whole(draw, kind))
    for _ in range(draw.choice([1, 3, 30])):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(content)


def cut(draw, kind):
    content = whole(draw, kind)
    return content[: draw.randrange(len(content))]


def huge(draw, kind):
    """A PNG whose header says up to 2^31 pixels a side."""
    size = struct.pack(">II", draw.choice([20_000, 100_000, 2**31 - 1]), draw.choice([20_000, 2**31 - 1]))
    header = b"IHDR" + size + b"\x08\x02\x00\x00\x00"
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + b"\x00" * 40


def text(draw, kind):
    return "".join(draw.choice("attention 0123\n") for _ in range(draw.randint(1, 200))).encode()


def nothing(draw, kind):
    return b""


def noise(draw, kind):
    return draw.randbytes(draw.randint(1, 500))


def headed_noise(draw, kind):
    return whole(draw, kind)[: draw.randint(4, 40)] + draw.randbytes(200)


MAKERS = (flipped, flipped, cut, huge, text, nothing, noise, headed_noise, whole)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_thousand_odd_files(vision, tmp_path, workers):
    draw = random.Random(0)  # noqa: S311
    (tmp_path / "photos").mkdir()
    sound = set()
    for number in range(1000):
        kind = draw.choice(KINDS)
        maker = MAKERS[number % len(MAKERS)]
        suffix = draw.choice([kind.lower(), "png", "jpg", "tif"])  # often the wrong one
        name = f"{number:04d}.{suffix}"
        (tmp_path / "photos" / name).write_bytes(maker(draw, kind))
        sound |= {name} if maker is whole else set()
    maps = extract(vision, tmp_path / "photos", tmp_path / "out", num_workers=workers, shard_size=100, batch_size=16)
    assert len(maps) + len(maps.errors) == 1000
    assert sound <= set(maps.keys)
    assert len(maps.errors) > 500
    assert all(reason for reason in maps.errors.values())
    assert all(rows_in(maps[i], 0).isfinite().all() for i in range(len(maps)))
