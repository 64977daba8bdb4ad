"""Comparing backends on this machine, and choosing one."""
