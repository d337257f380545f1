"""A differential fuzzer of encodings: see `_generator` for what is made and `_differential` for what is held of it."""
