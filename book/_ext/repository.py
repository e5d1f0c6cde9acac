"""Which GitHub repository the pages and the notebooks point to.

It is GITHUB_REPOSITORY, which GitHub's CI sets, else the clone's remote on GitHub, so that a fork's
build points to the fork; else the one that _config.yml names.
"""

import os
import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from sphinx.util import logging

ROOT = Path(__file__).resolve().parents[2]
ON_GITHUB = re.compile(r"github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?/?$")
PLACEHOLDER = "OWNER/REPO"
logger = logging.getLogger(__name__)


def git(*arguments: str) -> str:
    """Return what git prints, or nothing where there is no git or no repository."""
    # Not those of a repository around this folder.
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(ROOT.parent)}
    try:
        return subprocess.run(
            ["git", *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
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


def warn_of_placeholder(app):
    """Say that links lead nowhere; no warning of Sphinx's, which would fail the build."""
    if app.builder.format == "html" and repository() == PLACEHOLDER:
        logger.info(
            f"Warning: links to the sources and to Colab lead to github.com/{PLACEHOLDER}, which "
            "is no repository: add yours as the remote (git remote add origin "
            "https://github.com/NAME/REPOSITORY.git), or name it in _config.yml (repository: url)."
        )


def setup(app):
    app.connect("builder-inited", warn_of_placeholder)
    # Before the theme takes the address from its options.
    app.connect("config-inited", point_there, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
