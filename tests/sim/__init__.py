"""Simulated clusters: the real consensus core over a simulated disk, network, clock and clients, and a judge who
sees all.

    settings    what a seed means: the shape of the cluster, the rate of each kind of trouble
    disk        what is durable, what is on its way, what a crash makes of it
    node        one node: the driver of the design around the real core
    world       nodes, network, clients and the heap of events; replay of a list of events
    faults      who breaks what, when
    judge       every invariant, after every event, in O(1)
    liveness    the second half of a run: the trouble stops on a majority, the cluster has to heal
    runner, batch, shrink      runs of seeds; failures made small
    mutate, mutants, hunt      planted bugs, all of which must be caught (docs/mutants.md)
    scope       all states of a small cluster, breadth first
    gates, campaign            determinism and vacuity; long searches with their ledger; the share of a landing

`python -m tests.sim --help` is the command line. The same seed gives the same run on every machine.
"""
