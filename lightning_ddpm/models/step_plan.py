"""Predicts memory and work of a training step at any batch size, without the memory that it takes.

The step is traced twice, with small batches of tensors that have no values. The size of every allocation and the work
of every operator are linear in the batch, so that two traces give them for all batches: the peak is the largest sum of
what is allocated at one moment.
"""

import copy
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import groupby, zip_longest
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lightning_ddpm.models.conditioning import make_example
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.utils.cards import Card
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.trace_internals import FusedDropout, OperatorTrace, use_fake_tensors

TRACED = (2, 4)
"""Batch sizes of the traces; one image takes other paths in some operators."""
BLOCK = 512
"""The caching allocator of CUDA rounds sizes up to a multiple of this."""
PRODUCTS = 33_554_432
"""Workspace of matrix products on Hopper, the largest of torch's defaults."""
HALF = {"bf16-mixed": torch.bfloat16, "bf16": torch.bfloat16, "16-mixed": torch.float16, "16": torch.float16}
"""The dtype that a precision of Lightning computes in, where that is not float32."""


class Settings(NamedTuple):
    """What of the Trainer's options changes a step.

    Attributes:
        half: the dtype of mixed precision, or ``None``.
        clip: whether gradients are clipped.
        averages: number of averages of the weights.
        gpu: whether the step runs on a GPU; ``False`` for the CPU.
        accumulates: whether gradients of former batches are kept meanwhile.
    """

    half: torch.dtype | None = None
    clip: bool = True
    averages: int = 1
    gpu: bool = True
    accumulates: bool = False


class Work(NamedTuple):
    """An operator at a batch size; see :class:`lightning_ddpm.utils.trace_internals.Operation`."""

    name: str
    dtype: torch.dtype
    flops: float
    bytes: float

    def seconds(self, card: Card) -> float:
        """Return the least time that it takes: by arithmetic or by memory, whichever is longer (roofline)."""
        return max(self.flops / self._get_peak(card), self.bytes / (card.bandwidth * 1e9))

    def _get_peak(self, card: Card) -> float:
        """Return the card's FLOP/s in this operator's dtype and by torch's settings of TF32."""
        if self.dtype in HALF.values():
            return card.half * 1e12
        products = torch.get_float32_matmul_precision() != "highest"
        rounded = torch.backends.cudnn.allow_tf32 if "convolution" in self.name else products
        return (card.tf32 if rounded else card.fp32) * 1e12


class Traces:
    """A program's traces at the two batch sizes of ``TRACED``, and what follows for others.

    Raises:
        UserError: the program computes, or keeps in memory, different things at the two sizes.
    """

    def __init__(self, first: OperatorTrace, second: OperatorTrace) -> None:
        self._changes = _order_frees(first.changes)
        names = [[each.name for each in trace.operations] for trace in (first, second)]
        different = next((pair for pair in zip_longest(*names, fillvalue="nothing") if pair[0] != pair[1]), None)
        if different is not None or self._changes != _order_frees(second.changes):
            what = f"computes {different[0]} for" if different else "keeps other tensors in memory with"
            other = f"{different[1]} for {TRACED[1]}" if different else f"with {TRACED[1]}"
            raise UserError(
                f"the model {what} {TRACED[0]} images and {other}, so that other batches cannot be predicted; "
                "let it do the same for every batch size"
            )
        self._first, self._second = first, second

    def peak(self, n: int) -> dict[str, int]:
        """Return the bytes at the moment of the largest memory for n images, by group; see ``OperatorTrace.hold``."""
        pairs = zip(self._first.storages, self._second.storages, strict=True)
        sizes = [-(-round(_extrapolate(a.bytes, b.bytes, n)) // BLOCK) * BLOCK for a, b in pairs]
        now = most = moment = 0
        for index, change in enumerate(self._changes):
            now += sizes[change] if change >= 0 else -sizes[-1 - change]
            if now > most:
                most, moment = now, index
        live = set[int]()
        for change in self._changes[: moment + 1]:
            live.symmetric_difference_update({change if change >= 0 else -1 - change})
        found = dict[str, int]()
        for index in live:
            group = self._first.storages[index].group
            found[group] = found.get(group, 0) + sizes[index]
        return found

    def get_held(self, group: str) -> int:
        """Return the bytes of a group of :meth:`OperatorTrace.hold`."""
        return sum(each.bytes for each in self._first.storages if each.group == group)

    def work(self, n: int) -> list[Work]:
        """Return the operators for n images."""
        return [
            Work(a.name, a.dtype, _extrapolate(a.flops, b.flops, n), _extrapolate(a.bytes, b.bytes, n))
            for a, b in zip(self._first.operations, self._second.operations, strict=True)
        ]


def _order_frees(changes: Sequence[int]) -> list[int]:
    """Return the changes with those frees in one order that have no allocation between them, whose order is chance.

    Autocast drops its copies of the weights in the order of a hash table of their addresses, and no peak depends on it.
    """
    runs = groupby(changes, lambda change: change < 0)
    return [change for is_freed, run in runs for change in (sorted(run) if is_freed else run)]


def _extrapolate(first: float, second: float, n: int) -> float:
    small, large = TRACED
    return first + (second - first) * (n - small) / (large - small)


def estimate_workspace(work: Sequence[Work]) -> float:
    """Return the bytes that libraries take for their own use on a GPU: an estimate, which no trace shows.

    That is torch's workspace of matrix products, and a copy of what the largest convolution reads and writes, which
    cuDNN makes where it wants another memory layout.
    """
    return PRODUCTS + max((each.bytes for each in work if "convolution" in each.name), default=0)


def trace_training(model: DDPM, settings: Settings) -> Traces:
    """Trace a training step: forward, backward, clipping, optimizer and average, when all of them have their state.

    Args:
        model: its network may be without values; see :func:`lightning_ddpm.utils.trace_internals.use_fake_tensors`.
        settings: of the Trainer.

    Raises:
        UserError: the step depends on the batch size.
    """
    with use_fake_tensors():
        model.train()
        parameters = list(model.parameters())
        optimizer = model.configure_optimizers()["optimizer"]
        for each in parameters:
            each.grad = torch.zeros_like(each)
        optimizer.step()  # creates its state
        averages = [each.detach().clone() for each in settings.averages * parameters]
        state: list[Tensor] = [
            each for values in optimizer.state.values() for each in values.values() if isinstance(each, Tensor)
        ]
        traces = []
        for n in TRACED:
            with OperatorTrace() as trace:
                trace.hold("parameters", parameters)
                trace.hold("gradients", [each.grad for each in parameters if each.grad is not None])
                trace.hold("optimizer", state)
                trace.hold("average", averages)
                _run_step(model, n, settings, optimizer, averages)
            traces.append(trace)
    return Traces(*traces)


def _run_step(
    model: DDPM, n: int, settings: Settings, optimizer: torch.optim.Optimizer, averages: Sequence[Tensor]
) -> None:
    parameters = list(model.parameters())
    x_0 = torch.zeros(n, *model.image_shape)
    t, condition = torch.ones(n, dtype=torch.long), make_example(model.condition_format, bool(model.class_names), n)
    eps = torch.randn_like(x_0)
    with _enter(settings):
        loss = model.loss(x_0, t, eps, condition).mean()
    if not settings.accumulates:
        optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    if settings.clip:
        nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    if averages:
        update = get_ema_multi_avg_fn(0.9999)  # type: ignore[no-untyped-call]
        update(list(averages), [each.detach() for each in settings.averages * parameters], 1)


def trace_network(model: DDPM, settings: Settings) -> Traces:
    """Trace one network evaluation of a sampler, without gradients, beside the weights alone.

    Raises:
        UserError: the network depends on the batch size.
    """
    traces = []
    with use_fake_tensors(), torch.no_grad():
        model.eval()
        for n in TRACED:
            x_t, t = torch.zeros(n, *model.image_shape), torch.ones(n, dtype=torch.long)
            example = make_example(model.condition_format, bool(model.class_names), n)
            given = (example.argument,) if example.kinds else ()
            with OperatorTrace() as trace, _enter(settings):
                trace.hold("parameters", list(model.parameters()))
                trace.hold("", [x_t])
                model.network(x_t, t, *given)
            traces.append(trace)
    return Traces(*traces)


def find_largest_batch(model: DDPM, settings: Settings, memory: float, most: int, copies: int = 1) -> int:
    """Return the most images that a network evaluation fits into memory with; 1 if not even that is predicted to fit.

    Args:
        model: on the CPU; its weights are not touched.
        settings: of the device that the memory belongs to.
        memory: in bytes, for the weights too.
        most: the largest number that is tried.
        copies: how often each image stands in a batch of the network, as under guidance.

    Raises:
        UserError: the network depends on the batch size.
    """
    model = copy.deepcopy(model)
    with use_fake_tensors():
        model.to_empty(device="cpu")
    traces = trace_network(model, settings)

    def exceeds(n: int) -> bool:
        needed = sum(traces.peak(n * copies).values()) + estimate_workspace(traces.work(n * copies))
        return needed > memory

    return max(1, bisect_left(range(1, most + 1), True, key=exceeds))


def _enter(settings: Settings) -> ExitStack:
    """Return the context of the network: mixed precision, and dropout as on the device."""
    stack = ExitStack()
    stack.enter_context(torch.autocast("cpu", settings.half, enabled=settings.half is not None))
    if settings.gpu:
        stack.enter_context(FusedDropout())
    return stack
