"""Benchmarks: each measures us beside a rival in one interleaved run, and judges by those figures.

`report` is what every benchmark prints; a benchmark is a module with a `run`.
"""
