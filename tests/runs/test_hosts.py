"""Two hosts, as two network namespaces of this machine: if one is cut off, the other does not wait for ever."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from helpers.command_line import REPOSITORY, tiny_digits, write_yaml

HOSTS = {"ddpm-a": "10.77.0.1", "ddpm-b": "10.77.0.2"}
TIMEOUT = 20


def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True)


@pytest.fixture
def hosts():
    """Create two namespaces with a virtual cable between them."""
    if shutil.which("ip") is None:
        pytest.skip("no network namespaces without the command ip")
    for name in HOSTS:
        made = ip("netns", "add", name)
        if made.returncode:
            pytest.skip(f"no network namespace can be made here: {made.stderr.strip()}")
    try:
        ip("link", "add", "cable-a", "netns", "ddpm-a", "type", "veth", "peer", "name", "cable-b", "netns", "ddpm-b")
        for name, address in HOSTS.items():
            cable = f"cable-{name[-1]}"
            for words in (
                ("addr", "add", f"{address}/24", "dev", cable),
                ("link", "set", cable, "up"),
                ("link", "set", "lo", "up"),
            ):
                done = ip("-n", name, *words)
                assert done.returncode == 0, done.stderr
        yield list(HOSTS)
    finally:
        for name in HOSTS:
            ip("netns", "del", name)


def start(host, config, folder):
    """Start one host's part of a run on two, with torchrun as in scripts/train_nodes.sh."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    meeting = ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"{HOSTS['ddpm-a']}:29400", "--local_addr", HOSTS[host]]
    meeting += ["--rdzv_conf", f"is_host={host == 'ddpm-a'}"]  # both hosts have this machine's name
    ours = ["-m", "lightning_ddpm", "fit", "--config", str(config), "--trainer.num_nodes", "2"]
    ours += ["--trainer.devices", "1", "--trainer.accelerator", "cpu"]
    ours += ["--trainer.strategy", "pytorch_lightning.strategies.DDPStrategy"]
    ours += ["--trainer.strategy.timeout", f"0:00:{TIMEOUT}"]
    path = f"{REPOSITORY}:{REPOSITORY / 'tests'}"
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": f"cable-{host[-1]}", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    words = ["ip", "netns", "exec", host, *torchrun, *meeting, *ours]
    with (folder / f"{host}.out").open("w") as out:
        return subprocess.Popen(
            words, cwd=REPOSITORY, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_host_that_is_cut_off_ends_the_other_with_a_message(hosts, tmp_path):
    config = tiny_digits(tmp_path / "run")
    config["trainer"].update(max_steps=1_000_000, callbacks=[])
    path = write_yaml(tmp_path / "config.yaml", config)
    processes = [start(host, path, tmp_path) for host in hosts]
    try:
        log = tmp_path / "ddpm-a.out"
        deadline = time.monotonic() + 300
        while "train/loss" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.5)
            assert all(process.poll() is None for process in processes), log.read_text()
        assert "train/loss" in log.read_text()
        assert ip("-n", hosts[1], "link", "set", "cable-b", "down").returncode == 0
        assert processes[0].wait(300) != 0  # 48 s were measured: the timeout, and torchrun's own shutdown
        assert "rank 0 lost the connection to another rank after step" in log.read_text()
        assert "resume with --ckpt_path last" in log.read_text()
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
