"""The tables of CHANGELOG.md that lead from 0.1 to 0.2: old lines warn, or their errors give the new ones, and every new line runs."""

import copy
import inspect
import pickle
import pydoc
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image

import attnhook
from attnhook.capture.sites import Kernel
from attnhook.zoo.model_metadata import library_of

TEXT = (Path(__file__).parents[1] / "CHANGELOG.md").read_text()
IDENTIFIER = re.compile(r"\w+")


def rows(section: str) -> list[tuple[str, str]]:
    """Old line and what stands beside it, of the newest version."""
    newest = TEXT.partition("## [0.2.0]")[2].partition("\n## ")[0]
    table = newest.partition(f"### {section}\n")[2].partition("\n### ")[0]
    return [(old, new) for old, new in re.findall(r"^\| `(.+?)` \| (.+) \|$", table, re.MULTILINE)]


def line_in(new: str) -> str | None:
    """The new line, if there is one: a name may be explained after it."""
    found = re.match(r"`(.+?)`", new)
    return None if found is None else found[1]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the lines speak of."""
    photo = Image.radial_gradient("L").convert("RGB").resize((120, 90))
    model = timm.create_model("test_vit").eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    found: dict[str, Any] = {name: getattr(attnhook, name) for name in attnhook.__all__}
    captures = {}
    for kept in ("readout", "all"):
        with torch.no_grad(), attnhook.AttentionCapture(model, rows=kept) as captures[kept]:
            model(transform(photo)[None])
    vision, maps = attnhook.VisionModel(model), captures["readout"].maps
    folder = tmp_path_factory.mktemp("migration")
    (folder / "photos").mkdir()
    photo.save(folder / "photos/a.png")
    attnhook.extract(vision, folder / "photos", folder / "out", num_workers=0)
    return found | {
        **{"torch": torch, "Kernel": Kernel, "library_of": library_of, "folder": folder},
        **{"model": model, "module": model.blocks[0].attn, "photo": photo, "transform": transform, "vision": vision},
        **{"capture": captures["readout"], "maps": maps, "every": captures["all"].maps},
        **{"result": attnhook.attend(model, photo)[0], "geometry": attnhook.ImageGeometry.of(transform, photo)},
        **{"values": torch.rand(10, 10), "pixels": torch.rand(90, 120), "mask": torch.eye(10, dtype=torch.bool)},
        **{"header": {}, "tensors": {}},
    }


def content_of(value: Any) -> Any:
    """What can be compared of a value."""
    if isinstance(value, Image.Image):
        return value.tobytes()
    return value.nan_to_num(-1).tolist() if isinstance(value, torch.Tensor) else repr(value)


def run(line: str, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run a line; the texts of its deprecation warnings of attnhook."""
    monkeypatch.chdir(names["folder"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(compile(line, "a user's program", "exec"), dict(names))  # noqa: S102 (our own lines)
    mine = [one for one in caught if "since attnhook" in str(one.message)]
    assert all(one.category is DeprecationWarning and one.filename == "a user's program" for one in mine)
    return [str(one.message) for one in mine]


@pytest.mark.parametrize(("old", "new"), rows("Deprecated"))
def test_old_lines_run_and_warn(old: str, new: str, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    said = " ".join(run(old, names, monkeypatch))
    line = line_in(new)
    assert line is not None
    before, after = IDENTIFIER.findall(old), IDENTIFIER.findall(line)
    assert all(name in said for name in (set(after) - set(before)) or after[-1:])
    assert content_of(eval(old, dict(names))) == content_of(eval(line, dict(names)))  # noqa: S307 (our own lines)


@pytest.mark.parametrize(("old", "new"), rows("Removed"))
def test_removed_lines_say_what_to_write(
    old: str, new: str, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises((TypeError, ValueError, AttributeError, ImportError, LookupError)) as caught:
        run(old, names, monkeypatch)
    message = str(caught.value)
    before, after = set(IDENTIFIER.findall(old)), set(IDENTIFIER.findall(new))
    given = [rf"\b{name}\b" for name in after - before]  # a new name, a new list, a new home, or what is to be left out
    given += [re.escape(one) for one in re.findall(r"\w\[.*?\]|=(\[.*?\])", new) if one]
    given += [rf"from {home}\b" for home in re.findall(r"from (\S+) import", new)]
    given += [f"Leave {name}" for name in before - after]
    assert any(re.search(one, message) for one in given), (message, given)


@pytest.mark.parametrize("line", [line for _, new in rows("Deprecated") + rows("Removed") if (line := line_in(new))])
def test_new_lines_run(line: str, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    if line.startswith(("extract(", "maps.save(")):  # into a folder of their own
        line = line.replace('"out"', '"again", num_workers=0')
    assert run(line, names, monkeypatch) == []


def test_the_tables_are_read() -> None:
    assert len(rows("Deprecated")) >= 10
    assert len(rows("Removed")) >= 25


def test_a_class_without_old_names_says_what_python_says() -> None:
    for thing, name in ((attnhook.ImageGeometry.identity((2, 2)), "nothing"), (attnhook.PatchMap, "nothing")):
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            getattr(thing, name)
    patch_map = attnhook.PatchMap(torch.rand(2, 2))
    with pytest.raises(AttributeError, match="'PatchMap' object has no attribute 'nothing'"):
        patch_map.nothing  # noqa: B018
    assert not hasattr(patch_map, "__array_interface__")
    with pytest.raises(KeyError):
        attnhook.attend("digits", Image.new("L", (32, 32)))[0].settings["nothing"]


def test_looking_at_classes_and_copying_warns_of_nothing(names: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        for kind in (
            attnhook.AttentionMaps,
            attnhook.BlockAttention,
            attnhook.AttentionSite,
            attnhook.PatchMap,
            Kernel,
        ):
            assert inspect.getmembers(kind)
            assert pydoc.render_doc(kind)
        for value in (
            names["maps"],
            names["maps"][-1],
            attnhook.raw_attention(names["maps"]),
            names["result"].settings,
        ):
            assert type(copy.deepcopy(value)) is type(value)
            assert pickle.dumps(value)
        assert str(inspect.signature(attnhook.heatmap)).startswith("(patch_map: ")
        assert len(list(Kernel)) == 5
