"""Content digests, copies from one backend to another, and what can be saved of a damaged store."""
