"""Tests of the names of devices."""

import pytest
import torch

from lightning_ddpm.utils.devices import name_device


def test_a_gpu_is_named_by_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"model of {device}")
    assert name_device(torch.device("cuda", 1)) == "model of cuda:1"
    assert name_device(torch.device("cpu")) == "cpu"
