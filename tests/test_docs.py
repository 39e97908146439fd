"""Every block of code in the docs, run as it stands; only the model hubs are replaced, by models with random weights."""

import contextlib
import importlib.util
import io
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers
import yaml
from PIL import Image
from skimage.data import chelsea
from timm.models.vision_transformer import VisionTransformer

import attnhook
from attnhook.cli.entry import _parser, main
from attnhook.names import homes_of
from tests.documents import DOCS, PAGES, ROOT, SHELLS, Block, blocks_of, expanded
from tests.messages import is_in_the_source
from tests.models import demo_at_224_pixels

SLOW = {
    "choosing.md",
    "comparing.md",
    "extracting.md",
    "figures.md",
    "index.md",
    "reading.md",
    "start.md",
}  # real weights, or several models
WITH_CODE = [page for page in PAGES if any(block.language in {"python", *SHELLS} for block in blocks_of(page))]
NOT_RUN_AT_MOST = 2


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a page's code runs: with the photos that pages speak of, and measurements kept nowhere else."""
    monkeypatch.chdir(tmp_path)
    cat = Image.fromarray(chelsea())
    cat.save("cat.jpg")
    Path("photos").mkdir()
    Path("masks").mkdir()
    inside = np.zeros((cat.height, cat.width), np.uint8)
    inside[60:260, 120:320] = 255
    for number in range(2):
        cat.rotate(180 * number).save(f"photos/{number}.jpg")
        Image.fromarray(inside).rotate(180 * number).save(f"masks/{number}.png")
    return tmp_path


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hub models keep their architecture, narrow and two blocks deep; their weights are random."""
    create = timm.create_model

    def created(name: str, **settings):
        return create(name, **settings | {"pretrained": False})

    config = transformers.Dinov2Config(hidden_size=48, num_hidden_layers=2, num_attention_heads=4)
    processor = transformers.BitImageProcessor(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224})
    monkeypatch.setattr(timm, "create_model", created)
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", lambda name: transformers.Dinov2Model(config))
    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", lambda name: processor)


def run_block(block: Block, names: dict) -> None:
    if block.language == "python":
        exec(compile("\n" * block.line + block.code, str(block), "exec"), names)  # noqa: S102 (our own docs)
    for arguments in block.commands:
        assert main(list(expanded(arguments))) == 0, f"{block}: attnhook {' '.join(arguments)}"


@pytest.mark.usefixtures("folder", "no_hub")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=str(page.relative_to(DOCS)), marks=[pytest.mark.slow] if page.name in SLOW else [])
        for page in WITH_CODE
    ],
)
def test_a_page_runs(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict = {"__name__": page.stem}
    if not any(
        re.search(r"518|18, 18", block.code) for block in blocks_of(page)
    ):  # a size, or a patch beyond a grid of 16 x 16
        demo_at_224_pixels(monkeypatch)
    torch.manual_seed(0)
    ran = 0
    for block in blocks_of(page):
        if block.not_run or block.language not in {"python", *SHELLS}:
            continue
        printed = io.StringIO()
        # In a thread of its own: a browser of other tests may have an event loop in this one, in which asyncio.run refuses.
        with contextlib.redirect_stdout(printed), ThreadPoolExecutor(1) as thread:
            thread.submit(run_block, block, names).result()
        for promise in block.promises:
            assert promise in printed.getvalue(), f"{block}: prints {printed.getvalue()!r}"
        ran += 1
    assert ran or all(block.not_run for block in blocks_of(page))


def test_few_blocks_are_not_run_and_each_says_why() -> None:
    left_out = [block for page in PAGES for block in blocks_of(page) if block.not_run]
    assert len(left_out) <= NOT_RUN_AT_MOST
    assert all(len(block.not_run or "") > 5 for block in left_out)


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_commands_are_those_of_the_parser(page: Path) -> None:
    for block in blocks_of(page):
        for arguments in block.commands:
            parsed = _parser().parse_args(list(expanded(arguments)))
            assert parsed.command == arguments[0]


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_commands_of_the_readme_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    demo_at_224_pixels(monkeypatch)
    Image.open("cat.jpg").save("coffee.jpg")
    commands = [command for block in blocks_of(ROOT / "README.md") for command in block.commands]
    assert [command[0] for command in commands] == ["overlay", "view", "compare", "describe", "verify"]
    for command in commands:
        assert main(list(expanded(command))) == 0
    assert "blocks.11.attn" in capsys.readouterr().out
    assert Path("overlays/coffee-attention.png").exists()
    assert Path("coffee.html").stat().st_size > 100_000


def test_a_wrong_command_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = Block(Path(), 1, "sh", "attnhook overlay cat.jpg --no-such-option 3  # words\n", None).commands
    assert command == ["overlay", "cat.jpg", "--no-such-option", "3"]
    with pytest.raises(SystemExit):
        _parser().parse_args(command)
    assert "unrecognized arguments" in capsys.readouterr().err


def test_a_block_is_found_with_its_title_and_its_promises(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text('words\n\n```python title="not run: needs a GPU"\nprint(1)  # one\n```\n\n  ```sh\n  ls\n  ```\n')
    first, second = blocks_of(page)
    assert (first.line, first.not_run, first.promises) == (3, "needs a GPU", ["one"])
    assert (second.code, second.not_run, second.commands) == ("ls\n", None, [])


@pytest.mark.parametrize("name", sorted(set(attnhook.__all__) - {"__version__"}))
def test_the_reference_has_every_public_name(name: str) -> None:
    home = homes_of("attnhook")[name]
    pages = [page for page in (DOCS / "reference").glob("*.md") if f"::: {home}.{name}\n" in page.read_text()]
    assert len(pages) == 1


def test_the_reference_names_the_version() -> None:
    assert "`attnhook.__version__`" in (DOCS / "reference" / "index.md").read_text()


def test_random_models_of_the_pages_are_timms() -> None:
    assert isinstance(timm.create_model("test_vit"), VisionTransformer)


TROUBLES = re.findall(r"^### `(.*)`$", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.mark.parametrize("heading", TROUBLES)
def test_headings_of_troubleshooting_are_messages_of_the_source(heading: str) -> None:
    assert is_in_the_source(heading)


def test_a_heading_that_no_message_has_is_noticed() -> None:
    assert len(TROUBLES) > 30
    assert not is_in_the_source("nothing captured: expected a forward of … outside the context")
    assert not is_in_the_source("inside the context … nothing captured: expected")


TEXTS = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "llms.txt")), *PAGES]


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_links_and_pictures_are_there(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_pictures_are_small_and_made_by_the_code_beside_them(page: Path) -> None:
    """Each is what a block of the page writes, or what a linked script logs: `docs/gallery.py` makes them of these."""
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"\]\((?:docs/)?pictures/([\w-]+)\.jpg\)", text):
        assert (DOCS / "pictures" / f"{name}.jpg").stat().st_size < 150_000
        assert f'"{name}.png"' in text or (name == "training" and "examples/train_plain.py" in text)


@pytest.mark.parametrize("page", [*TEXTS, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_tables_are_tables(page: Path) -> None:
    """The site needs a blank line before a table, and a header in every block of rows; without them, it shows the bars."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for paragraph in re.split(r"\n\s*\n", text):
        lines = paragraph.strip().splitlines()
        if any(line.startswith("|") for line in lines):
            assert all(line.startswith("|") for line in lines), f"{page.name}: {lines[0]}"
            assert re.match(r".*\n\|( *:?-+:? *\|)+$", "\n".join(lines[:2])), f"{page.name}: {lines[0]}"


def security_rows() -> list[tuple[str, str]]:
    """Guard and test of each threat."""
    rows = re.findall(r"^\| (?!threat|-)(.*) \|$", (DOCS / "security.md").read_text(encoding="utf-8"), re.MULTILINE)
    return [tuple(row.rsplit(" | ", 2)[1:]) for row in rows if "---" not in row]


@pytest.mark.parametrize(("guard", "tests"), security_rows(), ids=lambda text: text[:40])
def test_guards_and_tests_of_the_security_page_exist(guard: str, tests: str) -> None:
    package = Path(attnhook.__file__).parent
    for file, names in re.findall(r"`([\w/]+\.py)`(?:, ((?:`[\w.]+`)))?", guard):
        source = (package / file).read_text(encoding="utf-8")
        assert not names or re.search(rf"(def|class) {names.strip('`').rpartition('.')[2]}\b", source)
    proofs = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", tests)
    assert proofs
    for file, name in proofs:
        source = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert re.search(rf"^def {name}\(" if name else r"^def test_", source, flags=re.MULTILINE), f"{file}::{name}"


def test_the_security_page_has_all_its_tables() -> None:
    assert len(security_rows()) >= 20


def test_the_figures_of_the_readme_are_those_of_the_docs() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .*\d\.\d{2,3} \(.* \|$", text, flags=re.MULTILINE)
    measured = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
    assert len(rows) >= 3
    for row in rows:
        assert row in measured
    assert "5,054 MiB" in measured
    coverage = (DOCS / "coverage.md").read_text(encoding="utf-8")
    assert all(
        words in coverage for words in ("1,371 architectures | 476 |", "193 vision families (368 classes) | 165 ")
    )
    assert "476 of 1,371 architectures" in text
    assert "165 of 193 vision families" in text


def test_the_command_line_page_is_filled_from_the_parser() -> None:
    commands = imported(DOCS / "commands.py")
    page = (DOCS / "reference" / "command-line.md").read_text(encoding="utf-8")
    filled = commands.on_page_markdown(page)
    assert commands.on_page_markdown("another page") == "another page"
    for command in ("demo", "overlay", "view", "compare", "describe", "verify"):
        assert f"## `attnhook {command}`\n\n```text\nusage: attnhook {command}" in filled
    assert "--preset NAME" in filled
    assert "-h, --help" not in filled


def test_examples_are_linked_and_run() -> None:
    texts = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    tests = (ROOT / "tests" / "monitoring" / "test_training_examples.py").read_text(encoding="utf-8")
    scripts = [
        script for script in (DOCS / "examples").glob("*.py") if "__main__" in script.read_text(encoding="utf-8")
    ]
    assert len(scripts) >= 6
    for script in scripts:
        assert f"(examples/{script.name})" in texts or f"(../examples/{script.name})" in texts
        assert f'"{script.name}"' in tests or script.name == "gradio_app.py"


def imported(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_gradio_example_makes_its_picture() -> None:
    app = imported(DOCS / "examples" / "gradio_app.py")
    picture, caption = app.attention_of(Image.fromarray(chelsea()), 4)
    assert picture.size == (451, 300)
    assert "block 4 of 12" in caption


NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_with_its_output(path: Path) -> None:
    assert path.stat().st_size < 1_000_000
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    title, install, *others = notebook["cells"]
    assert title["cell_type"] == "markdown"
    assert re.findall(r"%pip install -q \"(.*?)\[", "".join(install["source"])) == ["."]  # attnhook is not on PyPI
    assert any(cell.get("outputs") for cell in others)
    for cell in notebook["cells"]:
        assert ("outputs" in cell) == ("execution_count" in cell) == (cell["cell_type"] == "code")
        for link in re.findall(r"\]\(([^):]+)\)", "".join(cell["source"]) if cell["cell_type"] == "markdown" else ""):
            assert (path.parent / link).exists()
    assert f"({path.name})" in (DOCS / "notebooks" / "index.md").read_text(encoding="utf-8")


def test_no_notebook_says_that_a_log_holds_png_files() -> None:
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for line in cell["source"]:
                assert not ("DirectoryWriter" in line and "PNG" in line), (path.name, line)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path) -> None:
    """And gives the same kinds of output as are stored."""
    stored = json.loads(path.read_text(encoding="utf-8"))["cells"]
    made = imported(DOCS / "execute_notebooks.py").execute(path)["cells"]
    for old, new in zip(stored, made, strict=True):
        assert kinds_of(old) == kinds_of(new)


def kinds_of(cell: dict) -> list[tuple[str, list[str]]]:
    return [(output["output_type"], sorted(output.get("data", {}))) for output in cell.get("outputs", [])]


def test_llms_txt_is_one() -> None:
    """A title, a summary in a quotation, then sections of links: https://llmstxt.org."""
    title, summary, *_ = (ROOT / "llms.txt").read_text(encoding="utf-8").split("\n\n")
    assert title == "# attnhook"
    assert summary.startswith("> ")


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.name
)
def test_issue_forms_ask_for_describe_and_verify(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= form.keys()
    asked = {field["id"] for field in form["body"] if field["type"] != "markdown"}
    assert {"describe", "verify"} <= asked
