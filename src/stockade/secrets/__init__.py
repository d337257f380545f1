"""Secrets of the embedder: where they are read from, and which of them a guest is given."""

from stockade.secrets._given import CAPABILITY, GivenSecrets
from stockade.secrets._never_written import NeverWritten
from stockade.secrets._secret import Secret, read_private, read_variable

__all__ = ["CAPABILITY", "GivenSecrets", "NeverWritten", "Secret", "read_private", "read_variable"]
