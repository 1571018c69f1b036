"""What could make a training step faster: the bare loop as it is, and with one thing changed."""

import copy
import itertools
from argparse import Namespace
from collections.abc import Callable
from functools import partial

import torch
import yaml

from benchmarks.report import device, in_turn, write
from benchmarks.training import CONFIGS, SHAPES, bare
from lightning_ddpm.diffusion import DDIM, Linear
from lightning_ddpm.module import DDPM
from lightning_ddpm.networks import UNet


def run(options: Namespace) -> None:
    """channels_last, a fused optimizer, torch.compile; each a network of its own with the same weights."""
    size, channels, default = SHAPES[options.config]
    n = options.batch_size or default
    settings = yaml.safe_load((CONFIGS / f"{options.config}.yaml").read_text())["model"]["init_args"]["network"]
    network = UNet(**settings["init_args"] | {"channels": channels, "size": size}).to(device()).train()
    module = DDPM(network, Linear(1000), DDIM(50)).to(device())
    x = torch.randn(n, channels, size, size, device=device())
    last = torch.channels_last
    compiled = copy.deepcopy(network)
    compiled.compile()
    blocks = {
        "as it is": bare(copy.deepcopy(network), module, itertools.repeat((x, x))),
        "channels_last": bare(
            copy.deepcopy(network).to(memory_format=last), module, itertools.repeat((x.to(memory_format=last), x))
        ),
        "fused Adam": bare(copy.deepcopy(network), module, itertools.repeat((x, x)), fused=True),
        "torch.compile": bare(compiled, module, itertools.repeat((x, x))),
    }
    steps = 1 if options.config == "cifar10" else 10
    contenders: dict[str, Callable[[], object]] = {name: partial(block, steps) for name, block in blocks.items()}
    seconds = in_turn(contenders, options.rounds)
    per = {name: [each / steps for each in found] for name, found in seconds.items()}
    write(options.out, f"switches_{options.config}", {"batch": n, "images": n, "rounds": options.rounds}, per)
