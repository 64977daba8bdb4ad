"""Graphs to and from files that other tools read: Parquet, Arrow, NPZ, GraphML, GML.

`export.py` and `importing.py` are what the command line calls; `layout.py` says what the tables look like.
"""
