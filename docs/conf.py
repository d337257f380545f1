"""How Sphinx makes the site: `make docs`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec
from docutils import nodes
from docutils.parsers.rst import Directive

import stockade
import stockade.host
import stockade.policy
import stockade.report

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "Stockade"
author = "The Stockade authors"
copyright = author  # noqa: A001 - Sphinx's word
release = version = stockade.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]
# `make docs` turns warnings into errors: a link that leads nowhere, or a name that is not there, fails the build.

html_theme = "furo"
html_title = "Stockade"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
pygments_style = "friendly"
pygments_dark_style = "monokai"

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
autoclass_content = "class"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "exclude-members": "PATH"}
autodoc_preserve_defaults = True
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

        from stockade.cli._commands import stockade as command

        context = Context(command, info_name="stockade", max_content_width=88, terminal_width=88)
        for name in self.arguments:
            assert isinstance(context.command, Group)
            found = context.command.get_command(context, name)
            assert found is not None
            context = Context(found, parent=context, info_name=name, max_content_width=88, terminal_width=88)
        return [nodes.literal_block(text=context.get_help(), language="text")]


# Where names of the API are imported from; the first that has a name is where the reference documents it.
_HOMES = (stockade, stockade.policy, stockade.report, stockade.host)
_MADE_BY_STOCKADE = {"AsyncSession", "GuestMemory", "HostCall", "Module", "Session", "TaskHandle"}
_GIVEN_BY_POSITION = {
    "Mount": '(host: str | PathLike[str], guest: str, mode: Literal["ro", "rw"] = "ro")',
    "PortRange": "(first: int, last: int)",
}


def _signature(_app: Sphinx, what: str, name: str, found: object, *rest: object) -> tuple[str, str | None] | None:
    """Leaves out signatures that tell nothing: of what only Stockade makes, and of data whose fields are listed."""
    if name.endswith((".schema", ".to_dict")):
        return "()", "dict[str, Json]"  # not that alias at full length
    if what != "class":
        signature, returns = (text if isinstance(text, str) else None for text in rest[1:3])
        # It is there to tell mistakes: nothing can be given for it.
        return (re.sub(r", \*\*_unknown: ~?[\w.]+", "", signature), returns) if signature else None
    is_data = isinstance(found, type) and issubclass(found, msgspec.Struct | tuple)
    short = name.rpartition(".")[2]
    if short in _MADE_BY_STOCKADE or is_data:
        return _GIVEN_BY_POSITION.get(short, ""), None
    return None


def _skip(_app: Sphinx, _what: str, name: str, member: object, *_: object) -> bool | None:
    """Leaves out what is there for the machinery of policies, and fields that stand in the list of fields already."""
    is_field = (getattr(member, "__doc__", None) or "").startswith("Alias for field number")
    return True if is_field or name == "FOLLOW_MODE" else None


# Types that only Stockade's own code names, as a user would say them.
_PLAIN_TYPES = (
    (re.compile(r"\bstockade\.policy\._frozen\.FrozenDict\["), "Mapping[str, "),
    (re.compile(r"\bstockade\.report\._model\._Returned\b"), "Value"),
    (re.compile(r"\bstockade\.modules\._inspection\."), ""),
    (re.compile(r"bool \| int \| float \| str \| list\[bool .*"), "Json"),
)


def _types(_app: Sphinx, _what: str, _name: str, _found: object, _options: object, lines: list[str]) -> None:
    """Says the types of fields, which are there when the docstring was read, in words of the API."""
    for number, line in enumerate(lines):
        if line.startswith(":vartype "):
            for pattern, plain in _PLAIN_TYPES:
                line = pattern.sub(plain, line)
            lines[number] = line


def _docstring(_app: Sphinx, what: str, _name: str, _found: object, _options: object, lines: list[str]) -> None:
    """Reads single backticks as Markdown does, and names of the API between them as links."""
    text = "\n".join(lines)
    # Sphinx would take what stands before a colon in `Returns:` for a type.
    text = re.sub(r"^(Returns|Yields):\n {4}(.*(?:\n {4}.*)*)", r":returns: \2", text, flags=re.MULTILINE)
    if what in ("attribute", "property"):
        # And what stands before a colon in the first line, unless that is a comment.
        text = f"..\n\n{text}"
    # And the star of a pattern, such as AWS_*, for emphasis.
    text = re.sub(r"(?<![`\w*])(\*_[A-Z_]+|[A-Z]+_?\*)(?![`\w*])", r"``\1``", text)
    lines[:] = re.sub(r"(?<![`:\w])`([^`\n]+)`(?!`)", _literal_or_link, text).split("\n")


def _literal_or_link(match: re.Match[str]) -> str:
    text = match[1]
    first, *rest = text.removeprefix("stockade.").split(".")
    home = next((module for module in _HOMES if first in module.__all__), None)
    if home is None or len(rest) > 1 or (rest and not hasattr(getattr(home, first), rest[0])):
        return f"``{text}``"
    if first.islower() and not text.startswith("stockade."):
        return f"``{text}``"  # `run` and `call` are methods of several classes
    return f":py:obj:`{text} <{'.'.join([home.__name__, first, *rest])}>`"


def setup(app: Sphinx) -> None:
    """Adds what is ours to Sphinx."""
    app.add_directive("command-help", CommandHelp)
    app.connect("autodoc-process-signature", _signature)
    # Before napoleon, which reads docstrings at 500.
    app.connect("autodoc-process-docstring", _docstring, priority=400)
    app.connect("autodoc-process-docstring", _types, priority=600)
    app.connect("autodoc-skip-member", _skip)
