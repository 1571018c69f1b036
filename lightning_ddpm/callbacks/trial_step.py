"""Tries the parts of the model before a run does any work."""

from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.trial_step import check_parts


class TrialStep(Callback):
    """Checks the network, the objective and the sampler on two images before fit; it changes nothing of the run."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(pl_module, DDPM):
            check_parts(pl_module, trainer.precision_plugin.forward_context)
