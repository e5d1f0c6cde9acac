"""The pages of the book, as _toc.yml lists them."""

from pathlib import Path

from sphinx_external_toc.parsing import parse_toc_yaml

ROOT = Path(__file__).resolve().parents[2]


def pages() -> list[str]:
    """Return the names of all pages, in the order of the book."""
    return list(parse_toc_yaml(ROOT / "_toc.yml"))
