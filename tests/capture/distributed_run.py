"""Run by torchrun in two gloo processes: capture under DDP or FSDP2, in training steps, against the plain model."""

import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from attnhook import AttentionCapture
from tests.models import TIMM, images


def train(how: str) -> None:
    rank = dist.get_rank()
    build = next(case.build for case in TIMM if case.name == "vit")
    plain, model = build(), build()
    if how == "ddp":
        model = DistributedDataParallel(model)
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (2,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    pixels = images(2, seed=rank)
    with torch.no_grad(), AttentionCapture(plain) as expected:
        plain(pixels)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for _ in range(2):
        with AttentionCapture(model) as capture:
            model(pixels).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert capture.block_names == expected.block_names  # without the wrapper's prefix
        torch.testing.assert_close(capture.maps.stack(), expected.maps.stack(), atol=2e-5, rtol=0)
    print(f"rank {rank}: rows exact under {how}", flush=True)
    dist.barrier()


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for way in sys.argv[1:]:
        train(way)
    dist.destroy_process_group()
