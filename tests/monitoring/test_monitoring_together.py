"""The monitor among others: probes inside observed forwards, step numbers that start over, PEFT's adapters, W&B's own steps, MLflow's stores."""

import json
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from attnhook import AttentionMonitor, MlflowWriter, WandbWriter
from tests.monitoring.monitored import (
    CLASSES,
    SIZE,
    STEPS,
    MemoryWriter,
    batch,
    hook_count,
    probe_pixels,
    same,
    scale_queries,
    small_vit,
)
from tests.monitoring.test_monitoring_writers import ALARMS, BLOCK, wandb_records, watched_steps

LIVE = f"live/{BLOCK}/entropy"


def monitored(**settings) -> tuple[nn.Module, MemoryWriter, AttentionMonitor]:
    torch.manual_seed(0)
    model, writer = small_vit().eval(), MemoryWriter()
    scale_queries(model, 5.0)
    monitor = AttentionMonitor(model, probe_pixels(1), writers=[writer], methods=(), strict=True, **settings)
    return model, writer, monitor


def test_one_method_needs_no_list() -> None:
    writer = MemoryWriter()
    AttentionMonitor(small_vit(), probe_pixels(1), writers=writer, methods="rollout", sheets=0).step(0)
    assert list(writer.pictures) == [("attention/overlay/0", 0)]
    with pytest.raises(ValueError, match="cannot monitor 'legrad'"):
        AttentionMonitor(small_vit(), probe_pixels(1), writers=writer, methods="legrad")


# --- step and observe ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", ["all", "readout"])
def test_a_probe_inside_an_observed_forward_is_not_taken_for_it(rows: str) -> None:
    model, writer, monitor = monitored()
    pixels = 3 * torch.randn(4, 3, SIZE, SIZE)
    with monitor.observe(0, rows=rows):
        model(pixels)
    with monitor.observe(1, rows=rows):
        monitor.step(0)
        model(pixels)
        monitor.step(1)
    assert writer.numbers[1][LIVE] == writer.numbers[0][LIVE]
    assert writer.numbers[1][LIVE] != writer.numbers[1][f"{BLOCK}/entropy"]
    assert hook_count(model) == 0


def test_observing_inside_observing_is_logged_once() -> None:
    model, writer, monitor = monitored()
    logged: list[int] = []
    writer.scalars = lambda values, step: logged.append(step)
    with monitor.observe(0), monitor.observe(0):
        model(probe_pixels())
    assert logged == [0]
    with pytest.raises(ZeroDivisionError), monitor.observe(1):
        _ = 1 / 0
    with monitor.observe(1):  # what was observed before is over, however it ended
        model(probe_pixels())
    assert logged == [0, 1]


def test_no_other_model_takes_the_tags_of_observed_batches() -> None:
    with pytest.raises(ValueError, match="cannot be called 'live'"):
        monitored(also={"live": small_vit()})


def test_accumulated_gradients_are_observed_once_a_step() -> None:
    model, writer, monitor = monitored(every_n_steps=2)
    logged: list[int] = []
    writer.scalars = lambda values, step: logged.append(step)
    for step in range(4):
        for _ in range(3):
            with monitor.observe(step):
                model(probe_pixels())
    assert logged == [0, 2]


# --- numbers of steps ---------------------------------------------------------------------------------------------------------------------


def test_numbers_that_start_over_are_said_once() -> None:
    _, _, monitor = monitored(every_n_steps=2)
    for step in range(5):
        assert monitor.step(step) == (step % 2 == 0)
        assert not monitor.step(step)  # the same step again is nothing to speak of
    with pytest.warns(
        UserWarning, match="step 0 comes after step 4, and is not logged: expected a larger number"
    ) as said:
        assert not any(monitor.step(step) for step in range(5))
    assert len(said) == 1
    assert said[0].filename == __file__
    assert monitor.step(6)


def test_a_resumed_run_may_repeat_steps_and_no_more() -> None:
    _, _, monitor = monitored(every_n_steps=2)
    monitor.load_state_dict({"last_step": 8, "last_observed": None, "rows": {}, "digest": monitor.digest})
    assert [step for step in range(4, 14) if monitor.step(step)] == [10, 12]
    with pytest.warns(UserWarning, match="step 2 comes after step 12"):
        monitor.step(2)


@pytest.mark.gpu
def test_a_state_that_was_read_onto_the_gpu(tmp_path: Path) -> None:
    _, writer, monitor = monitored()
    monitor.step(0)
    torch.save(monitor.state_dict(), tmp_path / "state.pt")
    monitor.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True, map_location="cuda"))
    monitor.step(1)
    assert writer.numbers[1][f"{BLOCK}/change"] == 0


# --- alarms -------------------------------------------------------------------------------------------------------------------------------


def test_a_model_that_diverged_is_not_well() -> None:
    model, writer, monitor = monitored()
    monitor.step(0)
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight[0, 0] = torch.nan
    monitor.step(1)
    with monitor.observe(2):
        model(probe_pixels())
    assert writer.numbers[0]["attention/alarms/not_finite"] == 0
    assert writer.numbers[1]["attention/alarms/not_finite"] == 1
    assert writer.numbers[2]["live/attention/alarms/not_finite"] == 1
    assert f"{BLOCK}/entropy" not in writer.numbers[1]
    assert not any(writer.numbers[1][f"attention/alarms/{name}"] for name in ALARMS if name != "not_finite")


# --- PEFT ---------------------------------------------------------------------------------------------------------------------------------


def adapted(library: str) -> nn.Module:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    if library == "timm":
        model, targets, head = small_vit(), ["qkv", "proj"], "head"
    else:
        transformers = pytest.importorskip("transformers")
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
        config = transformers.ViTConfig(
            **sizes, image_size=SIZE, patch_size=8, num_labels=CLASSES, hidden_dropout_prob=0.1
        )
        model, head = transformers.ViTForImageClassification(config), "classifier"
        targets = "all-linear"
    return peft.get_peft_model(
        model,
        peft.LoraConfig(target_modules=targets, modules_to_save=[head], lora_dropout=0.1, init_lora_weights=False),
    )


def tuned(library: str, writer: MemoryWriter | None) -> dict:
    model = adapted(library).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    monitor = None
    if writer is not None:
        monitor = AttentionMonitor(model, probe_pixels(1), every_n_steps=5, writers=[writer], strict=True, sheets=0)
    losses = []
    for step in range(STEPS):
        pixels, labels = batch(step)
        if monitor is None:
            output = model(pixels)
        else:
            with monitor.observe(step):
                output = model(pixels)
        loss = nn.functional.cross_entropy(getattr(output, "logits", output), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if monitor is not None:
            monitor.step(step)
            assert hook_count(model) == 0
    return {
        "losses": losses,
        "weights": dict(model.state_dict()),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "modes": [module.training for module in model.modules()],
    }


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_peft(library: str) -> None:
    writer = MemoryWriter()
    expected, watched = tuned(library, None), tuned(library, writer)
    for what in expected:
        assert same(expected[what], watched[what]), what
    assert sorted(writer.numbers) == [0, 5, 10, 15]
    found = {tag.split("/")[1] for tag in writer.numbers[5] if tag.endswith("head3/entropy") and tag[0] == "a"}
    assert len(found) == 2
    for block in found:
        assert writer.numbers[5][f"attention/{block}/change"] > 0
        assert f"live/attention/{block}/entropy" in writer.numbers[5]
    assert ("attention/overlay/0", 15) in writer.pictures


# --- other people's logging ---------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_wandb_drops_nothing_that_is_logged_beside_the_monitor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(project="tests", dir=str(tmp_path), mode="offline")
    monitor = AttentionMonitor(
        small_vit(), probe_pixels(1), every_n_steps=5, writers=[WandbWriter(run)], strict=True, sheets=0
    )
    for step in range(12):
        run.log({"loss": 0.5}, step=step)
        monitor.step(step)
    monitor.step(15)  # and two looks with nothing in between
    run.finish()
    rows = wandb_rows(tmp_path)
    assert [row["_step"] for row in rows if "loss" in row] == list(range(12))
    looks = [row for row in rows if f"{BLOCK}/entropy" in row]
    assert [row["attention/step"] for row in looks] == [0, 5, 10, 15]
    assert all("attention/overlay/0/width" in row for row in looks)


def wandb_rows(folder: Path) -> list[dict]:
    (file,) = folder.rglob("*.wandb")
    for _ in range(100):  # its own process may write a moment after finish() came back
        if any(record.WhichOneof("record_type") == "exit" for record in wandb_records(file)):
            break
        time.sleep(0.1)
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in wandb_records(file)
        if record.WhichOneof("record_type") == "history"
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("store", ["sqlite", "file"])
def test_mlflow_queried_back(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    if store == "sqlite":
        for package in ("sqlalchemy", "alembic"):
            pytest.importorskip(package, reason="MLflow's SQLite store needs sqlalchemy and alembic")
        uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    else:
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 refuses them otherwise
        uri = (tmp_path / "mlruns").as_uri()
    writer = MlflowWriter(tracking_uri=uri, experiment="attention")
    watched_steps(writer)
    client = mlflow.MlflowClient(tracking_uri=uri)
    history = client.get_metric_history(writer.run_id, f"{BLOCK}/head1/entropy")
    assert [metric.step for metric in history] == [0, 10]
    assert client.get_run(writer.run_id).info.status == "FINISHED"
    names = [file.path for file in client.list_artifacts(writer.run_id, "attention/overlay/0")]
    assert names == ["attention/overlay/0/step-00000000.jpg", "attention/overlay/0/step-00000010.jpg"]
    with Image.open(client.download_artifacts(writer.run_id, names[0])) as picture:
        assert (picture.format, picture.width) == ("JPEG", 192)


def test_mlflow_that_refuses_plain_files_stops_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = (tmp_path / "mlruns").as_uri()
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    try:
        mlflow.MlflowClient(tracking_uri=uri).search_experiments()
    except mlflow.exceptions.MlflowException:
        monitor = AttentionMonitor(small_vit(), probe_pixels(1), writers=[MlflowWriter(tracking_uri=uri)], methods=())
        with pytest.warns(UserWarning, match=r"MlflowWriter could not write .*MLFLOW_ALLOW_FILE_STORE=true") as said:
            assert [monitor.step(step) for step in (0, 1)] == [True, True]
        assert len([one for one in said if "MlflowWriter" in str(one.message)]) == 1
    else:
        pytest.skip(f"MLflow {mlflow.__version__} still takes file stores as it is")
