"""Imported by processes that read damaged memmap stores: they do not wait long for a writer that is not there."""

from aesg.backends.memmap import reader

reader._PATIENCE = 0.2
