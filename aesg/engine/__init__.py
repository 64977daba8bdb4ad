"""The engine: seeds, spreading activation, novelty, plasticity, consolidation. It sees a store as its protocol."""
