"""Execute one submitted notebook, in processes of its own, with limits on time and memory.

This is no sandbox: the code runs as the user who calls it, and can read and write what that user
can. README.md says how to run it in a container.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

try:
    import resource
except ImportError:  # on Windows, which knows no such limits
    resource = None

PAUSE = 0.2  # seconds between two looks at the memory
LARGEST_FILE = 2**30  # bytes that a process may write into one file
# What a notebook's process sees of the environment: no keys, no tokens.
HANDED_DOWN = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
HANDED_DOWN += ("COMSPEC", "PATHEXT", "SYSTEMROOT")  # without which Windows starts no kernel
HANDED_DOWN_FAMILIES = ("CUDA", "NVIDIA", "TF_", "XLA_", "OMP_")


def rerun(source: Path, folder: Path, seconds: float, gigabytes: float) -> tuple[Path, str]:
    """Execute a notebook from top to bottom, beyond its errors, up to a limit.

    Args:
        source: the notebook; it is not changed.
        folder: an empty folder, which the notebook may fill.
        seconds: how long it may take.
        gigabytes: how much main memory all its processes may use together.

    Returns:
        The path of the executed notebook, and how it ended: ``ran in ... s``, or why it did not.
    """
    from tpcnn import sources  # here: the process below has no need of TensorFlow

    target = folder / "executed" / source.name
    target.parent.mkdir()
    (folder / "work").mkdir()
    environment = {
        name: value
        for name, value in os.environ.items()
        if name in HANDED_DOWN or name.startswith(HANDED_DOWN_FAMILIES)
    }
    work = str(folder / "work")
    environment |= dict.fromkeys(("HOME", "USERPROFILE", "TMPDIR", "TEMP", "TMP"), work)
    environment |= {
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYTHONPATH": str(Path(sources.__file__).parents[1]),  # where tpcnn is
        "TPCNN_CACHE": str(sources.cache_folder()),
    }
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-P", __file__, source.resolve(), target],
        cwd=folder / "work",
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    seen = {}
    try:
        ended = None
        while process.poll() is None and ended is None:
            seen |= family(process.pid)
            if time.monotonic() - start > seconds:
                ended = f"stopped: took more than {seconds:g} s"
            elif memory(seen) > gigabytes * 1e9:
                ended = f"stopped: used more than {gigabytes:g} GB of memory"
            else:
                time.sleep(PAUSE)
    finally:
        kill(process, seen)
    if ended is None:
        took = f"{time.monotonic() - start:.0f} s"
        ended = {
            0: f"ran in {took}",
            1: f"ran, with errors, in {took}",
            2: f"stopped: its kernel died after {took}",
        }.get(process.returncode, "its process ended: too large an output, or killed from within")
    return target, ended


def family(pid: int) -> dict:
    """Return a process and all that descend from it, by number."""
    import psutil

    try:
        first = psutil.Process(pid)
        return {process.pid: process for process in [first, *first.children(recursive=True)]}
    except psutil.Error:
        return {}


def memory(processes: dict) -> int:
    """Return the main memory that processes use together, in bytes."""
    import psutil

    total = 0
    for process in processes.values():
        try:
            total += process.memory_info().rss if process.is_running() else 0
        except psutil.Error:
            continue
    return total


def kill(process: subprocess.Popen, seen: dict) -> None:
    """End a process and every descendant that was ever seen, and theirs."""
    import psutil

    for member in [*seen.values(), *family(process.pid).values()]:
        for descendant in [*family(member.pid).values()] if member.is_running() else []:
            try:
                descendant.kill()
            except psutil.Error:
                continue
    process.kill()
    process.wait()


def execute(source: Path, target: Path) -> int:
    """Execute a notebook and write it with its results; return an exit status.

    0: all went well; 1: with errors; 2: the kernel died.

    It goes on after an error, as a student does: one check that fails must not hide the others.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import DeadKernelError

    notebook = nbformat.read(source, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    try:
        # Whatever kernel the notebook names: it is a lesson in Python.
        NotebookClient(notebook, timeout=None, kernel_name="python3", allow_errors=True).execute()
    except DeadKernelError:
        return 2
    finally:
        nbformat.write(notebook, target)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return int(any(output.output_type == "error" for output in outputs))


def limit(what: int, most: int) -> None:
    """Limit a resource of this process and those that it starts, unless it is limited to less."""
    hard = resource.getrlimit(what)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, most))


if __name__ == "__main__":
    if resource:
        limit(resource.RLIMIT_FSIZE, LARGEST_FILE)
        limit(resource.RLIMIT_CORE, 0)
    sys.exit(execute(Path(sys.argv[1]), Path(sys.argv[2])))
