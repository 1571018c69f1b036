"""The predicted memory and work of a training step, compared with real steps of the Trainer."""

import itertools
import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import REPOSITORY, read_yaml
from helpers.tiny import TINY, quiet_trainer
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from lightning_ddpm.callbacks import EMA
from lightning_ddpm.diffusion import DDIM, Linear
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.step_plan import Settings, Traces, trace_network, trace_training
from lightning_ddpm.networks import UNet
from lightning_ddpm.utils.cards import get_card
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.trace_internals import FusedDropout, Operation, OperatorTrace, Storage, use_fake_tensors

CPU = Settings(gpu=False)


def plan(arguments: dict[str, Any], settings: Settings = CPU) -> Traces:
    """Trace the training step of a U-Net without values."""
    with use_fake_tensors():
        network = UNet(**arguments)
    return trace_training(DDPM(network, Linear(1000), DDIM(50)), settings)


def measure_peak(arguments: dict[str, Any], n: int, precision: str, folder: Path) -> float:
    """Return the most bytes that the CPU's allocator held at once in three steps of the Trainer."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model = DDPM(UNet(**arguments), Linear(1000), DDIM(50))
        images = torch.zeros(3 * n, *model.image_shape)
        trainer = quiet_trainer(
            folder, precision=precision, max_steps=3, gradient_clip_val=1.0, callbacks=[EMA()], log_every_n_steps=50
        )
        trainer.fit(model, DataLoader(TensorDataset(images, torch.zeros(3 * n, dtype=torch.long)), n))
        data = images.numel() * 4
    profiler.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    changes = sorted((each["ts"], each["args"]["Bytes"]) for each in events if each["name"] == "[memory]")
    return max(itertools.accumulate(change for _, change in changes)) - data


def read_network(config: str, channels: int, size: int, **changes: Any) -> dict[str, Any]:
    """Return the arguments of a config's U-Net, with some changed."""
    arguments = read_yaml(REPOSITORY / "configs" / f"{config}.yaml")["model"]["init_args"]["network"]["init_args"]
    return arguments | {"channels": channels, "size": size} | changes


MEASURED = {
    "digits": (read_network("digits", 1, 8), 64, "32-true"),
    "digits in bfloat16": (read_network("digits", 1, 8), 64, "bf16-mixed"),
    "cifar10": (read_network("cifar10", 3, 32, width=32), 16, "32-true"),
    "celebahq256": (read_network("celebahq256", 3, 64, width=32, recompute=[64]), 4, "32-true"),
}


@pytest.mark.filterwarnings("ignore:.*Profiler clears events", "ignore:.*have no `val_dataloader`")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "digits" else [pytest.mark.slow]) for name in MEASURED]
)
def test_the_peak_is_within_ten_per_cent_of_the_measured_one(name: str, tmp_path: Path) -> None:
    arguments, n, precision = MEASURED[name]
    half = torch.bfloat16 if precision == "bf16-mixed" else None
    predicted = sum(plan(arguments, CPU._replace(half=half)).peak(n).values())
    assert predicted == pytest.approx(measure_peak(arguments, n, precision, tmp_path), rel=0.1)


@pytest.fixture(scope="module")
def tiny() -> Traces:
    return plan(TINY)


def test_two_traces_give_the_flops_of_any_batch(tiny: Traces) -> None:
    network = UNet(**TINY)
    x, t = torch.zeros(7, 1, 8, 8), torch.ones(7, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        network(x, t).square().mean().backward()
    counted = sum(flops for name, flops in counter.get_flop_counts()["Global"].items() if "attention" not in str(name))
    attention = [each.flops for each in tiny.work(7) if "attention" in each.name]  # torch 2.14 counts none on the CPU
    assert attention
    assert min(attention) > 0
    assert sum(each.flops for each in tiny.work(7) if "attention" not in each.name) == counted


def test_two_traces_give_the_work_of_another_batch_as_a_trace_of_it_does() -> None:
    network, x_t, t = UNet(**TINY).eval(), torch.zeros(7, 1, 8, 8), torch.ones(7, dtype=torch.long)
    with OperatorTrace() as trace, torch.no_grad():
        network(x_t, t)
    with use_fake_tensors():
        fake = UNet(**TINY)
    predicted = trace_network(DDPM(fake, Linear(10), DDIM(2)), CPU).work(7)
    assert [tuple(each) for each in predicted] == [tuple(each) for each in trace.operations]


def make_trace(changes: list[int], names: tuple[str, ...] = ("aten.mm",)) -> OperatorTrace:
    """Return the trace of a program that changes memory so."""
    trace = OperatorTrace()
    trace.storages = [Storage(1000 * (1 + each), "") for each in range(3)]
    trace.changes = changes
    trace.operations = [Operation(name, torch.float32, 1, 1) for name in names]
    return trace


def test_the_order_of_frees_between_two_allocations_is_chance() -> None:
    """As where autocast drops its copies of the weights, in the order of a table of their addresses."""
    peaks = [
        Traces(make_trace([0, 1, -1, -2, 2, -3]), make_trace(second)).peak(5)
        for second in ([0, 1, -1, -2, 2, -3], [0, 1, -2, -1, 2, -3])
    ]
    assert peaks[0] == peaks[1] == {"": 512 * 2 + 512 * 4}


@pytest.mark.parametrize(
    ("second", "error"),
    [
        (make_trace([0, -1, 1, -2, 2, -3]), "the model keeps other tensors in memory with 2 images and with 4, "),
        (make_trace([0, 1, -1, -2, 2, -3], ("aten.bmm",)), "the model computes aten.mm for 2 images and aten.bmm for"),
        (make_trace([0, 1, -1, -2, 2, -3], ()), "the model computes aten.mm for 2 images and nothing for 4, so that"),
    ],
)
def test_a_model_that_depends_on_the_batch_size_is_refused(second: OperatorTrace, error: str) -> None:
    with pytest.raises(UserError, match=error):
        Traces(make_trace([0, 1, -1, -2, 2, -3]), second)


def test_the_weights_and_what_belongs_to_them_are_held(tiny: Traces) -> None:
    weights = 4 * sum(each.numel() for each in UNet(**TINY).parameters())
    steps = 4 * len(list(UNet(**TINY).parameters()))  # Adam counts for each tensor
    held = {group: tiny.get_held(group) for group in ("parameters", "gradients", "average", "optimizer")}
    assert held == {"parameters": weights, "gradients": weights, "average": weights, "optimizer": 2 * weights + steps}


@pytest.mark.parametrize(("context", "kept"), [(FusedDropout(), 1000), (nullcontext(), 4000)], ids=["GPU", "CPU"])
def test_gpus_keep_masks_of_dropout_in_bytes(context: AbstractContextManager[object], kept: int) -> None:
    x = torch.zeros(1000, requires_grad=True)
    with OperatorTrace() as trace, context:
        output = nn.functional.dropout(x, 0.5)
        storages, changes = list(trace.storages), list(trace.changes)
    live = {each for each in changes if each >= 0 and -1 - each not in changes}
    assert sum(storages[each].bytes for each in live) == 4000 + kept, "the output, and the mask"
    output.sum().backward()
    assert x.grad is not None


def test_a_step_that_accumulates_keeps_the_gradients_in_the_forward_pass(tiny: Traces) -> None:
    assert "gradients" not in tiny.peak(1024), "zeroed before the backward pass, at whose beginning the peak is"
    assert plan(TINY, CPU._replace(accumulates=True)).peak(1024)["gradients"] >= tiny.get_held("gradients")


def test_the_time_is_the_longer_one_of_arithmetic_and_memory(tiny: Traces) -> None:
    card = get_card("h100-80gb")
    for each in tiny.work(64):
        assert each.seconds(card) >= each.bytes / 3.35e12
        assert each.seconds(card) >= each.flops / 494e12
    product = next(each for each in tiny.work(64) if each.name == "aten.mm")
    large = product._replace(flops=1e15, bytes=1.0)
    assert large.seconds(card) == 1e15 / 67e12, "products of matrices are in float32 by default"
    assert large._replace(name="aten.convolution").seconds(card) == 1e15 / 494e12
    assert large._replace(dtype=torch.bfloat16).seconds(card) == 1e15 / 989e12
