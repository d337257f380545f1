"""What may happen: policies as plain frozen data. Nothing of the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade._later import called_later, found_later
from stockade.policy._custom import Amount
from stockade.policy._enforced import check_enforceable, runnable_features, unenforceable
from stockade.policy._fields import Plain
from stockade.policy._files import folders_on_the_way, policy_files
from stockade.policy._gate import GATE_CHANNELS, GATE_VERDICTS, GateRules
from stockade.policy._given import PolicyLike, policy_of
from stockade.policy._http import METHODS, is_below, normal_path, percent_encoded
from stockade.policy._isolation import ISOLATIONS, Isolation, isolation_of, stronger
from stockade.policy._limits import MAX_MODULE_BYTES, Limits
from stockade.policy._network import (
    Address,
    HostRule,
    Network,
    PortRange,
    host_name,
    inner_address,
    is_loopback,
    is_metadata,
    is_public,
    may_be_public,
)
from stockade.policy._policy import Policy
from stockade.policy._presets import PRESETS
from stockade.policy._rights import Clock, Environment, Features, Filesystem, Mount, Process, Random, Wasi, wasi_calls
from stockade.policy._structure import ModuleLimits, most_structure
from stockade.policy._units import parse_count, parse_seconds, parse_size

if TYPE_CHECKING:
    from stockade.policy._algebra import Change
    from stockade.policy._changes import PolicyChanges
    from stockade.policy._document import examine_policy
    from stockade.policy._explain import PolicyStatement
    from stockade.policy._misplaced import place_in_python
    from stockade.policy._needs import Need, needs
    from stockade.policy._schema import reference
    from stockade.policy._score import Reason, Score
    from stockade.policy._toml import write_toml, write_value
    from stockade.policy._yaml import write_yaml
else:
    examine_policy = called_later("stockade.policy._document", "examine_policy")
    place_in_python = called_later("stockade.policy._misplaced", "place_in_python")
    reference = called_later("stockade.policy._schema", "reference")
    write_toml = called_later("stockade.policy._toml", "write_toml")
    write_value = called_later("stockade.policy._toml", "write_value")
    write_yaml = called_later("stockade.policy._yaml", "write_yaml")
    __getattr__ = found_later(
        __name__,
        {
            "_algebra": ("Change",),
            "_changes": ("PolicyChanges",),
            "_explain": ("PolicyStatement",),
            "_needs": ("Need", "needs"),
            "_score": ("Reason", "Score"),
        },
    )

__all__ = [
    "GATE_CHANNELS",
    "GATE_VERDICTS",
    "ISOLATIONS",
    "MAX_MODULE_BYTES",
    "METHODS",
    "PRESETS",
    "Address",
    "Amount",
    "Change",
    "Clock",
    "Environment",
    "Features",
    "Filesystem",
    "GateRules",
    "HostRule",
    "Isolation",
    "Limits",
    "ModuleLimits",
    "Mount",
    "Need",
    "Network",
    "Plain",
    "Policy",
    "PolicyChanges",
    "PolicyLike",
    "PolicyStatement",
    "PortRange",
    "Process",
    "Random",
    "Reason",
    "Score",
    "Wasi",
    "check_enforceable",
    "examine_policy",
    "folders_on_the_way",
    "host_name",
    "inner_address",
    "is_below",
    "is_loopback",
    "is_metadata",
    "is_public",
    "isolation_of",
    "may_be_public",
    "most_structure",
    "needs",
    "normal_path",
    "parse_count",
    "parse_seconds",
    "parse_size",
    "percent_encoded",
    "place_in_python",
    "policy_files",
    "policy_of",
    "reference",
    "runnable_features",
    "stronger",
    "unenforceable",
    "wasi_calls",
    "write_toml",
    "write_value",
    "write_yaml",
]
