"""``evaluate`` by its command line: metrics, provenance, files of other programs, and all kinds of bad input."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.command_line import REPOSITORY, ddpm
from helpers.tiny import real_data, tiny_model
from jsonargparse import Namespace
from PIL import Image
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from lightning_ddpm.commands.evaluate import _check_bits_per_dim
from lightning_ddpm.data import Digits, ImageDataModule, MemoryDataset
from lightning_ddpm.data.image_io import save_image
from lightning_ddpm.data.sample_images import open_npz_samples, open_sample_folder
from lightning_ddpm.diffusion import DDIM, Cosine
from lightning_ddpm.metrics import DigitsFeatures
from lightning_ddpm.utils.errors import UserError

CKPT = REPOSITORY / "checkpoints" / "pretrained" / "digits.ckpt"
QUICK = ("--steps", "2", "--extractor", "DigitsFeatures", "--accelerator", "cpu")


def digits(start, stop):
    return Digits().open(Path("unused"), "train").__getitems__(range(start, stop))[0]


def write_folder(images, folder):
    folder.mkdir()
    for index, image in enumerate(images):
        save_image(image, folder / f"{index:06d}.png")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return two folders of digits: 120 images, every third one inverted, and 150 real ones."""
    root = tmp_path_factory.mktemp("folders")
    generated = digits(0, 120)
    generated[::3] = 255 - generated[::3]
    return write_folder(generated, root / "generated"), write_folder(digits(200, 350), root / "real")


@pytest.fixture
def evaluate(command, tmp_path):
    """Return a function that runs the command on the CPU and returns what it printed, and the JSON result."""

    def call(*arguments):
        out = tmp_path / "result.json"
        status, printed, err = command("evaluate", *arguments, "--accelerator", "cpu", "--out", out)
        assert status == 0, err
        return printed, json.loads(out.read_text())

    return call


@pytest.fixture
def refused(command):
    """Return a function that runs the command and returns its error message."""

    def call(*arguments):
        status, _, err = command("evaluate", *arguments, "--accelerator", "cpu")
        assert status == 2, err
        assert err.startswith("error: ")
        return err

    return call


# folders


def test_metrics_of_two_folders_match_torch_fidelity(evaluate, folders):
    generated, real = folders
    printed, result = evaluate(
        *(
            "--images",
            generated,
            "--reference",
            real,
            "--extractor",
            "DigitsFeatures",
            "--metrics",
            "fid",
            "kid",
            "pr",
            "is",
        )
    )
    extractor = DigitsFeatures()
    extractor.load()
    with torch.no_grad():
        x, y = (
            extractor(
                torch.stack([torch.from_numpy(np.array(Image.open(path)))[None] for path in sorted(each.iterdir())])
            )
            for each in folders
        )
    statistics = [fid_features_to_statistics(each) for each in (x, y)]
    kid = kid_features_to_metric(x, y, kid_subset_size=120, verbose=False)
    pr = prc_features_to_metric(x, y, verbose=False)
    values = {name: each["value"] for name, each in result["metrics"].items()}
    assert values.pop("classifier_score_digits") > 1
    assert values == {
        "fd_digits": pytest.approx(
            fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"], rel=1e-3
        ),
        "kd_digits": pytest.approx(kid["kernel_inception_distance_mean"], rel=1e-3),
        "precision_digits": pytest.approx(pr["precision"], abs=1e-6),
        "recall_digits": pytest.approx(pr["recall"], abs=1e-6),
    }
    assert result["n"] == 120
    assert result["reference"]["n"] == 150
    for name, value in values.items():
        assert f"{name} " in printed
        assert f"{value:.5g}" in printed


def test_grid_of_sample_is_not_one_of_its_images(folders, tmp_path):
    shutil.copytree(folders[0], tmp_path / "sampled")
    Image.new("L", (80, 80)).save(tmp_path / "sampled" / "grid.png")
    assert len(open_sample_folder(tmp_path / "sampled")) == 120


def test_fingerprint_of_a_folder_depends_on_its_images_only(folders, tmp_path):
    before = open_sample_folder(folders[0]).fingerprint
    copied = shutil.copytree(folders[0], tmp_path / "copied")
    assert open_sample_folder(copied).fingerprint == before
    save_image(digits(5, 6)[0], copied / "000000.png")
    assert open_sample_folder(copied).fingerprint != before


def test_n_limits_the_number_of_images(evaluate, folders):
    _, result = evaluate(
        "--images", folders[0], "--reference", folders[1], "--extractor", "DigitsFeatures", "--n", "100"
    )
    assert result["n"] == 100


def test_n_images_of_class_folders_are_spread_over_the_classes(evaluate, tmp_path):
    images, labels = Digits().open(Path("unused"), "train").__getitems__(range(500))
    for index, (each, label) in enumerate(zip(images, labels, strict=True)):
        folder = tmp_path / "classes" / str(int(label))
        folder.mkdir(parents=True, exist_ok=True)
        save_image(each, folder / f"{index}.png")
    arguments = "--images", tmp_path / "classes", "--reference", "Digits", "--extractor", "DigitsFeatures"
    out, result = evaluate(*arguments, "--n", "100")
    assert "evaluating 100 of the 500 images" in out
    assert result["images"]["chosen"] == "spread evenly"
    first = tmp_path / "first"  # the first images in the order of the paths, nearly all of one class or two
    first.mkdir()
    for path in sorted((tmp_path / "classes").rglob("*.png"))[:100]:
        shutil.copy(path, first)
    _, of_few_classes = evaluate("--images", first, *arguments[2:])
    assert result["metrics"]["fd_digits"]["value"] < of_few_classes["metrics"]["fd_digits"]["value"] / 3


# files of other programs


def test_statistics_are_written_for_pytorch_fid_and_read_back(evaluate, folders, tmp_path):
    generated, real = folders
    stats = tmp_path / "stats" / "real.npz"
    printed, result = evaluate("--images", real, "--save_stats", stats, "--extractor", "DigitsFeatures")
    assert f"wrote {stats}" in printed
    assert result["metrics"] == {}
    extractor = DigitsFeatures()
    extractor.load()
    with torch.no_grad():
        features = extractor(digits(200, 350)).double().numpy()
    with np.load(stats) as file:
        np.testing.assert_allclose(file["mu"], features.mean(0), atol=1e-5)
        np.testing.assert_allclose(file["sigma"], np.cov(features.T), atol=1e-4)
        np.savez_compressed(tmp_path / "edm.npz", mu=file["mu"], sigma=file["sigma"])
    from_folder, *from_files = (
        evaluate("--images", generated, "--reference", reference, "--extractor", "DigitsFeatures")[1]
        for reference in (real, stats, tmp_path / "edm.npz")
    )
    for each in from_files:
        expected = from_folder["metrics"]["fd_digits"]["value"]
        assert each["metrics"]["fd_digits"]["value"] == pytest.approx(expected, rel=1e-5)
        assert len(each["reference"]["sha256"]) == 64


def test_adms_samples_are_read_as_images(evaluate, folders, tmp_path):
    generated, real = folders
    for name, images in (("generated", open_sample_folder(generated)), ("real", open_sample_folder(real))):
        pixels = images.__getitems__(range(len(images)))[0]
        np.savez(tmp_path / f"{name}.npz", arr_0=pixels.permute(0, 2, 3, 1).numpy())
    options = ("--extractor", "DigitsFeatures", "--metrics", "fid", "kid")
    _, folders_result = evaluate("--images", generated, "--reference", real, *options)
    _, files_result = evaluate("--images", tmp_path / "generated.npz", "--reference", tmp_path / "real.npz", *options)
    assert files_result["metrics"] == folders_result["metrics"]


def test_adms_statistics_take_precedence_over_the_samples_in_the_same_file(evaluate, folders, tmp_path):
    generated, real = folders
    evaluate("--images", generated, "--save_stats", tmp_path / "generated.npz", "--extractor", "DigitsFeatures")
    pixels = digits(200, 350).permute(0, 2, 3, 1).numpy()
    with np.load(tmp_path / "generated.npz") as file:
        np.savez(tmp_path / "adm.npz", mu=file["mu"], sigma=file["sigma"], mu_s=0, sigma_s=0, arr_0=pixels)
    options = ("--extractor", "DigitsFeatures", "--metrics", "fid", "kid")
    _, result = evaluate("--images", generated, "--reference", tmp_path / "adm.npz", *options)
    _, with_images = evaluate("--images", generated, "--reference", real, *options)
    assert abs(result["metrics"]["fd_digits"]["value"]) < 1e-3
    assert result["metrics"]["kd_digits"] == with_images["metrics"]["kd_digits"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"arr_0": np.zeros((4, 8, 8, 3))}, r"arr_0 is float64 of shape \(4, 8, 8, 3\); expected uint8"),
        ({"arr_0": np.zeros((4, 8, 9, 2), np.uint8)}, r"of shape \(4, 8, 9, 2\); expected"),
        ({"arr_0": np.zeros((0, 8, 8, 3), np.uint8)}, "expected uint8"),
        ({"arr_0": np.array([{}], dtype=object)}, "is not an npz file, or damaged"),
    ],
)
def test_arrays_that_are_not_samples_are_refused(content, message, tmp_path):
    np.savez(tmp_path / "samples.npz", **content)
    with pytest.raises(UserError, match=message):
        open_npz_samples(tmp_path / "samples.npz")


# a checkpoint


def test_result_of_a_checkpoint_contains_metrics_and_provenance(evaluate):
    printed, result = evaluate("--ckpt", CKPT, "--n", "70", "--seed", "3", "--reference", "Digits", *QUICK[:-2])
    assert "70 images with EMA weights by DDIM(steps=2" in printed
    assert list(result["metrics"]) == ["fd_digits"]
    images = result["images"]
    assert (images["seed"], images["nfe"], images["weights"]) == (3, 2, "EMA")
    assert images["sampler"].startswith("DDIM(steps=2")
    assert len(images["sha256"]) == len(result["extractors"][0]["sha256"]) == 64
    assert {"torch", "torchmetrics", "torch-fidelity", "lightning-ddpm", "python"} <= result["versions"].keys()
    assert result["n"] == 70
    assert result["reference"] == {"from": "Digits", "fingerprint": result["reference"]["fingerprint"], "n": 1618}
    assert result["seconds"] > 0
    assert result["finished"].endswith("+00:00")


def test_sampled_images_have_the_metrics_of_their_checkpoint(evaluate, command, tmp_path):
    status, _, err = command("sample", "--ckpt", CKPT, "--n", "70", "--steps", "2", "--out", tmp_path / "sampled")
    assert status == 0, err
    options = ("--reference", "Digits", "--extractor", "DigitsFeatures", "--metrics", "fid", "pr")
    _, sampled = evaluate("--images", tmp_path / "sampled", *options)
    _, generated = evaluate("--ckpt", CKPT, "--n", "70", "--steps", "2", *options)
    assert sampled["metrics"]["fd_digits"]["value"] == pytest.approx(
        generated["metrics"]["fd_digits"]["value"], rel=1e-6
    )
    assert sampled["metrics"]["recall_digits"] == generated["metrics"]["recall_digits"]


def test_default_reference_is_the_training_data_of_the_run(digits_run, evaluate):
    options = ("--n", "66", "--extractor", "DigitsFeatures")
    _, beside = evaluate("--ckpt", digits_run.folder / "last.ckpt", *options)
    _, named = evaluate("--ckpt", digits_run.folder / "last.ckpt", *options, "--reference", "Digits")
    assert beside["reference"]["from"] == str(digits_run.folder / "config.yaml")
    assert beside["metrics"] == named["metrics"]


def test_bits_per_dim_equals_that_of_the_test_command(digits_run, evaluate, command, tmp_path):
    config, weights = digits_run.folder / "config.yaml", digits_run.folder / "last.ckpt"
    _, result = evaluate("--ckpt", weights, "--metrics", "bpd")
    changed = yaml.safe_load(config.read_text())
    changed["trainer"]["callbacks"].append({"class_path": "lightning_ddpm.callbacks.BitsPerDim"})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(changed))
    options = ("--config", tmp_path / "config.yaml", "--ckpt_path", weights)
    status, out, err = command("test", *options, "--trainer.default_root_dir", tmp_path / "tested")
    assert status == 0, err
    found = result["metrics"]["bits_per_dim"]
    assert f"{found['value']:.4f} +- {found['standard_error']:.4f}" in out
    assert found["n"] == 179
    _, small = evaluate("--ckpt", weights, "--metrics", "bpd", "--variance", "FixedSmall")
    assert small["metrics"]["bits_per_dim"]["value"] != found["value"]
    assert small["metrics"]["bits_per_dim"]["protocol"].endswith("FixedSmall")


def test_bits_per_dim_are_measured_of_as_many_held_out_images_as_were_asked_for(digits_run, evaluate):
    weights = digits_run.folder / "last.ckpt"
    _, result = evaluate("--ckpt", weights, "--metrics", "bpd", "--n", "5", "--variance", "FixedSmall")
    found = result["metrics"]["bits_per_dim"]
    assert result["n"] == found["n"] == 5
    assert found["protocol"] == "variational bound of 5 of 179 held-out images, spread evenly, FixedSmall"
    _, larger = evaluate("--ckpt", weights, "--metrics", "bpd", "--n", "9", "--variance", "FixedSmall")
    assert larger["metrics"]["bits_per_dim"]["value"] != found["value"]


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [3])
def test_several_ranks_compute_the_metrics_of_one(world_size, evaluate, tmp_path):
    options = ("--ckpt", CKPT, "--n", "1001", "--reference", "Digits", "--metrics", "fid", "kid", "pr", "is", *QUICK)
    _, alone = evaluate(*options[:-2])
    out = tmp_path / "together.json"
    ended = ddpm("evaluate", *options, "--devices", world_size, "--out", out, OMP_NUM_THREADS=1)
    assert ended.returncode == 0, ended.stderr
    together = json.loads(out.read_text())
    assert together["images"] == alone["images"]
    assert together["metrics"].keys() == alone["metrics"].keys()
    for name, each in alone["metrics"].items():
        assert together["metrics"][name]["value"] == pytest.approx(each["value"], rel=1e-6), name


# several protocols


@pytest.mark.slow
def test_images_are_evaluated_under_several_protocols(evaluate, folders):
    weights = real_data("fid-inception-2015-12-05.pth")
    protocols = ("TF1", "Antialiased", "TorchMetrics")
    options = ("--metrics", "kid", "--n", "8", "--weights_path", weights)
    small = write_folder(digits(0, 8), folders[0].parent / "small")
    printed, result = evaluate("--images", small, "--reference", small, *options, "--protocols", *protocols)
    assert list(result["metrics"]) == ["kid", "kid_antialiased", "kid_torchmetrics"]
    assert len({each["protocol"] for each in result["extractors"]}) == 3
    assert "warning: 8 images are too few for the covariance of 2048 features" in printed


# bad input


def test_exactly_one_of_checkpoint_and_images_is_required(refused, folders):
    for given in (), ("--ckpt", CKPT, "--images", folders[0]):
        assert "either --ckpt CHECKPOINT or --images FOLDER" in refused(*given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--metrics", "fidd"),
            "there is no metric 'fidd'; there are fid, kid, pr, is, accuracy, spectrum,",
        ),
        (("--reference", "CIFAR100"), "there is no reference CIFAR100: give a folder of images"),
        (("--reference", "lost.yaml"), "there is no file lost.yaml"),
        ((), "there is nothing to compare with: give --reference"),
        (("--n", "0"), "--n must be at least 1, got 0"),
        (("--n", "1", "--reference", "Digits"), "evaluate needs at least 2 images, got 1"),
        (
            ("--extractor", "Incepton"),
            "there is no extractor Incepton; did you mean Inception? There are ClassifierFeatures",
        ),
        (("--protocols", "TF2"), "there is no protocol TF2; did you mean TF1? There are Antialiased, TF1, TorchM"),
        (("--extractor", "DigitsFeatures", "--reference", "Digits", "--protocols", "TF1"), "has only one protocol"),
        (
            ("--extractor", "DigitsFeatures", "--reference", "Digits", "--weights_path", "x"),
            "--weights_path is an option",
        ),
        (("--reference", "Digits", "--weights_path", "lost.pth"), "there is no file lost.pth with Inception's weights"),
        (("--save_stats", "s.npz", "--protocols", "TF1", "Antialiased"), "--save_stats writes the statistics of one"),
    ],
    ids=str,
)
def test_bad_options_are_refused(options, message, refused):
    assert message in refused("--ckpt", CKPT, *options)


@pytest.mark.parametrize("command_", ["evaluate", "sample"])
@pytest.mark.parametrize(
    "option",
    [
        ("--strategy", "nonsense"),
        ("--accelerator", "nonsense"),
        ("--precision", "7"),
        ("--accelerator", "cuda", "--devices", "97"),
    ],
    ids=" ".join,
)
def test_unavailable_devices_are_refused(command_, option, command, tmp_path):
    other = ("--out", tmp_path / "images") if command_ == "sample" else ("--reference", "Digits", *QUICK)
    status, _, err = command(command_, "--ckpt", CKPT, "--n", "8", *other, *option)
    assert status == 2, err
    assert err.startswith("error: ")
    assert f"{' '.join(option[:2])}" in err
    assert "cannot be used here (" in err
    assert "change or remove it" in err


def test_options_of_generation_and_bpd_are_refused_with_images(refused, folders):
    for options, message in (
        (("--steps", "5"), "--steps is an option of generating images"),
        (("--raw",), "--raw is an option of generating images"),
        (("--compile",), "--compile is an option of generating images"),
        (("--metrics", "bpd"), "bpd is a metric of a model"),
        (("--n", "121"), "has 120 images and --n is 121"),
    ):
        assert message in refused("--images", folders[0], *options, "--reference", folders[1])


def test_bpd_needs_held_out_images(refused, folders):
    assert "bpd needs held-out images" in refused("--ckpt", CKPT, "--metrics", "bpd", "--reference", folders[0])


def test_unusable_folders_are_refused(refused, folders, tmp_path):
    options = ("--reference", folders[1], "--extractor", "DigitsFeatures")
    assert "there is no folder" in refused("--images", tmp_path / "lost", *options)
    (tmp_path / "empty").mkdir()
    assert "holds no images" in refused("--images", tmp_path / "empty", *options)
    mixed = write_folder(digits(0, 3), tmp_path / "mixed")
    Image.new("L", (9, 9)).save(mixed / "larger.png")
    assert "must be of one size" in refused("--images", mixed, *options)
    (mixed / "larger.png").write_bytes(b"no image")
    assert "1 of the 4 images in" in refused("--images", mixed, *options)


def test_reference_of_another_shape_is_refused(refused, folders, tmp_path):
    coloured = tmp_path / "coloured"
    coloured.mkdir()
    for index in range(4):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(coloured / f"{index}.png")
    message = refused("--images", folders[0], "--reference", coloured, "--extractor", "DigitsFeatures")
    assert "has images of 3x8x8 and the evaluated ones are 1x8x8" in message


def test_files_with_other_content_are_refused(refused, folders, tmp_path):
    np.savez(tmp_path / "other.npz", mean=np.zeros(3))
    np.savez(tmp_path / "stats.npz", mu=np.zeros(64), sigma=np.eye(64))
    options = ("--extractor", "DigitsFeatures")
    for reference in "other.npz", "lost.npz":
        message = refused("--images", folders[0], "--reference", tmp_path / reference, *options)
        assert "its keys are mean" in message or "there is no file" in message
    message = refused("--images", folders[0], "--reference", tmp_path / "stats.npz", "--metrics", "kid", *options)
    assert "the reference has statistics only" in message
    assert "has no images" in refused("--images", tmp_path / "stats.npz", "--reference", folders[1], *options)
    (tmp_path / "config.yaml").write_text("model: 1\n")
    message = refused("--images", folders[0], "--reference", tmp_path / "config.yaml", *options)
    assert "has no valid `data`" in message


class Malice:
    """Makes a folder when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("key", ["mu", "arr_0"])
def test_code_in_a_reference_is_refused_and_not_run(key, refused, folders, tmp_path):
    path, trace = tmp_path / "evil.npz", tmp_path / "it ran"
    np.savez(path, **{"mu": np.zeros(64), "sigma": np.eye(64), key: np.array([Malice(trace)], dtype=object)})
    message = refused("--images", folders[0], "--reference", path, "--extractor", "DigitsFeatures")
    assert "evil.npz" in message
    assert not trace.exists()
    with np.load(path, allow_pickle=True) as file, pytest.raises((TypeError, ValueError)):
        _ = len(file[key][0])
    assert trace.exists(), "the file holds no code, so this test shows nothing"


def test_config_of_a_reference_builds_only_known_classes(refused, folders, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'it ran')!r})")
    (tmp_path / "config.yaml").write_text("data: {source: {class_path: mine.Source}}")
    monkeypatch.syspath_prepend(tmp_path)
    options = ("--reference", tmp_path / "config.yaml", "--extractor", "DigitsFeatures")
    assert "is refused: it names mine.Source" in refused("--images", folders[0], *options)
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize(
    ("evaluated", "reference", "metrics", "message"),
    [
        (5, 1, ["fid"], "takes a reference of at least 2 images, and {reference} has 1"),
        (5, 1, ["kid"], "takes a reference of at least 2 images, and {reference} has 1"),
        (5, 3, ["fid", "pr"], "takes a reference of at least 4 images, and {reference} has 3"),
        (3, 5, ["pr"], "takes at least 4 images, got 3; leave out 'pr'"),
        (5, 5, ["is"], "takes at least 10 images, got 5; leave out 'is'"),
    ],
)
def test_sets_that_are_too_small_for_a_metric_are_refused_before_the_network_is_loaded(
    evaluated, reference, metrics, message, refused, tmp_path, monkeypatch
):
    monkeypatch.setattr(DigitsFeatures, "load", lambda self: pytest.fail("the network was loaded"))
    images, others = (
        write_folder(digits(0, evaluated), tmp_path / "a"),
        write_folder(digits(0, reference), tmp_path / "b"),
    )
    arguments = ("--images", images, "--reference", others, "--extractor", "DigitsFeatures")
    assert message.format(reference=others) in refused(*arguments, "--metrics", *metrics)


@pytest.mark.parametrize(("held_out", "steps", "message"), [(1, 2, "at least 2 held-out images, got 1"), (5, 1, "T=1")])
def test_bits_per_dim_that_cannot_be_measured_are_refused_before_any_work(held_out, steps, message):
    data, model = ImageDataModule(Digits()), tiny_model(schedule=Cosine(steps), sampler=DDIM(1))
    data.held_out = MemoryDataset(digits(0, held_out), torch.zeros(held_out))
    with pytest.raises(UserError, match=message):
        _check_bits_per_dim(model, Namespace(ckpt="model.ckpt"), data, {"bpd"})
