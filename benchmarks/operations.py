"""Callbacks that count what a training step does; they import nothing of the package, to run in any version of it."""

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

ATEN = torch.ops.aten
STEP = 2
"""Index of the step that is counted; the ones before allocate the optimizer's state."""
READS = {ATEN._local_scalar_dense.default, ATEN.nonzero.default, ATEN.equal.default, ATEN.is_nonzero.default}
NORMS = {ATEN.native_group_norm.default, ATEN.native_group_norm_backward.default}
CONVOLUTIONS = {ATEN.convolution.default, ATEN.convolution_backward.default}


class OwnNorm(nn.GroupNorm):
    """GroupNorm as the package's own one on a GPU, in the type of its input."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return functional.group_norm(x, self.num_groups, weight, bias, self.eps)


class TorchNorm(nn.GroupNorm):
    """torch's own GroupNorm under autocast on a GPU, in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.group_norm(x.float(), self.num_groups, self.weight, self.bias, self.eps)


class Count(TorchDispatchMode):
    """Counts operations as a GPU would run them; the layouts of GroupNorm and convolutions are CUDA's.

    Attributes:
        found: operations that compute or copy, bytes that they read and write, conversions to another type and those of
            activations among them, changes of layout, half-precision convolutions without channels_last, and values
            read by the host.
    """

    def __init__(self, batch_size: int, on_the_host: list[Tensor] | None = None) -> None:
        super().__init__()
        names = ("operations", "bytes", "conversions", "activations", "layouts", "nchw", "reads")
        self.found, self._batch_size = dict.fromkeys(names, 0), batch_size
        self._on_the_host = {each.data_ptr() for each in on_the_host or []}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, found = func(*args, **(kwargs or {})), self.found
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        made = [each for each in tree_leaves(out) if isinstance(each, Tensor)]
        if func in READS:
            found["reads"] += given[0].data_ptr() not in self._on_the_host
            return out
        is_copy = func in {ATEN._to_copy.default, ATEN.clone.default, ATEN.copy_.default}
        memory = {each.untyped_storage().data_ptr() for each in given}
        writes = func._schema.is_mutable or any(each.untyped_storage().data_ptr() not in memory for each in made)
        if not made or not writes or func.overloadpacket in {ATEN.empty, ATEN.empty_like, ATEN.new_empty, ATEN.detach}:
            return out  # a view, or memory without content
        found["operations"] += 1
        found["bytes"] += sum(each.numel() * each.element_size() for each in (*given, *made))
        if is_copy and given[0].dtype != made[0].dtype:
            found["conversions"] += 1
            found["activations"] += made[0].ndim > 2 and len(made[0]) == self._batch_size
        found["layouts"] += is_copy and given[0].ndim == 4 and _is_last(given[0]) != _is_last(made[0])
        if func in NORMS:  # CUDA's kernels have one layout
            for each in (each for each in given if each.ndim == 4 and _is_last(each)):
                self._transpose(each)
            return tree_map_only(Tensor, lambda each: each.contiguous(), out)
        if func in CONVOLUTIONS:
            images = [each for each in given if each.ndim == 4]
            last = [each for each in images if _is_last(each)]
            for each in (each for each in images if last and not _is_last(each)):
                self._transpose(each)
            found["nchw"] += not last and images[0].dtype != torch.float32
        return out

    def _transpose(self, tensor: Tensor) -> None:
        self.found["layouts"] += 1
        self.found["operations"] += 1
        self.found["bytes"] += 2 * tensor.numel() * tensor.element_size()


def _is_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


class Counter(Callback):
    """Writes the counts of a training step, from its batch to the next one's, and of a step of two samplers.

    Args:
        out: the JSON file.
    """

    def __init__(self, out: str) -> None:
        self.out, self.batches = Path(out), 0
        self.count: Count

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.precision != "32-true":
            for module in pl_module.modules():
                if isinstance(module, nn.GroupNorm):
                    module.__class__ = TorchNorm if type(module) is nn.GroupNorm else OwnNorm

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.batches == STEP:
            callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
            averages = [getattr(each, "_average_model", None) for each in callbacks]
            on_the_host = [each.n_averaged for each in averages if each is not None]
            self.count = Count(len(batch[0]), on_the_host)
            self.count.__enter__()
        elif self.batches == STEP + 1:
            self.count.__exit__(None, None, None)
        self.batches += 1

        self.batch_size = len(batch[0])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with trainer.precision_plugin.forward_context():
            found = {"train": self.count.found} | count_samplers(pl_module, self.batch_size)
        self.out.write_text(json.dumps(found))


@torch.no_grad()
def count_samplers(module: Any, batch_size: int) -> dict[str, dict[str, int]]:
    """Return the counts of one step of DDIM and of ancestral sampling, without those of the network's call."""
    diffusion: Any = importlib.import_module("lightning_ddpm.diffusion")
    module.eval()
    x, found = torch.zeros(batch_size, *module.image_shape), {}
    with Count(batch_size) as network:
        module.network(x, torch.ones(batch_size, dtype=torch.long))
    for name, make in (
        ("DDIM", lambda steps: diffusion.DDIM(steps)),
        ("Ancestral", lambda steps: diffusion.Ancestral(diffusion.FixedLarge(), steps)),
    ):
        chains = []
        for steps in (4, 5):
            with Count(batch_size) as chain:
                make(steps).sample(module.denoiser, x, torch.randn_like)
            chains.append(chain.found)
        found[name] = {key: chains[1][key] - chains[0][key] - network.found[key] for key in chains[0]}
    return found


class Exchanges(Callback):
    """Writes how often a step on several ranks calls each operation of torch.distributed.

    Args:
        out: the JSON file, which rank 0 writes.
        steps: number of steps that are counted, after the first two.
    """

    def __init__(self, out: str, steps: int = 4) -> None:
        self.out, self.steps = Path(out), steps

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == STEP:
            self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
            self.profiler.start()
        if batch_idx == STEP + self.steps:
            self.profiler.stop()
            counts = {each.key: each.count for each in self.profiler.key_averages() if each.key.startswith("c10d::")}
            if trainer.is_global_zero:
                self.out.write_text(json.dumps({key: count / self.steps for key, count in counts.items()}))
