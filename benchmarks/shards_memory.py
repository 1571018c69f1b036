"""Measures the memory of reading tar files: proportional set size of the process and its workers along an epoch.

It writes tar files of small images into a temporary folder, and reads an epoch of them in random order.
"""

import argparse
import io
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, default_convert

from benchmarks.report import write_result
from lightning_ddpm.data import Shards
from lightning_ddpm.data.sharding import ShuffledShard
from lightning_ddpm.utils.distributed import Ranks


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=100_000, help="number of images")
    parser.add_argument("--shards", type=int, default=100, help="number of tar files")
    parser.add_argument("--workers", type=int, default=2, help="processes that read")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the result")


def run(options: argparse.Namespace) -> None:
    """Write the memory after every tenth of an epoch as a result."""
    megabytes: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), options.images, options.shards)
        data = Shards(channels=1, size=8, label="cls").open(Path(folder), "train")
        seen = torch.zeros(len(data), dtype=torch.int32)
        sampler = ShuffledShard(len(data), 0, Ranks(), 100)
        numbers = {"num_workers": options.workers, "batch_size": 100, "collate_fn": default_convert}
        loader = DataLoader(data, sampler=sampler, **numbers)
        done, pids = 0, []
        batches = iter(loader)
        for indices in torch.tensor([*sampler]).split(100):
            images, _ = next(batches)
            pids = pids or [None, *(worker.pid for worker in getattr(batches, "_workers", []))]
            seen[indices] += 1
            done += len(images)
            if 10 * done // len(data) > 10 * (done - len(images)) // len(data):
                megabytes[f"{done:,}"] = sum(map(measure, pids))
        assert bool((seen == 1).all()), "an epoch reads every image once"
    settings = {"unit": "images read", "columns": [*megabytes], "tar files": options.shards, "workers": options.workers}
    write_result(options.out, "shards_memory", settings, {"all processes, MB": [*megabytes.values()]})


def write_shards(folder: Path, images: int, shards: int) -> None:
    """Write gray images of 8x8 pixels with their classes."""
    random = np.random.default_rng(0)
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for index in range(shard, images, shards):
                file = io.BytesIO()
                Image.fromarray(random.integers(0, 256, (8, 8), np.uint8)).save(file, "PNG", compress_level=0)
                for suffix, content in (("png", file.getvalue()), ("cls", b"%d" % (index % 10))):
                    member = tarfile.TarInfo(f"{index:09d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def measure(pid: int | None) -> float:
    """Return the proportional set size of a process, or of this one, in MB."""
    lines = Path(f"/proc/{pid or 'self'}/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) * 1024 / 1e6
