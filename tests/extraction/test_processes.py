"""Any number of processes writes the same bytes; memory does not grow with the data set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from attnhook import open_maps
from attnhook.extraction.processes import ProcessGroup
from tests.extraction.photographs import files_of, make_folder, photo_bytes

ROOT = Path(__file__).parents[2]


def test_shares_are_whole_and_even():
    shards = {number: range(number % 5 + 1) for number in range(23)}
    shares = [ProcessGroup(rank, 4).share_of(shards) for rank in range(4)]
    assert sorted(shard for share in shares for shard in share) == list(range(23))
    loads = [sum(map(len, share.values())) for share in shares]
    assert max(loads) - min(loads) <= 5


SCRIPT = """
import sys
import torch
from attnhook import extract
from tests.comparison.zoo import timm_vit
torch.set_num_threads(1)
extract(timm_vit(), sys.argv[1], sys.argv[2], blocks=None, shard_size=7, batch_size=3, methods=["rollout"], num_workers=int(sys.argv[3]))
"""


def run_script(tmp_path, *arguments, processes=1):
    (tmp_path / "run.py").write_text(SCRIPT)
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *torchrun, tmp_path / "run.py", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)


@pytest.mark.slow
def test_two_and_three_processes_write_what_one_does(tmp_path):
    photos = make_folder(tmp_path / "photos", 50)
    (photos / "bad.png").write_bytes(b"")
    for processes, workers in ((1, 0), (2, 1), (3, 0)):
        done = run_script(tmp_path, photos, tmp_path / f"by{processes}", str(workers), processes=processes)
        assert done.returncode == 0, done.stderr
    assert len(open_maps(tmp_path / "by3")) == 50
    assert files_of(tmp_path / "by2") == files_of(tmp_path / "by1") == files_of(tmp_path / "by3")


@pytest.mark.slow
def test_what_the_first_process_refuses_all_refuse(tmp_path):
    (tmp_path / "photos").mkdir()
    done = run_script(tmp_path, tmp_path / "photos", tmp_path / "out", "0", processes=2)
    assert done.returncode == 1
    assert done.stderr.count("no photos: expected some in") >= 2


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
    """From 1,000 to 5,000 photos (20,000 in the weekly run), and over a hundred resumes of a whole run."""
    (tmp_path / "out.png").write_bytes(photo_bytes(0))
    (tmp_path / "run.py").write_text(MEMORY)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    photos = "20000" if os.environ.get("ATTNHOOK_LONG") else "5000"
    command = [sys.executable, tmp_path / "run.py", tmp_path / "out", "1000", photos]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    small, large, resumed = (int(line) / 2**20 for line in done.stdout.split())
    assert large - small < 40, (small, large, resumed)
    assert resumed - large < 10, (small, large, resumed)
