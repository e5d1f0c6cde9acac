"""Print how the text of a book's pages differs from that of another build of it.

python changed_pages.py OLD NEW, two folders of HTML; the exit status is 1 where they differ.
Numbers, which move a little from build to build, do not count: the results are compared with
expected_results.toml. Nor do the name of the device, and the status page, which is about its own
build.
"""

import difflib
import re
import sys
from pathlib import Path

from bs4 import BeautifulSoup

NUMBER = re.compile("[-+\N{MINUS SIGN}]?" r"\d+(?:[.,]\d+)*(?:e[-+]?\d+)?")
DEVICE = re.compile(r"\b(?:CPU|GPU): [^\n]*")


def texts(folder: Path) -> dict[str, list[str]]:
    """Return the lines of text of each page's article, with every number as #."""
    pages = {}
    for path in sorted(folder.glob("*.html")):
        article = BeautifulSoup(path.read_text(), "html.parser").find("article")
        if article and path.name != "status.html":
            text = NUMBER.sub("#", DEVICE.sub("device", article.get_text("\n")))
            pages[path.name] = [line.strip() for line in text.splitlines() if line.strip()]
    return pages


def differences(old: Path, new: Path) -> list[str]:
    """Return the lines of a unified diff from the pages in `old` to those in `new`."""
    before, after = texts(old), texts(new)
    return [
        line
        for name in sorted(before | after)
        for line in difflib.unified_diff(
            before.get(name, []), after.get(name, []), name, name, n=0, lineterm=""
        )
    ]


if __name__ == "__main__":
    found = differences(*map(Path, sys.argv[1:]))
    print("\n".join(found) or "No page changed.")
    sys.exit(1 if found else 0)
