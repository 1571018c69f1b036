"""The tables that ``plan`` prints."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from jsonargparse import Namespace

from lightning_ddpm.data.global_batch import divide_step
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.step_plan import Settings, Traces, estimate_workspace
from lightning_ddpm.utils.cards import Card
from lightning_ddpm.utils.console import report
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.image_size import pad_size

USABLE = 0.9
"""Share of a card's memory for tensors; the rest is for the driver, CUDA's context and fragmentation."""
MOST = 2**17
"""Largest batch that is looked for."""
DOWNLOADS = {"CIFAR10": 0.36, "MNIST": 0.07, "FashionMNIST": 0.09, "church_outdoor": 2.3, "bedroom": 43.0, "cat": 42.0}
"""GB on disk by source, or by category of LSUN; archives and what is extracted from them."""
GROUPS = {"parameters": "parameters", "gradients": "gradients", "optimizer": "optimizer state", "average": "EMA"}


class Generation(NamedTuple):
    """Images that a callback generates.

    Attributes:
        name: of the callback.
        n: number of images.
        nfe: network evaluations of an image; ``None`` if it is not known before.
        steps, epochs: interval; both ``None`` for once, after training.
        batch: number of images at a time.
    """

    name: str
    n: int
    nfe: int | None
    steps: int | None
    epochs: int | None
    batch: int


class RunPlan(NamedTuple):
    """What is planned: the options as parsed, the traces, and what the callbacks do."""

    options: Namespace
    model: DDPM
    training: Traces
    network: Traces
    generations: Sequence[Generation]
    callbacks: Sequence[str]
    settings: Settings
    snapshots: int = 0

    @property
    def batch(self) -> int:
        """The number of images at a time on each device."""
        return self._divide()[0]

    @property
    def accumulation(self) -> int:
        """The number of batches of a step on each device."""
        return self._divide()[1]

    def _divide(self) -> tuple[int, int]:
        data, trainer = self.options.data, self.options.trainer
        if data.global_batch_size is None:
            return int(data.batch_size), int(trainer.accumulate_grad_batches or 1)
        devices = int(trainer.devices) if str(trainer.devices).isdecimal() else 1
        return divide_step(data.global_batch_size, devices * int(trainer.num_nodes or 1), data.batch_size)

    def peak(self, n: int) -> float:
        """Return the bytes of a training step at n images at a time, with workspace."""
        return sum(self.training.peak(n).values()) + self.workspace(n) + self.count_kept_gradients(n)

    def workspace(self, n: int) -> float:
        """Return the bytes of libraries at n images at a time."""
        return estimate_workspace(self.training.work(n))

    def count_kept_gradients(self, n: int) -> int:
        """Return the bytes of gradients that stay in the forward pass of a part of a batch."""
        return self.training.get_held("gradients") if n < self.batch and not self.settings.accumulates else 0

    def resident(self) -> int:
        """Return the bytes of what stays in memory beside the weights while images are generated."""
        return sum(self.training.get_held(group) for group in ("optimizer", "average"))

    def find_batch(self, card: Card) -> int:
        """Return the largest batch that fits a card, 0 if none does."""
        return bisect_left(range(1, MOST + 1), True, key=lambda n: not self._fits(n, card))

    def _fits(self, n: int, card: Card) -> bool:
        return self.peak(n) <= USABLE * card.memory * 1e9


class Row(NamedTuple):
    """A card's part of the plan; ``batch`` and ``accumulation`` are those of a step that keeps the mathematics."""

    card: Card
    largest: int
    batch: int
    accumulation: int
    seconds: float


def _format(number: float) -> str:
    """Return a number with three digits, without powers of ten."""
    digits = max(0, 2 - math.floor(math.log10(number))) if number > 0 else 0
    return f"{number:,.{min(digits, 4)}f}"


def print_plan(run: RunPlan, cards: Sequence[Card]) -> None:
    """Print the plan for these cards.

    Raises:
        UserError: one card is meant, and not even a batch of one image fits it, or it has no bfloat16.
    """
    rows = [row for card in cards if (row := _plan_card(run, card)) is not None]
    if len(cards) == 1:
        _check_card(run, cards[0], rows)
    _print_memory(run)
    _print_work(run)
    _print_cards(run, rows, [card.name for card in cards if card not in [row.card for row in rows]])
    row = rows[0] if rows else None
    if row is not None and len(cards) == 1:
        _print_options(run, row)
        _print_generations(run, row)
    _print_disk(run)


def _plan_card(run: RunPlan, card: Card) -> Row | None:
    """Return the card's plan, ``None`` if the run cannot be there."""
    largest = run.find_batch(card)
    if not largest or (_needs_bfloat16(run) and not card.bf16):
        return None
    batch = max(n for n in range(1, run.batch + 1) if run.batch % n == 0 and n <= largest)
    pieces = run.batch // batch
    seconds = pieces * sum(each.seconds(card) for each in run.training.work(batch)) / run.options.share
    return Row(card, largest, batch, pieces * run.accumulation, seconds * run.accumulation)


def _needs_bfloat16(run: RunPlan) -> bool:
    return str(run.settings.half) == "torch.bfloat16"


def _check_card(run: RunPlan, card: Card, rows: Sequence[Row]) -> None:
    if rows:
        return
    if _needs_bfloat16(run) and not card.bf16:
        raise UserError(f"{card.name} has no bfloat16, which trainer.precision asks for; give 16-mixed")
    need, option = f"{run.peak(1) / 1e9:.1f} GB", _write_recompute(run, 2)
    fix = f"add {option}, which keeps fewer activations" if option else "take a larger card or a narrower network"
    raise UserError(
        f"a step of one image takes {need}, and {card.name} has {USABLE * card.memory:.1f} GB for it; {fix}"
    )


def _write_recompute(run: RunPlan, levels: int) -> str | None:
    """Return the option by which the network keeps fewer activations; ``None`` if it has none, or it is set.

    Args:
        run: the plan.
        levels: number of a U-Net's levels, from the first, to name by their resolutions.
    """
    arguments = run.options.model.init_args.network.init_args
    if "recompute" not in arguments or arguments.recompute:
        return None
    padded = pad_size(run.model.image_shape[1:], getattr(run.model.network, "pad_to_multiple", 1))
    sizes = ", ".join(str(min(padded) // 2**level) for level in range(levels))
    value = "true" if isinstance(arguments.recompute, bool) else f"'[{sizes}]'"
    return f"--model.network.init_args.recompute {value}"


def _print_memory(run: RunPlan) -> None:
    n = run.batch
    found = run.training.peak(n)
    lines = [(name, found.get(group, 0.0)) for group, name in GROUPS.items()]
    lines += [("activations and other tensors", found.get("", 0.0)), ("workspace (estimate)", run.workspace(n))]
    total = sum(taken for _, taken in lines)
    count = sum(each.numel() for each in run.model.parameters())
    shape = "x".join(map(str, run.model.image_shape))
    precision = run.options.trainer.precision or "32-true"
    report(f"{count:,} parameters, {n} images of {shape} at a time on each device, {precision}")
    report("\nmemory at the peak of a training step, GB")
    for name, taken in [*lines, ("in all", total)]:
        report(f"  {name:<30}{taken / 1e9:>8.2f}")
    sizes = sorted({1, *(n * 2**power // 8 for power in range(7) if n * 2**power >= 8)})
    report("\nimages at a time " + "".join(f"{each:>9,}" for each in sizes))
    report("peak, GB         " + "".join(f"{run.peak(each) / 1e9:>9.2f}" for each in sizes))


def _print_work(run: RunPlan) -> None:
    work, times = run.training.work(run.batch), run.accumulation
    flops, moved = (times * sum(values) for values in ([x.flops for x in work], [x.bytes for x in work]))
    an_image = _format(flops / times / run.batch / 1e9)
    report(
        f"\na step computes {_format(flops / 1e12)} TFLOP ({an_image} GFLOP an image), moves {_format(moved / 1e9)} GB"
    )


def _print_cards(run: RunPlan, rows: Sequence[Row], others: Sequence[str]) -> None:
    steps, share = run.options.trainer.max_steps or -1, run.options.share
    report(f"at {100 * share:.3g} per cent of the card's peak and bandwidth, by roofline (--share):\n")
    head = ("card", "usable GB", "largest", "batch", "accumulate", "ms a step", "images/s", "hours")
    report(f"{head[0]:<16}" + "".join(f"{name:>11}" for name in head[1:]))
    for row in rows:
        images = run.batch * run.accumulation / row.seconds
        hours = _format(steps * row.seconds / 3600) if steps > 0 else "?"
        values = [f"{USABLE * row.card.memory:.1f}", f"{row.largest:,}", row.batch, row.accumulation]
        values += [_format(1000 * row.seconds), f"{images:,.0f}", hours]
        report(f"{row.card.name:<16}" + "".join(f"{value:>11}" for value in values))
    if others:
        report(f"not on {', '.join(others)}: too small, or without the precision")
    if steps > 0:
        report(f"images/s of one device; hours of {steps:,} steps, without evaluations and waiting for data or others")
    if "Compile" in run.callbacks:
        report("operators are counted one by one: compiled code moves fewer bytes and keeps fewer activations")


def _print_options(run: RunPlan, row: Row) -> None:
    if row.batch < run.batch:
        more = "" if run.options.data.global_batch_size else f" --trainer.accumulate_grad_batches {row.accumulation}"
        report(
            f"\n{run.batch} images at a time do not fit; the same step in parts: --data.batch_size {row.batch}{more}"
        )
        if option := _write_recompute(run, 1):
            report(f"or compute activations again in the backward pass by {option}, and plan again")


def _print_generations(run: RunPlan, row: Row) -> None:
    steps, total = run.options.trainer.max_steps or -1, 0.0
    if run.generations:
        report("\nimages that are generated")
    for each in run.generations:
        every = (
            f"every {each.steps:,} steps" if each.steps else f"every {each.epochs} epochs" if each.epochs else "once"
        )
        if each.nfe is None:
            report(f"  {each.name}, {every}: {each.n:,} images by an adaptive number of network evaluations")
            continue
        one = sum(x.seconds(row.card) for x in run.network.work(each.batch)) / each.batch / run.options.share
        hours = each.n * each.nfe * one / 3600
        times = steps // each.steps if each.steps and steps > 0 else 0 if each.epochs else 1
        total += times * hours
        peak = sum(run.network.peak(each.batch).values()) + run.resident()
        report(
            f"  {each.name}, {every}: {each.n:,} images x {each.nfe:,} NFE, {_format(60 * hours)} minutes each time, "
            f"{peak / 1e9:.2f} GB at {each.batch} images at a time"
        )
    if total:
        report(f"  in all {_format(total)} hours, without the metrics' own network")


def _print_disk(run: RunPlan) -> None:
    size = sum(run.training.get_held(group) for group in ("parameters", "optimizer", "average"))
    report("\ndisk")
    if "Checkpoints" in run.callbacks:
        report(f"  checkpoints of {size / 1e9:.2f} GB: last, the one before and best, {3 * size / 1e9:.2f} GB")
        report(f"  and {size / 1e9:.2f} GB more while one is written")
    if run.snapshots:
        size = run.training.get_held("parameters")
        report(f"  {run.snapshots:,} snapshots of averaged weights, {run.snapshots * size / 1e9:.2f} GB")
    data = run.options.data
    source = data.source.class_path.rpartition(".")[2]
    known = DOWNLOADS.get(data.source.get("init_args.category", source))
    if known:
        report(f"  data: {known:g} GB in {data.root}")
    if data.decode_cache:
        gigabytes = math.prod(run.model.image_shape) / 1e3
        report(f"  decoded images: {gigabytes:,.0f} GB for a million of them in {data.decode_cache}")
