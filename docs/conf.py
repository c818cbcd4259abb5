"""How Sphinx builds these pages; `scripts/docs` runs it."""

import re

import sitq

project = "sitq"
author = "The sitq authors"
copyright = "The sitq authors"  # noqa: A001 (Sphinx's name)
release = version = sitq.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "sitq"
html_copy_source = False

myst_heading_anchors = 3
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
default_role = "code"  # docstrings write `name` for code, as Markdown does

_INDENTED = re.compile(r"^ {4,}\S")


def mark_literals(_app, _what, _name, _object, _options, lines):
    """Show indented passages of docstrings as they are: code, and the tree of exceptions."""
    marked, was_literal = [], False
    for line in lines:
        is_literal = bool(_INDENTED.match(line)) or (was_literal and not line.strip())
        if is_literal and not was_literal:
            marked += [".. code-block:: text", ""]
        if was_literal and not is_literal and marked[-1].strip():
            marked.append("")
        marked.append(line)
        was_literal = is_literal
    lines[:] = marked


def setup(app):
    """Hook into autodoc."""
    app.connect("autodoc-process-docstring", mark_literals)
