"""The lab's self-checks: each says what is right, or names the mistake and where to read on."""

from tpcnn.checks.dataset import data
from tpcnn.checks.fitting import fit
from tpcnn.checks.mistakes import Mistake
from tpcnn.checks.networks import model
from tpcnn.checks.predicting import predict
from tpcnn.checks.results import (
    REQUIRED_ACCURACY,
    accuracy,
    name,
    report,
    require_accuracy,
)
from tpcnn.checks.steps import eval_step, train_step

__all__ = [
    "REQUIRED_ACCURACY",
    "Mistake",
    "accuracy",
    "data",
    "eval_step",
    "fit",
    "model",
    "name",
    "predict",
    "report",
    "require_accuracy",
    "train_step",
]
