"""`python -m tpcnn` makes ready what the chapters need: the device and the data."""

import os
import sys
from pathlib import Path

from tpcnn import device, sources

# The rest of the build reads here whether it is on a GPU, since TensorFlow takes seconds to say so.
KIND = Path("_build", "device")


def write_kind() -> None:
    """Write "gpu" or "cpu" into a file of this folder, in one step."""
    KIND.parent.mkdir(exist_ok=True)
    part = KIND.with_name(f"device.{os.getpid()}.part")
    part.write_text(device.kind(), encoding="utf-8")
    os.replace(part, KIND)


try:
    if os.environ.get("TPCNN_REQUIRE_GPU", "0") not in ("", "0"):
        found = device.require_gpu()
    else:
        found = device.describe_device()
        if sys.argv[1:] == ["--has-gpu"] and device.kind() == "cpu":
            print(f"Warning: {device.why_no_gpu()}", file=sys.stderr)
    print("Building on", found, flush=True)
    write_kind()
    for name in sources.CHECKSUMS:
        sources.load(name)
except (RuntimeError, OSError) as error:
    sys.exit(f"Error: {error}")
