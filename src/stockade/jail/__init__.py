"""A jail for a process: what the kernel can take from it before it touches what is hostile. It knows no WebAssembly."""

from stockade.jail._confine import confine, warm_up
from stockade.jail._landlock import landlock_version
from stockade.jail._model import (
    NAMESPACES,
    WALLS,
    Granted,
    Jail,
    JailError,
    JailReport,
    ResourceLimits,
    Step,
    Wall,
)
from stockade.jail._mounts import detach_folders, line_to_mounter, take_line_to_mounter
from stockade.jail._namespaces import (
    enter_namespaces,
    has_other_threads,
    leave_root,
    left_before,
    namespaces_of_this_process,
)
from stockade.jail._rehearsal import rehearse

__all__ = [
    "NAMESPACES",
    "WALLS",
    "Granted",
    "Jail",
    "JailError",
    "JailReport",
    "ResourceLimits",
    "Step",
    "Wall",
    "confine",
    "detach_folders",
    "enter_namespaces",
    "has_other_threads",
    "landlock_version",
    "leave_root",
    "left_before",
    "line_to_mounter",
    "namespaces_of_this_process",
    "rehearse",
    "take_line_to_mounter",
    "warm_up",
]
