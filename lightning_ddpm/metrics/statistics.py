"""Mean and covariance of features in npz files, under the keys of pytorch-fid, EDM and ADM."""

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lightning_ddpm.errors import UserError, first_line
from lightning_ddpm.files import write_whole


class Statistics(NamedTuple):
    """What the Fréchet distance needs of a set of images.

    Attributes:
        mu: (d,) float64, mean of the features.
        sigma: (d, d) float64, their covariance.
        n: number of images; 0 where the file does not say.
    """

    mu: np.ndarray
    sigma: np.ndarray
    n: int


def read_statistics(path: Path) -> Statistics:
    """Statistics as pytorch-fid and EDM (``mu``, ``sigma``) or ADM (beside ``mu_s``, ``sigma_s``) write them.

    Raises:
        UserError: no such file, damaged, or holding something else.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            if not {"mu", "sigma"} <= set(file):
                raise UserError(
                    f"{path} has no statistics: its keys are {', '.join(sorted(file)) or 'none'}, "
                    "expected mu and sigma, as pytorch-fid writes them"
                )
            mu, sigma = file["mu"].astype(np.float64), file["sigma"].astype(np.float64)
            n = int(file["n"]) if "n" in file else 0
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except (OSError, ValueError, KeyError, AttributeError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is no npz file of statistics, or damaged: {first_line(error)}") from error
    if mu.ndim != 1 or sigma.shape != 2 * mu.shape:
        raise UserError(
            f"{path}: mu of shape {mu.shape} and sigma of shape {sigma.shape} do not fit; expected d and d x d"
        )
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UserError(f"{path} holds NaN or infinity; compute the statistics again")
    return Statistics(mu, sigma, n)


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Write a file that pytorch-fid, EDM and :func:`read_statistics` read; whole or not at all."""
    mu, sigma, n = statistics
    write_whole(path, lambda file: np.savez(file, mu=mu, sigma=sigma, n=n))
