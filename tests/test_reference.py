"""The page Reference: the map of the module, and what is public."""

import re

from conftest import ROOT, source

import tpcnn

PAGE = source("reference")


def test_the_map_names_each_module_and_no_other():
    named = re.findall(r"(?m)^\| `(\w+)` ", PAGE)
    names = {path.stem for path in (ROOT / "tpcnn").glob("*.py")} | {"checks"}
    assert sorted(named) == sorted(name for name in names if not name.startswith("__"))


def test_what_the_module_exports_is_described():
    described = re.findall(r"(?m)^\.\. auto\w+:: ([\w.]+)", PAGE)
    for module in (tpcnn, tpcnn.checks):
        for name in module.__all__:
            if callable(getattr(module, name)):
                assert f"{module.__name__}.{name}" in described
