"""`compare` from models and photos to numbers and files."""

import csv
import hashlib
import json
import math
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from attnhook import Comparison, ImageGeometry, attend, compare, rollout
from attnhook.attribution.scores import energy_in_mask
from attnhook.comparison import measuring, reports
from attnhook.comparison.measurements import Measurement, _seal
from attnhook.comparison.reports import _reasons
from attnhook.errors import ComparisonError, MissingPackageError, ScoreError
from attnhook.imaging.panels import rendered
from attnhook.zoo.presets import PRESETS
from tests.comparison.slow_metrics import SLOW
from tests.comparison.zoo import cnn, disc, hf_dinov2, photo, seeing, timm_vit, torchvision_vit
from tests.zoo.saved_models import save_hf, save_timm

PHOTOS = [photo(seed=1), photo(130, 80, seed=2), photo(seed=3)]
METHODS = ("raw_attention", "rollout")


def three():
    return [timm_vit(), hf_dinov2(), torchvision_vit()]


@pytest.fixture(scope="module")
def found() -> Comparison:
    masks = [disc(), None, (20, 20, 70, 70)]
    return compare(
        three(),
        PHOTOS,
        methods=METHODS,
        depths=(0.5, 1),
        masks=masks,
        labels=["disc", None, 3],
        cache=None,
        resolution=None,
    )


def test_maps_are_those_of_attend(found) -> None:
    for index, model in enumerate(three()):
        for number, picture in enumerate(PHOTOS):
            (one,) = attend(model, picture, rows="all")
            torch.testing.assert_close(found.heatmap(index, number), one.heatmap, equal_nan=True)
            rolled = one.upsample(rollout(one.maps).values[0])
            torch.testing.assert_close(found.heatmap(index, number, "rollout"), rolled, equal_nan=True)
            (half,) = attend(model, picture, blocks=[math.ceil(len(one.maps) / 2) - 1])
            torch.testing.assert_close(
                found.heatmap(model.name, number, "raw_attention@0.5"), half.heatmap, equal_nan=True
            )


def test_statistics_are_those_of_the_rows(found) -> None:
    rows = {row["model"]: row for row in found.table().to_dict("records")}
    for model in three():
        spread = []
        for picture in PHOTOS:
            maps = attend(model, picture, rows="all")[0].maps
            matrices = [block.weights()[0].double() for block in maps]
            of_blocks = [torch.special.entr(m).sum(-1).mean() / math.log(m.shape[-1]) for m in matrices]
            spread.append(float(torch.stack(of_blocks).mean()))
        assert rows[model.name]["relative_entropy"] == pytest.approx(np.mean(spread), abs=1e-6)
        assert rows[model.name]["relative_entropy_error"] == pytest.approx(
            np.std(spread, ddof=1) / math.sqrt(3), abs=1e-6
        )
        assert rows[model.name]["parameters"] == sum(p.numel() for p in model.model.parameters()) / 1e6


def test_statistics_of_some_photos() -> None:
    found = compare(three()[:2], PHOTOS, statistics=2, cache=None)
    assert list(found.table()["relative_entropy_n"]) == [2, 2]
    assert list(found.agreement()["spearman_n"]) == [3]
    assert list(found.table()["forward_ms_n"]) == [1, 1]  # the one photo whose capture is one row
    assert "relative_entropy" not in compare(three()[:1], PHOTOS[:1], statistics=False, cache=None).table()


def test_the_table_says_what_the_models_are(found) -> None:
    table = found.table().set_index("model")
    assert list(table["grid"]) == ["4 \u00d7 4"] * 3
    assert list(table["input"]) == ["64 \u00d7 64", "56 \u00d7 56", "64 \u00d7 64"]
    assert list(table["patch"]) == [16, 14, 16]
    assert list(table["tokens"]) == [17, 21, 17]
    assert set(table["readout"]) == {"cls"}
    assert (table["forward_ms"] > 0).all()


def test_agreement_is_over_what_all_saw(found) -> None:
    rows = found.agreement("rollout").to_dict("records")
    assert (rows[0]["first"], rows[0]["second"]) == ("timm:tiny", "hf:registers")
    expected = []
    for number in range(3):
        maps = [found.heatmap(model, number, "rollout") for model in range(3)]
        unseen = torch.stack(maps).isnan().any(dim=0)
        a, b = (m.masked_fill(unseen, math.nan) for m in maps[:2])
        expected.append(SLOW["spearman"](a, b))
        part = 1 - unseen.double().mean()
        assert found.areas[number].part == pytest.approx(float(part))
    assert rows[0]["spearman"] == pytest.approx(np.mean(expected), abs=1e-9)
    assert rows[0]["spearman_n"] == 3
    assert rows[0]["spearman_low"] <= rows[0]["spearman"] <= rows[0]["spearman_high"]


def test_scores_stand_beside_their_controls(found) -> None:
    table = found.table("objects")
    kinds = ["model", "random weights", "random map"]
    assert list(table[(table["view"] == "rollout") & (table["model"] == "timm:tiny")]["map"]) == kinds
    assert set(table["energy_n"]) == {2}
    unseen = torch.stack([found.heatmap(m, 0) for m in range(3)]).isnan().any(dim=0)
    mine = found.heatmap(0, 0).masked_fill(unseen, math.nan)
    assert found.objects["raw_attention"][0].estimates["energy"]["model"].n == 2
    alone = (
        compare(three(), PHOTOS[:1], masks=[disc()], cache=None, resolution=None)
        .objects["raw_attention"][0]
        .estimates["energy"]
    )
    assert alone["model"].value == pytest.approx(float(energy_in_mask(mine, disc() > 0)), abs=1e-6)  # maps are float32
    assert alone["random_weights"].value != alone["model"].value


def test_models_are_left_as_they_were() -> None:
    models = three()
    models[0].model.blocks[1].train()
    before = [{k: v.clone() for k, v in m.model.state_dict().items()} for m in models]
    modes = [[module.training for module in m.model.modules()] for m in models]
    hooks = [sum(len(x._forward_hooks) + len(x._forward_pre_hooks) for x in m.model.modules()) for m in models]
    state = torch.random.get_rng_state()
    compare(models, PHOTOS[0], masks=[disc()], methods=["raw_attention", "legrad"], cache=None)
    assert torch.equal(torch.random.get_rng_state(), state)
    for model, values, training, count in zip(models, before, modes, hooks, strict=True):
        assert all(torch.equal(value, values[name]) for name, value in model.model.state_dict().items())
        assert [module.training for module in model.model.modules()] == training
        assert sum(len(x._forward_hooks) + len(x._forward_pre_hooks) for x in model.model.modules()) == count
        assert all(p.grad is None and p.requires_grad for p in model.model.parameters())


def test_class_specific_methods_follow_the_label() -> None:
    model = timm_vit()
    towards = [compare(model, PHOTOS[0], methods="gradient_rollout", labels=[n], cache=None) for n in (2, 5, None)]
    for label, one in zip((2, 5, None), towards, strict=True):
        (result,) = attend(model, PHOTOS[0], method="gradient_rollout", target=label)
        torch.testing.assert_close(one.heatmap(0), result.heatmap, equal_nan=True)
    assert not torch.allclose(towards[0].heatmap(0).nan_to_num(), towards[1].heatmap(0).nan_to_num())


def test_what_a_model_has_no_map_of_is_said() -> None:
    headless = hf_dinov2()
    found = compare([timm_vit(), headless], PHOTOS[:2], methods=["raw_attention", "gradient_rollout"], cache=None)
    (failure,) = found.failures
    assert (failure.model, failure.what) == ("hf:registers", "gradient_rollout")
    assert "no class scores" in failure.error
    with pytest.raises(KeyError, match="no class scores"):
        found.heatmap("hf:registers", 0, "gradient_rollout")
    assert list(found.agreement()["view"]) == ["raw_attention"]
    reason = next(_reasons(found))
    assert (reason["view"], reason["model"], reason["photo"]) == (1, 1, 0)
    assert "no class scores" in reason["text"]


def test_each_missing_map_has_its_own_reason(tmp_path, monkeypatch) -> None:
    """A view that fails on one photo, a photo that is not measured, and failures that are no map's, all of one model."""
    model, drawn, count = timm_vit("a"), measuring._map, Counter()

    def draw(maps, view):
        count[view.method] += 1
        if view.method == "rollout" and count["rollout"] == 2:
            raise ScoreError("no rollout here")
        return drawn(maps, view)

    def look(picture):
        if picture.size == PHOTOS[1].size:
            raise OSError("no such pixels")
        return model.preprocess(picture)

    def full(*arguments):
        raise OSError("disk full")

    photos = [PHOTOS[0], PHOTOS[2], PHOTOS[1]]
    monkeypatch.setattr(measuring, "_map", draw)
    monkeypatch.setattr(Measurement, "save", full)
    found = compare(model.with_preprocess(look), photos, methods=["raw_attention", "rollout"], cache=tmp_path)
    raw, rollout = found.views
    assert found.reason(0, 1, rollout) == "no rollout here"
    assert found.reason(0, 2, raw) == found.reason(0, 2, rollout) == "no such pixels"
    assert {(f.photo, f.what) for f in found.failures} == {
        (None, "caching"),
        ("photo 1", "rollout"),
        ("photo 2", "measuring"),
    }
    reasons = {(one["view"], one["photo"]): one["text"] for one in _reasons(found)}
    assert reasons == {(1, 1): "no rollout here", (0, 2): "no such pixels", (1, 2): "no such pixels"}


def test_a_model_that_fails_is_reported_and_the_others_finish() -> None:
    broken = timm_vit("broken")
    broken.model.blocks[1].mlp.forward = lambda x: 1 / 0

    def explodes():
        raise MemoryError("no room")

    models = {"good": timm_vit(), "cnn": cnn(), "broken": broken, "explodes": explodes, "missing": "timm:no_such_model"}
    found = compare(models, PHOTOS[:2], cache=None)
    assert [entry.name for entry in found.models] == ["good"]
    by_model = {failure.model: failure for failure in found.failures}
    assert len(found.failures) == 4  # each once, and not once a photo
    assert all(failure.photo is None for failure in found.failures)
    assert set(by_model) == {"cnn", "broken", "explodes", "missing"}
    assert by_model["explodes"].error == "no room"
    assert "division by zero" in by_model["broken"].error
    assert "no model" in by_model["missing"].error
    assert by_model["cnn"].what == "measuring"
    with pytest.raises(ComparisonError, match="none of 2 models"):
        compare({"cnn": cnn(), "explodes": explodes}, PHOTOS[0], cache=None)
    with pytest.raises(ComparisonError, match="no photo could be read"):
        compare(timm_vit(), "nowhere.jpg", cache=None)


def test_one_model_at_a_time() -> None:
    import gc
    import weakref

    alive, most = weakref.WeakSet(), []

    def maker(name):
        def make():
            gc.collect()
            most.append(len(alive))
            model = timm_vit(name)
            alive.add(model.model)
            return model

        return make

    compare({name: maker(name) for name in "abc"}, PHOTOS[:2], masks=[disc(), None], cache=None)
    assert most == [0, 0, 0]


def test_without_pandas_no_model_is_loaded(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingPackageError, match=r'pip install "\.\[compare\]"'):
        compare([lambda: pytest.fail("a model was loaded")], PHOTOS[0], cache=None)


# --- cache --------------------------------------------------------------------------------------------------------------------------------


def counted(monkeypatch):
    """Count photos that are really measured."""
    measured = []
    plain = measuring.ModelMeasurer.measure

    def measure(self, *given):
        measured.append(self.vision.name)
        return plain(self, *given)

    monkeypatch.setattr(measuring.ModelMeasurer, "measure", measure)
    return measured


def timeless(table) -> dict:
    return table.plain() | {"rows": [row | {"forward_ms": None} for row in table.rows]}


def test_a_second_run_measures_nothing(tmp_path, monkeypatch) -> None:
    measured = counted(monkeypatch)
    first = compare(three(), PHOTOS, masks=[disc(), None, None], cache=tmp_path)
    assert len(measured) == 3 * 3 + 3
    measured.clear()
    again = compare(three(), PHOTOS, masks=[disc(), None, None], cache=tmp_path)
    assert measured == []
    assert [timeless(table) for table in again.tables()] == [timeless(table) for table in first.tables()]
    assert all(row["forward_ms"]["n"] == 3 for row in first.tables()[0].rows)
    assert [row["forward_ms"] for row in again.tables()[0].rows] == [None] * 3  # what another run took
    assert "forward_ms" in again.table()
    compare(three(), [*PHOTOS[:2], photo(seed=9)], cache=tmp_path)
    assert len(measured) == 3
    measured.clear()
    changed = timm_vit()
    changed.model.blocks[0].attn.qkv.weight.data *= 1.01
    compare([changed, hf_dinov2()], PHOTOS, cache=tmp_path)
    assert measured == ["timm:tiny"] * 3
    measured.clear()
    compare(hf_dinov2(), PHOTOS, methods="rollout", cache=tmp_path)
    assert len(measured) == 3


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch) -> None:
    measured = counted(monkeypatch)
    plain = measuring.ModelMeasurer.measure

    def interrupted(self, *given):
        if len(measured) == 4:
            raise KeyboardInterrupt
        return plain(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(measuring.ModelMeasurer, "measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compare(three(), PHOTOS, cache=tmp_path)
    assert not list(tmp_path.rglob("*.partial"))
    measured.clear()
    compare(three(), PHOTOS, cache=tmp_path)
    assert len(measured) == 9 - 4


def test_a_damaged_cache_is_measured_again(tmp_path, monkeypatch) -> None:
    compare(timm_vit(), PHOTOS[0], cache=tmp_path)
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-7])
    measured = counted(monkeypatch)
    compare(timm_vit(), PHOTOS[0], cache=tmp_path)
    assert len(measured) == 1


@pytest.mark.parametrize("way", ["another's content", "other numbers", "no such fields"])
def test_a_cache_that_lies_is_measured_again(way, tmp_path, monkeypatch) -> None:
    before = compare(timm_vit(), PHOTOS[:2], cache=tmp_path).heatmap(0, 0)
    first, second = sorted(tmp_path.rglob("*.safetensors"))
    with safe_open(first, "pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    if way == "another's content":
        kept = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(kept)
    else:
        changed = {name: value + 1 for name, value in tensors.items()}
        for path in (first, second):
            fields = {"measurement": "{}", "seal": _seal(path, "{}", changed)} if way == "no such fields" else {}
            save_file(changed, path, {**header, **fields})
    measured = counted(monkeypatch)
    again = compare(timm_vit(), PHOTOS[:2], cache=tmp_path).heatmap(0, 0)
    assert len(measured) == 2
    assert torch.equal(before.nan_to_num(), again.nan_to_num())


def test_a_full_disk_costs_the_cache_alone(tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    found = compare(timm_vit(), PHOTOS[:2], cache=tmp_path / "file" / "cache")
    (failure,) = found.failures
    assert failure.what == "caching"
    assert len(found.measurements) == 2


# --- what it finds out about itself -------------------------------------------------------------------------------------------------------


def test_copies_are_found_out() -> None:
    copies = {"one": timm_vit(), "two": timm_vit(), "smaller crop": timm_vit(size=80), "other": torchvision_vit()}
    notes = compare(copies, PHOTOS[:2], cache=None).notes
    assert notes[0].level == "ok"
    assert notes[0].text.startswith(
        "one and two give the same maps: they are equal over 2 photos, on a grid of 4 \u00d7 4."
    )
    assert notes[1].text == "The same weights at different sizes or crops: one and smaller crop; two and smaller crop."
    assert len(notes) == 2


def test_resampled_positions_are_explained() -> None:
    import timm

    def at(size, **settings):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = timm.create_model("test_vit", **settings)
        return seeing(model, f"test_vit@{size}{settings or ''}", size, size)

    dynamic = {"dynamic_img_size": True}
    notes = [
        note.text for note in compare([at(160), at(96, **dynamic), at(160, **dynamic)], PHOTOS[:1], cache=None).notes
    ]
    assert notes[0].startswith("test_vit@160 and test_vit@160{'dynamic_img_size': True} give the same maps")
    assert notes[1].startswith("The same weights at different sizes or crops: test_vit@160 and test_vit@96")
    assert "trained on: test_vit@96{'dynamic_img_size': True} 10 \u00d7 10, here 6 \u00d7 6. timm resamples" in notes[2]


# --- faithfulness -------------------------------------------------------------------------------------------------------------------------


def test_deletion_and_insertion_stand_beside_random_maps() -> None:
    from attnhook.attribution.perturbation import deletion

    model = timm_vit()
    found = compare([model, hf_dinov2()], PHOTOS[:2], faithfulness=True, labels=[4, 4], cache=None)
    (row,) = found.table("faithfulness").to_dict("records")
    areas = []
    for picture in PHOTOS[:2]:
        pixels, _ = model.preprocess(picture)
        (one,) = attend(model, picture)

        def score(x):
            with torch.no_grad():
                return model.model(x).softmax(-1)[:, 4]

        areas.append(float(deletion(score, pixels, one.attention[None], steps=16).area))
    assert row["deletion"] == pytest.approx(np.mean(areas), abs=1e-6)
    assert row["deletion_gain"] == pytest.approx(row["random_deletion"] - row["deletion"], abs=1e-9)
    assert "no class scores" in next(f.error for f in found.failures if f.model == "hf:registers")


# --- pictures and files -------------------------------------------------------------------------------------------------------------------


def test_figures_are_drawn(found) -> None:
    for scale in ("minmax", "uniform", (0.0, 0.1)):
        picture = rendered(found.figure("rollout", scale=scale, photos=[0, "photo 1"]))
        assert min(picture.size) > 200
    assert len(found.depth_figure().axes) == 4
    assert found._repr_mimebundle_()["image/png"][:4] == b"\x89PNG"
    assert "<img" in found._repr_html_()
    with pytest.raises(KeyError, match="no photo 'nine'"):
        found.figure(photos=["nine"])
    with pytest.raises(ValueError, match="uniform"):
        compare(timm_vit(), PHOTOS[0], methods="legrad", cache=None).figure(scale="uniform")
    with pytest.raises(ValueError, match="statistics=True"):
        compare(timm_vit(), PHOTOS[0], statistics=False, cache=None).depth_figure()


def test_the_report_is_whole(found, tmp_path) -> None:
    page = found.save(tmp_path / "report")
    names = {path.relative_to(page.parent).as_posix() for path in page.parent.rglob("*") if path.is_file()}
    manifest = json.loads((page.parent / "manifest.json").read_text())
    assert names == set(manifest["files"]) | {"manifest.json"}
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((page.parent / name).read_bytes()).hexdigest() == digest
    assert len([name for name in names if name.startswith("overlays/")]) == 3 * 3 * 3
    with Image.open(
        page.parent / "overlays" / sorted(n for n in names if n.startswith("overlays/"))[0].split("/")[1]
    ) as one:
        assert one.size == PHOTOS[0].size
    assert manifest["models"][0]["name"] == "timm:tiny"
    assert (
        manifest["versions"]["torch"] == torch.__version__.split("+")[0]
        or manifest["versions"]["torch"] == torch.__version__
    )
    assert [one["label"] for one in manifest["photos"]] == ["disc", None, "3"]
    masks = [one["mask_sha256"] for one in manifest["photos"]]
    assert masks[1] is None
    assert len({len(masks[0]), len(masks[2]), 64}) == 1
    assert masks[0] != masks[2]
    metrics = json.loads((page.parent / "metrics.json").read_text())
    assert [table["id"] for table in metrics["tables"]] == ["models", "agreement", "photos", "objects", "depth"]
    rows = list(csv.DictReader((page.parent / "metrics.csv").read_text().splitlines()))
    energy = [float(row["value"]) for row in rows if row["table"] == "objects" and row["column"] == "energy"]
    expected = [row["energy"]["value"] for row in metrics["tables"][3]["rows"]]
    assert energy == expected


def test_numbers_of_the_page_are_those_of_the_metrics(found, tmp_path) -> None:
    page = found.save(tmp_path, pictures=False).read_text()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    start = page.index('"tables":') + len('"tables":')
    shown, _ = json.JSONDecoder().raw_decode(page[start:])
    assert shown == [table for table in metrics["tables"] if table["id"] != "depth"]
    assert not (tmp_path / "overlays").exists()


def test_a_photo_that_changes_costs_the_report_its_own_pictures_alone(tmp_path) -> None:
    paths = [tmp_path / name for name in ("kept.png", "changed.png")]
    for path, picture in zip(paths, PHOTOS, strict=False):
        picture.save(path)
    found = compare(timm_vit(), paths, cache=None)
    PHOTOS[2].save(paths[1])
    page = found.save(tmp_path / "report")
    manifest = json.loads((page.parent / "manifest.json").read_text())
    (failure,) = manifest["failures"]
    assert (failure["photo"], failure["what"]) == ("changed.png", "reading")
    assert [name for name in manifest["files"] if "kept.png" in name]
    assert not [name for name in manifest["files"] if "changed.png" in name]
    assert "changed.png has changed" in page.read_text()


def test_what_an_earlier_report_had_and_this_one_does_not_is_gone(tmp_path) -> None:
    compare(timm_vit(), PHOTOS, cache=None).save(tmp_path)
    own, edited = tmp_path / "overlays" / "mine.png", next((tmp_path / "overlays").glob("001*"))
    own.touch()
    edited.write_bytes(b"edited")
    compare(timm_vit(), PHOTOS[0], statistics=False, cache=None).save(tmp_path)
    kept = {path.name for path in (tmp_path / "overlays").iterdir() if not path.name.startswith("000")}
    assert kept == {own.name, edited.name}
    assert not (tmp_path / "depth.png").exists()


def test_figures_of_a_report_are_drawn_once_and_say_of_how_many_photos(tmp_path, monkeypatch) -> None:
    found, drawn = compare(timm_vit(), [PHOTOS[0]] * 9, cache=None), Counter()

    def counted(name, call):
        def counts(*arguments, **options):
            drawn[name] += 1
            return call(*arguments, **options)

        return counts

    for name in ("depth_figure", "all_tables"):
        monkeypatch.setattr(reports, name, counted(name, getattr(reports, name)))
    found.save(tmp_path)
    assert drawn == {"depth_figure": 1, "all_tables": 1}
    assert any("8 of 9 photos." in text.get_text() for text in found.figure().texts)
    assert "photos." not in found.figure(photos=range(9)).get_supxlabel()


def test_names_cannot_leave_the_folder(tmp_path) -> None:
    name = "../../<img src=x onerror=alert(1)>"
    found = compare({name: timm_vit()}, PHOTOS[:1], cache=None)
    page = found.save(tmp_path / "deep" / "report")
    assert all(path.is_relative_to(tmp_path / "deep" / "report") for path in tmp_path.rglob("*.[jp]*g"))
    assert "<img src=x" not in page.read_text()


def test_a_folder_of_something_else_is_left_alone(tmp_path) -> None:
    found = compare({"a": timm_vit()}, PHOTOS[:1], cache=None)
    found.save(tmp_path / "report")
    assert found.save(tmp_path / "report").is_file()  # one of its own is replaced
    other = tmp_path / "maps"
    other.mkdir()
    (other / "manifest.json").write_text('{"format": "attnhook-extraction-1", "files": {}}')
    with pytest.raises(ComparisonError, match="holds something else: expected an empty folder, or one of a comparison"):
        found.save(other)
    assert [path.name for path in other.iterdir()] == ["manifest.json"]


def test_presets_are_names_that_the_libraries_know() -> None:
    import timm

    for preset in PRESETS.values():
        for spec in preset.specs:
            library, _, name = spec.partition(":")
            assert library in {"timm", "hf"}
            if library == "timm":
                architecture, _, tag = name.partition(".")
                assert tag in {one.partition(".")[2] for one in timm.list_pretrained(f"{architecture}.*")}


def test_models_from_files_as_a_hub_has_them(tmp_path) -> None:
    save_hf(tmp_path / "vit")
    save_timm(tmp_path / "w.safetensors")
    specs = [f"hf:{tmp_path / 'vit'}", f"timm:test_vit@{tmp_path / 'w.safetensors'}"]
    found = compare(specs, PHOTOS[:2], methods=METHODS, cache=tmp_path / "cache")
    assert [entry.name for entry in found.models] == ["hf:vit", "timm:test_vit@w.safetensors"]
    assert found.failures == ()
    assert len(found.agreement()) == 2


def test_naive_stretching_is_worse() -> None:
    """One scene seen through two crops: a map that is put where the model looked agrees, one stretched over the photo does not."""
    scene = torch.rand(16, 24, generator=torch.Generator().manual_seed(0))
    size = (320, 480)
    whole = ImageGeometry.identity(size)
    crop = ImageGeometry.identity(size).crop((0, 80), (320, 320))
    from attnhook import heatmap

    wide, narrow = scene, scene[:, 4:20]  # what each would see of it
    honest = SLOW["spearman"](heatmap(wide, whole), heatmap(narrow, crop))
    naive = SLOW["spearman"](heatmap(wide, whole), heatmap(narrow, whole))
    assert honest > 0.99 > 0.5 > naive
