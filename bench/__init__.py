"""Benchmarks: cases, providers, how they are checked and timed, and what is made of the results.

`python -m bench` and `modegap bench` run the registry; `bench.readme` and `bench.roofline` read its files.
"""
