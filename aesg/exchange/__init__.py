"""Graphs to and from files that other tools read: Parquet, Arrow, NPZ, GraphML, GML."""
