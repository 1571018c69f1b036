"""Steps read nothing back from the device, because the program would wait for it.

For training, the reads are counted on the CPU, as the operations that would wait on a GPU: a value converted to Python,
a size that depends on values, a number copied to the device. All else runs on a fake GPU, whose tensors have devices
and shapes but no values, so that reading one, or mixing it with the host's, is an error.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fake_gpu import GPU, fake_gpu
from helpers.tiny import quiet_trainer, real_data, tiny_model, tiny_network
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_ddpm.callbacks import EMA, Checkpoints, NonFinite, ProgressLines
from lightning_ddpm.data import Digits, ImageDataModule
from lightning_ddpm.diffusion import (
    DDIM,
    P2,
    VLB,
    X0,
    Ancestral,
    ClassifierFree,
    Cosine,
    DPMSolverPP,
    Epsilon,
    EulerMaruyama,
    FixedLarge,
    FixedSmall,
    Guidance,
    Heun,
    Hybrid,
    LearnedRange,
    LossAwareTimesteps,
    MinSNR,
    Objective,
    Parameterization,
    PosteriorMean,
    PredictorCorrector,
    ReverseVariance,
    Sampler,
    SDEdit,
    Simple,
    SimpleWeighted,
    TruncatedSNR,
    Velocity,
    elbos,
    invert,
)
from lightning_ddpm.metrics import DigitsFeatures, FeatureExtractor, Inception
from lightning_ddpm.metrics.bits_per_dim import ELBOSums
from lightning_ddpm.metrics.nearest_neighbours import NearestNeighbours
from lightning_ddpm.models.sample_request import SampleRequest

WAITS = {
    *(torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.is_nonzero.default),
    *(torch.ops.aten.equal.default, torch.ops.aten.masked_select.default, torch.ops.aten._unique2.default),
    torch.ops.aten.bincount.default,
}


class Reads(TorchDispatchMode):
    """Records the tensors that are read."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []

    def __enter__(self) -> "Reads":
        self.to_list = Tensor.tolist  # with a tensor on the CPU it dispatches no operation
        reads = self.tensors

        def noted(tensor: Tensor) -> Any:
            reads.append(tensor)
            return self.to_list(tensor)

        Tensor.tolist = noted  # type: ignore[method-assign]
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *exception: object) -> None:
        Tensor.tolist = self.to_list  # type: ignore[method-assign]
        super().__exit__(*exception)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_mask = func is torch.ops.aten.index.Tensor and any(
            each.dtype is torch.bool for each in args[1] if each is not None
        )
        is_number = func is torch.ops.aten.lift_fresh.default and not args[0].ndim
        if func in WAITS or is_mask or is_number:
            self.tensors.append(args[0])
        return func(*args, **(kwargs or {}))


class ReadsOfSteps(Callback):
    """Counts the reads of each step, except of what is on the host in a run on a GPU: EMA's counter, and what the
    previous step sent there.
    """

    def __init__(self) -> None:
        self.found: list[int] = []
        self.reads_of_previous = 0
        self.reads: Reads | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.end(trainer)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        self.sent = [each._pending[1]._values for each in callbacks if isinstance(each, NonFinite) and each._pending]
        self.reads = Reads()
        self.reads.__enter__()

    def end(self, trainer: Trainer) -> None:
        if self.reads is None:
            return
        self.reads.__exit__(None, None, None)
        counters = [each._average_model.n_averaged for each in trainer.callbacks if isinstance(each, EMA)]  # type: ignore[attr-defined]
        on_the_host = {each.data_ptr() for each in (*counters, *self.sent)}
        self.found.append(sum(each.data_ptr() not in on_the_host for each in self.reads.tensors))
        sent = {each.data_ptr() for each in self.sent}
        self.reads_of_previous += sum(each.data_ptr() in sent for each in self.reads.tensors)


VARIANCE = {"objective": Hybrid(), "timesteps": LossAwareTimesteps(history=1)}


@pytest.mark.parametrize(
    ("network", "more"),
    [({}, {}), ({"outputs": 2}, VARIANCE), ({"classes": 10}, {"objective": SimpleWeighted(MinSNR())})],
    ids=["Ho's", "learned variance", "classes"],
)
def test_a_training_step_reads_only_whether_the_previous_one_was_finite(
    network: dict[str, Any], more: dict[str, Any], tmp_path: Path
) -> None:
    reads = ReadsOfSteps()
    callbacks = [reads, EMA(), NonFinite(), Checkpoints(every_n_steps=1000), ProgressLines(1000)]
    settings = {
        "gradient_clip_val": 1.0,
        "log_every_n_steps": 1000,
        "enable_checkpointing": True,
        "enable_progress_bar": True,
    }
    trainer = quiet_trainer(tmp_path, callbacks=callbacks, max_steps=6, **settings)
    trainer.fit(
        tiny_model(network=tiny_network(**network), **more), datamodule=ImageDataModule(Digits(), batch_size=16)
    )
    reads.end(trainer)
    assert reads.found[1:5] == [0, 0, 0, 0]  # the first is logged, and the last saved
    assert reads.reads_of_previous == 5, "in every step but the first"


def test_the_fake_gpu_detects_waiting_and_mixing() -> None:
    table = torch.arange(5.0)
    with fake_gpu():
        there = torch.ones(3, dtype=torch.long, device=GPU)
        for broken in (lambda: there.sum().item(), lambda: table.to(GPU)[there[0]], lambda: there.bincount()):
            with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
                broken()
        with pytest.raises(RuntimeError, match=r"two (different )?devices,? cuda:0"):
            there + torch.ones(3)


SAMPLERS = [
    *(Ancestral(FixedLarge()), Ancestral(FixedSmall(), 5), Ancestral(LearnedRange()), DDIM(5), DDIM(5, eta=1.0)),
    *(DPMSolverPP(5), DPMSolverPP(5, eta=1.0), Heun(5), EulerMaruyama(), PredictorCorrector(EulerMaruyama())),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_sampling_waits_for_nothing(sampler: Sampler) -> None:
    model = tiny_model(network=tiny_network(outputs=2))
    with fake_gpu():
        images = model.to(GPU).generate(SampleRequest(7, sampler=sampler), 3, 7)
    assert (images.shape, images.dtype, images.device) == ((4, 1, 8, 8), torch.uint8, GPU)


@pytest.mark.parametrize(
    "guidance", [None, ClassifierFree(0.0), ClassifierFree(2.0), ClassifierFree(2.0, (5, 15))], ids=repr
)
def test_sampling_a_class_waits_for_nothing(guidance: Guidance | None) -> None:
    model = tiny_model(network=tiny_network(classes=10))
    with fake_gpu():
        assert (
            model.to(GPU).generate(SampleRequest(7, sampler=DDIM(5), guidance=guidance, labels=[1, 2]), 3, 7).device
            == GPU
        )


PREDICTIONS = [Epsilon(), Velocity(), X0(), PosteriorMean()]
OBJECTIVES = [
    *(Simple(), Hybrid(), VLB(FixedLarge()), VLB(FixedSmall()), VLB(LearnedRange())),
    *(SimpleWeighted(weight) for weight in (MinSNR(), P2(), TruncatedSNR())),
]


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=repr)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_a_loss_waits_for_nothing(objective: Objective, prediction: Parameterization) -> None:
    network = tiny_network(outputs=2, classes=10)
    model = tiny_model(network=network, objective=objective, parameterization=prediction)
    with fake_gpu():
        x_0, t = torch.zeros(4, 1, 8, 8, device=GPU), torch.ones(4, dtype=torch.long, device=GPU)
        losses = model.to(GPU).loss(x_0, t, torch.zeros_like(x_0), t)
    assert (losses.shape, losses.dtype, losses.device) == ((4,), torch.float32, GPU)


@pytest.mark.parametrize("variance", [FixedLarge(), FixedSmall(), LearnedRange()], ids=repr)
def test_the_elbo_and_its_sums_wait_for_nothing(variance: ReverseVariance) -> None:
    model = tiny_model(network=tiny_network(outputs=2), schedule=Cosine(steps=4))
    with fake_gpu():
        sums, x_0 = ELBOSums(4, GPU), torch.zeros(4, 1, 8, 8, device=GPU)
        model.to(GPU)
        for bound in elbos([model.denoiser, model.denoiser.without_clipping()], variance, x_0):
            sums.update(bound)
    assert sums.sums.device == GPU


def test_finding_the_nearest_images_waits_for_nothing() -> None:
    with fake_gpu():
        nearest = NearestNeighbours(torch.zeros(3, 64, device=GPU), 2)
        for start in (0, 9):
            nearest.update(start, torch.zeros(9, 64, device=GPU))
    assert nearest.indices.device == GPU


def test_inversion_and_sdedit_wait_for_nothing() -> None:
    model = tiny_model()
    with fake_gpu():
        denoise, x = model.to(GPU).denoiser, torch.zeros(4, 1, 8, 8, device=GPU)
        assert invert(denoise, x, 5).device == GPU
        assert SDEdit(DDIM(5), x, 0.5).sample(denoise, x).device == GPU


@pytest.mark.parametrize("extractor", [DigitsFeatures(), Inception()], ids=lambda extractor: type(extractor).__name__)
def test_extracting_features_waits_for_nothing(extractor: FeatureExtractor) -> None:
    if isinstance(extractor, Inception):
        extractor = Inception(str(real_data("fid-inception-2015-12-05.pth")))
    extractor.load()
    channels, size = (3, 32) if isinstance(extractor, Inception) else (1, 8)
    with fake_gpu():
        features = extractor.to(GPU)(torch.zeros(6, channels, size, size, dtype=torch.uint8, device=GPU))
    assert (features.shape, features.device) == ((6, extractor.num_features), GPU)
