"""``plan``: its tables, and its errors."""

import re
from types import SimpleNamespace

import pytest
import torch
from helpers.command_line import REPOSITORY, tiny_digits, write_yaml

DIGITS = ("--config", REPOSITORY / "configs" / "digits.yaml")
SMALL = (*DIGITS, "--model.network.blocks", 1)
CARD = ("--gpu", "t4-16gb")
AVERAGES = ("--trainer.callbacks+", "PostHocEMA", "--trainer.callbacks.PostHocEMA.every_n_steps")
LARGE = ("--gpu", "rtx4090-24gb")


def read_peak(out: str) -> float:
    """Return the peak of a step, in GB."""
    return float(re.search(r"in all +([\d.]+)", out)[1])


def read_row(out: str, card: str) -> list[str]:
    """Return the numbers of a card."""
    (row,) = re.findall(rf"^{card} (.*)$", out, re.MULTILINE)
    return row.split()


def test_the_plan_of_the_quickstart(command) -> None:
    status, out, err = command("plan", *DIGITS, *CARD)
    assert status == 0, err
    assert out.startswith("701,345 parameters, 64 images of 1x8x8 at a time on each device, 32-true\n")
    usable, largest, batch, accumulation, milliseconds, rate, hours = read_row(out, "t4-16gb")
    assert (usable, batch, accumulation) == ("14.4", "64", "1")
    assert int(largest.replace(",", "")) > 10_000
    assert float(rate.replace(",", "")) == pytest.approx(64_000 / float(milliseconds), rel=0.02)
    assert float(hours) == pytest.approx(1200 * float(milliseconds) / 3.6e6, abs=1e-4)
    assert re.search(r"Evaluation, every 200 steps: \d[\d,]* images x \d+ NFE", out)
    assert "checkpoints of 0.01 GB" in out


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_split_into_parts_that_do(command) -> None:
    status, out, err = command(
        "plan", *SMALL, *CARD, "--data.batch_size", 2**17, "--trainer.accumulate_grad_batches", 2
    )
    assert status == 0, err
    _, largest, batch, accumulation, *_ = read_row(out, "t4-16gb")
    assert int(batch) <= int(largest.replace(",", "")) < 2 * int(batch)
    assert int(batch) * int(accumulation) == 2 * 2**17
    assert f"--data.batch_size {batch} --trainer.accumulate_grad_batches {accumulation}" in out
    status, out, _ = command(
        "plan", *SMALL, *CARD, "--data.batch_size", batch, "--trainer.accumulate_grad_batches", accumulation
    )
    assert read_row(out, "t4-16gb")[2:4] == [batch, accumulation], "it fits"


def test_a_global_batch_is_divided_among_devices_and_accumulated_batches(command) -> None:
    options = ("--data.batch_size", 48, "--data.global_batch_size", 256, "--trainer.devices", 2)
    status, out, err = command("plan", *SMALL, *CARD, *options)
    assert status == 0, err
    assert read_row(out, "t4-16gb")[2:4] == ["32", "4"], "2 devices x 4 batches of 32, at most 48"
    status, out, err = command("plan", *SMALL, *CARD, *options, "--trainer.num_nodes", 3)
    assert (status, out) == (2, "")
    assert err.startswith("error: a step of 256 images cannot be divided equally among 6 devices")


@pytest.mark.slow
def test_recomputed_activations_take_less_memory_and_more_work(command) -> None:
    outs = [command("plan", *SMALL, *CARD, *more)[1] for more in ((), ("--model.network.recompute", "[8]"))]
    assert read_peak(outs[1]) < read_peak(outs[0])
    flops = [float(re.search(r"\(([\d.]+) GFLOP", out)[1]) for out in outs]
    assert flops[1] > flops[0]


@pytest.mark.slow
def test_a_step_of_one_image_that_does_not_fit_is_refused_with_a_fix(command) -> None:
    large = (
        "--config",
        REPOSITORY / "configs" / "lsun256.yaml",
        "--model.network.width",
        640,
        "--model.network.blocks",
        1,
    )
    status, out, err = command("plan", *large, *CARD, "--trainer.precision", "32-true")
    assert (status, out) == (2, "")
    assert re.fullmatch(
        r"error: a step of one image takes [\d.]+ GB, and t4-16gb has 14.4 GB for it; add "
        r"--model.network.init_args.recompute '\[256, 128\]', which keeps fewer activations\n",
        err,
    )


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ((*DIGITS, "--gpu", "mi300x"), "--gpu mi300x is not in the table of cards; give one of b200-180gb, h200-141gb"),
        (
            (*DIGITS, "--gpu", "rtx-4090"),
            "--gpu rtx-4090 is not in the table of cards; did you mean rtx4090-24gb? ",
        ),
        ((*DIGITS, "--gpu", "H100"), "--gpu H100 is not in the table of cards; did you mean h100-80gb? There are b200"),
        (
            (*DIGITS, "--gpu", "h100-94gb"),
            "--gpu h100-94gb is not in the table of cards; did you mean h100-80gb? ",
        ),
        (
            (*DIGITS, *CARD, "--trainer.precision", "auto"),
            "trainer.precision auto is measured by fit alone; give ",
        ),
        (
            (*DIGITS, *CARD, "--trainer.precision", "64-true"),
            "plan knows 32-true, bf16-mixed and 16-mixed, got",
        ),
        (
            (*DIGITS, *CARD, "--trainer.accumulate_grad_batches", 0),
            "trainer.accumulate_grad_batches must be at",
        ),
        ((*DIGITS, *CARD, "--trainer.num_nodes", -1), "trainer.num_nodes must be at least 1, got -1"),
        ((*DIGITS, *CARD, "--data.batch_size", -4), "data.batch_size must be at least 1, got -4"),
        ((*DIGITS, *CARD, "--data.global_batch_size", 0), "data.global_batch_size must be at least 1, got 0"),
        ((*DIGITS, *CARD, *AVERAGES, 0), "give either every_n_steps or every_n_epochs, at least 1, got"),
        ((*DIGITS, *CARD, "--share", "2"), "--share must lie in (0, 1], got 2"),
        ((*DIGITS, *CARD, "--trainer.max_step", "2"), "there is no option --trainer.max_step; did you mean"),
        ((*DIGITS, *CARD, "--trainer.precision", "bf16-mixed"), "t4-16gb has no bfloat16"),
        (("--config", REPOSITORY / "configs" / "digits_classifier.yaml", *CARD), "plan needs a diffusion model"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(options, error, command) -> None:
    status, out, err = command("plan", *options)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {error}")
    assert err.count("\n") == 1


@pytest.mark.slow
def test_without_a_gpu_all_cards_are_listed_and_with_one_it_is_taken(command, monkeypatch, tmp_path) -> None:
    config = ("--config", write_yaml(tmp_path / "tiny.yaml", tiny_digits(tmp_path / "run")))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, out, err = command("plan", *config)
    assert status == 0, err
    assert len(re.findall(r"^\w+(?:-pcie)?-\d+gb ", out, re.MULTILINE)) == 17
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    card = SimpleNamespace(name="NVIDIA H100 80GB HBM3", total_memory=84_900_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    status, out, err = command("plan", *config)
    assert status == 0, err
    assert read_row(out, "h100-80gb")[0] == "76.4"
    assert not (tmp_path / "run").exists(), "a plan leaves nothing behind"


@pytest.mark.slow
def test_the_memory_in_the_headers_of_large_configs_is_the_plans(command) -> None:
    names = ("celebahq256", "lsun256")
    texts = [(REPOSITORY / "configs" / f"{name}.yaml").read_text() for name in names]
    assert len({text[text.index("\nmodel:") : text.index("\ndata:")] for text in texts}) == 1, "one plan serves both"
    headers = [re.search(r"# hardware:(.*?)# time:", text, re.DOTALL)[1].partition("# precision")[0] for text in texts]
    assert len({header.replace(name, "") for name, header in zip(names, headers, strict=True)}) == 1
    path, header = REPOSITORY / "configs" / "lsun256.yaml", headers[1]
    assert "plan --config configs/lsun256.yaml" in header
    stated, recomputed = (float(each) for each in re.findall(r"([\d.]+) GB at the peak", header))
    assert read_peak(command("plan", "--config", path, *LARGE, "--data.batch_size", 8)[1]) == pytest.approx(
        stated, 0.05
    )
    more = ("--model.network.recompute", "[256, 128]")
    assert read_peak(command("plan", "--config", path, *LARGE, *more)[1]) == pytest.approx(recomputed, 0.05)


def test_a_callback_alone_needs_no_list(command, tmp_path):
    file = tmp_path / "one.yaml"
    file.write_text("trainer:\n  callbacks: {class_path: lightning_ddpm.callbacks.EMA, init_args: {decay: 0.5}}\n")
    status, text, err = command("plan", "--config", "digits", "--config", file, "--gpu", "h100-80gb")
    assert status == 0, err
    assert re.search(r"^ *EMA +0\.00", text, re.MULTILINE), text
