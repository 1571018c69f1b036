"""The benchmarks' arithmetic and page; that they run, in little."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from helpers.command_line import REPOSITORY

pytest.importorskip("diffusers")
pytest.importorskip("greenlet")
from torch.utils.tensorboard import SummaryWriter

from benchmarks import curve, recipes, report
from benchmarks.models import read

MEASURED = {"fit": [0.2, 0.1, 0.3, 0.2], "bare loop": [0.1, 0.1, 0.15, 0.3]}


def test_a_table_has_medians_quartiles_and_ratios_within_rounds() -> None:
    _, _, first, second = report.table({"settings": {"per": "step"}, "values": MEASURED})
    assert first == "| fit | 200 (175 to 225) | 1 (1 to 1) |"
    assert second == "| bare loop | 125 (100 to 188) | 0.75 (0.5 to 1.12) |"


def test_of_six_rounds_and_more_a_table_says_where_the_median_lies() -> None:
    seconds = [float(each) for each in range(1, 16)]
    head, _, _, second = report.table({"settings": {}, "values": {"a": [1.0] * 15, "b": seconds}})
    assert head.endswith("| 95 % of its median |")
    assert second.endswith("| 4 to 12 |"), "the sign test's table, n = 15"
    assert report.median_interval(seconds[:5]) is None
    assert report.median_interval(seconds[:6]) == (1, 6)


def test_what_changes_from_one_value_to_the_next_stands_above_them() -> None:
    settings = {"unit": "steps", "columns": ["1,000", "2,000"]}
    lines = report.table(
        {"settings": settings, "values": {"resident, MB": [968.24, 1012.0], "other": [None, [3, 1.25, 2]]}}
    )
    assert lines == [
        "| steps | 1,000 | 2,000 |",
        "|---|---|---|",
        "| resident, MB | 968.2 | 1,012 |",
        "| other |  | 2 (1.25 to 3) |",
    ]


def test_three_figures_and_no_powers_of_ten() -> None:
    assert [report.rounded(each) for each in (15316.0, 8249.6, 41.23, 0.9244, 12.0)] == [
        "15,300",
        "8,250",
        "41.2",
        "0.924",
        "12",
    ]


def test_a_table_has_images_a_second_and_memory_where_they_are_known() -> None:
    settings = {"per": "step", "images": 16}
    head, _, first, second = report.table({"settings": settings, "values": MEASURED, "megabytes": {"fit": [5.0]}})
    assert (
        head == "| | ms per step, median (quartiles) | ratio to the first, median (quartiles) | images/s | MB at most |"
    )
    assert first == "| fit | 200 (175 to 225) | 1 (1 to 1) | 80 | 5 |"
    assert second == "| bare loop | 125 (100 to 188) | 0.75 (0.5 to 1.12) | 128 |  |"


def test_the_page_is_written_between_its_marks_again_and_again(tmp_path: Path) -> None:
    page, out = tmp_path / "page.md", tmp_path / "results"
    page.write_text("before\n<!-- training -->\nold\n<!-- end -->\nbetween\n<!-- start -->\nkept\n<!-- end -->\n")
    report.write(out, "training", {"batch": 16, "per": "step"}, MEASURED)
    report.write(out, "unknown", {"per": "step"}, MEASURED)
    for _ in range(2):
        report.write_tables(page, out)
    text = page.read_text()
    assert text.startswith("before\n<!-- training -->\n")
    assert text.endswith("<!-- end -->\nbetween\n<!-- start -->\nkept\n<!-- end -->\n")
    assert "old" not in text
    assert text.count("| fit | 200") == 1
    assert f"{report.hardware()}; batch 16; " in text


def test_rounds_are_taken_forwards_and_back_and_the_first_does_not_count() -> None:
    order: list[str] = []
    found = report.in_turn({name: lambda name=name: order.append(name) for name in "ab"}, 3)
    assert "".join(order) == "abbaabba"
    assert {name: len(seconds) for name, seconds in found.items()} == {"a": 3, "b": 3}


def test_what_pauses_is_taken_in_turn_and_each_has_its_own_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    clock = 0.0
    monkeypatch.setattr(report.time, "perf_counter", lambda: clock)

    def work(name: str, seconds: float, laps: int) -> None:
        nonlocal clock
        for _ in range(laps):
            order.append(name)
            clock += seconds
            report.pause()

    found = report.in_turn({"a": lambda: work("a", 1.0, 3), "b": lambda: work("b", 10.0, 2)}, 3)
    assert "".join(order) == "abbaa" + "baaba" + "abbaa" + "baaba"
    assert found == {"a": [3.0] * 3, "b": [20.0] * 3}
    work("alone, a pause is none", 1.0, 1)


def test_every_result_has_its_table_in_the_page() -> None:
    """As the scripts write it: what is committed is what they would make of the results."""
    results = sorted((REPOSITORY / "benchmarks" / "results").glob("*.json"))
    assert results
    page = report.PAGE.read_text()
    for path in results:
        assert "\n".join(report.table(json.loads(path.read_text()))) in page, path.name


def test_a_curve_has_the_figures_of_a_run_and_the_published_ones_at_as_many_images(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        for step, value in ((100, 80.0), (200, 40.0)):
            writer.add_scalar("val/fid", value, step, walltime=1000.0 + 60 * step)
            writer.add_scalar("val/loss", 1.0, step)
        writer.add_scalar("final/fid", 30.0, 200)
    found = curve.figures(tmp_path)
    assert found["step"] == [100, 200]
    assert found["figures"] == {"val/fid": [80, 40]}
    assert found["final"] == {"final/fid": 30}
    assert found["minutes"][1] - found["minutes"][0] == 100
    assert curve.published(5_990_400) == pytest.approx(9.16)
    assert curve.published(int((5_990_400 * 11_980_800) ** 0.5)) == pytest.approx((9.16 * 5.78) ** 0.5, rel=1e-4)
    assert curve.published(1_000_000) is None


def test_a_curve_is_trained_on_cifar10_as_torchvision_has_it_or_as_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(curve, "fit", lambda settings, folder: asked.append(settings) or sys.exit())
    options = Namespace(config="cifar10", weights_path=Path("inception.pth"), data=tmp_path, minutes=25.0)
    for folder in ("train", "cifar-10-batches-py"):
        (tmp_path / folder).mkdir()
        with pytest.raises(SystemExit):
            curve.run(options)
    sources = [each["data"]["source"]["class_path"].rpartition(".")[2] for each in asked]
    assert sources == ["ImageFolder", "CIFAR10"]
    for settings in asked:
        assert settings["data"]["root"] == str(tmp_path)
        assert settings["trainer"]["max_time"] == {"seconds": 1500}
        assert str(settings).count("'weights_path': 'inception.pth'") == 2


def test_recipes_lead_from_hos_config_to_the_fast_one_and_see_as_many_images() -> None:
    made = list(recipes.recipes().values())
    first, last, ho, fast = made[0], made[-1], read("cifar10"), read("cifar10_fast")
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


@pytest.mark.slow
def test_the_memory_of_a_process_is_not_that_of_the_one_that_started_it() -> None:
    """Which getrusage says of it on Linux, for a child begins with what its parent takes."""
    program = "from benchmarks.report import megabytes_at_most; print(megabytes_at_most(of_the_process=True))"
    words = [sys.executable, "-c", program]
    found = []
    for megabytes in (1, 1500):
        held = bytearray(10**6 * megabytes)
        found.append(float(subprocess.run(words, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE).stdout))
        del held
    assert found[1] < 1.1 * found[0]
    assert found[0] > 100, "torch's import"


@pytest.mark.slow
def test_a_benchmark_runs(tmp_path: Path) -> None:
    page = report.PAGE.read_text()
    little = ["--config", "digits", "--batch_size", "4", "--rounds", "3", "--out", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "benchmarks", "training", *little], cwd=REPOSITORY, check=True)
    (file,) = tmp_path.glob("training_digits*.json")
    values = json.loads(file.read_text())["values"]
    assert values.keys() == {"fit", "bare loop", "diffusers"}
    assert all(min(each) > 0 and len(each) == 3 for each in values.values())
    assert report.PAGE.read_text() == page


@pytest.mark.slow
def test_the_average_is_measured_beside_diffusers_and_torchs(tmp_path: Path) -> None:
    little = ["--config", "digits", "--rounds", "3", "--out", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "benchmarks", "average", *little], cwd=REPOSITORY, check=True)
    (file,) = tmp_path.glob("average_digits-*.json")
    values = json.loads(file.read_text())["values"]
    assert [*values][:2] == ["EMA", "diffusers' EMAModel"]
    assert all(min(each) > 0 and len(each) == 3 for each in values.values())


@pytest.mark.slow
def test_drawing_is_measured_with_the_same_weights_in_diffusers(tmp_path: Path) -> None:
    little = ["--config", "digits", "--evaluations", "10", "--batch_size", "4", "--rounds", "3", "--out", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "benchmarks", "sampling", *little], cwd=REPOSITORY, check=True)
    (file,) = tmp_path.glob("sampling_digits_10_batch4-*.json")
    values = json.loads(file.read_text())["values"]
    assert values.keys() == {"network alone", "sampler", "diffusers"}
    assert all(min(each) > 0 and len(each) == 3 for each in values.values())


@pytest.mark.slow
def test_an_evaluation_of_more_images_takes_no_more_memory() -> None:
    few, many = (report.alone("growth", what="evaluate", n=n) for n in (256, 1024))
    assert 0 < many["megabytes"] < few["megabytes"] + 20
