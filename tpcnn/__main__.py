"""`python -m tpcnn` makes ready what the chapters need: the device and the data."""

import os
import sys

from tpcnn import device, sources

try:
    wanted = os.environ.get("TPCNN_REQUIRE_GPU", "0") not in ("", "0")
    if sys.argv[1:] == ["--has-gpu"] and not device.gpu_names():
        print("Warning: nvidia-smi lists a GPU, but TensorFlow cannot use it.", file=sys.stderr)
    print(
        "Building on",
        device.require_gpu() if wanted else device.describe_device(),
        flush=True,
    )
    for name in sources.CHECKSUMS:
        sources.load(name)
except RuntimeError as error:
    sys.exit(f"Error: {error}")
