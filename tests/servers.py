"""Servers of this machine, which stand for hosts, registries and proxies; what goes with them."""

import contextlib
import http.server
import os
import shutil
import threading

import pytest
from conftest import ROOT

WEB_PAGE = b"\n<!DOCTYPE html><html><body>Please log in.</body></html>"
NOBODY = "http://127.0.0.1:9/"  # a port at which nobody listens
# `tpcnn` without TensorFlow, which takes seconds to import and which downloads do not need.
IMPORT_SOURCES = (
    "import sys, types; sys.modules['tpcnn'] = package = types.ModuleType('tpcnn')\n"
    f"package.__path__ = [{str(ROOT / 'tpcnn')!r}]; from tpcnn import downloads, sources\n"
)


def need(program):
    """Skip a test where a program is missing, but not in CI."""
    if not shutil.which(program):
        if os.environ.get("CI"):
            pytest.fail(f"CI must have {program}")
        # Elsewhere a contributor without it can still run all other tests, as README says.
        pytest.skip(f"{program} is not installed here")


@contextlib.contextmanager
def serving(answer):
    """Run a server and yield its address; `answer` writes what a request receives."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            with contextlib.suppress(ConnectionError):  # the other end has given up
                answer(self)

        do_CONNECT = do_GET

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def silent():
    """Run a server that never answers; yield its address and the event that it was asked."""
    asked, release = threading.Event(), threading.Event()

    def wait(handler):
        asked.set()
        release.wait()

    with serving(wait) as address:
        yield address, asked
        release.set()


def send(handler, content, status=200, kind="application/octet-stream", length=None):
    """Answer a request; `length` is what is promised, if not that of the content."""
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(content) if length is None else length))
    handler.end_headers()
    handler.wfile.write(content)


def send_web_page(handler):
    """Answer as a login page does that stands before the network."""
    send(handler, WEB_PAGE, kind="text/html; charset=utf-8")
