"""Benchmarks side by side: `python -m raftdb_tools.bench --help`, or the targets of the Makefile.

    processes.py  start and stop the programs that are measured
    load.py       one measurement: redis-benchmark, or what a system brings itself
    systems.py    what can be measured: raftdb, redis-server, anything that speaks its protocol (TOML)
    foreign.py    etcd, PySyncObj, pyraft
    mixed.py      writes while long reads, KEYS and a snapshot run
    plan.py       which cells, interleaved repetitions, medians, ratios
    report.py     Markdown, JSON, plots

A figure counts only beside another of the same run on the same machine: everything is repeated in turns, medians are
given with their spread, and a measurement in which a single request failed is reported as failed, not as a number.
"""
