"""Models with classes on the command line: fit, sample, restore and evaluate, with every kind of guidance."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command_line import REPOSITORY, callback, ddpm, read_yaml, tiny_digits, write_yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from lightning_ddpm.commands.main import main
from lightning_ddpm.data import Digits
from lightning_ddpm.data.class_labels import spread_labels
from lightning_ddpm.data.image_io import save_image
from lightning_ddpm.diffusion import ClassifierFree, Cosine
from lightning_ddpm.metrics import DigitsFeatures
from lightning_ddpm.models.checkpoint import load, read_checkpoint
from lightning_ddpm.models.generate import generate
from lightning_ddpm.models.noisy_classifier import NoisyClassifier
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.networks import UNetEncoder
from lightning_ddpm.utils.hashing import hash_file
from lightning_ddpm.utils.random import make_generator

TEN = list("0123456789")
SHIPPED = REPOSITORY / "checkpoints" / "pretrained" / "digits.ckpt"
QUARTERS = ["00-05", "05-10", "10-15", "15-20"]  # of T = 20


def tiny_conditional(folder: Path):
    """Return configs/digits_conditional.yaml, shrunk like the tests' digits."""
    config, shrunk = read_yaml(REPOSITORY / "configs" / "digits_conditional.yaml"), tiny_digits(folder)
    guidance = callback(config, "SampleGrid")["guidance"]
    callback(shrunk, "SampleGrid").update(n=20, guidance=guidance)
    metrics = callback(config, "Evaluation")["metrics"]
    callback(shrunk, "Evaluation").update(guidance=guidance, metrics=metrics)
    shrunk["model"]["init_args"]["network"]["init_args"].update(classes=None)
    shrunk["model"]["init_args"].update(label_dropout=config["model"]["init_args"]["label_dropout"])
    return shrunk


def tiny_classifier(folder: Path):
    """Return configs/digits_classifier.yaml, shrunk likewise."""
    config = read_yaml(REPOSITORY / "configs" / "digits_classifier.yaml")
    config["trainer"].update(default_root_dir=str(folder), accelerator="cpu", max_steps=4, log_every_n_steps=1)
    config["trainer"].update(val_check_interval=2, check_val_every_n_epoch=None)
    callback(config, "Checkpoints").update(every_n_steps=2)
    config["model"]["init_args"]["network"]["init_args"].update(width=8, groups=4)
    config["model"]["init_args"]["schedule"]["init_args"].update(steps=20)
    return config


def fit(folder: Path, config) -> Path:
    """Train in this process and return the last checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")
        assert main(["fit", "--config", str(write_yaml(folder / "config.yaml", config))]) == 0
    return folder / "run" / "last.ckpt"


@pytest.fixture(scope="module")
def conditional_run(tmp_path_factory):
    """Return the last checkpoint of a finished run."""
    folder = tmp_path_factory.mktemp("conditional")
    return fit(folder, tiny_conditional(folder / "run"))


@pytest.fixture(scope="module")
def classifier_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    return fit(folder, tiny_classifier(folder / "run"))


@pytest.fixture(scope="module")
def perturbed_ckpt(conditional_run):
    """Return the same model with perturbed weights: after four steps the classes' images differ by a gray level."""
    content, path = read_checkpoint(conditional_run), conditional_run.with_name("perturbed.ckpt")
    state = {
        name: value + 0.1 * torch.randn(value.shape, generator=make_generator("cpu", "test", index=index))
        if value.is_floating_point()
        else value
        for index, (name, value) in enumerate(content["state_dict"].items())
    }
    torch.save({"state_dict": state, "hyper_parameters": content["hyper_parameters"]}, path)
    return path


def read_samples(folder: Path, n: int) -> Tensor:
    """Return the first n images of a folder, (n, 1, h, w) uint8."""
    files = [np.asarray(Image.open(folder / f"{index:06d}.png")) for index in range(n)]
    return torch.from_numpy(np.stack(files))[:, None]


def nearly_equal(one: Tensor, other: Tensor) -> bool:
    """Return whether two sets of images are equal up to rounding."""
    return bool((one.int() - other.int()).abs().max() <= 1)


@pytest.mark.slow
def test_two_ranks_train_when_every_label_is_hidden(tmp_path) -> None:
    """DDP raises an error if a step does not use a parameter."""
    config = tiny_conditional(tmp_path / "run")
    config["model"]["init_args"].update(label_dropout=1.0)
    config["trainer"].update(callbacks=[], max_steps=2, limit_val_batches=0)
    config["data"].update(batch_size=8)
    two = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
    ended = ddpm("fit", "--config", write_yaml(tmp_path / "config.yaml", config), *two)
    assert ended.returncode == 0, ended.stderr
    assert "device: 2 x cpu" in ended.stdout


def test_a_checkpoint_holds_the_class_names_and_frequencies(conditional_run) -> None:
    ckpt = conditional_run
    model = load(ckpt)
    assert model.class_names == TEN
    labels = Digits().open(Path("unused"), "train").labels
    assert torch.equal(model.class_counts, torch.bincount(labels))
    assert (ckpt.parent / "samples" / "step-0000004.png").is_file()


def test_sample_generates_the_classes_in_turn_one_per_column(perturbed_ckpt, command, tmp_path) -> None:
    ckpt = perturbed_ckpt
    options = ("--class", "7,3", "--guidance", "2", "--n", "6", "--out", tmp_path)
    status, out, err = command("sample", "--ckpt", ckpt, *options)
    assert status == 0, err
    model = load(ckpt)
    with torch.no_grad():
        expected = model.generate(SampleRequest(6, guidance=ClassifierFree(2.0), labels=[7, 3]), 0, 6)
        others = model.generate(SampleRequest(6, guidance=ClassifierFree(2.0), labels=[1]), 0, 6)
    assert nearly_equal(read_samples(tmp_path, 6), expected)
    assert not nearly_equal(read_samples(tmp_path, 6), others)
    with Image.open(tmp_path / "grid.png") as grid:
        width, height = grid.size
    assert height > width  # three rows of two
    assert "classes 7 (label 7), 3 (label 3), guidance ClassifierFree(scale=2.0): 10 network evaluations each" in out
    assert "10 network evaluations each" in out
    manifest = json.loads((tmp_path / "set.json").read_text())
    assert (manifest["classes"], manifest["guidance"]) == ("7, 3", "ClassifierFree(scale=2.0)")
    status, _, err = command("sample", "--ckpt", ckpt, "--label", "7", "--n", "6", "--out", tmp_path)
    assert status == 2
    assert "their classes is 7, 3, requested is 7" in err


def test_guidance_0_samples_from_the_unconditional_model(perturbed_ckpt, command, tmp_path) -> None:
    ckpt = perturbed_ckpt
    status, _, err = command("sample", "--ckpt", ckpt, "--guidance", "0", "--n", "4", "--out", tmp_path)
    assert status == 0, err
    model = load(ckpt)
    _, x_T, noise = model.prepare_sampling(SampleRequest(4), 0, 4)
    with torch.no_grad():
        x_0 = model.sampler.sample(model.denoiser, x_T, noise)
        conditional = model.generate(SampleRequest(4), 0, 4)
    assert nearly_equal(read_samples(tmp_path, 4), ((x_0.clamp(-1, 1) + 1) * 127.5).round())
    assert not nearly_equal(read_samples(tmp_path, 4), conditional)


def test_restore_is_unconditional_unless_a_class_is_given(perturbed_ckpt, command, tmp_path) -> None:
    (tmp_path / "digits").mkdir()
    for index, each in enumerate(Digits().open(tmp_path, "test").__getitems__(range(4))[0]):
        save_image(each, tmp_path / "digits" / f"{index}.png")
    restored = []
    for name, options in {"plain": (), "free": ("--guidance", 0), "conditional": ("--label", 3)}.items():
        words = ("restore", "--task", "sdedit", "--strength", 0.8, "--steps", 5, "--images", tmp_path / "digits")
        status, _, err = command(*words, "--ckpt", perturbed_ckpt, "--out", tmp_path / name, *options)
        assert status == 0, err
        restored.append(read_samples(tmp_path / name, 4))
    assert torch.equal(restored[0], restored[1])
    assert not nearly_equal(restored[0], restored[2])


def evaluate(command, ckpt: Path, out: Path, *options: str, n: int = 20):
    """Return what ``evaluate`` writes about n images."""
    status, _, err = command(
        *("evaluate", "--ckpt", ckpt, "--extractor", "DigitsFeatures", "--n", n, *options, "--out", out)
    )
    assert status == 0, err
    return json.loads(out.read_text())


def test_evaluate_writes_the_class_and_the_guidance_of_its_images(perturbed_ckpt, command, tmp_path) -> None:
    options = ("--label", "3", "--guidance", "2", "--reference", "Digits", "--metrics", "fid", "accuracy")
    result = evaluate(command, perturbed_ckpt, tmp_path / "result.json", *options)
    images, figures = result["images"], result["metrics"]
    assert (images["classes"], images["guidance"]) == ("3", "ClassifierFree(scale=2.0)")
    assert images["nfe"] == 10
    assert figures.keys() == {"fd_digits", "accuracy_digits", "accuracy_digits/3"}
    predictions = predict(perturbed_ckpt, ClassifierFree(2.0), [3])
    assert figures["accuracy_digits"]["value"] == figures["accuracy_digits/3"]["value"]
    assert figures["accuracy_digits/3"]["value"] == pytest.approx((predictions == 3).double().mean().item())


def predict(ckpt: Path, guidance=None, labels=None) -> Tensor:
    """Return the classes that the digits' classifier predicts for the first 20 images."""
    extractor = DigitsFeatures()
    extractor.load()
    with torch.no_grad():
        images = generate(load(ckpt), 20, guidance=guidance, labels=labels)
        return extractor.features_and_logits(images)[1].argmax(1)


def test_the_accuracy_compares_with_the_requested_classes(perturbed_ckpt, command, tmp_path) -> None:
    figures = evaluate(command, perturbed_ckpt, tmp_path / "result.json", "--metrics", "accuracy")["metrics"]
    model = load(perturbed_ckpt)
    requested = model.choose_labels(SampleRequest(20), 0, 20)
    assert torch.equal(requested, spread_labels(model.class_counts, 0, 0, 20))
    right = predict(perturbed_ckpt) == requested
    each_class = {
        f"accuracy_digits/{label}": right[requested == label].double().mean().item() for label in requested.tolist()
    }
    expected = each_class | {"accuracy_digits": right.double().mean().item()}
    assert {name: each["value"] for name, each in figures.items()} == pytest.approx(expected)


@pytest.mark.parametrize(
    "options",
    [
        ("digits_conditional.ckpt", "--guidance", "2"),
        ("digits.ckpt", "--guidance", "4", "--classifier", str(SHIPPED.with_name("digits_classifier.ckpt"))),
    ],
)
def test_the_shipped_models_generate_the_requested_classes(options, command, tmp_path) -> None:
    ckpt, *guidance = options
    assert max(each.stat().st_size for each in SHIPPED.parent.glob("*.ckpt")) < 5e6
    options = ("--metrics", "accuracy", "--steps", "20", *guidance)
    figures = evaluate(command, SHIPPED.with_name(ckpt), tmp_path / "result.json", *options, n=100)["metrics"]
    assert figures["accuracy_digits"]["value"] >= 0.97
    assert len(figures) == 11


def test_training_logs_the_accuracy_of_each_generated_class(conditional_run) -> None:
    tags = EventAccumulator(str(conditional_run.parent)).Reload().Tags()["scalars"]
    model = load(conditional_run)
    n = callback(read_yaml(conditional_run.parent / "config.yaml"), "Evaluation")["n"]
    generated_classes = set(model.choose_labels(SampleRequest(n), 0, n).tolist())
    assert {f"val/accuracy_digits/{label}" for label in generated_classes} | {"val/accuracy_digits"} == {
        each for each in tags if each.startswith("val/accuracy")
    }


def test_the_accuracy_of_images_without_requested_classes_is_an_error(digits_run, command, tmp_path) -> None:
    options = ("--extractor", "DigitsFeatures", "--metrics", "accuracy", "--n", "20")
    status, _, err = command("evaluate", "--ckpt", digits_run.folder / "last.ckpt", *options)
    assert status == 2
    assert "accuracy needs images that were generated for requested classes, and these were not;" in err


def test_a_classifier_logs_its_accuracy_by_quarter_of_t(classifier_run) -> None:
    events = EventAccumulator(str(classifier_run.parent)).Reload()
    assert {len(events.Scalars(f"val/accuracy_t_{quarter}")) for quarter in QUARTERS} == {2}
    for step in range(2):
        whole = events.Scalars("val/accuracy")[step].value
        parts = [events.Scalars(f"val/accuracy_t_{quarter}")[step].value for quarter in QUARTERS]
        assert whole == pytest.approx(sum(parts) / 4, abs=0.02)  # the quarters have nearly equal numbers of images
    assert load(classifier_run, NoisyClassifier).class_names == TEN


def test_a_classifier_guides_a_model_with_or_without_classes(
    classifier_run, conditional_run, digits_run, command, tmp_path
) -> None:
    ckpt = classifier_run
    for model in (conditional_run, digits_run.folder / "last.ckpt"):
        for scale in ("0", "5"):
            folder = tmp_path / model.parent.parent.name / scale
            options = ("--classifier", ckpt, "--guidance", scale, "--label", "4", "--n", "3", "--out", folder)
            status, out, err = command("sample", "--ckpt", model, *options)
            assert status == 0, err
            assert f"guidance ClassifierGuidance(sha256={hash_file(ckpt)[:12]}, scale={float(scale)})" in out
        images = [read_samples(tmp_path / model.parent.parent.name / scale, 3) for scale in ("0", "5")]
        assert not nearly_equal(*images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--label", "10"), "there is no class '10', counted from 0; there are 0 (0), 1 (1), 2 (2)"),
        (("--class", "cat"), "there is no class named 'cat'; there are 0 (0)"),
        (("--label", "1", "--class", "1"), "--labels and --class_names both name classes"),
        (("--guidance", "-1"), "the guidance scale must be at least 0 and finite, got -1"),
        (("--guidance", "2", "--guidance_interval", "5", "21"), "ends at t=21 and T is 20"),
        (("--guidance_interval", "5", "10"), "--guidance_interval needs a guidance scale"),
        (("--weaker", "x.ckpt", "--classifier", "y.ckpt"), "two kinds of guidance"),
        (("--classifier", "lost.ckpt"), "there is no checkpoint lost.ckpt"),
        (("--classifier", SHIPPED), "cannot be built as NoisyClassifier"),
        (("--weaker", SHIPPED, "--guidance", "2"), "another noise schedule"),
    ],
)
def test_requests_that_cannot_be_met_are_errors_before_anything_is_written(
    options, message, conditional_run, command, tmp_path
):
    where = tmp_path / "out"
    status, _, err = command("sample", "--ckpt", conditional_run, *options, "--n", "2", "--out", where)
    assert status == 2
    assert message in err
    assert not where.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--label", "1"), "was trained without classes and cannot be conditioned on 1; remove the class"),
        (
            ("--guidance", "2"),
            "the model was trained without classes and cannot be conditioned on one; guide it with a classifier",
        ),
    ],
)
def test_a_model_without_classes_accepts_no_class(options, message, digits_run, command, tmp_path) -> None:
    ckpt = digits_run.folder / "last.ckpt"
    status, _, err = command("sample", "--ckpt", ckpt, *options, "--n", "2", "--out", tmp_path / "out")
    assert status == 2
    assert message in err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"network": {"size": 16, "attention": [8]}}, "is for images of 1x16x16 and the model for 1x8x8; use one"),
        ({"schedule": {"steps": 30}}, "was trained on another noise schedule"),
        ({"class_names": list("9876543210")}, "has the classes 9, 8, 7"),
    ],
)
def test_a_classifier_of_other_images_noise_or_classes_is_an_error(
    changed, message, classifier_run, conditional_run, command, tmp_path
) -> None:
    content, other = read_checkpoint(classifier_run), tmp_path / "other.ckpt"
    model = content["hyper_parameters"]
    for name, value in changed.items():
        if isinstance(value, dict):
            model[name]["init_args"].update(value)
        else:
            model[name] = value
    network = UNetEncoder(**model["network"]["init_args"])
    fresh = NoisyClassifier(network, Cosine(**model["schedule"]["init_args"]), class_names=model["class_names"])
    torch.save({**content, "state_dict": fresh.state_dict()}, other)
    options = ("--classifier", other, "--guidance", "2", "--n", "2", "--out", tmp_path / "out")
    status, _, err = command("sample", "--ckpt", conditional_run, *options)
    assert status == 2
    assert f"{other} {message}" in err
    assert not (tmp_path / "out").exists()


def test_a_model_with_classes_needs_data_with_labels(command, tmp_path) -> None:
    """The data is a folder of images without sub-folders."""
    (tmp_path / "images").mkdir()
    for index in range(4):
        Image.new("L", (8, 8), 60 * index).save(tmp_path / "images" / f"{index}.png")
    config = tiny_conditional(tmp_path / "run")
    source = {"class_path": "lightning_ddpm.data.ImageFolder", "init_args": {"channels": 1, "size": 8}}
    config["data"].update(source=source, root=str(tmp_path / "images"), batch_size=2)
    status, _, err = command("fit", "--config", write_yaml(tmp_path / "config.yaml", config))
    assert status == 2
    assert "UNet needs the number of classes, got None; use labelled images, or give classes=0" in err
