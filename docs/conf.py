"""How Sphinx makes the site: `make docs`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive

import stockade

sys.path.insert(0, str(Path(__file__).parent))
os.environ["COLUMNS"] = "80"

project = "Stockade"
author = "The Stockade authors"
copyright = author  # noqa: A001 - Sphinx's word
release = version = stockade.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]
# `make docs` turns warnings into errors: a link that leads nowhere, or a name that is not there, fails the build.
suppress_warnings: list[str] = []

html_theme = "furo"
html_title = "Stockade"
html_copy_source = False
html_show_sourcelink = False
pygments_style = "friendly"
pygments_dark_style = "monokai"

# Docstrings are Google's style with Markdown's backticks: a name between them is a link where it is one of ours.
default_role = "py:obj"
napoleon_google_docstring = True
napoleon_use_ivar = True
napoleon_use_rtype = False
autoclass_content = "class"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False


class CommandHelp(Directive):
    """`{command-help} run`: what `stockade run --help` prints."""

    optional_arguments = 3
    final_argument_whitespace = False

    def run(self) -> list[nodes.Node]:
        """Asks the command itself."""
        from click import Context, Group

        from stockade.cli import stockade as command

        context = Context(command, info_name="stockade", max_content_width=88, terminal_width=88)
        for name in self.arguments:
            assert isinstance(context.command, Group)
            found = context.command.commands[name]
            context = Context(found, parent=context, info_name=name, max_content_width=88, terminal_width=88)
        return [nodes.literal_block(text=context.get_help(), language="text")]


def setup(app: object) -> None:
    """Adds what is ours to Sphinx."""
    app.add_directive("command-help", CommandHelp)  # type: ignore[attr-defined]
