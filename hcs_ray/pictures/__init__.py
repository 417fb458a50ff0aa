"""Pixels as pictures: what the report, the explorer and the exports draw of a field, with one look.

`planes` reads a field in camera units, `composite` adds its channels up as `colours`, `encode` writes JPEGs.
"""
