"""What makes a training step faster, or could: the bare loop as it is, and with one thing changed."""

import copy
import itertools
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from benchmarks.models import SHAPES, model_of, variant
from benchmarks.report import in_turn, write
from benchmarks.training import Block, bare

LAST = torch.channels_last
PLAIN = partial(torch.optim.Adam, lr=2e-4)


def run(options: Namespace) -> None:
    """channels_last, an optimizer that is not fused, torch.compile and, on a GPU, its graphs; each a network of its own
    with the same weights.
    """
    n = options.batch_size or SHAPES[options.config][2]
    module = model_of(options.config).train()
    x = torch.randn(n, *module.image_shape, device=module.device)

    def block(network: nn.Module, x: Tensor = x, optimizer: OptimizerCallable | None = None) -> Block:
        batches: Iterator[tuple[Tensor, Tensor]] = itertools.repeat((x, x))
        return bare(network, module, batches, options.precision, optimizer)

    def fresh(mode: str | None = None, compiled: bool = False) -> nn.Module:
        network = copy.deepcopy(module.network)
        if compiled:
            network.compile(mode=mode)
        return network

    blocks = {
        "as it is": block(fresh()),
        "channels_last": block(fresh().to(memory_format=LAST), x.to(memory_format=LAST)),
        "Adam, not fused": block(fresh(), optimizer=PLAIN),
        "torch.compile": block(fresh(compiled=True)),
    }
    if module.device.type == "cuda":
        blocks["torch.compile, graphs"] = block(fresh("reduce-overhead", compiled=True))
        every = fresh(compiled=True).to(memory_format=LAST)
        blocks["channels_last, compiled"] = block(every, x.to(memory_format=LAST))
    steps = 1 if options.config == "cifar10" else 3
    contenders: dict[str, Callable[[], object]] = {name: partial(block, steps) for name, block in blocks.items()}
    seconds = in_turn(contenders, options.rounds)
    per = {name: [each / steps for each in found] for name, found in seconds.items()}
    settings = {"batch": n, "images": n, "rounds": options.rounds}
    write(options.out, f"switches_{options.config}{variant(options)}", settings, per)
