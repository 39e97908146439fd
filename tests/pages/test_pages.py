"""The viewer's page as text: what it holds, how large it is, what it refuses, that nothing in a name is markup."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image
from skimage import data

from attnhook import AttentionMaps, BlockAttention, ImageGeometry, Readout, TokenLayout, attend, rollout
from attnhook.capture.sites import Queries
from attnhook.capture.softmax_matrix import SoftmaxMatrix
from attnhook.errors import GeometryError, RowsNotKeptError, UnknownBlockError
from attnhook.options import Rows
from attnhook.pages.documents import save_viewer
from attnhook.pages.quantisation import quantise
from attnhook.results import scenes
from attnhook.results.scenes import Scene, pack_scene, viewer_html
from tests.models import TIMM
from tests.pages.scenes import photo, scene

NASTY = "<img src=x onerror=alert(1)>.jpg"


def header_of(page):
    return json.loads(re.search(r'id="header">(.*?)</script>', page, flags=re.DOTALL).group(1))


def synthetic(blocks, heads, grid, *, full):
    """Random softmax rows of a model's size."""
    tokens = grid[0] * grid[1] + 1
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(blocks):
        rows = torch.softmax(2 * torch.randn(1, heads, tokens if full else 1, tokens, generator=generator), dim=-1)
        kept = SoftmaxMatrix(rows) if full else rows
        found.append(BlockAttention(f"blocks.{number}.attn", "softmax", kept, TokenLayout(grid)))
    rows = Rows.ALL if full else Rows.CLS
    maps = AttentionMaps(found, rows=rows, readout=Readout(Rows.CLS, "the head reads it"), input_size=(224, 224))
    return Scene("cat.jpg", photo((224, 224)), ImageGeometry.identity((224, 224)), maps)


def test_a_class_token_file_is_small():
    page = viewer_html([synthetic(12, 12, (14, 14), full=False)], model="vit")
    header = header_of(page)
    assert len(page) - header["scenes"][0]["photo_bytes"] * 4 / 3 < 400_000
    assert int(header["bytes"]) == len(page.encode())


@pytest.mark.slow
def test_a_file_of_all_matrices_is_under_six_megabytes():
    page = viewer_html([synthetic(12, 6, (16, 16), full=True)], model="vit", matrices=None, matrix_heads="all")
    assert all(block["matrix"]["heads"] == 6 for block in header_of(page)["scenes"][0]["blocks"])
    assert len(page) < 6_000_000


def test_a_file_at_224_pixels_is_under_six_megabytes():
    """ViT-B's size; random rows deflate less than a model's."""
    page = viewer_html([synthetic(12, 12, (14, 14), full=True)], model="vit")
    assert [block["matrix"]["heads"] for block in header_of(page)["scenes"][0]["blocks"]] == [1] * 11 + [12]
    assert len(page) < 6_000_000


@pytest.mark.slow
def test_a_file_at_518_pixels_is_under_twenty_megabytes():
    (result,) = attend("demo", data.astronaut(), rows="all")
    page = result.to_html()
    assert all(block["matrix"]["heads"] == 1 for block in header_of(page)["scenes"][0]["blocks"])
    assert len(page) < 20_000_000


def test_what_is_kept():
    whole = scene("registers")
    first, last = header_of(viewer_html([whole], model="vit"))["scenes"][0]["blocks"]
    assert (first["matrix"]["heads"], first["matrix"]["queries"]) == (1, 41)
    assert {"rows", "rollout_rows", "received"} <= first.keys()
    assert (last["matrix"]["heads"], last["matrix"]["queries"]) == (4, 41)
    assert [name for _, name in last["specials"]] == ["class token", *(f"register {n}" for n in (1, 2, 3, 4))]
    fused = header_of(viewer_html([whole], model="vit", matrices=[0], matrix_heads="mean"))["scenes"][0]["blocks"]
    assert (fused[0]["matrix"]["heads"], "matrix" in fused[1]) == (1, False)
    rows = header_of(viewer_html([scene("square", rows="readout")], model="vit"))["scenes"][0]
    assert "rows='all'" in rows["no_rollout"]
    assert rows["named"] == ["class token"]
    assert not any("matrix" in block for block in rows["blocks"])


@pytest.mark.parametrize(
    "size, stored", [((96, 160), (60, 100)), ((50, 150), (50, 150)), ((90, 720), (38, 300)), ((800, 200), (200, 50))]
)
def test_an_elongated_photo_keeps_its_shorter_edge(size, stored):
    header, _ = pack_scene(scene("square", "readout", photo_size=size), matrices=(), matrix_heads="auto", longest=100)
    assert tuple(header["size"]) == stored


def test_chosen_rows_have_their_names():
    named = header_of(viewer_html([scene("square", rows=[(2, 4), 0])], model="vit"))["scenes"][0]["named"]
    assert named == ["patch (2, 4)", "token 0"]


@pytest.mark.parametrize("name", ["vit_siglip", "vit_avg", "vit_distilled", "vit_reg_gap"])
@pytest.mark.parametrize("rows", ["readout", "all"])
def test_other_readouts(name, rows):
    case = next(case for case in TIMM if case.name == name)
    model = case.build()

    def prepare(image):
        return torch.randn(1, 3, 24, 40), ImageGeometry.identity((96, 160)).resize((24, 40))

    (result,) = attend(model, photo(), preprocess=prepare, rows=rows)
    facts = header_of(result.to_html())["scenes"][0]
    assert len(facts["named"]) == 1
    assert "rows" in facts["blocks"][-1]
    assert not any(block.get("refused") for block in facts["blocks"])


def test_the_row_of_a_pooling_is_the_one_that_the_head_reads(monkeypatch):
    one = synthetic(2, 4, (7, 4), full=True)
    kept = SoftmaxMatrix(torch.rand(1, 4, 3, 29).softmax(-1))
    queries = {"queries": Queries.POOL, "readout_rows": slice(1, 2)}
    maps = AttentionMaps(
        [*one.maps, BlockAttention("pool", "softmax", kept, TokenLayout((7, 4)), **queries)],
        rows=Rows.ALL,
        readout=Readout(Rows.POOL, "the head pools"),
    )
    added = []
    monkeypatch.setattr(scenes, "quantise", lambda rows, bits: (added.append(rows), quantise(rows, bits))[1])
    facts = header_of(viewer_html([Scene("cat.jpg", one.image, one.geometry, maps)], model="vit", matrices=()))[
        "scenes"
    ][0]
    assert facts["no_rollout"] is None
    assert ["rollout_rows" in block for block in facts["blocks"]] == [False, False, True]
    torch.testing.assert_close(TokenLayout((7, 4)).patches(added[-1][0]), rollout(maps).values)


def test_a_rollout_that_attribution_refuses_is_left_out_with_the_reason():
    one = synthetic(2, 4, (7, 4), full=True)
    first, last = one.maps
    talks = replace(last, value_multiplier="heads are mixed")
    facts = header_of(
        viewer_html(
            [replace(one, maps=AttentionMaps([first, talks], rows=Rows.ALL, readout=one.maps.readout))], model="v"
        )
    )["scenes"][0]
    assert "heads are mixed" in facts["no_rollout"]
    assert not any(name.startswith("rollout") for block in facts["blocks"] for name in block)


def test_refusals(tmp_path):
    rows = scene("square", rows="readout")
    with pytest.raises(RowsNotKeptError, match=r"rows='all'"):
        viewer_html([rows], model="vit", matrices=1)
    with pytest.raises(UnknownBlockError):
        viewer_html([scene("square")], model="vit", matrices=[7])
    with pytest.raises(ValueError, match="matrix_heads"):
        viewer_html([rows], model="vit", matrix_heads="max")
    with pytest.raises(ValueError, match="at least one photo"):
        viewer_html([], model="vit")
    other = Scene("cat", Image.new("RGB", (10, 10)), rows.geometry, rows.maps)
    with pytest.raises(GeometryError, match="differ"):
        viewer_html([other], model="vit")


class Scripts(HTMLParser):
    """Collects elements, and the text outside scripts."""

    def __init__(self):
        super().__init__()
        self.tags, self.urls = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.urls += [value for name, value in attrs if name in ("src", "href")]


def test_nothing_in_a_name_is_markup():
    nasty = scene("square", rows="readout", name=f"{NASTY}\"'</script><script>alert(2)</script><!--")
    plain = viewer_html([scene("square", rows="readout")], model="vit")
    page = viewer_html([nasty], model="{{script}} </title><b onclick='x'> & \"m\" </script>")
    found, expected = Scripts(), Scripts()
    found.feed(page)
    expected.feed(plain)
    assert found.tags == expected.tags
    assert found.urls == []
    assert header_of(page)["scenes"][0]["name"].startswith(NASTY)
    assert "http" not in re.sub(r"http://www\.w3\.org/2000/svg|http-equiv", "", page)


def test_a_page_is_written_whole(tmp_path, monkeypatch):
    target = save_viewer("<p>one</p>", tmp_path / "view.html")

    def full(self, *arguments, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr(type(target), "write_text", full)
    with pytest.raises(OSError, match="No space"):
        save_viewer("<p>two</p>", target)
    assert [path.name for path in tmp_path.iterdir()] == ["view.html"]
    assert target.read_bytes() == b"<p>one</p>"
