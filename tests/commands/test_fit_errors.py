"""Wrong data, folders and settings of ``fit``: an error in one sentence, and nothing is written."""

from pathlib import Path

import pytest
from helpers.command_line import callback
from helpers.command_outputs import write_noise_image


@pytest.fixture
def image_folder(tmp_path):
    """Return an empty folder, and a function that makes the tiny config read 8x8 images from it."""
    root = tmp_path / "images"
    root.mkdir()

    def use(config, size=8, channels=1):
        init_args = {"channels": channels, "size": size, "holdout": 0.5}
        config["data"]["source"] = {"class_path": "lightning_ddpm.data.ImageFolder", "init_args": init_args}
        config["data"].update(root=str(root), batch_size=2)
        config["trainer"]["callbacks"] = config["trainer"]["callbacks"][:1]

    return root, use


def test_a_missing_data_folder_is_named(refused, image_folder):
    root, use = image_folder
    root.rmdir()
    assert str(root) in refused(use)


def test_an_empty_folder_is_named(refused, image_folder):
    root, use = image_folder
    assert f"{root} holds no images" in refused(use)


def test_an_unreadable_image_is_named(refused, image_folder):
    root, use = image_folder
    (root / "broken.png").write_bytes(b"this is no image")
    assert str(root / "broken.png") in refused(use)


def test_images_whose_header_alone_is_whole_are_named(refused, image_folder):
    root, use = image_folder
    for index in range(4):
        write_noise_image(root / f"{index}.png", size=(64, 64))
    whole = (root / "2.png").read_bytes()
    (root / "2.png").write_bytes(whole[: len(whole) // 2])
    assert str(root / "2.png") in refused(use)


def test_an_image_smaller_than_the_crop_is_named_with_both_sizes(refused, image_folder):
    root, use = image_folder
    for index in range(4):
        write_noise_image(root / f"{index}.png", size=(7, 12) if index == 2 else (12, 12))
    message = refused(use)
    assert "7x12" in message
    assert "8x8" in message
    assert str(root / "2.png") in message


def test_a_batch_larger_than_the_dataset_is_refused_with_both_numbers(refused):
    message = refused(None, "--data.batch_size", "1619")
    assert "1619" in message
    assert "1618" in message


def test_a_size_that_cannot_be_halved_is_refused_with_a_size_that_can(refused, image_folder):
    root, use = image_folder
    for index in range(8):
        write_noise_image(root / f"{index}.png")

    def odd(config):
        use(config, size=9)
        config["model"]["init_args"]["network"]["init_args"]["attention"] = []

    message = refused(odd)
    assert "got 9" in message
    assert "size=10" in message


@pytest.mark.parametrize(("name", "given", "expected"), [("channels", 1, 3), ("size", 8, 16)])
def test_data_and_network_that_disagree_are_both_named(name, given, expected, refused):
    message = refused(None, f"--model.network.{name}", str(expected))
    assert f"the data has {name}={given}" in message
    assert f"the network has {name}={expected}" in message


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true"])
def test_weights_of_another_type_than_float32_are_refused(precision, refused):
    message = refused(None, "--trainer.precision", precision)
    assert f"precision {precision} does not keep the weights in float32" in message
    assert "use bf16-mixed or 16-mixed" in message


def test_an_ema_decay_that_cannot_converge_is_refused(refused):
    message = refused(lambda config: callback(config, "EMA").update(decay=2))
    assert "got 2" in message
    assert "[0, 1)" in message


@pytest.mark.parametrize("folder", ["file/below", "/proc/lightning_ddpm"])
def test_a_folder_that_cannot_be_written_is_refused_at_the_start(folder, refused, tmp_path):
    if folder.startswith("/proc") and not Path("/proc").is_dir():
        pytest.skip("there is no /proc here")
    (tmp_path / "file").write_text("a regular file")
    target = tmp_path / folder  # an absolute folder stays itself
    message = refused(None, "--trainer.default_root_dir", str(target))
    assert str(target) in message
    assert not target.exists()


def test_missing_inception_weights_offline_are_an_error_with_three_fixes(refused, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for proxy in ("http_proxy", "https_proxy"):  # nothing listens there: offline on any machine
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    inception = {"class_path": "lightning_ddpm.metrics.Inception"}
    message = refused(lambda config: callback(config, "Evaluation").update(extractor=inception, n=4096))
    for fix in ("(1)", "(2)", "(3)", "weights_path", str(tmp_path / "torch")):
        assert fix in message


def describe(name, **arguments):
    return {"class_path": f"lightning_ddpm.diffusion.{name}", "init_args": arguments}


PARTS = ("schedule", "parameterization")
FLOW, LEVELS = ("RectifiedFlow", "FlowVelocity"), ("VarianceExploding", "EDM")
COMBINATIONS = {
    "hybrid on a flow": (FLOW, {"objective": describe("Hybrid")}, "bound (Hybrid) belongs to a chain of discrete"),
    "bound on EDM's path": (
        LEVELS,
        {"objective": describe("VLB", variance=describe("FixedSmall"))},
        "bound (VLB) belongs to a chain of discrete steps, and VarianceExploding is continuous",
    ),
    "EDM on a chain": (("Cosine", "EDM"), {}, "on the noise level, and Cosine has integer timesteps; use VarianceExpl"),
    "EDM on a flow": (("RectifiedFlow", "EDM"), {}, "which is infinite at the end of RectifiedFlow; use VarianceExpl"),
    "noise on a flow": (("RectifiedFlow", "Epsilon"), {}, "Epsilon does not determine x_0 there; predict Velocity"),
    "EDM's sampler on a flow": (FLOW, {"sampler": describe("EDMHeun")}, "is infinite where RectifiedFlow ends"),
    "history on a flow": (FLOW, {"timesteps": describe("LossAwareTimesteps")}, "history of losses for each t belongs"),
    "lambda on a flow": (FLOW, {"timesteps": describe("UniformLambda")}, "UniformLambda needs a finite lambda at T"),
    "mean flow on a chain": (("Cosine", "Velocity"), {"objective": describe("MeanFlow")}, "needs the straight path"),
}


@pytest.mark.parametrize("name", COMBINATIONS)
def test_what_does_not_go_together_is_refused_by_name_before_training(name, refused):
    (path, parameterization), parts, message = COMBINATIONS[name]

    def combine(config):
        init = config["model"]["init_args"]
        init |= {"schedule": describe(path, steps=20), "parameterization": describe(parameterization)} | parts

    assert message in refused(combine)


def test_the_variational_bound_of_a_flow_is_refused_before_training(refused):
    def measure(config):
        config["model"]["init_args"] |= {name: describe(each) for name, each in zip(PARTS, FLOW, strict=True)}
        bound = {"class_path": "lightning_ddpm.callbacks.BitsPerDim", "init_args": {"n": 4}}
        config["trainer"]["callbacks"].append(bound)

    assert "BitsPerDim belongs to a chain of discrete steps, and RectifiedFlow is continuous" in refused(measure)
