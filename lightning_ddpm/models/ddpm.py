"""The diffusion model as a LightningModule: it connects network, schedule, objective and sampler."""

from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR

from lightning_ddpm import diffusion
from lightning_ddpm.data import ImageDataModule, checks, class_labels, conditioned, sharding
from lightning_ddpm.data.augmentation import Augmentation, augment
from lightning_ddpm.data.datasets import Batch
from lightning_ddpm.data.value_range import UINT8, ValueRange
from lightning_ddpm.diffusion import Denoiser, GaussianPath, Sampler
from lightning_ddpm.models import conditioning, steps
from lightning_ddpm.models.network import check_network, get_image_shape, name_classes
from lightning_ddpm.models.optimizer import build_optimizer, clip_gradients, get_gradient_norm, spread_nonfinite
from lightning_ddpm.models.sample_request import ConditionSource, SampleRequest
from lightning_ddpm.models.step_mean import StepMean
from lightning_ddpm.utils.condition import Condition, as_condition
from lightning_ddpm.utils.errors import UserError
from lightning_ddpm.utils.lightning_internals import is_accumulating, is_logging_step
from lightning_ddpm.utils.random import ImageNoise, PositionRandom, seed_globally


class DDPM(LightningModule):
    """A denoising diffusion model: it trains a network to denoise images and generates images with it.

    Ho et al. 2020 (arXiv:2006.11239): training is Algorithm 1. The network is any module that keeps the contract in
    :mod:`lightning_ddpm.models.network`.

    Args:
        network: predicts the noise in x_t, or what ``parameterization`` names.
        schedule: the noise schedule, with its number of timesteps T.
        sampler: generates the images, during training and from the checkpoint.
        optimizer: parameters -> optimizer (Ho et al.: Adam with learning rate 2e-4).
        lr_scheduler: optimizer -> scheduler, stepped after each optimizer step. The default is Ho et al.'s warm-up over
            5,000 of 800,000 steps; give a short run one of its own, or it ends below its learning rate.
        parameterization: what the network's output means; ``null`` for the noise, as in Ho et al.
        objective: the training loss; ``null`` for L_simple, as in Ho et al.
        timesteps: how t is sampled in training; ``null`` for uniformly, as in Ho et al.
        label_dropout: the share of training images whose label, and every other condition, is hidden from the network,
            so that it can be guided without a classifier (Ho & Salimans 2022, arXiv:2207.12598).
        class_names: the name of each label; ``null`` on the command line for the names in the data.
        values: type and range of the images' values; ``null`` on the command line for those of the data.
        clipping: how a predicted x_0 that leaves the range of bounded values is moved into it while sampling; ``null``
            to set its values to the nearer end, as in Ho et al.
        condition_values: the same of images that they are conditioned on.
        augmentations: transformations of training images, given to the network as a condition so that they do not leak
            into generated images (Karras et al. 2022, arXiv:2206.00364).

    Raises:
        UserError: the network lacks an attribute, or the arguments do not fit together.
    """

    class_counts: Tensor

    def __init__(
        self,
        network: nn.Module,
        schedule: GaussianPath,
        sampler: Sampler,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.Adam(parameters, lr=2e-4, fused=True),
        lr_scheduler: LRSchedulerCallable = lambda optimizer: LinearLR(optimizer, start_factor=2e-4, total_iters=5000),
        parameterization: diffusion.Parameterization | None = None,
        objective: diffusion.Objective | None = None,
        timesteps: diffusion.TimestepSampler | None = None,
        label_dropout: float = 0.1,
        class_names: Sequence[str] | None = None,
        values: ValueRange | None = None,
        clipping: diffusion.Clipping | None = None,
        condition_values: ValueRange | None = None,
        augmentations: Sequence[Augmentation] = (),
    ) -> None:
        super().__init__()
        check_network(network)
        self.network, self.schedule, self.sampler = network, schedule, sampler
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.parameterization, self.objective = parameterization or diffusion.Epsilon(), objective or diffusion.Simple()
        self.timesteps = timesteps or diffusion.UniformTimesteps()
        self.parameterization.check_schedule(schedule)
        self.timesteps.setup(schedule)
        if not 0 <= label_dropout <= 1:
            raise UserError(f"label_dropout must lie in [0, 1], got {label_dropout}; Ho & Salimans use 0.1")
        self.label_dropout, self._step_mean = label_dropout, StepMean()
        self._batches: list[tuple[Tensor, Tensor]] = []
        self.values, self.condition_values = values or UINT8, condition_values or UINT8
        self.set_clipping(clipping)
        self.sampler.check_denoiser(self.denoiser)
        self.objective.check_denoiser(self.denoiser)
        self.class_names: Sequence[str] = name_classes(class_names, network)
        if self.class_names:  # training images of each class, so that generated images can have the same frequencies
            self.register_buffer("class_counts", torch.zeros(len(self.class_names), dtype=torch.long))
        self.condition_format = conditioning.get_format(network)
        self.condition_kinds = self.condition_format.kinds | ({"label"} if self.class_names else frozenset())
        self._kinds = self.condition_kinds | {each.kind for each in conditioning.list_embeddings(network)}
        self._held_out_conditions: ConditionSource | None = None
        self.augmentations = list(augmentations)
        conditioning.check_augmentations(network, self.augmentations, self.image_shape[0])
        conditioning.check_mask(network, self.values, self.objective, self.augmentations)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images."""
        return get_image_shape(self.network)

    def setup(self, stage: str) -> None:
        """Check that the data has the network's image shape and classes; count the training images of each class."""
        if stage == "fit":
            self.timesteps.check_objective(self.objective)
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ImageDataModule):
            return
        names = self.class_names if stage != "predict" else ()
        data.check_model(self.image_shape, names)
        if self.condition_format.kinds:
            checks.check_condition(data.source, self.condition_format, self.condition_values)
            self._held_out_conditions = conditioned.shuffle_conditions(data.held_out, data.train)
        if stage == "fit":
            conditioning.measure_conditions(self.network, data.train)
            if self.class_names:
                labels = data.train.labels
                self.class_counts.copy_(torch.bincount(labels[labels >= 0], minlength=len(self.class_names)))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one step of Algorithm 1 in Ho et al. 2020; with a condition, in Ho & Salimans 2022."""
        x_0, condition = self.read_batch(batch)
        this = steps.StepBatch(self, len(x_0), batch_idx)
        random = this.generate("train")  # random numbers of these images, the same on any number of devices
        if self._kinds:
            condition = condition.hide(this.generate("label dropout").rand() < self.label_dropout)
        if self.augmentations:
            x_0, done = augment(self.augmentations, x_0, this.generate("augmentation"))
            condition = condition._replace(augmentation=done)

        t, weights = random(self.timesteps.sample)  # t ~ Uniform({1, ..., T}), weights 1
        eps = random.randn_like(x_0)  # eps ~ N(0, I)
        with this.seed_globally():
            losses = self.loss(x_0, t, eps, condition)  # ||eps - network(x_t, t)||^2, x_t = q_sample(x_0, t, eps)
        return self._finish_batch(this, t, losses, (weights * losses).mean())

    def loss(
        self,
        x_0: Tensor,
        t: Tensor,
        eps: Tensor,
        condition: Condition | Tensor | None = None,
        random: PositionRandom | None = None,
    ) -> Tensor:
        """Compute the objective of each image, (b,) float32; it makes x_t by ``q_sample`` and calls the network once.

        Args:
            x_0: (b, c, h, w) images in [-1, 1].
            t: (b,) timesteps in 1..T.
            eps: (b, c, h, w) standard normal noise.
            condition: of each image, or classes (b,) alone, -1 for images whose class is hidden; kinds that the network
                does not take are ignored.
            random: of an objective that needs more random numbers; ``None`` for torch's global generators.
        """
        objective = self.objective if random is None else self.objective.with_random(random)
        return objective.losses(self.denoiser_for(condition).without_clipping(), x_0, t, eps)

    def _finish_batch(self, this: steps.StepBatch, t: Tensor, losses: Tensor, loss: Tensor) -> Tensor:
        """Keep the losses (b,) for callbacks, and report those of a step at its end; return the loss to minimise."""
        self.last_losses = t, losses.detach()
        self._batches = [] if this.is_first else self._batches
        self._batches.append(self.last_losses)
        loss = spread_nonfinite(loss)
        self._step_mean.add(this, len(t), loss)
        if not is_accumulating(self.trainer):
            self._report_step(this, *steps.join(self._batches))
        return loss

    def _report_step(self, this: steps.StepBatch, t: Tensor, losses: Tensor) -> None:
        """Report the losses of this rank's images in a step to the timestep sampler and, of all ranks, to loggers."""
        self.timesteps.update(t, losses, this.gather)
        if is_logging_step(self.trainer):
            quarters = diffusion.sum_by_quarter(losses, t, self.schedule.T)
            mean, sums, counts = self._step_mean.average(self, *quarters)
            self.log("train/loss", mean)
            self.log_dict(steps.average_by_quarter("train/loss", sums, counts, self.schedule.T))

    def on_validation_epoch_start(self) -> None:
        self._sums = steps.TimestepSums(self.schedule.T, ("loss",), self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        x_0, condition = self.read_batch(batch)
        # on one device the second ones, of the objective, are those of the global generators
        random, more = (steps.generate_validation(self, len(x_0), batch_idx) for _ in range(2))
        t = random(lambda n, generator: self.timesteps.stratify(self.schedule, n, generator))
        with seed_globally(self.device, "validate", index=batch_idx):
            self._sums.add(t, self.loss(x_0, t, random.randn_like(x_0), condition, more))

    def on_validation_epoch_end(self) -> None:
        self._sums.log_means(self)

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def predict_step(self, batch: sharding.ImageRange, batch_idx: int = 0) -> Tensor:
        """Generate a batch of images with the model's own sampler."""
        seed, start, stop = (int(each) for each in batch)
        return self.generate(SampleRequest(n=stop, seed=seed), start, stop)

    def generate(self, request: SampleRequest, start: int, stop: int) -> Tensor:
        """Return images ``start``..``stop`` of the request, (stop - start, c, h, w) in the data's own values."""
        x = (request.sampler or self.sampler).sample(*self.prepare_sampling(request, start, stop))
        return conditioning.mark_missing(self.network, self.values.to_data(x))

    def set_clipping(self, clipping: diffusion.Clipping | None) -> None:
        """Clip predictions of x_0 so from now on; ``None`` for the default.

        Raises:
            UserError: the values have no bounds to clip to.
        """
        if clipping is not None and not self.values.bounded:
            raise UserError(
                f"{clipping} needs bounded values, and the model's are {self.values.describe()}, without bounds; leave "
                "it out, or give the data's low and high"
            )
        self.clipping = clipping

    def prepare_sampling(self, request: SampleRequest, start: int, stop: int) -> tuple[Denoiser, Tensor, ImageNoise]:
        """Return what a sampler generates images ``start``..``stop`` from: the denoiser, x_T and the noise."""
        noise = ImageNoise(request.seed, start, stop)
        x_T = noise(torch.empty(stop - start, *self.image_shape, device=self.device))
        denoise, condition = self.denoiser, self.choose_condition(request, start, stop)
        if request.guidance is not None or condition.kinds:
            condition = condition if condition.kinds else Condition(torch.full((stop - start,), -1))
            denoise = (request.guidance or diffusion.ClassifierFree())(denoise, condition.to(self.device))
        return denoise, x_T, noise

    def choose_condition(self, request: SampleRequest, start: int, stop: int) -> Condition:
        """Return the condition of images ``start``..``stop`` on the CPU, without kinds for an unconditional model.

        Raises:
            UserError: the request has no condition for a model that needs one.
        """
        if not self.condition_format.kinds:
            return Condition(self.choose_labels(request, start, stop))
        given = conditioning.read_given(self.condition_format, request, self._held_out_conditions, start, stop)
        if given is None:
            return Condition()
        given = given.keep(self.condition_kinds)
        if request.labels is not None or given.label is None:
            given = given._replace(label=self.choose_labels(request, start, stop))
        return conditioned.convert_image(given, self.condition_values)

    def choose_labels(self, request: SampleRequest, start: int, stop: int) -> Tensor | None:
        """Return the classes of images ``start``..``stop``, (stop - start,) int64 on the CPU; ``None`` for none."""
        names = self.list_class_names(request.guidance)
        if request.labels is not None and not all(0 <= each < len(names) for each in request.labels):
            known = f"its classes are 0..{len(names) - 1}" if names else "it was trained without classes"
            raise UserError(f"the model cannot be conditioned on the labels {list(request.labels)}: {known}")
        if not names:
            return None
        if request.labels is None and self.class_names:
            return class_labels.spread_labels(self.class_counts, request.seed, start, stop)
        return class_labels.cycle_labels(request.labels or range(len(names)), start, stop)

    def list_class_names(self, guidance: diffusion.Guidance | None) -> Sequence[str]:
        """Return the classes that can be requested: the model's, or those that the guidance knows; empty for none."""
        return self.class_names or (guidance.class_names if guidance else ())

    @property
    def denoiser(self) -> Denoiser:
        """The network as samplers use it, without a condition."""
        values = self.values
        args = self.schedule, values.clip, self.parameterization, values.levels, self.clipping
        denoise = Denoiser(self.network, *args)
        denoise.mask = conditioning.get_mask(self.network)
        return denoise

    def read_batch(self, batch: Batch) -> tuple[Tensor, Condition]:
        """Return the images of a batch, and their condition; UserError if it has not what the network needs."""
        x_0, condition = conditioning.read_batch(batch, self.condition_format, self.values.masked)
        return x_0, condition.keep(self._kinds)

    def denoiser_for(self, condition: Condition | Tensor | None) -> Denoiser:
        """Return the network given the condition, or classes (b,) alone, as far as it takes any."""
        condition = as_condition(condition).keep(self._kinds)
        return self.denoiser.conditioned_on(condition) if condition.kinds else self.denoiser

    def configure_optimizers(self) -> Any:
        return build_optimizer(self, self.optimizer, self.lr_scheduler)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        super().backward(self._step_mean.backward(self, loss), *args, **kwargs)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the gradient the mean over the step's images, and log its norm; Lightning clips it afterwards."""
        self._step_mean.on_before_optimizer_step(self, optimizer)
        if is_logging_step(self.trainer):
            self.log("train/gradient_norm", get_gradient_norm(optimizer))

    configure_gradient_clipping = clip_gradients
