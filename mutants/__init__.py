"""Mutation tests: small random faults in gateway/, and whether a test notices each.

`operators` lists the mutants of a source text, `places` copies the tree, `plugin` selects tests inside pytest, `trial`
runs them.
"""
