"""The module that the chapters of the book run."""

from tpcnn import device  # isort: skip  # first: it decides how TensorFlow starts
from tpcnn import checks, lab_sheet, models, plots
from tpcnn.data import (
    Dataset,
    add_channel,
    load_fashion_mnist,
    load_mnist,
    normalize,
    split,
)
from tpcnn.device import describe_device, require_gpu
from tpcnn.models import build_cnn, build_fashion_cnn, build_fc
from tpcnn.trainer import Trainer

__all__ = [
    "Dataset",
    "Trainer",
    "add_channel",
    "build_cnn",
    "build_fashion_cnn",
    "build_fc",
    "checks",
    "describe_device",
    "device",
    "lab_sheet",
    "load_fashion_mnist",
    "load_mnist",
    "models",
    "normalize",
    "plots",
    "require_gpu",
    "split",
]
