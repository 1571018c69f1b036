"""Models with classes: told, not told, guided, from training to the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command_line import REPOSITORY, callback, ddpm, read_yaml, tiny_digits, write_yaml
from helpers.conditional_data import CONDITIONAL, PARTS, SCHEDULE
from helpers.known_data import TWO, randn
from helpers.tiny import TINY, quiet_trainer, same, tiny_model, tiny_network, weights
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from lightning_ddpm.commands.main import main
from lightning_ddpm.data import Digits, ImageDataModule
from lightning_ddpm.data.class_labels import cycle_labels, parse_labels, spread_labels
from lightning_ddpm.data.image_io import save_image
from lightning_ddpm.diffusion import ClassifierFree, Cosine, Heun, Linear
from lightning_ddpm.metrics import DigitsFeatures
from lightning_ddpm.models import checkpoint_guidance as guides
from lightning_ddpm.models.checkpoint import load, read_checkpoint
from lightning_ddpm.models.checkpoint_guidance import Autoguidance, ClassifierGuidance
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import generate_batches
from lightning_ddpm.models.noisy_classifier import NoisyClassifier
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.networks import UNet, UNetEncoder
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.random import make_generator

TEN = list("0123456789")
SHIPPED = REPOSITORY / "checkpoints" / "pretrained" / "digits.ckpt"


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([1, 5, 10, 15, 20])


# the network


def test_a_network_without_classes_has_the_weights_and_the_keys_that_it_had() -> None:
    torch.manual_seed(0)
    without = UNet(**TINY).state_dict()
    torch.manual_seed(0)
    having = UNet(**TINY, classes=3).state_dict()
    assert having.keys() - without.keys() == {"embed_label.vectors.weight"}
    assert all(torch.equal(value, having[name]) for name, value in without.items())
    assert having["embed_label.vectors.weight"].shape == (4, 32)


def test_no_label_is_the_label_of_no_class_and_a_class_is_another() -> None:
    network, (x_t, t) = tiny_network(classes=10).eval(), batch()
    nothing = network(x_t, t)
    assert torch.equal(network(x_t, t, torch.full((5,), -1)), nothing)
    answers = [network(x_t, t, torch.full((5,), label)) for label in (0, 9)]
    assert not torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0], nothing)
    mixed = network(x_t, t, torch.tensor([-1, 0, 9, -1, 0]))
    torch.testing.assert_close(
        mixed, torch.stack([nothing[0], answers[0][1], answers[1][2], nothing[3], answers[0][4]])
    )
    with pytest.raises(IndexError):
        network(x_t, t, torch.full((5,), 11))


# training


class Asked(nn.Module):
    """Keeps the labels that it is given."""

    channels, size, classes = 1, 8, 10

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.zeros(()))
        self.labels: list[Tensor] = []

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
        self.labels.append(label)
        return self.factor * x_t


def asked(folder: Path, steps: int, **arguments) -> list[Tensor]:
    model = tiny_model(network=Asked(), **arguments)
    quiet_trainer(folder, max_steps=steps).fit(model, datamodule=ImageDataModule(Digits(), batch_size=400))
    return model.network.labels


def test_a_tenth_of_the_labels_is_dropped_and_by_the_step_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    labels = asked(tmp_path, 12)
    dropped = torch.cat(labels) == -1
    share = float(dropped.double().mean())
    assert share == pytest.approx(0.1, abs=4 * (0.09 / len(dropped)) ** 0.5)
    kept = asked(tmp_path, 12, label_dropout=0.0)
    for some, whole in zip(labels, kept, strict=True):
        assert (whole >= 0).all()
        assert torch.equal(some[some >= 0], whole[some >= 0])
    torch.rand(7)  # nothing hangs on what was drawn before
    assert all(map(torch.equal, labels, asked(tmp_path, 12)))
    patterns = [tuple((each == -1).tolist()) for each in labels]
    assert len(set(patterns)) == len(patterns)
    assert (torch.cat(asked(tmp_path, 2, label_dropout=1.0)) == -1).all()


def test_a_model_without_classes_trains_as_if_there_were_no_labels(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    trained = []
    for dropout in (0.0, 1.0):
        model = tiny_model(label_dropout=dropout)
        quiet_trainer(tmp_path, max_steps=2).fit(model, datamodule=ImageDataModule(Digits(), batch_size=64))
        trained.append(weights(model))
        assert "class_counts" not in model.state_dict()
    assert same(*trained)


def test_two_ranks_train_where_no_image_has_its_label_left(tmp_path) -> None:
    """DDP, which stops at a parameter that a step does not use."""
    config = tiny_conditional(tmp_path / "run")
    config["model"]["init_args"].update(label_dropout=1.0)
    config["trainer"].update(callbacks=[], max_steps=2, limit_val_batches=0)
    config["data"].update(batch_size=8)
    two = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
    ended = ddpm("fit", "--config", write_yaml(tmp_path / "config.yaml", config), *two)
    assert ended.returncode == 0, ended.stderr
    assert "device: 2 x cpu" in ended.stdout


def test_data_without_the_models_classes_is_refused(tmp_path) -> None:
    for names, found in ((list("abcdefghij"), "a, b, c, d, e, f, g, h, i, j"), (None, "0, 1, 2")):
        network = tiny_network(classes=len(names) if names else 3)
        model = tiny_model(network=network, class_names=names)
        with pytest.raises(UserError, match=f"the model has the classes {found} and the data has 0, 1, 2, 3"):
            quiet_trainer(tmp_path, max_steps=1).fit(model, datamodule=ImageDataModule(Digits()))


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(UserError, match=r"label_dropout must lie in \[0, 1\], got 1.5"):
        tiny_model(label_dropout=1.5)
    with pytest.raises(UserError, match="class_names names 2 classes and the network has 0"):
        tiny_model(class_names=["cat", "dog"])
    with pytest.raises(UserError, match="the dataset must have labels; give classes=0"):
        UNet(**TINY, classes=None)
    with pytest.raises(UserError, match=r"and this one has label_dropout=0; take scale 1"):
        ClassifierFree(2.0).check_model(tiny_model(network=tiny_network(classes=10), label_dropout=0.0))
    with pytest.raises(UserError, match="up to t=30, and T is 20"):
        ClassifierFree(2.0, (1, 30)).check_model(tiny_model(network=tiny_network(classes=10)))


# which classes are drawn


def test_classes_are_drawn_as_often_as_they_are_in_the_data_by_seed_and_number_alone() -> None:
    counts = torch.tensor([10, 0, 30, 60])
    labels = spread_labels(counts, 5, 0, 1000)
    drawn = torch.bincount(labels, minlength=4)
    assert (drawn - 10 * counts).abs().max() <= 5  # 14 of independent draws, one sigma
    assert torch.equal(torch.cat([spread_labels(counts, 5, *part) for part in ((0, 3), (3, 700), (700, 1000))]), labels)
    assert not torch.equal(spread_labels(counts, 6, 0, 1000), labels)
    assert torch.bincount(spread_labels(torch.zeros(4), 5, 0, 1000)).sub(250).abs().max() <= 5
    assert cycle_labels([7, 3], 3, 8).tolist() == [3, 7, 3, 7, 3]


def test_a_class_is_asked_for_by_number_or_by_name() -> None:
    assert parse_labels(["1", "0"], ["cat", "dog"], by_name=False) == [1, 0]
    assert parse_labels(["dog", "dog"], ["cat", "dog"], by_name=True) == [1, 1]
    for given, by_name in (("2", False), ("-1", False), ("cat", False), ("0", True)):
        with pytest.raises(UserError, match=rf"no class '{given}'; there are 0 \(cat\), 1 \(dog\)"):
            parse_labels([given], ["cat", "dog"], by_name)


def test_generating_tells_the_network_each_images_class_and_guidance_0_none() -> None:
    model = tiny_model(network=tiny_network(classes=10)).eval()
    with torch.no_grad():
        for guidance in (None, ClassifierFree(1.0)):
            made = model.generate(SampleRequest(4, guidance=guidance, labels=[7, 3]), 0, 4)
            _, x_T, noise = model.prepare_sampling(SampleRequest(4), 0, 4)
            of_class = model.sampler.sample(model.denoiser.conditioned_on(torch.tensor([7, 3, 7, 3])), x_T, noise)
            assert torch.equal(made, ((of_class.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))
        free, x_T, noise = model.prepare_sampling(SampleRequest(4, guidance=ClassifierFree(0.0), labels=[7, 3]), 0, 4)
        assert torch.equal(model.sampler.sample(free, x_T, noise), model.sampler.sample(model.denoiser, x_T, noise))


# both kinds of guidance, and that by a weaker model, where the truth is known


class Analytic(nn.Module):
    """log p(y, x_t) of the two Gaussians, up to a constant."""

    channels, size, classes = 1, 2, 2

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        signal, noise = SCHEDULE.signal[t[0]], SCHEDULE.noise[t[0]]
        logs = [TWO.weights[y].log() + PARTS[y].log_density(x_t, signal, noise) for y in (0, 1)]
        return torch.stack(logs, dim=1)


@pytest.mark.parametrize("y", [0, 1])
@pytest.mark.parametrize("inference", [False, True])
def test_a_classifier_from_a_checkpoint_guides_to_the_class(inference, y, monkeypatch) -> None:
    classifier = NoisyClassifier(Analytic(), Linear(1000))
    monkeypatch.setattr(guides, "load", lambda ckpt, kind: classifier)
    guided = ClassifierGuidance("a.ckpt", 1.0)(CONDITIONAL, torch.full((4000,), y))
    with torch.inference_mode(inference):
        x = Heun(100).sample(guided, randn(4000, 1, 1, 2, dtype=torch.float64)).flatten(1)
    torch.testing.assert_close(x.mean(0), PARTS[y].mean(), rtol=0, atol=0.02)
    torch.testing.assert_close(x.T.cov(), PARTS[y].covariance(), rtol=0, atol=0.006)


def test_a_classifier_is_asked_inside_its_interval_alone_and_never_with_scale_0(monkeypatch) -> None:
    classifier = NoisyClassifier(Analytic(), Linear(1000))
    monkeypatch.setattr(guides, "load", lambda ckpt, kind: classifier)
    label, x_t = torch.zeros(8, dtype=torch.long), randn(8, 1, 1, 2, dtype=torch.float64)
    guided = ClassifierGuidance("a.ckpt", 2.0, (300, 400))(CONDITIONAL, label)
    for t, changed in ((299, False), (300, True), (400, True), (401, False)):
        assert torch.equal(guided(x_t, t).eps, CONDITIONAL(x_t, t).eps) is not changed
    assert ClassifierGuidance("a.ckpt", 0.0)(CONDITIONAL, label) is CONDITIONAL


def test_guidance_away_from_a_weaker_model_extrapolates(monkeypatch) -> None:
    strong, weak = tiny_model(network=tiny_network(classes=10)), tiny_model(network=tiny_network(classes=10))
    for parameter in weak.parameters():
        parameter.data *= 0.9
    strong.eval(), weak.eval()
    monkeypatch.setattr(guides, "load", lambda ckpt, kind: weak)
    (x_t, t), label = batch(), torch.tensor([0, 1, 2, 3, 4])
    with torch.no_grad():
        good, bad = (each.network(x_t, t, label) for each in (strong, weak))
        for w in (0.0, 1.0, 2.5):
            guidance = Autoguidance("weak.ckpt", w)
            guidance.check_model(strong)
            output, _ = guidance(strong.denoiser, label).network_output(x_t, t)
            torch.testing.assert_close(output, bad + w * (good - bad))
        itself = Autoguidance("weak.ckpt", 1.0)(strong.denoiser, label)
        assert torch.equal(itself.network_output(x_t, t)[0], good)
    with pytest.raises(UserError, match=r"weak.ckpt knows the classes 0, 1, .* and the model none"):
        Autoguidance("weak.ckpt", 2.0).check_model(tiny_model())


# the command line


def tiny_conditional(folder: Path):
    """configs/digits_conditional.yaml, shrunk as the tests' digits are."""
    config, shrunk = read_yaml(REPOSITORY / "configs" / "digits_conditional.yaml"), tiny_digits(folder)
    guidance = callback(config, "SampleGrid")["guidance"]
    callback(shrunk, "SampleGrid").update(n=20, guidance=guidance)
    metrics = callback(config, "Evaluation")["metrics"]
    callback(shrunk, "Evaluation").update(guidance=guidance, metrics=metrics)
    shrunk["model"]["init_args"]["network"]["init_args"].update(classes=None)
    shrunk["model"]["init_args"].update(label_dropout=config["model"]["init_args"]["label_dropout"])
    return shrunk


def tiny_classifier(folder: Path):
    config = read_yaml(REPOSITORY / "configs" / "digits_classifier.yaml")
    config["trainer"].update(default_root_dir=str(folder), accelerator="cpu", max_steps=4, log_every_n_steps=1)
    config["trainer"].update(val_check_interval=2, check_val_every_n_epoch=None)
    callback(config, "Checkpoints").update(every_n_steps=2)
    config["model"]["init_args"]["network"]["init_args"].update(width=8, groups=4)
    config["model"]["init_args"]["schedule"]["init_args"].update(steps=20)
    return config


def fitted(folder: Path, config) -> Path:
    """Train in this process; the last checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")
        assert main(["fit", "--config", str(write_yaml(folder / "config.yaml", config))]) == 0
    return folder / "run" / "last.ckpt"


@pytest.fixture(scope="module")
def conditional_run(tmp_path_factory):
    """The last checkpoint of a finished run."""
    folder = tmp_path_factory.mktemp("conditional")
    return fitted(folder, tiny_conditional(folder / "run"))


@pytest.fixture(scope="module")
def classifier_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    return fitted(folder, tiny_classifier(folder / "run"))


@pytest.fixture(scope="module")
def vivid(conditional_run):
    """The same model with weights that all matter: four steps leave the classes' images within a grey level."""
    content, vivid = read_checkpoint(conditional_run), conditional_run.with_name("vivid.ckpt")
    state = {
        name: value + 0.1 * torch.randn(value.shape, generator=make_generator("cpu", "test", index=index))
        if value.is_floating_point()
        else value
        for index, (name, value) in enumerate(content["state_dict"].items())
    }
    torch.save({"state_dict": state, "hyper_parameters": content["hyper_parameters"]}, vivid)
    return vivid


def drawn(folder: Path, n: int) -> Tensor:
    files = [np.asarray(Image.open(folder / f"{index:06d}.png")) for index in range(n)]
    return torch.from_numpy(np.stack(files))[:, None]


def near(one: Tensor, other: Tensor) -> bool:
    """Equal up to rounding."""
    return bool((one.int() - other.int()).abs().max() <= 1)


def test_class_names_and_how_often_each_is_there_travel_in_the_checkpoint(conditional_run) -> None:
    ckpt = conditional_run
    model = load(ckpt, DDPM)
    assert model.class_names == TEN
    labels = Digits().open(Path("unused"), "train").labels
    assert torch.equal(model.class_counts, torch.bincount(labels))
    assert (ckpt.parent / "samples" / "step-0000004.png").is_file()


def test_sample_draws_the_classes_in_turn_each_in_a_column(vivid, command, tmp_path) -> None:
    ckpt = vivid
    options = ("--class", "7,3", "--guidance", "2", "--n", "6", "--out", tmp_path)
    status, out, err = command("sample", "--ckpt", ckpt, *options)
    assert status == 0, err
    model = load(ckpt, DDPM)
    with torch.no_grad():
        expected = model.generate(SampleRequest(6, guidance=ClassifierFree(2.0), labels=[7, 3]), 0, 6)
        others = model.generate(SampleRequest(6, guidance=ClassifierFree(2.0), labels=[1]), 0, 6)
    assert near(drawn(tmp_path, 6), expected)
    assert not near(drawn(tmp_path, 6), others)
    with Image.open(tmp_path / "grid.png") as picture:
        width, height = picture.size
    assert height > width  # three rows of two
    assert "classes 7, 3, guidance ClassifierFree(scale=2.0): 10 evaluations each" in out
    assert "10 network evaluations each" in out
    said = json.loads((tmp_path / "set.json").read_text())
    assert (said["classes"], said["guidance"]) == ("7, 3", "ClassifierFree(scale=2.0)")
    status, _, err = command("sample", "--ckpt", ckpt, "--label", "7", "--n", "6", "--out", tmp_path)
    assert status == 2
    assert "their classes is 7, 3, and 7 is asked for" in err


def test_guidance_0_draws_as_the_model_that_is_told_nothing(vivid, command, tmp_path) -> None:
    ckpt = vivid
    status, _, err = command("sample", "--ckpt", ckpt, "--guidance", "0", "--n", "4", "--out", tmp_path)
    assert status == 0, err
    model = load(ckpt, DDPM)
    _, x_T, noise = model.prepare_sampling(SampleRequest(4), 0, 4)
    with torch.no_grad():
        x_0 = model.sampler.sample(model.denoiser, x_T, noise)
        told = model.generate(SampleRequest(4), 0, 4)
    assert near(drawn(tmp_path, 4), ((x_0.clamp(-1, 1) + 1) * 127.5).round())
    assert not near(drawn(tmp_path, 4), told)


def test_restore_tells_no_class_unless_it_is_given_one(vivid, command, tmp_path) -> None:
    (tmp_path / "digits").mkdir()
    for index, each in enumerate(Digits().open(tmp_path, "test").__getitems__(range(4))[0]):
        save_image(each, tmp_path / "digits" / f"{index}.png")
    made = []
    for name, options in {"plain": (), "free": ("--guidance", 0), "told": ("--label", 3)}.items():
        words = ("restore", "--task", "vary", "--strength", 0.8, "--steps", 5, "--images", tmp_path / "digits")
        status, _, err = command(*words, "--ckpt", vivid, "--out", tmp_path / name, *options)
        assert status == 0, err
        made.append(drawn(tmp_path / name, 4))
    assert torch.equal(made[0], made[1])
    assert not near(made[0], made[2])


def judged(command, ckpt: Path, out: Path, *options: str, n: int = 20):
    """What ``evaluate`` writes of n images."""
    status, _, err = command(
        *("evaluate", "--ckpt", ckpt, "--extractor", "DigitsFeatures", "--n", n, *options, "--out", out)
    )
    assert status == 0, err
    return json.loads(out.read_text())


def test_evaluate_judges_a_class_and_says_so(vivid, command, tmp_path) -> None:
    options = ("--label", "3", "--guidance", "2", "--reference", "Digits", "--metrics", "fid", "accuracy")
    result = judged(command, vivid, tmp_path / "result.json", *options)
    images, figures = result["images"], result["figures"]
    assert (images["classes"], images["guidance"]) == ("3", "ClassifierFree(scale=2.0)")
    assert images["evaluations"] == 10
    assert figures.keys() == {"fd_digits", "accuracy_digits", "accuracy_digits/3"}
    verdicts = verdicts_on(vivid, ClassifierFree(2.0), [3])
    assert figures["accuracy_digits"]["value"] == figures["accuracy_digits/3"]["value"]
    assert figures["accuracy_digits/3"]["value"] == pytest.approx((verdicts == 3).double().mean().item())


def verdicts_on(ckpt: Path, guidance=None, labels=None) -> Tensor:
    """What the digits' classifier takes the first 20 images for."""
    extractor = DigitsFeatures()
    extractor.load()
    made = torch.cat(
        [
            pixels
            for _, pixels in generate_batches(load(ckpt, DDPM), SampleRequest(20, guidance=guidance, labels=labels))
        ]
    )
    with torch.no_grad():
        return extractor.features_and_logits(made)[1].argmax(1)


def test_the_accuracy_is_of_the_classes_that_were_drawn_in_the_datas_proportions(vivid, command, tmp_path) -> None:
    figures = judged(command, vivid, tmp_path / "result.json", "--metrics", "accuracy")["figures"]
    model = load(vivid, DDPM)
    asked = model.choose_labels(SampleRequest(20), 0, 20)
    assert torch.equal(asked, spread_labels(model.class_counts, 0, 0, 20))
    right = verdicts_on(vivid) == asked
    expected = {
        f"accuracy_digits/{label}": right[asked == label].double().mean().item() for label in set(asked.tolist())
    }
    expected["accuracy_digits"] = right.double().mean().item()
    assert {name: each["value"] for name, each in figures.items()} == pytest.approx(expected)


@pytest.mark.parametrize(
    "options",
    [
        ("digits_conditional.ckpt", "--guidance", "2"),
        ("digits.ckpt", "--guidance", "4", "--classifier", str(SHIPPED.with_name("digits_classifier.ckpt"))),
    ],
)
def test_the_shipped_models_draw_what_is_asked_for(options, command, tmp_path) -> None:
    ckpt, *guidance = options
    assert max(each.stat().st_size for each in SHIPPED.parent.glob("*.ckpt")) < 5e6
    asked = ("--metrics", "accuracy", "--steps", "20", *guidance)
    figures = judged(command, SHIPPED.with_name(ckpt), tmp_path / "result.json", *asked, n=100)["figures"]
    assert figures["accuracy_digits"]["value"] >= 0.97
    assert len(figures) == 11


def test_training_logs_the_accuracy_of_each_class_that_was_drawn(conditional_run) -> None:
    tags = EventAccumulator(str(conditional_run.parent)).Reload().Tags()["scalars"]
    model = load(conditional_run, DDPM)
    n = callback(read_yaml(conditional_run.parent / "config.yaml"), "Evaluation")["n"]
    drawn_classes = set(model.choose_labels(SampleRequest(n), 0, n).tolist())
    assert {f"val/accuracy_digits/{label}" for label in drawn_classes} | {"val/accuracy_digits"} == {
        each for each in tags if each.startswith("val/accuracy")
    }


def test_accuracy_of_images_that_no_class_was_asked_of_is_refused(digits_run, command, tmp_path) -> None:
    options = ("--extractor", "DigitsFeatures", "--metrics", "accuracy", "--n", "20")
    status, _, err = command("evaluate", "--ckpt", digits_run.folder / "last.ckpt", *options)
    assert status == 2
    assert "accuracy is of images that a class was asked of, and these have none; leave it out, or draw" in err


def test_a_classifier_logs_its_accuracy_by_t(classifier_run) -> None:
    events = EventAccumulator(str(classifier_run.parent)).Reload()
    (quarters,) = {len(events.Scalars(f"val/accuracy_quarter{i}")) for i in (1, 2, 3, 4)}
    assert quarters == 2
    for step in range(2):
        whole = events.Scalars("val/accuracy")[step].value
        parts = [events.Scalars(f"val/accuracy_quarter{i}")[step].value for i in (1, 2, 3, 4)]
        assert whole == pytest.approx(sum(parts) / 4, abs=0.02)  # the quarters are nearly equally many
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
            assert f"guidance ClassifierGuidance(sha256={guides.hash_file(ckpt)[:12]}, scale={float(scale)})" in out
        images = [drawn(tmp_path / model.parent.parent.name / scale, 3) for scale in ("0", "5")]
        assert not near(*images)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--label", "10"), "there is no class '10'; there are 0 (0), 1 (1), 2 (2)"),
        (("--class", "cat"), "there is no class 'cat'; there are 0 (0)"),
        (("--label", "1", "--class", "1"), "--labels and --class_names both name classes"),
        (("--guidance", "-1"), "the guidance scale must be at least 0 and finite, got -1"),
        (("--guidance", "2", "--guidance_interval", "5", "21"), "up to t=21, and T is 20"),
        (("--guidance_interval", "5", "10"), "--guidance_interval is of guidance"),
        (("--weaker", "x.ckpt", "--classifier", "y.ckpt"), "two kinds of guidance"),
        (("--classifier", "lost.ckpt"), "there is no checkpoint lost.ckpt"),
        (("--classifier", SHIPPED), "cannot be built as NoisyClassifier"),
        (("--weaker", SHIPPED, "--guidance", "2"), "another noise schedule"),
    ],
)
def test_what_cannot_be_asked_for_is_said_before_anything_is_drawn(options, said, conditional_run, command, tmp_path):
    where = tmp_path / "out"
    status, _, err = command("sample", "--ckpt", conditional_run, *options, "--n", "2", "--out", where)
    assert status == 2
    assert said in err
    assert not where.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--label", "1"), "was trained without classes, so that it cannot be asked for 1; leave the class out"),
        (("--guidance", "2"), "the model was trained without classes and cannot be conditioned on one; guide it with a classifier"),
    ],
)
def test_a_model_without_classes_cannot_be_asked_for_one(options, said, digits_run, command, tmp_path) -> None:
    ckpt = digits_run.folder / "last.ckpt"
    status, _, err = command("sample", "--ckpt", ckpt, *options, "--n", "2", "--out", tmp_path / "out")
    assert status == 2
    assert said in err


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"network": {"size": 16, "attention": [8]}}, "is of images of 1x16x16 and the model of 1x8x8; take one"),
        ({"schedule": {"steps": 30}}, "was trained on another noise schedule"),
        ({"class_names": list("9876543210")}, "knows the classes 9, 8, 7"),
    ],
)
def test_a_classifier_of_other_images_noise_or_classes_is_refused(
    changed, said, classifier_run, conditional_run, command, tmp_path
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
    assert f"{other} {said}" in err
    assert not (tmp_path / "out").exists()


def test_classes_of_data_without_labels_are_refused(command, tmp_path) -> None:
    """A folder of pictures without sub-folders."""
    (tmp_path / "images").mkdir()
    for index in range(4):
        Image.new("L", (8, 8), 60 * index).save(tmp_path / "images" / f"{index}.png")
    config = tiny_conditional(tmp_path / "run")
    source = {"class_path": "lightning_ddpm.data.ImageFolder", "init_args": {"channels": 1, "size": 8}}
    config["data"].update(source=source, root=str(tmp_path / "images"), batch_size=2)
    status, _, err = command("fit", "--config", write_yaml(tmp_path / "config.yaml", config))
    assert status == 2
    assert "got classes=None: the dataset must have labels; give classes=0 for a model without" in err
