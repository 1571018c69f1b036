"""The number of images at a time: as given, 64 on a CPU, and on a GPU what its memory is predicted to hold."""

import json
from pathlib import Path

import pytest
import torch
from helpers.command_line import REPOSITORY
from torch import nn

from lightning_ddpm.commands import batch_size
from lightning_ddpm.diffusion import DDIM, Linear
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.step_plan import Settings, estimate_workspace, find_largest_batch, trace_network
from lightning_ddpm.networks import UNet
from lightning_ddpm.utils.trace_internals import use_fake_tensors

CKPT = REPOSITORY / "checkpoints" / "pretrained" / "digits_conditional.ckpt"
SET = ("--ckpt", CKPT, "--n", "100", "--steps", "1", "--accelerator", "cpu")
NETWORK = {"channels": 1, "size": 8, "width": 8, "multipliers": (1, 2), "attention": (4,), "groups": 4}


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the device have this many free bytes, as a GPU has."""
    free = [80_000_000]
    monkeypatch.setattr(batch_size, "get_free_memory", lambda device: free[0])
    return free


def read_set(folder: Path) -> int:
    """Return the batch size that a set's manifest states."""
    return int(json.loads((folder / "set.json").read_text())["batch_size"])


@pytest.mark.slow
def test_the_largest_batch_fits_and_one_more_image_does_not() -> None:
    settings = Settings(torch.bfloat16)
    model = DDPM(UNet(**NETWORK), Linear(1000), DDIM(50))
    with use_fake_tensors():
        network = UNet(**NETWORK)
    traces = trace_network(DDPM(network, Linear(1000), DDIM(50)), settings)

    def needs(n: int) -> float:
        return sum(traces.peak(n).values()) + estimate_workspace(traces.work(n))

    before = [each.clone() for each in model.parameters()]
    assert find_largest_batch(model, settings, needs(100), 1024) == 100
    assert find_largest_batch(model, settings, needs(100), 1024, copies=2) == 50
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True)), "the weights keep values"


def test_few_images_take_the_default(command, memory, tmp_path) -> None:
    few = ("--ckpt", CKPT, "--n", "3", "--steps", "1", "--accelerator", "cpu")
    assert command("sample", *few, "--out", tmp_path / "few")[0] == 0
    assert read_set(tmp_path / "few") == 64


def test_a_set_is_divided_evenly_into_batches_that_fit(command, memory, tmp_path) -> None:
    status, _, err = command("sample", *SET, "--out", tmp_path / "all")
    assert status == 0, err
    memory[0] = 60_000_000
    status, _, err = command("sample", *SET, "--out", tmp_path / "halves")
    assert status == 0, err
    assert read_set(tmp_path / "all") == 100
    assert read_set(tmp_path / "halves") == 50, "86 fit"
    memory[0] = 80_000_000
    (tmp_path / "halves" / "000003.png").unlink()
    status, out, err = command("sample", *SET, "--out", tmp_path / "halves")
    assert status == 0, err
    assert "50 of them are in" in out + err, "a set is continued with its own batch size, whatever fits by then"


def test_a_network_that_cannot_be_traced_gets_the_default(command, memory, tmp_path, monkeypatch) -> None:
    forward = UNet.forward

    def look(self: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
        assert float(inputs[0].sum()) < 1e9
        return forward(self, *inputs)

    monkeypatch.setattr(UNet, "forward", look)
    status, out, err = command("sample", *SET, "--out", tmp_path)
    assert status == 0, err
    assert "the memory of the network cannot be predicted" in out + err
    assert read_set(tmp_path) == 50, "two batches of at most 64"
