"""From what runs did to the smallest policy that permits it."""

from stockade.learning._document import learned_toml
from stockade.learning._learn import LEARNING_TRACE, Learned, learn, learning_policy, merge

__all__ = ["LEARNING_TRACE", "Learned", "learn", "learned_toml", "learning_policy", "merge"]
