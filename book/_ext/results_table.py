"""The directive ``results-table``: what every chapter glued as its results, in one table.

It also writes them to _build/results.json, which the tests compare with the expected results.
"""

import ast
import json
from pathlib import Path

from docutils import nodes
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.util.docutils import SphinxDirective

# The glued key of each column, its title and how its value is shown.
COLUMNS = {
    "test_accuracy": ("Test accuracy", "{:.2%}"),
    "required_accuracy": ("Required", "{:.0%}"),
    "parameters": ("Parameters", "{:,}"),
    "epochs": ("Epochs", "{}"),
    "seconds": ("Training time (s)", "{:.0f}"),
    "images_per_second": ("Images per second", "{:,.0f}"),
    "device": ("Device", "{}"),
}


class results_table(nodes.General, nodes.Element):
    """Stands for the table until every chapter has been executed."""


class ResultsTable(SphinxDirective):
    def run(self):
        return [results_table()]


def collect(env) -> dict[str, dict]:
    """Return the results of each chapter that glued any, in the order of the table of contents."""
    results = {}
    executed = Path(env.app.outdir).parent / "jupyter_execute"
    for docname in env.toctree_includes.get(env.config.root_doc, []):
        if not NbMetadataCollector.get_doc_data(env)[docname].get("glue"):
            continue
        glued = json.loads((executed / f"{docname}.glue.json").read_text())
        values = {
            key: ast.literal_eval(glued[key]["data"]["text/plain"])
            for key in COLUMNS
            if key in glued
        }
        if "test_accuracy" in values:
            results[docname] = values
    return results


def write_results(app, env):
    path = Path(app.outdir).parent / "results.json"
    path.write_text(json.dumps(collect(env), indent=2) + "\n")
    return [app.config.root_doc]  # the page with the table is written anew in each build


def fill(app, doctree, docname):
    for placeholder in doctree.findall(results_table):
        rows = []
        for chapter, values in collect(app.env).items():
            uri = app.builder.get_relative_uri(docname, chapter)
            title = app.env.titles[chapter].astext()
            link = nodes.reference("", title, internal=True, refuri=uri)
            rows.append([link, *(form.format(values[key]) for key, (_, form) in COLUMNS.items())])
        titles = ["Chapter", *(title for title, _ in COLUMNS.values())]
        placeholder.replace_self(make_table(titles, rows))


def make_table(titles: list[str], rows: list[list]) -> nodes.table:
    """Return a table; a cell is a text or a node."""
    table = nodes.table(classes=["results"])
    group = nodes.tgroup(cols=len(titles))
    group += [nodes.colspec(colwidth=1) for _ in titles]
    group += [nodes.thead("", _row(titles)), nodes.tbody("", *map(_row, rows))]
    table += group
    return table


def _row(cells) -> nodes.row:
    row = nodes.row()
    for cell in cells:
        content = nodes.Text(cell) if isinstance(cell, str) else cell
        row += nodes.entry("", nodes.paragraph("", "", content))
    return row


def setup(app):
    app.add_node(results_table)
    app.add_directive("results-table", ResultsTable)
    app.connect("env-updated", write_results)
    app.connect("doctree-resolved", fill)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
