"""Tests of what a machine is found to enforce."""
