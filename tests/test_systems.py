"""The module on systems other than Linux, whose missing functions are missing here, too."""

import os
import subprocess
import sys

import nbformat
import numpy as np
import psutil
import pytest
from conftest import ROOT
from servers import IMPORT_SOURCES, send, serving

from tpcnn import child_process, sources

# Of what Linux has, native Windows lacks all of this, and macOS the last three. What tpcnn imports
# and opens is refused to tpcnn alone: the libraries around it know on which system they are.
AS_ON_WINDOWS = f"""
import builtins, os, pathlib, signal, subprocess, sys

subprocess.Popen.kill = subprocess.Popen.terminate
for name in ("killpg", "fchmod", "fchown", "fork", "setsid", "getpgid", "O_DIRECTORY", "mkfifo",
             "pread", "sched_getaffinity", "posix_fallocate", "pipe2"):
    delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGXFSZ", "SIGALRM", "setitimer"):
    delattr(signal, name)

def of_ours(frame):
    return frame.f_code.co_filename.startswith({str(ROOT / "tpcnn")!r})

def import_(name, *arguments, importer=builtins.__import__, **options):
    if name in ("resource", "fcntl", "pwd", "grp", "termios") and of_ours(sys._getframe(1)):
        raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
    return importer(name, *arguments, **options)

def no_proc(event, arguments):
    if event == "open" and str(arguments[0]).startswith("/proc"):
        frame = sys._getframe(1)
        while frame is not None and not of_ours(frame):
            frame = frame.f_back if frame.f_code.co_filename == pathlib.__file__ else None
        if frame is not None:
            raise FileNotFoundError(2, "No such file or directory", arguments[0])

exists = pathlib.Path.exists
pathlib.Path.exists = lambda path: not str(path).startswith("/proc") and exists(path)
builtins.__import__ = import_
sys.addaudithook(no_proc)
"""


def run_as_on_windows(script, *arguments, **environment):
    ended = subprocess.run(
        [sys.executable, "-c", AS_ON_WINDOWS + script, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    file = tmp_path_factory.mktemp("npz") / "mnist.npz"
    np.savez_compressed(file, **sources.load("mnist"))
    return file.read_bytes()


def test_data_training_and_checks_need_nothing_that_only_linux_has(tmp_path, npz):
    with serving(lambda handler: send(handler, npz)) as address:
        script = f"""
import tpcnn
from tpcnn import sources
sources.KERAS_HOST = {address!r}
raw = tpcnn.load_mnist(raw=True)
sources.KERAS_HOST = None
mnist = tpcnn.load_mnist()
print(tpcnn.describe_device())
import keras
loss, adam = keras.losses.SparseCategoricalCrossentropy(), keras.optimizers.Adam()
trainer = tpcnn.Trainer(tpcnn.build_fc(), loss, adam)
few = mnist.x_val[:500], mnist.y_val[:500]
trainer.fit(*few, *few, 1)
trainer.plot_history()
tpcnn.checks.data(mnist.x_train, mnist.y_train, mnist.x_val, mnist.y_val, mnist.x_test,
                  mnist.y_test, raw)
"""
        printed = run_as_on_windows(script, TPCNN_CACHE=str(tmp_path), MPLBACKEND="agg")
    assert printed.startswith("CPU: ") or printed.startswith("GPU: ")
    assert "Epoch 1/1 - loss: " in printed
    assert "Right: MNIST, 50000 training" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["mnist.npz"]


def test_a_submission_is_executed_where_there_are_no_limits_and_signals(tmp_path):
    (rerun,) = (ROOT / "tpcnn").rglob("rerun.py")
    module = ".".join(rerun.relative_to(ROOT).with_suffix("").parts)
    source, folder = tmp_path / "été.ipynb", tmp_path / "folder"
    folder.mkdir()
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print('é' * 3)")])
    nbformat.write(notebook, source)
    script = f"""
from pathlib import Path
from {module} import rerun
_, ended = rerun(Path(sys.argv[1]), Path(sys.argv[2]), 60, 4)
print(ended)
"""
    assert run_as_on_windows(script, source, folder).startswith("ran in ")

    alone = f"import runpy; runpy.run_path({str(rerun)!r}, run_name='__main__')"
    target = tmp_path / "executed.ipynb"
    # It ends with the status 0 of an execution without errors.
    run_as_on_windows(alone, source, target)
    assert nbformat.read(target, as_version=4).cells[0].outputs[0].text == "ééé\n"


def test_a_client_and_its_children_end_by_taskkill_where_there_are_no_process_groups(tmp_path):
    taskkill, pid = tmp_path / "taskkill", tmp_path / "pid"
    # The options that Windows' own takes; a group of processes is a tree of them there.
    taskkill.write_text('#!/bin/sh\n[ "$1 $2 $3" = "/F /T /PID" ] && kill -9 -"$4"\n')
    taskkill.chmod(0o755)
    script = f"import runpy; runpy.run_path({child_process.__file__!r}, run_name='__main__')"
    (tmp_path / "folder").mkdir()
    command = ["sh", "-c", f"sleep 1000 & echo $! >{pid}.part; mv {pid}.part {pid}; wait"]
    process = subprocess.Popen(
        [sys.executable, "-c", AS_ON_WINDOWS + script, tmp_path / "folder", *command],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        stdin=subprocess.PIPE,
    )
    while not pid.exists():
        assert process.poll() is None
    child = psutil.Process(int(pid.read_text()))
    process.stdin.close()
    process.wait(20)
    psutil.wait_procs([child], timeout=20)
    assert not child.is_running()
    assert not (tmp_path / "folder").exists()


def test_a_download_by_a_client_needs_nothing_that_only_linux_has(tmp_path):
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho package >data-1.tgz\n")
    npm.chmod(0o755)
    script = IMPORT_SOURCES + "print(downloads.fetch_from_npm('data', 1000))"
    path = f"{tmp_path}:{os.environ['PATH']}"
    assert run_as_on_windows(script, PATH=path) == "b'package\\n'\n"
