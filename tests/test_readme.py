"""The README's Python, run as it stands. Only the model hubs are replaced: their models come with random weights."""

import re
from pathlib import Path

import pytest
import timm
import transformers
from PIL import Image
from skimage.data import chelsea
from torchvision import transforms

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.fixture
def cat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(chelsea()).save("cat.jpg")
    return tmp_path


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, pretrained, **settings: create(name, pretrained=False, **settings)
    )
    config = transformers.Dinov2Config(hidden_size=48, num_hidden_layers=2, num_attention_heads=4)
    processor = transformers.BitImageProcessor(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224})
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", lambda name: transformers.Dinov2Model(config))
    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", lambda name: processor)


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_the_first_examples(cat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a model, a transform and a processor of one's own, as the text says."""
    config = transformers.Dinov2Config(hidden_size=48, num_hidden_layers=2, num_attention_heads=4)
    names = {
        "model": timm.create_model("test_vit").eval(),
        "transform": transforms.Compose([transforms.Resize(180), transforms.CenterCrop(160), transforms.ToTensor()]),
        "photo": Image.open("cat.jpg"),
    }
    for picture in ("cat.png", "cat-attention.png", "cat-processor.png"):
        if picture == "cat-processor.png":
            names["model"] = transformers.Dinov2Model(config).eval()
            names["processor"] = transformers.BitImageProcessor(
                size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}
            )
        (block,) = [block for block in BLOCKS if f'"{picture}"' in block]
        exec(compile(block, "README.md", "exec"), names)  # noqa: S102 (our own README)
        assert size_of(cat / picture) == (451, 300)
    with Image.open("cat.png") as one, Image.open("cat-attention.png") as other:
        assert one.tobytes() == other.tobytes()
    assert len(names["attentions"]) == 2
    assert "raw attention of block" in capsys.readouterr().out


@pytest.mark.slow
def test_one_call(cat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = [block for block in BLOCKS if "cat-demo.png" in block]
    exec(compile(block, "README.md", "exec"), {})  # noqa: S102 (our own README)
    assert size_of(cat / "cat-demo.png") == (451, 300)
    assert "demo" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "words",
    [
        "received_attention(capture.maps, 1)",
        "followed = rollout(",
        "gradient_rollout(",
        "class HomeMadeViT",
        "TraceableCapture",
    ],
)
def test_the_other_examples(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = [block for block in BLOCKS if words in block]
    names: dict = {"__name__": "readme"}
    exec(compile(block, "README.md", "exec"), names)  # noqa: S102 (our own README)
    for line in block.splitlines():
        if line.startswith("print("):
            assert line.partition("# ")[2] in capsys.readouterr().out
    if "received" in names:
        assert names["received"].shape == (1, 56, 56)
    if "followed" in names:
        assert names["followed"].shape == (2, 14, 14)
        assert names["spread"].shape == (2, 3, 197)
    if "maps" in names:
        assert len(names["maps"]) == 12
    if "relevance" in names:
        assert names["relevance"].shape == (1, 14, 14)


@pytest.mark.filterwarnings("ignore")
def test_an_overlay_of_a_model_of_nobodys_library(cat: Path) -> None:
    names: dict = {"__name__": "readme"}
    for words in ("class HomeMadeViT", "cat-home-made.png"):
        (block,) = [block for block in BLOCKS if words in block]
        exec(compile(block, "README.md", "exec"), names)  # noqa: S102 (our own README)
    assert size_of(cat / "cat-home-made.png") == (451, 300)


@pytest.mark.usefixtures("no_hub")
def test_while_training(cat: Path) -> None:
    (block,) = [block for block in BLOCKS if "AttentionMonitor" in block]
    exec(compile(block, "README.md", "exec"), {})  # noqa: S102 (our own README)
    lines = (cat / "attention-log" / "scalars.jsonl").read_text().splitlines()
    assert len(lines) == 4  # two steps, each with the live batch and the probe
    assert size_of(cat / "attention-log/attention/overlay/0/step-00000002.png") == (224, 224)


@pytest.mark.slow
@pytest.mark.parametrize("text", [README], ids=lambda path: path.name)
def test_comparing(cat: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = [
        b for b in re.findall(r"```python\n(.*?)```", text.read_text(), flags=re.DOTALL) if "import compare" in b
    ]
    names: dict = {}
    exec(compile(block, text.name, "exec"), names)  # noqa: S102 (our own text)
    assert "demo:timm" in capsys.readouterr().out
    (same,) = [note for note in names["found"].notes if note.level == "ok"]
    assert same.text.startswith("demo and demo:timm give the same maps")
    assert (cat / "report" / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_a_whole_data_set(cat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cat / "photos").mkdir()
    (cat / "cat.jpg").rename(cat / "photos" / "cat.jpg")
    (block,) = [block for block in BLOCKS if "open_maps" in block]
    exec(compile(block, "README.md", "exec"), {})  # noqa: S102 (our own README)
    assert "cat.jpg torch.Size([6, 1, 257])" in capsys.readouterr().out
    assert size_of(cat / "first.png") == (451, 300)


def test_every_block_is_run_by_a_test() -> None:
    assert len(BLOCKS) == 13
