"""`python -m tpcnn` makes ready what the chapters need: the device and the data."""

import os
import sys

from tpcnn import device, sources

try:
    wanted = os.environ.get("TPCNN_REQUIRE_GPU") == "1"
    print(
        "Building on",
        device.require_gpu() if wanted else device.describe_device(),
        flush=True,
    )
    for name in sources.CHECKSUMS:
        sources.load(name)
except RuntimeError as error:
    sys.exit(f"Error: {error}")
