"""Run by torchrun in two gloo processes: a plain loop with DDP(static_graph=True) and accumulated gradients, logged at optimizer steps."""

import sys
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from attnhook import AttentionMonitor, DirectoryWriter
from tests.monitoring.monitored import batch, probe_pixels, same, small_vit

STEPS, BATCHES = 7, 2  # optimizer steps, and batches of each


def run(folder: str | None) -> dict:
    torch.manual_seed(0)
    model = DistributedDataParallel(small_vit().train(), static_graph=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    writers = () if folder is None else DirectoryWriter(folder)
    monitor = AttentionMonitor(model, probe_pixels(1), every_n_steps=3, writers=writers, sheets=0, strict=True)
    torch.manual_seed(1 + dist.get_rank())
    for step in range(STEPS):
        for part in range(BATCHES):
            pixels, labels = batch(4 * step + 2 * part + dist.get_rank())
            synchronised = step == 0 or part + 1 == BATCHES  # a static graph is learnt from such a batch
            with nullcontext() if synchronised else model.no_sync():
                nn.functional.cross_entropy(model(pixels), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        if folder is not None:
            monitor.step(step)
    monitor.close()
    return {"weights": dict(model.state_dict()), "random": torch.get_rng_state()}


def main(folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    assert same(run(None), run(folder))
    print(f"rank {dist.get_rank()}: same to the last bit under a static graph", flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
