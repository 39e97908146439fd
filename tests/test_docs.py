"""Every block of code in the docs, run as it stands; only the model hubs are replaced, by models with random weights."""

import contextlib
import importlib.util
import io
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from skimage.data import chelsea
from timm.models.vision_transformer import VisionTransformer

import attnhook
from attnhook.cli.entry import _parser, main
from attnhook.names import homes_of
from tests.documents import DOCS, PAGES, ROOT, SHELLS, Block, blocks_of, expanded
from tests.messages import is_in_the_source

SLOW = {"comparing.md", "extracting.md", "index.md", "reading.md", "start.md"}  # real weights, or several models
WITH_CODE = [page for page in PAGES if any(block.language in {"python", *SHELLS} for block in blocks_of(page))]
NOT_RUN_AT_MOST = 5


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
def test_a_page_runs(page: Path) -> None:
    names: dict = {"__name__": page.stem}
    torch.manual_seed(0)
    ran = 0
    for block in blocks_of(page):
        if block.not_run or block.language not in {"python", *SHELLS}:
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            run_block(block, names)
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
def test_commands_of_the_readme_that_need_no_hub_run(capsys: pytest.CaptureFixture[str]) -> None:
    commands = [command for block in blocks_of(ROOT / "README.md") for command in block.commands]
    local = [command for command in commands if {"demo", "demo:timm"} & set(command[1:]) and ":vit" not in str(command)]
    assert sorted(command[0] for command in local) == ["describe", "view"]
    for command in local:
        assert main(list(expanded(command))) == 0
    assert "blocks.11.attn" in capsys.readouterr().out
    assert Path("cat.html").stat().st_size > 100_000


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


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_links_and_pictures_are_there(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


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


def test_the_tables_of_readme_stand_in_the_docs() -> None:
    rows = re.findall(r"^\| .* \|$", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    figures = [row for row in rows if re.search(r"\d\.\d{2,3} \(\d|architectures \||classes\) \|", row)]
    measured = (DOCS / "benchmarks.md").read_text(encoding="utf-8") + (DOCS / "coverage.md").read_text(encoding="utf-8")
    assert len(figures) >= 11
    for row in figures:
        assert row in measured


def test_the_command_line_page_is_filled_from_the_parser() -> None:
    spec = importlib.util.spec_from_file_location("commands", DOCS / "commands.py")
    commands = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(commands)
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
    assert len(scripts) >= 5
    for script in scripts:
        assert f"(examples/{script.name})" in texts
        assert f'"{script.name}"' in tests
