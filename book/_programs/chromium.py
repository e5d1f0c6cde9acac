"""The Chromium of this machine. As a program: print where it is, or fail."""

import shutil
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def installed() -> str | None:
    """Return the path of Chromium, or nothing: Playwright then starts its own, if it has one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def launch(playwright):
    """Start Chromium.

    Raises:
        playwright.sync_api.Error: there is none, or it does not start.
    """
    return playwright.chromium.launch(executable_path=installed(), args=["--no-sandbox"])


if __name__ == "__main__":
    print(installed() or sys.exit(1))
