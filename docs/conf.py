"""What Sphinx is to know: make docs.

The pages are plain reStructuredText with plain relative links, so that they can be read in the
repository as well. The folder above is the root of the sources; the README is the first page.
"""

import posixpath

from docutils import nodes
from sphinx.util import logging

project = "manhole"
root_doc = "README"
PAGES = """docs/install docs/options docs/client docs/commands docs/tcp docs/probes docs/recipes docs/security
    docs/internals docs/migrating docs/benchmarks CONTRIBUTING CHANGELOG""".split()
include_patterns = [page + ".rst" for page in [root_doc, *PAGES]]
html_title = "manhole"
html_copy_source = False
html_show_copyright = False
html_theme_options = {"page_width": "1100px", "sidebar_width": "220px"}
smartquotes = False

logger = logging.getLogger(__name__)


def add_contents(app, docname, source):
    """The sidebar's list of pages: Sphinx's own directive, which a forge would not know."""
    if docname == root_doc:
        source[0] += "\n\n.. toctree::\n   :hidden:\n\n" + "".join(f"   {page}\n" for page in PAGES)


def resolve_links(app, doctree, docname):
    """Make of "docs/options.rst#anchor" a link to the page that is built, and see that it is there."""
    for link in doctree.findall(nodes.reference):
        path, _, anchor = link.get("refuri", "").partition("#")
        if not path.endswith(".rst") or "://" in path:
            continue
        page = posixpath.normpath(posixpath.join(posixpath.dirname(docname), path))[: -len(".rst")]
        if page not in app.env.found_docs:
            logger.warning("no page %s", path, location=link)
        elif anchor and anchor not in app.env.get_doctree(page).ids:
            logger.warning("no section %s in %s", anchor, path, location=link)
        else:
            uri = app.builder.get_relative_uri(docname, page)
            link["refuri"] = uri + ("#" + anchor if anchor else "")


def setup(app):
    app.connect("source-read", add_contents)
    app.connect("doctree-resolved", resolve_links)
