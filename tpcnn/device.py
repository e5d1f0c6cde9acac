"""Which device TensorFlow trains on, and what to do where there is no GPU."""

import contextlib
import os
import platform
import sys
import tempfile
from pathlib import Path

# TensorFlow reads both when it is first imported. Level 3 keeps its start-up log out of the pages.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# TensorFlow turns oneDNN's kernels on by default only for processors with AVX-512; on others, such
# as AMD's before Zen 4, a training step of the book's CNN takes almost twice as long without them.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


@contextlib.contextmanager
def _quiet_stderr():
    """Hold back what native code writes to file descriptor 2; show it only if the block fails.

    In a notebook only: there it would land in the output of the first cell. On a terminal it
    passes, since it is all there is to read where a library ends the process.
    """
    if "ipykernel" not in sys.modules:
        yield
        return
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


# Some lines of TensorFlow's start-up log ignore the level set above.
with _quiet_stderr():
    import tensorflow as tf


def gpu_names() -> list[str]:
    """Return the name of each GPU that TensorFlow can use, empty where there is none."""
    return [
        tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
        for gpu in tf.config.list_physical_devices("GPU")
    ]


def describe_device() -> str:
    """Return the device that training runs on, such as ``GPU: Tesla T4`` or ``CPU: 2 cores``."""
    names = gpu_names()
    if names:
        return "GPU: " + ", ".join(names)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"CPU: {cores} core{'s' if cores != 1 else ''}, {_processor_name()}"


def require_gpu() -> str:
    """Return the name of the first GPU.

    Raises:
        RuntimeError: TensorFlow sees no GPU.
    """
    names = gpu_names()
    if not names:
        raise RuntimeError(
            "A GPU is required, but TensorFlow finds none: it would train on "
            f"{describe_device()}. In Colab choose Runtime > Change runtime type > T4 GPU and run "
            "the notebook again; on your own machine check that `nvidia-smi` lists the GPU and "
            "install TensorFlow with CUDA: pip install 'tensorflow[and-cuda]'."
        )
    return names[0]


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
