"""TensorBoard's own writer, for pictures and texts that Lightning's loggers have no method for."""

from pytorch_lightning import Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter


def writers(trainer: Trainer) -> list[SummaryWriter]:
    """The writers of the trainer's TensorBoard loggers; none on ranks other than the first."""
    if not trainer.is_global_zero:
        return []
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
