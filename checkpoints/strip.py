"""Make a checkpoint small enough to ship: keep the weights in use and what builds their model, and nothing else.

python checkpoints/strip.py RUN/last.ckpt OUT.ckpt              a model for `sample`: averaged weights, float32
python checkpoints/strip.py RUN/last.ckpt OUT.pt --network      the network's weights alone
"""

import argparse
from pathlib import Path

import torch

from lightning_ddpm.models.checkpoint import read_checkpoint
from lightning_ddpm.utils.hashing import hash_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--network", action="store_true", help="keep the network's weights alone")
    options = parser.parse_args()
    checkpoint = read_checkpoint(options.run)
    kept = {
        key: checkpoint[key] for key in ("state_dict", "hyper_parameters", "global_step", "pytorch-lightning_version")
    }
    if options.network:
        kept = {key.removeprefix("network."): value for key, value in checkpoint["state_dict"].items()}
    torch.save(kept, options.out)
    print(f"{options.out}: {options.out.stat().st_size:,} bytes, sha256 {hash_file(options.out)}")


if __name__ == "__main__":
    main()
