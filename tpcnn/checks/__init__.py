"""The lab's self-checks: each says what is right, or names the mistake and where to read on."""

from tpcnn.checks.dataset import data
from tpcnn.checks.fitting import fit
from tpcnn.checks.measuring import accuracy
from tpcnn.checks.mistakes import Mistake
from tpcnn.checks.networks import model
from tpcnn.checks.predicting import predict
from tpcnn.checks.session import name, report
from tpcnn.checks.steps import eval_step, train_step

__all__ = [
    "Mistake",
    "accuracy",
    "data",
    "eval_step",
    "fit",
    "model",
    "name",
    "predict",
    "report",
    "train_step",
]
