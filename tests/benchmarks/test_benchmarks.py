"""The benchmarks' arithmetic and tables, and small runs of them."""

import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
from helpers.command_line import REPOSITORY

pytest.importorskip("diffusers")
pytest.importorskip("greenlet")
from torch.utils.tensorboard import SummaryWriter

from benchmarks import curve, recipes, report
from benchmarks.__main__ import SCRIPTS, TIMINGS, main
from benchmarks.models import read_config

MEASURED = {"fit": [0.2, 0.1, 0.3, 0.2], "bare loop": [0.1, 0.1, 0.15, 0.3]}


def test_a_table_has_medians_quartiles_and_ratios_within_rounds() -> None:
    _, _, first, second = report.make_table({"settings": {"per": "step"}, "values": MEASURED})
    assert first == "| fit | 200 (175 to 225) | 1 (1 to 1) |"
    assert second == "| bare loop | 125 (100 to 188) | 0.75 (0.5 to 1.12) |"


def test_a_table_of_six_or_more_rounds_has_an_interval_of_the_median() -> None:
    seconds = [float(each) for each in range(1, 16)]
    head, _, _, second = report.make_table({"settings": {}, "values": {"a": [1.0] * 15, "b": seconds}})
    assert head.endswith("| 95 % interval of its median |")
    assert second.endswith("| 4 to 12 |"), "by the table of the sign test, n = 15"
    assert report.compute_median_interval(seconds[:5]) is None
    assert report.compute_median_interval(seconds[:6]) == (1, 6)


def test_the_columns_of_a_series_are_its_head() -> None:
    settings = {"unit": "steps", "columns": ["1,000", "2,000"]}
    lines = report.make_table(
        {"settings": settings, "values": {"resident, MB": [968.24, 1012.0], "other": [None, [3, 1.25, 2]]}}
    )
    assert lines == [
        "| steps | 1,000 | 2,000 |",
        "|---|---|---|",
        "| resident, MB | 968.2 | 1,012 |",
        "| other |  | 2 (1.25 to 3) |",
    ]


def test_values_have_three_significant_digits_without_powers_of_ten() -> None:
    assert [report.round_value(each) for each in (15316.0, 8249.6, 41.23, 0.9244, 12.0)] == [
        "15,300",
        "8,250",
        "41.2",
        "0.924",
        "12",
    ]


def test_a_table_has_images_per_second_and_memory_if_they_are_known() -> None:
    settings = {"per": "step", "images": 16}
    head, _, first, second = report.make_table({"settings": settings, "values": MEASURED, "megabytes": {"fit": [5.0]}})
    assert (
        head == "|  | ms per step, median (quartiles) | ratio to the first, median (quartiles) | images/s | peak MB |"
    )
    assert first == "| fit | 200 (175 to 225) | 1 (1 to 1) | 80 | 5 |"
    assert second == "| bare loop | 125 (100 to 188) | 0.75 (0.5 to 1.12) | 128 |  |"


def test_tables_are_written_between_the_marks_of_a_page(tmp_path: Path) -> None:
    page, out = tmp_path / "page.md", tmp_path / "results"
    page.write_text("before\n<!-- training -->\nold\n<!-- end -->\nbetween\n<!-- start -->\nkept\n<!-- end -->\n")
    report.write_result(out, "training", {"batch": 16, "per": "step"}, MEASURED)
    report.write_result(out, "unknown", {"per": "step"}, MEASURED)
    for _ in range(2):
        report.write_tables(page, out)
    text = page.read_text()
    assert text.startswith("before\n<!-- training -->\n")
    assert text.endswith("<!-- end -->\nbetween\n<!-- start -->\nkept\n<!-- end -->\n")
    assert "old" not in text
    assert text.count("| fit | 200") == 1
    assert f"{report.describe_hardware()}; batch 16; " in text


def test_rounds_alternate_their_order_after_one_warm_up_round() -> None:
    order: list[str] = []
    found = report.time_in_turns({name: lambda name=name: order.append(name) for name in "ab"}, 3)
    assert "".join(order) == "abbaabba"
    assert {name: len(seconds) for name, seconds in found.items()} == {"a": 3, "b": 3}


def test_contenders_that_pause_advance_in_turn_and_have_their_own_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    clock = 0.0
    monkeypatch.setattr(report.time, "perf_counter", lambda: clock)

    def work(name: str, seconds: float, laps: int) -> None:
        nonlocal clock
        for _ in range(laps):
            order.append(name)
            clock += seconds
            report.pause()

    found = report.time_in_turns({"a": lambda: work("a", 1.0, 3), "b": lambda: work("b", 10.0, 2)}, 3)
    assert "".join(order) == "abbaa" + "baaba" + "abbaa" + "baaba"
    assert found == {"a": [3.0] * 3, "b": [20.0] * 3}
    work("outside of turns a pause does nothing", 1.0, 1)


def test_every_result_has_its_table_in_results_md() -> None:
    results = sorted((REPOSITORY / "benchmarks" / "results").glob("*.json"))
    assert results
    page = report.PAGE.read_text()
    for path in results:
        assert "\n".join(report.make_table(json.loads(path.read_text()))) in page, path.name


def test_a_curve_has_the_metrics_of_a_run_and_published_ones_after_as_many_images(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        for step, value in ((100, 80.0), (200, 40.0)):
            writer.add_scalar("val/fid", value, step, walltime=1000.0 + 60 * step)
            writer.add_scalar("val/loss", 1.0, step)
        writer.add_scalar("final/fid", 30.0, 200)
    found = curve.read_curves(tmp_path)
    assert found["step"] == [100, 200]
    assert found["metrics"] == {"val/fid": [80, 40]}
    assert found["final"] == {"final/fid": 30}
    assert found["minutes"][1] - found["minutes"][0] == 100
    assert curve.interpolate_published(5_990_400) == pytest.approx(9.16)
    assert curve.interpolate_published(int((5_990_400 * 11_980_800) ** 0.5)) == pytest.approx(
        (9.16 * 5.78) ** 0.5, rel=1e-4
    )
    assert curve.interpolate_published(1_000_000) is None


def test_a_curve_is_trained_on_cifar10_as_stored_by_torchvision_or_as_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested = []
    monkeypatch.setattr(curve, "run_fit", lambda settings, folder: requested.append(settings) or sys.exit())
    options = Namespace(config="cifar10", weights_path=Path("inception.pth"), data=tmp_path, minutes=25.0)
    for folder in ("train", "cifar-10-batches-py"):
        (tmp_path / folder).mkdir()
        with pytest.raises(SystemExit):
            curve.run(options)
    sources = [each["data"]["source"]["class_path"].rpartition(".")[2] for each in requested]
    assert sources == ["ImageFolder", "CIFAR10"]
    for settings in requested:
        assert settings["data"]["root"] == str(tmp_path)
        assert settings["trainer"]["max_time"] == {"seconds": 1500}
        assert str(settings).count("'weights_path': 'inception.pth'") == 2


def test_recipes_lead_from_cifar10_to_cifar10_fast_with_equally_many_images() -> None:
    made = list(recipes.make_recipes().values())
    first, last, ho, fast = made[0], made[-1], read_config("cifar10"), read_config("cifar10_fast")
    for mine, theirs in ((first, ho), (last, fast)):
        mine, theirs = mine["model"]["init_args"], theirs["model"]["init_args"]
        assert mine["schedule"]["class_path"] == theirs["schedule"]["class_path"]
        for part in ("parameterization", "objective"):
            assert mine.get(part) == theirs.get(part)
    for each in (
        lambda it: it["data"]["batch_size"],
        lambda it: it["model"]["init_args"]["optimizer"]["init_args"]["lr"],
    ):
        assert each(last) / each(first) == each(fast) / each(ho)
    for config in made:
        trainer, n = config["trainer"], config["data"]["batch_size"]
        assert (n * trainer["val_check_interval"], n * trainer["max_steps"]) == (recipes.SEEN[0], recipes.SEEN[-1])
        average = next(each for each in trainer["callbacks"] if each["class_path"].endswith(".EMA"))["init_args"]
        warm_up = config["model"]["init_args"]["lr_scheduler"]["init_args"]["total_iters"]
        assert (warm_up * n, average["decay"] ** (1 / n)) == (200 * 64, pytest.approx(0.995 ** (1 / 64), abs=1e-9))


@pytest.mark.parametrize("what", [*TIMINGS, *SCRIPTS])
def test_every_benchmark_has_help(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main([what, "--help"])
    assert f"python -m benchmarks {what}" in capsys.readouterr().out


@pytest.mark.slow
def test_peak_memory_excludes_that_of_the_parent_process() -> None:
    """On Linux, getrusage reports the parent's peak, too, because a child starts with its parent's memory."""
    program = "from benchmarks.report import peak_megabytes; print(peak_megabytes(of_the_process=True))"
    words = [sys.executable, "-c", program]
    found = []
    for megabytes in (1, 1500):
        held = bytearray(10**6 * megabytes)
        found.append(float(subprocess.run(words, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE).stdout))
        del held
    assert found[1] < 1.1 * found[0]
    assert found[0] > 100, "torch's import"


@pytest.mark.slow
def test_training_is_timed_beside_diffusers_and_a_bare_loop(tmp_path: Path) -> None:
    page = report.PAGE.read_text()
    options = ["--config", "digits", "--batch_size", "4", "--rounds", "3", "--out", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "benchmarks", "training", *options], cwd=REPOSITORY, check=True)
    (file,) = tmp_path.glob("training_digits*.json")
    values = json.loads(file.read_text())["values"]
    assert values.keys() == {"fit", "bare loop", "diffusers"}
    assert all(min(each) > 0 and len(each) == 3 for each in values.values())
    assert report.PAGE.read_text() == page


@pytest.mark.slow
def test_the_average_is_timed_beside_diffusers_and_torchs(tmp_path: Path) -> None:
    options = ["--config", "digits", "--rounds", "3", "--out", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "benchmarks", "average", *options], cwd=REPOSITORY, check=True)
    (file,) = tmp_path.glob("average_digits-*.json")
    values = json.loads(file.read_text())["values"]
    assert [*values][:2] == ["EMA", "diffusers' EMAModel"]
    assert all(min(each) > 0 and len(each) == 3 for each in values.values())


@pytest.mark.slow
def test_sampling_is_timed_beside_diffusers_with_the_same_weights(tmp_path: Path) -> None:
    options = ["--config", "digits", "--nfe", "10", "--batch_size", "4", "--rounds", "3", "--out", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "benchmarks", "sampling", *options], cwd=REPOSITORY, check=True)
    (file,) = tmp_path.glob("sampling_digits_10_batch4-*.json")
    values = json.loads(file.read_text())["values"]
    assert values.keys() == {"network alone", "sampler", "diffusers"}
    assert all(min(each) > 0 and len(each) == 3 for each in values.values())


@pytest.mark.slow
def test_many_files_have_one_stat_each_and_tar_files_are_read_whole(tmp_path: Path) -> None:
    main(["many_files", "--files", "60", "300", "--read", "60", "--out", str(tmp_path)])
    (file,) = tmp_path.glob("many_files-*.json")
    found = json.loads(file.read_text())
    assert found["settings"]["columns"] == ["60", "300"]
    assert found["values"]["stats of each file"] == [1.0, 1.0]
    assert found["values"]["every image read and checked once, CPU s"][1] is None
    main(["shards_memory", "--images", "2000", "--shards", "4", "--workers", "1", "--out", str(tmp_path)])
    (file,) = tmp_path.glob("shards_memory-*.json")
    found = json.loads(file.read_text())
    trained = 1960  # the others are held out
    batches = [min(-(-n * trained // 10 // 100) * 100, trained) for n in range(1, 11)]  # that complete a tenth
    assert found["settings"]["columns"] == [f"{images:,}" for images in batches]
    assert len(found["values"]["all processes, MB"]) == 10


@pytest.mark.slow
def test_a_benchmark_that_is_terminated_leaves_no_temporary_folder(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "benchmarks", "many_files", "--files", "100000000"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(words, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while not [*tmp_path.glob("*/images")]:
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        assert process.communicate()[1] == "stopped by SIGTERM\n"
    assert process.returncode == 1
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_an_evaluation_of_more_images_takes_no_more_memory() -> None:
    few, many = (report.measure_in_subprocess("growth", what="evaluate", n=n) for n in (256, 1024))
    assert 0 < many["megabytes"] < few["megabytes"] + 20
