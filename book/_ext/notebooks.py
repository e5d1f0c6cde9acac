"""Notebooks of the chapters for Colab, and the buttons that lead to them.

The builder ``jupyter`` of sphinx-tojupyter writes the notebooks. This extension prepares the
chapters for it: it gives figures their captions, and keeps code that is shown, and not run, out of
the code cells. book/_programs/plain_notebooks.py does the rest.
"""

from docutils import nodes
from repository import ROOT, colab_url
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import ReferenceRole


def has_notebook(name: str) -> bool:
    """Whether a page is published as a notebook too: it runs code, not for its own build's sake."""
    source = ROOT / "book" / f"{name}.md"
    return name != "status" and source.exists() and "```{code-cell}" in source.read_text()


class PrepareForNotebook(SphinxPostTransform):
    """Put what sphinx-tojupyter would drop or run into forms that it writes as Markdown."""

    builders = ("jupyter",)
    default_priority = 900  # when references and outputs are resolved

    def run(self, **kwargs):
        for figure in list(self.document.findall(nodes.figure)):
            self.caption_below(figure)
        for block in self.document.findall(nodes.literal_block):
            if not within(block, "cell_input"):
                block["classes"].append("no-execute")
        for items in list(self.document.findall(nodes.definition_list)):
            items.replace_self(list(paragraphs(items)))

    def caption_below(self, figure):
        cell = within(figure, "cell")
        caption = figure.next_node(nodes.caption)
        if cell is None or caption is None:
            return
        numbers = self.env.toc_fignumbers.get(self.env.docname, {}).get("figure", {})
        number = next((numbers[name] for name in figure["ids"] if name in numbers), ())
        text = nodes.paragraph("", "", nodes.strong(text=f"Fig. {'.'.join(map(str, number))}"))
        text += [nodes.Text(" "), *(child.deepcopy() for child in caption.children)]
        cell.parent.insert(cell.parent.index(cell) + 1, text)


class Notebook(ReferenceRole):
    """``{notebook}`text <name>` `` opens a published notebook that is no page's own in Colab."""

    def run(self):
        return [nodes.reference("", self.title, refuri=colab_url(self.target))], []


def within(node, name):
    """Return the innermost element of class `name` around a node."""
    while node := node.parent:
        if isinstance(node, nodes.container) and name in node["classes"]:
            return node
    return None


def paragraphs(items):
    """Yield a definition list as paragraphs; Markdown has no such lists."""
    for item in items.findall(nodes.definition_list_item):
        first, *others = item.next_node(nodes.definition).children
        paragraph = nodes.paragraph("", "", nodes.strong(text=item.next_node(nodes.term).astext()))
        paragraph += [nodes.Text(": "), *first.children]
        yield paragraph
        yield from others


def add_buttons(app, pagename, templatename, context, doctree):
    if not has_notebook(pagename):
        return
    colab = {
        "type": "link",
        "text": "Colab",
        "tooltip": "Open this chapter in Google Colab",
        "icon": "fas fa-rocket",
        "url": colab_url(pagename),
        "label": "colab-button",
    }
    context["header_buttons"].insert(0, colab)
    download = {
        "type": "link",
        "text": ".ipynb",
        "tooltip": "Download this chapter as a notebook",
        "icon": "fas fa-code",
        "url": context["pathto"](f"notebooks/{pagename}.ipynb", 1),
        "label": "download-notebook-button",
    }
    buttons = [download]
    if pagename == "lab":
        solved = {
            "text": "Solved .ipynb",
            "tooltip": "Download the lab with its solutions, as the source for nbgrader",
            "url": context["pathto"]("notebooks/lab_solved.ipynb", 1),
            "label": "download-solved-notebook-button",
        }
        buttons.append(download | solved)
    for group in context["header_buttons"]:
        if group.get("label") == "download-buttons":
            group["buttons"][:0] = buttons


def setup(app):
    app.add_role("notebook", Notebook())
    app.add_post_transform(PrepareForNotebook)
    app.connect("html-page-context", add_buttons, priority=900)  # after the theme's own buttons
    return {"parallel_read_safe": True, "parallel_write_safe": True}
