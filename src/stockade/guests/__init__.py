"""Languages: interpreters as guests, which run code that nobody trusts."""

from stockade.guests._calls import run_javascript, run_python
from stockade.guests._javascript import JavaScript
from stockade.guests._python import Python
from stockade.guests._result import CodeError, CodeResult
from stockade.guests._session import LanguageSession
from stockade.guests._tools import ToolCall

__all__ = [
    "CodeError",
    "CodeResult",
    "JavaScript",
    "LanguageSession",
    "Python",
    "ToolCall",
    "run_javascript",
    "run_python",
]
