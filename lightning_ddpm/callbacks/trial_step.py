"""Tries the parts of the model before a run does any work."""

from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_ddpm.models.ddpm import DDPM
from lightning_ddpm.models.generate import evaluation_mode
from lightning_ddpm.models.image_generator import check_images, require_generator
from lightning_ddpm.models.sample_request import SampleRequest
from lightning_ddpm.models.trial_step import IMAGES, check_parts


class TrialStep(Callback):
    """Tries the model on two images before fit; it changes nothing of the run.

    Of a DDPM it checks the network, the objective and the sampler, of another module that has ``generate`` what that
    returns.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        context = trainer.precision_plugin.forward_context
        if isinstance(pl_module, DDPM):
            check_parts(pl_module, context)
        elif hasattr(pl_module, "generate"):
            model = require_generator(pl_module)
            with evaluation_mode(pl_module), context():
                check_images(model, model.generate(SampleRequest(IMAGES), 0, IMAGES), IMAGES)
