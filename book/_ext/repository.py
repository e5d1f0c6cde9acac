"""Which GitHub repository the pages and the notebooks point to.

_config.yml names it. A fork's build points to the fork: to GITHUB_REPOSITORY, which GitHub's CI
sets, else to the clone's remote on GitHub.
"""

import os
import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import yaml

ROOT = Path(__file__).resolve().parents[2]
ON_GITHUB = re.compile(r"github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?/?$")


def git(*arguments: str) -> str:
    """Return what git prints, or nothing where there is no git or no repository."""
    try:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def repository() -> str:
    """Return ``OWNER/REPO``."""
    if name := os.environ.get("GITHUB_REPOSITORY"):
        return name
    if match := ON_GITHUB.search(git("remote", "get-url", "origin")):
        return match[1]
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    return ON_GITHUB.search(config["repository"]["url"])[1]


def pages_url() -> str:
    """Return where GitHub publishes the pages, with a slash at the end."""
    owner, name = repository().split("/")
    return f"https://{owner.lower()}.github.io/{name}/"


def colab_url(chapter: str) -> str:
    """Return the address that opens a chapter's published notebook in Colab."""
    path = f"{repository()}/blob/gh-pages/notebooks/{chapter}.ipynb"
    return f"https://colab.research.google.com/github/{path}"


def point_there(app, config):
    url = f"https://github.com/{repository()}"
    config.html_theme_options["repository_url"] = url
    config.html_baseurl = config.ogp_site_url = pages_url()
    # The page for addresses that do not exist may be shown anywhere below the book's own.
    config.notfound_urls_prefix = urlsplit(pages_url()).path


def setup(app):
    # Before the theme takes the address from its options.
    app.connect("config-inited", point_there, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
