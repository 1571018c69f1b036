"""Tests of the comparison of a run's curves with those of other runs."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_ddpm.callbacks.reference_curves import Band
from lightning_ddpm.commands.main import main
from lightning_ddpm.utils.errors import UserError

STEPS = [2, 4]


def write_band(file, **limits):
    curves = {name: {"step": STEPS, "low": low, "high": high} for name, (low, high) in limits.items()}
    curves = {name.replace("__", "/"): each for name, each in curves.items()}
    file.write_text(json.dumps({"config": "digits", "seeds": list(range(20)), "hardware": "", "curves": curves}))
    return file


def train(folder, band, *more):
    words = ["fit", "--config", "digits", "--trainer.max_steps", "4", "--trainer.log_every_n_steps", "2"]
    words += ["--trainer.val_check_interval", "4", "--trainer.callbacks", "lightning_ddpm.callbacks.ReferenceCurves"]
    words += ["--trainer.callbacks.file", str(band), "--trainer.default_root_dir", str(folder / "run"), *more]
    return main(words)


def read_scalars(folder):
    events = EventAccumulator(str(folder / "run")).Reload()
    return {tag: {each.step: each.value for each in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def test_a_run_inside_its_band_is_shown_with_it_and_not_reported(tmp_path, capsys):
    band = write_band(tmp_path / "band.json", train__loss=([0.0, 0.0], [9.0, 8.0]), val__loss=([0.0, 0.5], [9.0, 7.0]))
    assert train(tmp_path, band) == 0
    assert "is not like them" not in capsys.readouterr().out
    scalars = read_scalars(tmp_path)
    assert scalars["band/train/loss/high"] == {2: 9.0, 4: 8.0}
    assert scalars["band/val/loss/low"] == {4: 0.5}
    assert set(scalars["train/loss"]) == {2, 4}


def test_a_run_that_leaves_its_band_is_reported_once(tmp_path, capsys):
    band = write_band(tmp_path / "band.json", train__loss=([0.0, 0.0], [0.001, 0.001]), val__loss=([5, 5], [6, 6]))
    assert train(tmp_path, band) == 0
    text = capsys.readouterr().out
    assert text.count("this run is not like them") == 1
    assert "at step 2, outside 0 to 0.001, where 20 runs of configs/digits.yaml were" in text


def test_tensorboard_gets_a_chart_of_each_metric_in_its_band(tmp_path):
    band = write_band(tmp_path / "band.json", train__loss=([0.0, 0.0], [9.0, 9.0]))
    assert train(tmp_path, band) == 0
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata

    events = EventAccumulator(str(tmp_path / "run")).Reload()
    (event,) = events.Tensors(metadata.CONFIG_SUMMARY_TAG)
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    (series,) = layout.category[0].chart[0].margin.series
    assert [series.value, series.lower, series.upper] == ["train/loss", "band/train/loss/low", "band/train/loss/high"]


@pytest.mark.parametrize("content", ["", "[]", '{"curves": 1}', '{"config": "x", "seeds": [], "curves": {"a": {}}}'])
def test_a_file_without_curves_is_refused(tmp_path, content):
    (tmp_path / "band.json").write_text(content)
    with pytest.raises(UserError, match=r"band\.json holds no reference curves \(.*golden_curves makes such files"):
        Band.read(tmp_path / "band.json")


def test_a_missing_file_is_refused(tmp_path, capsys):
    assert train(tmp_path, tmp_path / "none.json") == 2
    assert "none.json holds no reference curves" in capsys.readouterr().err
