"""Tests of the threads that torch computes with."""

import os
import subprocess
import sys

import pytest
import torch

from lightning_ddpm.utils import threads


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": "6000"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, {"OMP_WAIT_POLICY": "PASSIVE"}),
    ],
)
def test_what_the_user_sets_stays(given, expected):
    threads.limit_spinning(given)
    assert given == expected


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other implementations of OpenMP")
def test_the_program_sets_the_spin_count_before_torch_is_loaded():
    environment = {name: each for name, each in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    words = [sys.executable, "-m", "lightning_ddpm", "check-data", "--help"]
    environment["OMP_DISPLAY_ENV"] = "verbose"  # makes GNU's OpenMP print what it has read
    ran = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert f"GOMP_SPINCOUNT = '{threads.SPIN_COUNT}'" in ran.stderr


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_a_control_group_is_read(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert threads.read_cpu_quota(tmp_path) == expected


def test_a_container_gets_no_more_threads_than_its_quota(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    try:
        torch.set_num_threads(3)
        monkeypatch.setattr(threads, "read_cpu_quota", lambda: 2)
        threads.limit_threads()
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(threads, "read_cpu_quota", lambda: None)
        threads.limit_threads()
        assert torch.get_num_threads() == 2
        torch.set_num_threads(3)
        monkeypatch.setattr(threads, "read_cpu_quota", lambda: 2)
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        threads.limit_threads()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_busy_machine_is_reported(monkeypatch):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 0, 0))
        assert threads.describe_threads() == "2 threads"
        monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 0, 0))
        assert "OMP_NUM_THREADS=1" in threads.describe_threads()
        torch.set_num_threads(1)
        assert threads.describe_threads() == "1 thread"
    finally:
        torch.set_num_threads(before)
