"""Key the cache of executed chapters by the code they run, not by their own cells alone.

jupyter-cache compares the code cells of a chapter. The chapter also runs tpcnn/, in the environment
that constraints.txt locks: a folder per state of these two makes every change of them re-execute
every chapter, and nothing else does.
"""

import hashlib
import importlib.metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def environment_key() -> str:
    """Return a short hash of tpcnn/, constraints.txt and the flavour of TensorFlow (CPU or GPU)."""
    # This package comes with the extra "gpu", and not with PyTorch, which the bench may have
    # brought; asking TensorFlow would take seconds.
    for_gpu = any(importlib.metadata.distributions(name="nvidia-cudnn-cu12"))
    digest = hashlib.sha256(b"gpu" if for_gpu else b"cpu")
    for path in [ROOT / "constraints.txt", *sorted((ROOT / "tpcnn").rglob("*.py"))]:
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def setup(app):
    def set_cache_path(app, config):
        config.nb_execution_cache_path = str(ROOT / "_build" / "executed" / environment_key())

    app.connect("config-inited", set_cache_path)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    print(environment_key())
