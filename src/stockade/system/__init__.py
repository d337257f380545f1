"""What the operating system is asked for: folders, descriptors, FIFOs, processes of ours, the one we belong to."""

from stockade._later import TYPE_CHECKING, found_later
from stockade.system._below import folder_below
from stockade.system._descriptors import Descriptors
from stockade.system._fifo import can_interrupt_opens, forgo_interrupts, interrupt_opens, let_interrupts_in
from stockade.system._folders import (
    cache_folder,
    forget_private_file,
    is_private,
    note_private_file,
    open_private,
    private_files,
    private_folders,
    state_folder,
)
from stockade.system._memory_file import (
    has_memory_files,
    is_sealed,
    open_memory_file,
    own_memory_file,
    seal,
    seal_against_mapping,
)
from stockade.system._mount_table import kernel_file_system
from stockade.system._open_folder import (
    Identity,
    NotGranted,
    OpenFolder,
    forget_granted,
    granted_folders,
    identities_on_the_way,
    note_granted,
)
from stockade.system._parent import end_with, forgo_privileges, prctl
from stockade.system._private_files import NEW_SUFFIX, new_file, open_file, sweep, user_secret

if TYPE_CHECKING:
    from stockade.system._server_process import FIRST_FREE, NO_SIGNAL, ServerProcess, socket_pair
else:
    __getattr__ = found_later(
        __name__, {"_server_process": ("FIRST_FREE", "NO_SIGNAL", "ServerProcess", "socket_pair")}
    )

__all__ = [
    "FIRST_FREE",
    "NEW_SUFFIX",
    "NO_SIGNAL",
    "Descriptors",
    "Identity",
    "NotGranted",
    "OpenFolder",
    "ServerProcess",
    "cache_folder",
    "can_interrupt_opens",
    "end_with",
    "folder_below",
    "forget_granted",
    "forget_private_file",
    "forgo_interrupts",
    "forgo_privileges",
    "granted_folders",
    "has_memory_files",
    "identities_on_the_way",
    "interrupt_opens",
    "is_private",
    "is_sealed",
    "kernel_file_system",
    "let_interrupts_in",
    "new_file",
    "note_granted",
    "note_private_file",
    "open_file",
    "open_memory_file",
    "open_private",
    "own_memory_file",
    "prctl",
    "private_files",
    "private_folders",
    "seal",
    "seal_against_mapping",
    "socket_pair",
    "state_folder",
    "sweep",
    "user_secret",
]
