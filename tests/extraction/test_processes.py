"""Any number of processes writes the same bytes; memory does not grow with the data set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from attnhook import extract, open_maps
from attnhook.extraction.processes import ProcessGroup
from tests.comparison.zoo import timm_vit
from tests.extraction.photographs import files_of, make_folder, photo_bytes

ROOT = Path(__file__).parents[2]


def test_shares_are_whole_and_even():
    shards = {number: range(number % 5 + 1) for number in range(23)}
    shares = [ProcessGroup(rank, 4).share_of(shards) for rank in range(4)]
    assert sorted(shard for share in shares for shard in share) == list(range(23))
    loads = [sum(map(len, share.values())) for share in shares]
    assert max(loads) - min(loads) <= 5


OPTIONS = {"blocks": None, "shard_size": 7, "batch_size": 3, "methods": ["rollout"]}
SCRIPT = f"""
import sys
import torch
from attnhook import extract
from tests.comparison.zoo import timm_vit
torch.set_num_threads(1)
extract(timm_vit(), sys.argv[1], sys.argv[2], num_workers=1, **{OPTIONS})
print("written")
extract(timm_vit(), sys.argv[3], sys.argv[2] + "-nothing", num_workers=0, **{OPTIONS})
print("not refused")
"""


@pytest.mark.slow
def test_three_processes_write_what_one_does_and_all_refuse_what_the_first_refuses(tmp_path):
    photos, empty = make_folder(tmp_path / "photos", 50), tmp_path / "empty"
    (photos / "bad.png").write_bytes(b"")
    empty.mkdir()
    extract(timm_vit(), photos, tmp_path / "by1", num_workers=0, **OPTIONS)
    (tmp_path / "run.py").write_text(SCRIPT)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3")
    command = [sys.executable, *torchrun, tmp_path / "run.py", photos, tmp_path / "by3", empty]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.stdout.count("written") == 3, done.stderr
    assert len(open_maps(tmp_path / "by3")) == 50
    assert files_of(tmp_path / "by1") == files_of(tmp_path / "by3")
    assert done.returncode == 1
    assert done.stderr.count("no photos: expected some in") >= 3
    assert "not refused" not in done.stdout


MEMORY = """
import os, sys
import psutil
import torch
from attnhook import extract
from tests.comparison.zoo import timm_vit
torch.set_num_threads(1)
vision = timm_vit()
out, counts = sys.argv[1], [int(count) for count in sys.argv[2:]]

class Many:
    def __init__(self, count):
        self.count = count
    def description(self):
        return {"kind": "many", "count": self.count}
    def items(self):
        from attnhook.extraction.items import Item
        return (Item(f"{i:08d}.png", number=i) for i in range(self.count))
    def read(self, item):
        return content

content = open(out + ".png", "rb").read()
process = psutil.Process()
for count in counts:
    extract(vision, Many(count), f"{out}-{count}", num_workers=0, batch_size=32, shard_size=500)
    print(process.memory_info().rss, flush=True)
for _ in range(100 if len(counts) > 1 else 0):
    extract(vision, Many(counts[0]), f"{out}-{counts[0]}", num_workers=0, batch_size=32, shard_size=500)
print(process.memory_info().rss, flush=True)
"""


@pytest.mark.slow
def test_memory_is_flat(tmp_path):
    """From 500 to 2,500 photos (20,000 in the weekly run), and over a hundred resumes of a whole run."""
    (tmp_path / "out.png").write_bytes(photo_bytes(0))
    (tmp_path / "run.py").write_text(MEMORY)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    photos = "20000" if os.environ.get("ATTNHOOK_LONG") else "2500"
    command = [sys.executable, tmp_path / "run.py", tmp_path / "out", "500", photos]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    small, large, resumed = (int(line) / 2**20 for line in done.stdout.split())
    assert large - small < 40, (small, large, resumed)
    assert resumed - large < 10, (small, large, resumed)
