"""Compares the gateway with its peers and with a C program: ``make bench``. The modules, from top to bottom:

__main__
scenarios    what is measured, with which contenders
report       results.md, table of docs/explanation/performance.md, the picture
contenders   each server: how to start it, subscribe and publish
lab          Redis, server and load of one measurement, each on its core
load         builds load.c and sends commands to it
machine      cores, /proc, versions
targets      targets of the figures                                            (pure)
figures      medians, percentiles, results of all rounds and contenders        (pure)
"""
