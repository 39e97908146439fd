"""FSDP2 (`fully_shard`) in two processes on the CPU, with the attention of four fixed images in TensorBoard.

torchrun --nproc-per-node 2 docs/examples/train_fsdp2.py --out runs/fsdp2
tensorboard --logdir runs
"""

import torch
import torch.distributed as dist
from digits import MEAN, DigitPairs, loss_of, options_of, probe_pixels, small_vit
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler

from attnhook import AttentionMonitor, TensorBoardWriter


def main() -> None:
    """Train: every process steps the monitor, which gathers parameters for its probe; the first one writes."""
    options = options_of(__doc__ or "", "runs/fsdp2")
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = small_vit()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    pairs = DigitPairs(32 * options.steps)
    loader = DataLoader(pairs, batch_size=32 // dist.get_world_size(), sampler=DistributedSampler(pairs))

    monitor = AttentionMonitor(
        model,  # the root of what was sharded, not a part of it
        probe_pixels(),
        mean=MEAN,
        every_n_steps=options.every,
        writers=[TensorBoardWriter(options.out)],
    )
    for step, (pixels, targets) in enumerate(loader):
        loss = loss_of(model(pixels), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if monitor.step(step) and dist.get_rank() == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    monitor.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
