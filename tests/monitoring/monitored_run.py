"""Run by torchrun in two gloo processes: the same training with and without a monitor under DDP or FSDP2; TensorBoard files of rank 0."""

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from attnhook import AttentionMonitor, TensorBoardWriter
from tests.monitoring.monitored import STEPS, batch, probe_pixels, same, small_vit


def wrapped(how: str) -> nn.Module:
    torch.manual_seed(0)
    model = small_vit().train()
    if how == "ddp":
        return DistributedDataParallel(model)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def run(how: str, folder: str | None) -> dict:
    model = wrapped(how)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    monitor = None
    if folder is not None:
        monitor = AttentionMonitor(
            model, probe_pixels(), every_n_steps=10, writers=[TensorBoardWriter(folder)], strict=True
        )
    losses = []
    torch.manual_seed(1 + dist.get_rank())
    for step in range(STEPS):
        pixels, labels = batch(2 * step + dist.get_rank())
        if monitor is None:
            output = model(pixels)
        else:
            with monitor.observe(step):
                output = model(pixels)
        loss = nn.functional.cross_entropy(output, labels)
        loss.backward()
        if monitor is not None:
            monitor.step(step)  # before the optimizer's step: FSDP must gather what that gives, not what the probe had
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    if monitor is not None:
        monitor.close()
    local = {name: getattr(value, "_local_tensor", value).clone() for name, value in model.state_dict().items()}
    moments = [
        getattr(value, "_local_tensor", value).clone() for state in optimizer.state.values() for value in state.values()
    ]
    return {"losses": losses, "weights": local, "moments": moments, "random": torch.get_rng_state()}


def main(how: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    expected, watched = run(how, None), run(how, folder)
    for what in expected:
        assert same(expected[what], watched[what]), what
    print(f"rank {dist.get_rank()}: same to the last bit under {how}", flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
