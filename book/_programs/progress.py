"""Reduce the log of a build to what a person waits for: which chapter, how long, what is wrong.

It reads the log from standard input and writes all of it to _build/build.log.
"""

import re
import sys
from pathlib import Path

DONE = re.compile(r"([^/\s]+)\.md: Executed notebook in ([\d.]+) seconds")
STARTED = re.compile(r"([^/\s]+)\.md: Executing notebook")
CACHED = re.compile(r"([^/\s]+)\.md: Using cached notebook")
# TensorFlow's, which the page Reference imports with the module.
STARTING = re.compile(r"absl::InitializeLog|^I\d{4} ")
COLOR = re.compile(r"\x1b\[[\d;]*m")

sys.stdin.reconfigure(encoding="utf-8", errors="replace")
with open(Path("_build/build.log"), "w", encoding="utf-8") as log:
    for line in sys.stdin:
        line = COLOR.sub("", line)
        log.write(line)
        log.flush()
        if match := STARTED.search(line):
            print(f"  {match[1]} ...", flush=True)
        elif match := DONE.search(line):
            print(f"  {match[1]} executed in {float(match[2]):.0f} s", flush=True)
        elif match := CACHED.search(line):
            print(f"  {match[1]} unchanged since it was executed", flush=True)
        elif line.startswith(("[IPKernelApp]", "myst")) or STARTING.search(line):
            continue
        elif re.search(r"warning|error|traceback", line, re.IGNORECASE):
            print(line.rstrip(), flush=True)
