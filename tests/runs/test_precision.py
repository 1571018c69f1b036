"""Half precision applies to the network only."""

import pytest
import torch
from pytorch_lightning import Callback, Trainer

from lightning_ddpm.callbacks import EMA, Evaluation
from lightning_ddpm.data import Digits, ImageDataModule
from lightning_ddpm.diffusion import DDIM, Linear
from lightning_ddpm.metrics import DigitsFeatures
from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.networks import UNet


class Dtypes(Callback):
    """Records the dtypes of tensors in training and in evaluation."""

    def __init__(self, extractor):
        self.extractor, self.loss, self.features = extractor, [], []
        self.layer = {True: [], False: []}
        self.noisy = []

    def on_fit_start(self, trainer, pl_module):
        network = pl_module.network
        network.last.register_forward_hook(
            lambda layer, inputs, output: self.layer[torch.is_grad_enabled()].append(output.dtype)
        )
        network.register_forward_hook(lambda layer, inputs, output: self.noisy.append(inputs[0].dtype))
        for layer in self.extractor.network.body:
            layer.register_forward_hook(lambda layer, inputs, output: self.features.append(output.dtype))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.loss.append(outputs["loss"].dtype)
        self.images = batch[0].dtype


def train(precision, accelerator, folder, steps=1):
    torch.manual_seed(0)
    network = UNet(channels=1, size=8, width=8, multipliers=(1, 2), attention=(4,), blocks=1, groups=4)
    model = DDPM(network, Linear(10), DDIM(steps=1))
    extractor = DigitsFeatures()
    dtypes = Dtypes(extractor)
    evaluation = Evaluation(extractor, n=4, every_n_steps=1, batch_size=2)
    trainer = Trainer(
        accelerator=accelerator,
        devices=1,
        precision=precision,
        max_steps=steps,
        gradient_clip_val=1.0,
        limit_val_batches=1,
        log_every_n_steps=1,
        callbacks=[EMA(0.9), evaluation, dtypes],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(model, datamodule=ImageDataModule(Digits(), batch_size=2))
    return model, dtypes, trainer


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """Train one step in bf16-mixed on the CPU, with an evaluation; return model, recorded dtypes and trainer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")
        with pytest.warns(UserWarning, match="too few for the covariance"):
            return train("bf16-mixed", "cpu", tmp_path_factory.mktemp("half"))


def check_only_the_network_is_in_half(model, dtypes, half_type):
    assert set(dtypes.layer[True]) == {half_type}  # in training
    assert set(dtypes.layer[False]) == {half_type}  # in evaluation: the hooks of callbacks run outside autocast
    assert set(dtypes.noisy) == {torch.float32}
    assert dtypes.images == torch.float32
    assert dtypes.loss == [torch.float32]
    assert set(dtypes.features) == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    exact = Linear(10)
    for name in ("beta", "alpha_bar", "signal", "noise"):
        table = getattr(model.schedule, name)
        assert table.dtype == torch.float64
        assert torch.equal(table.cpu(), getattr(exact, name))


def test_bf16_mixed_runs_only_the_network_in_bf16(half):
    model, dtypes, _ = half
    check_only_the_network_is_in_half(model, dtypes, torch.bfloat16)


def test_a_half_precision_run_has_a_finite_distance_and_changed_weights(half):
    model, _, trainer = half
    assert trainer.callback_metrics["val/fd_digits"].isfinite()
    torch.manual_seed(0)
    before = UNet(channels=1, size=8, width=8, multipliers=(1, 2), attention=(4,), blocks=1, groups=4)
    assert not torch.equal(before.first.weight, model.network.first.weight)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_casting_the_whole_module_keeps_the_schedule_exact(precision):
    model = DDPM(UNet(channels=1, size=8, width=8, multipliers=(1,), attention=(), groups=4), Linear(1000), DDIM())
    model.to({"bf16-true": torch.bfloat16, "16-true": torch.float16}[precision])
    assert {parameter.dtype for parameter in model.parameters()} != {torch.float32}
    assert torch.equal(model.schedule.alpha_bar, Linear(1000).alpha_bar)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:.*too few for the covariance")
@pytest.mark.parametrize(("precision", "half_type"), [("bf16-mixed", torch.bfloat16), ("16-mixed", torch.float16)])
def test_mixed_precision_on_a_gpu_runs_only_the_network_in_half(precision, half_type, tmp_path):
    model, dtypes, trainer = train(precision, "gpu", tmp_path)
    check_only_the_network_is_in_half(model, dtypes, half_type)
    assert trainer.callback_metrics["val/fd_digits"].isfinite()
