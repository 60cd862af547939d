"""How fast it is, beside its peers and beside the limit: ``make bench``. The floors, top to bottom:

__main__
scenarios    what is measured, and of whom
report       results.md, README's table, the picture
contenders   each server: how it is started, spoken to and published to
lab          one measurement's Redis, server and load, each on its core; nothing of it stays
load         load.c, built and spoken to
machine      cores, /proc, versions
targets      what the figures are held against                                 (pure)
figures      medians, percentiles, what all rounds of all contenders gave      (pure)
"""
