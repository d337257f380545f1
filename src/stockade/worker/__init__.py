"""The compile worker: what is done with a hostile module in a process of its own, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade._later import called_later, found_later
from stockade.worker._compile_queue import CompileJob, CompileQueue, Turn, compile_queue
from stockade.worker._figures import check_figures, check_outline

if TYPE_CHECKING:
    from stockade.worker._features import refuse_unrunnable, titles, validate
    from stockade.worker._fork_loop import ForkLoop, watched
    from stockade.worker._prepare import is_cheap, prepare, translate
    from stockade.worker._process import signal_name
    from stockade.worker._server_process import NO_SIGNAL, ServerProcess, socket_pair
    from stockade.worker._subprocess import (
        compile_aside,
        features_of,
        job_of,
        translate_aside,
        validate_aside,
        weave_aside,
    )
else:
    __getattr__ = found_later(
        __name__,
        {
            "_fork_loop": ("ForkLoop", "watched"),
            "_process": ("signal_name",),
            "_server_process": ("NO_SIGNAL", "ServerProcess", "socket_pair"),
        },
    )
    refuse_unrunnable = called_later("stockade.worker._features", "refuse_unrunnable")
    titles = called_later("stockade.worker._features", "titles")
    validate = called_later("stockade.worker._features", "validate")
    is_cheap = called_later("stockade.worker._prepare", "is_cheap")
    prepare = called_later("stockade.worker._prepare", "prepare")
    translate = called_later("stockade.worker._prepare", "translate")
    compile_aside = called_later("stockade.worker._subprocess", "compile_aside")
    features_of = called_later("stockade.worker._subprocess", "features_of")
    job_of = called_later("stockade.worker._subprocess", "job_of")
    translate_aside = called_later("stockade.worker._subprocess", "translate_aside")
    validate_aside = called_later("stockade.worker._subprocess", "validate_aside")
    weave_aside = called_later("stockade.worker._subprocess", "weave_aside")

__all__ = [
    "NO_SIGNAL",
    "CompileJob",
    "CompileQueue",
    "ForkLoop",
    "ServerProcess",
    "Turn",
    "check_figures",
    "check_outline",
    "compile_aside",
    "compile_queue",
    "features_of",
    "is_cheap",
    "job_of",
    "prepare",
    "refuse_unrunnable",
    "signal_name",
    "socket_pair",
    "titles",
    "translate",
    "translate_aside",
    "validate",
    "validate_aside",
    "watched",
    "weave_aside",
]
