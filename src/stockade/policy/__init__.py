"""What may happen: policies as plain frozen data. Nothing of the engine."""

from stockade.policy._algebra import Change
from stockade.policy._custom import Numeric
from stockade.policy._enforced import check_enforceable, runnable_features, unenforceable
from stockade.policy._explain import Statement
from stockade.policy._fields import Plain
from stockade.policy._files import folders_on_the_way, policy_files
from stockade.policy._limits import MAX_MODULE_BYTES, Limits
from stockade.policy._needs import Need, needs
from stockade.policy._network import Host, Network, PortRange
from stockade.policy._policy import Policy
from stockade.policy._presets import PRESETS
from stockade.policy._rights import Clock, Environment, Features, Filesystem, Mount, Process, Random, Wasi
from stockade.policy._schema import reference
from stockade.policy._score import Reason, Score
from stockade.policy._structure import Structure, most_structure
from stockade.policy._toml import write_toml, write_value
from stockade.policy._units import parse_count, parse_seconds, parse_size

__all__ = [
    "MAX_MODULE_BYTES",
    "PRESETS",
    "Change",
    "Clock",
    "Environment",
    "Features",
    "Filesystem",
    "Host",
    "Limits",
    "Mount",
    "Need",
    "Network",
    "Numeric",
    "Plain",
    "Policy",
    "PortRange",
    "Process",
    "Random",
    "Reason",
    "Score",
    "Statement",
    "Structure",
    "Wasi",
    "check_enforceable",
    "folders_on_the_way",
    "most_structure",
    "needs",
    "parse_count",
    "parse_seconds",
    "parse_size",
    "policy_files",
    "reference",
    "runnable_features",
    "unenforceable",
    "write_toml",
    "write_value",
]
