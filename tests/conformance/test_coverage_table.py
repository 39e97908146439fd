"""The tables of the coverage page are made from what a walk found."""

import pytest

from tests.conformance import coverage_table
from tests.documents import DOCS

FOUND = {
    "transformers": "5.24.0",
    "torch": "2.14.1",
    "results": {
        "vit/ViTModel": ["exact", "2 calls, worst 9e-07, peak x37.3 uniform, readout cls"],
        "vit/ViTForMaskedImageModeling": ["exact", "2 calls, worst 3e-06, peak x2 uniform, readout none"],
        "bit/BitModel": ["refused", "convolutions"],
        "dinat/DinatModel": ["not run", "ImportError: natten"],
    },
}


@pytest.fixture(scope="module")
def script():
    return coverage_table


def test_families_stand_under_what_was_found(script) -> None:
    lines = script.tables(FOUND).splitlines()
    assert lines[0].startswith(
        "transformers 5.24.0, torch 2.14.1: 4 classes in 3 families; 2 exact, 1 refused, 1 not run."
    )
    assert lines[0].endswith("Largest error of a row: 3e-06.")
    assert {"| class token | vit |", "| none of these | vit |", "| convolutions | bit |"} <= set(lines)
    assert lines[-1] == "With classes that are neither: dinat (not run)."


def test_only_the_marked_place_is_replaced(script) -> None:
    page = "before\n<!-- timm -->\nold\n<!-- end -->\nafter\n<!-- end -->\n"
    once = script.placed(page, "timm", "new")
    assert once == "before\n<!-- timm -->\n\nnew\n\n<!-- end -->\nafter\n<!-- end -->\n"
    assert script.placed(once, "timm", "new") == once
    with pytest.raises(ValueError, match="no place for transformers"):
        script.placed(page, "transformers", "new")


def test_architectures_of_timm_go_by_module(script) -> None:
    assert script.family_of("timm", "deit_tiny_patch16_224") == "deit"


def test_the_page_has_what_the_walks_found() -> None:
    page = (DOCS / "coverage.md").read_text(encoding="utf-8")
    for library in ("transformers", "timm"):
        made = page.partition(f"<!-- {library} -->")[2].partition("<!-- end -->")[0]
        assert f"{library} " in made
        assert "0e+00" not in made
        assert not {"wrong", "crashed", "missed"} & set(made.partition("Largest")[0].replace(",", " ").split())
