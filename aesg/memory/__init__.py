"""The memory: a store and the engine, attached to PyTorch models."""
