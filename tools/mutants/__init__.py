"""Mutation testing of `qemu_usernat/nat/tcp/`: `make mutants`.

A mutant is one module with one small fault planted in it. Tests that notice it kill it; one that
survives shows what no test looks at, or a change that changes nothing. The share that is killed
is the score.

`operators` says which faults there are, most of them cosmic-ray's; `trial` lets the tests loose on
one mutant; `__main__` tries them all, keeps a ledger and prints the report.
"""
