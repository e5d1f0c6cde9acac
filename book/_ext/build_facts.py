"""The directives of the status page, which no cell could fill.

``build-facts`` says which commit these pages were built from, and when; ``execution-times`` how
long the execution of each chapter took. A cell is executed once and then served from the cache, in
later builds too, and knows of no other chapter.
"""

from datetime import UTC, datetime

from docutils import nodes
from myst_nb.sphinx_ import NbMetadataCollector
from repository import git
from results_table import make_table
from sphinx.util.docutils import SphinxDirective


class build_facts(nodes.General, nodes.Element):
    """Stands for the facts, which change with each build."""


class execution_times(nodes.General, nodes.Element):
    """Stands for the table until every chapter has been executed."""


class BuildFacts(SphinxDirective):
    def run(self):
        self.env.metadata[self.env.docname]["has_build_facts"] = True
        return [build_facts()]


class ExecutionTimes(SphinxDirective):
    def run(self):
        return [execution_times()]


def describe_commit() -> str:
    commit = git("log", "-1", "--format=%H, of %cs")
    if not commit:
        return "unknown, since these sources are no git repository"
    return commit + (
        ", with changes that are not committed" if git("status", "--porcelain") else ""
    )


def facts_list() -> nodes.definition_list:
    facts = {
        "Commit": describe_commit(),
        "Built": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    items = nodes.definition_list()
    for term, fact in facts.items():
        text = nodes.definition("", nodes.paragraph(text=fact))
        items += nodes.definition_list_item("", nodes.term(text=term), text)
    return items


def times_table(app, docname) -> nodes.table:
    rows, total = [], 0
    for name in app.env.toctree_includes.get(app.config.root_doc, []):
        executed = NbMetadataCollector.get_doc_data(app.env)[name].get("exec_data")
        if executed and executed["runtime"] is not None:
            uri = app.builder.get_relative_uri(docname, name)
            title = app.env.titles[name].astext()
            link = nodes.reference("", title, internal=True, refuri=uri)
            rows.append([link, f"{executed['runtime']:.0f}"])
            total += executed["runtime"]
    return make_table(["Chapter", "Execution time (s)"], [*rows, ["All", f"{total:.0f}"]])


def fill(app, doctree, docname):
    for placeholder in doctree.findall(build_facts):
        placeholder.replace_self(facts_list())
    for placeholder in doctree.findall(execution_times):
        placeholder.replace_self(times_table(app, docname))


def pages_with_facts(app, env):
    """Have them written anew in each build."""
    return [name for name, data in env.metadata.items() if data.get("has_build_facts")]


def setup(app):
    app.add_node(build_facts)
    app.add_node(execution_times)
    app.add_directive("build-facts", BuildFacts)
    app.add_directive("execution-times", ExecutionTimes)
    app.connect("env-updated", pages_with_facts)
    app.connect("doctree-resolved", fill)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
