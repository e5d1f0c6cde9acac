"""Run a command that ends, with all that it has started, when the standard input of this closes.

`downloads` starts this file as a program and holds that input open: the system closes it when our
process ends, however it ends. That needs no more than the standard library, on every system.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading


def main(folder: str, command: list[str]) -> int:
    """Run `command` and return its status; remove `folder` if it has to be ended."""
    client = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def end_with_parent():
        os.read(0, 1)
        closed.set()
        kill(client)
        client.wait()
        shutil.rmtree(folder, ignore_errors=True)

    closed = threading.Event()
    thread = threading.Thread(target=end_with_parent, daemon=True)
    thread.start()
    status = client.wait()
    if closed.is_set():
        thread.join()
    return abs(status)  # a signal has a negative number, which no process can return


def kill(client: subprocess.Popen) -> None:
    """End a process that leads a session, and its children."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(OSError):  # they have ended
            os.killpg(client.pid, signal.SIGKILL)
    else:  # on Windows, where npm is a batch file that starts a program
        subprocess.call(
            ["taskkill", "/F", "/T", "/PID", str(client.pid)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
