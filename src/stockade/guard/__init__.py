"""The guard: the policy as WebAssembly, and the weaver that puts it into a guest's module."""

from stockade.guard._proof import PROOF_VERSION, proof_copy, prove
from stockade.guard._source import Guard, Layout, StateFormat, guard
from stockade.guard._weave import ELEMENT_BYTES, PAGE_BYTES, Woven, check_imports, weave

__all__ = [
    "ELEMENT_BYTES",
    "PAGE_BYTES",
    "PROOF_VERSION",
    "Guard",
    "Layout",
    "StateFormat",
    "Woven",
    "check_imports",
    "guard",
    "proof_copy",
    "prove",
    "weave",
]
