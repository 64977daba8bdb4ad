"""One module a command: its options, what it does, how it tells it. Heavy imports are made inside the functions."""
