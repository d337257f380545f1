"""The specification's own tests, held against what Stockade reads, weaves and proves.

They are not part of this repository: `STOCKADE_SPEC` names a folder with the `.wast` files of its `test/core`.
"""
