"""Which device TensorFlow trains on, and what to do where there is no GPU."""

import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# TensorFlow reads both when it is first imported. Level 3 keeps its start-up log out of the pages.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# TensorFlow turns oneDNN's kernels on by default only for processors with AVX-512; on others, such
# as AMD's before Zen 4, a training step of the book's CNN takes almost twice as long without them.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def _require_tensorflow(backend: str) -> None:
    if backend != "tensorflow":
        raise ImportError(
            f"tpcnn needs Keras with the backend 'tensorflow', but Keras is set to {backend!r}: "
            "set the environment variable KERAS_BACKEND to tensorflow, or remove it, start Python "
            "again (in a notebook, restart the kernel) and import tpcnn before keras."
        )


# Keras reads this when it is first imported, and its file keras.json only where this says nothing:
# that file may have been written for other work.
if "keras" not in sys.modules:
    _require_tensorflow(os.environ.get("KERAS_BACKEND") or "tensorflow")
    os.environ["KERAS_BACKEND"] = "tensorflow"


@contextlib.contextmanager
def _quiet_stderr():
    """Hold back what native code writes to file descriptor 2; show it only if the block fails.

    In a notebook only: there it would land in the output of the first cell. On a terminal it
    passes, since it is all there is to read where a library ends the process.
    """
    if "ipykernel" not in sys.modules:
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            held = stack.enter_context(tempfile.TemporaryFile())
            saved = os.dup(2)
        except OSError:  # the disk is full, or there is no descriptor 2, as under Windows' pythonw
            yield
            return
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

    try:
        import keras
    except ImportError as error:  # begun before with another backend, which stays chosen
        raise ImportError(
            f"tpcnn needs Keras, which cannot be imported ({error}): start Python again (in a "
            "notebook, restart the kernel) and import tpcnn before keras."
        ) from None

_require_tensorflow(keras.config.backend())
if keras.config.image_data_format() != "channels_last":
    raise ImportError(
        "tpcnn needs Keras with the image_data_format 'channels_last', since its images have the "
        f"shape (n, height, width, 1), but Keras is set to {keras.config.image_data_format()!r}: "
        f"change that in {os.environ.get('KERAS_HOME', '~/.keras')}/keras.json, or call "
        "keras.config.set_image_data_format('channels_last') before you import tpcnn."
    )


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


def kind() -> str:
    """Return on which kind of device TensorFlow trains: ``"gpu"`` or ``"cpu"``."""
    return "gpu" if gpu_names() else "cpu"


def require_gpu() -> str:
    """Return the name of the first GPU.

    Raises:
        RuntimeError: TensorFlow sees no GPU; the message says why.
    """
    names = gpu_names()
    if not names:
        raise RuntimeError(
            "A GPU is required, but TensorFlow finds none: it would train on "
            f"{describe_device()}. {why_no_gpu()}"
        )
    return names[0]


def why_no_gpu() -> str:
    """Return why TensorFlow finds no GPU, and what to do. It may take a few seconds."""
    listed = _nvidia_smi()
    if not listed:
        return (
            "In Colab choose Runtime > Change runtime type > T4 GPU and run the notebook again; on "
            f"your own machine check that `nvidia-smi` lists the GPU and {_INSTALL_CUDA}."
        )
    if sys.platform == "win32":
        reason = "TensorFlow uses none on native Windows: run this in WSL 2, or in Colab."
    elif not tf.test.is_built_with_cuda():
        reason = f"this TensorFlow is built without CUDA: uninstall it and {_INSTALL_CUDA}."
    elif _hidden(listed):
        reason = (
            f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']!r} hides it: remove this "
            "environment variable, or set it to 0, and start Python again."
        )
    else:
        reason = _reason_in_the_log()
    return f"nvidia-smi lists a GPU, but {reason}"


_INSTALL_CUDA = "install TensorFlow with CUDA: pip install 'tensorflow[and-cuda]'"


def _nvidia_smi() -> str:
    """Return the list of GPUs that nvidia-smi prints, empty where there is none."""
    try:
        printed = subprocess.run(
            [shutil.which("nvidia-smi") or "nvidia-smi", "-L"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
        ).stdout.decode(errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return printed if "GPU " in printed else ""


def _hidden(listed: str) -> bool:
    """Whether CUDA_VISIBLE_DEVICES leaves none of the GPUs that nvidia-smi lists."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return False
    first = visible.split(",")[0].strip()  # at the first that is not there, CUDA reads no further
    if first.isdigit():
        return int(first) >= len(re.findall("(?m)^GPU ", listed))
    return not first.startswith(("GPU-", "MIG-")) or first not in listed


def _reason_in_the_log() -> str:
    """Start TensorFlow once more, with its log on, and quote what that says of the GPU."""
    script = "import tensorflow as tf; print(len(tf.config.list_physical_devices('GPU')))"
    # The second names the libraries that cannot be opened, which the log leaves out otherwise.
    log_on = {
        "TF_CPP_MIN_LOG_LEVEL": "0",
        "TF_CPP_VMODULE": "dso_loader=1,cuda_diagnostics=1",
    }
    try:
        asked = subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | log_on,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
        )
    except subprocess.TimeoutExpired:
        return "TensorFlow does not get so far as to look for it: a new process hung for 120 s."
    if asked.stdout.strip() not in (b"", b"0"):
        return (
            "this process does not see it, while a new one does: start Python again (in a "
            "notebook, restart the kernel)."
        )
    lines = re.findall(
        r"\] (.*(?:dlerror|cuInit|dlopen|CUDA_ERROR|drivers? ).*)",
        asked.stderr.decode(errors="replace"),
    )
    quoted = [f"\n  {line[:300]}" for line in dict.fromkeys(lines) if "nvinfer" not in line][:6]
    says = "Its log says:" + "".join(quoted) + "\n" if quoted else "Its log does not say why. "
    return (
        f"TensorFlow cannot use it. {says}Check that the NVIDIA driver is recent, and "
        f"{_INSTALL_CUDA}. A container must be given the GPU, as by docker run --gpus all."
    )


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
