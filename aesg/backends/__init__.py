"""Backends: where a graph is kept."""
