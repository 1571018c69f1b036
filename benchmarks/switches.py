"""Times a bare training step, and the same step with one thing changed that may make it faster."""

import copy
import itertools
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from benchmarks.loops import Block, make_bare_loop
from benchmarks.models import SHAPES, build_model, describe_variant
from benchmarks.report import time_in_turns, write_result

LAST = torch.channels_last
PLAIN = partial(torch.optim.Adam, lr=2e-4)


def run(options: Namespace) -> None:
    """Time channels_last, an unfused optimizer, torch.compile and, on a GPU, CUDA graphs.

    Each contender has a network of its own with the same weights.
    """
    n = options.batch_size or SHAPES[options.config][2]
    module = build_model(options.config).train()
    x = torch.randn(n, *module.image_shape, device=module.device)

    def block(network: nn.Module, x: Tensor = x, optimizer: OptimizerCallable | None = None) -> Block:
        batches: Iterator[tuple[Tensor, Tensor]] = itertools.repeat((x, x))
        return make_bare_loop(network, module, batches, options.precision, optimizer)

    def copy_network(mode: str | None = None, compiled: bool = False) -> nn.Module:
        network = copy.deepcopy(module.network)
        if compiled:
            network.compile(mode=mode)
        return network

    blocks = {
        "baseline": block(copy_network()),
        "channels_last": block(copy_network().to(memory_format=LAST), x.to(memory_format=LAST)),
        "Adam, not fused": block(copy_network(), optimizer=PLAIN),
        "torch.compile": block(copy_network(compiled=True)),
    }
    if module.device.type == "cuda":
        blocks["torch.compile, CUDA graphs"] = block(copy_network("reduce-overhead", compiled=True))
        both = copy_network(compiled=True).to(memory_format=LAST)
        blocks["channels_last, compiled"] = block(both, x.to(memory_format=LAST))
    steps = 1 if options.config == "cifar10" else 3
    contenders: dict[str, Callable[[], object]] = {name: partial(block, steps) for name, block in blocks.items()}
    seconds = time_in_turns(contenders, options.rounds)
    per = {name: [each / steps for each in found] for name, found in seconds.items()}
    settings = {"batch": n, "images": n, "rounds": options.rounds}
    write_result(options.out, f"switches_{options.config}{describe_variant(options)}", settings, per)
