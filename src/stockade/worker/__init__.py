"""The compile worker: what is done with a hostile module in a process of its own, and when."""

from stockade.worker._compile_queue import CompileJob, CompileQueue, Turn, compile_queue
from stockade.worker._features import refuse_unrunnable, titles, validate
from stockade.worker._prepare import check_figures, check_outline, is_cheap, prepare, translate
from stockade.worker._subprocess import compile_aside, features_of, job_of, translate_aside, validate_aside, weave_aside

__all__ = [
    "CompileJob",
    "CompileQueue",
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
    "titles",
    "translate",
    "translate_aside",
    "validate",
    "validate_aside",
    "weave_aside",
]
