"""Tests of the table of system calls."""
