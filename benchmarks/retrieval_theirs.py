"""What `retrieval.py` asks the published 0.3.0, besides the tasks of `theirs.py`. Run by `worker.Worker`."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import retrieval_data as made
import torch
from theirs import about, close, consolidate, open_memories, open_memory, set_condition
from worker import serve


def answer(directory: str, queries: str, turn: int) -> dict[str, Any]:
    """One query of a file, without a context: seconds and rows."""
    memory, query = open_memories[directory], torch.from_numpy(np.array(made.load(queries)[turn]))
    memory.reset_state()
    start = time.perf_counter()
    context = memory.retrieve(query)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "rows": [int(row) for row in (*context.primary_concepts, *context.secondary_concepts)]}


if __name__ == "__main__":
    serve({task.__name__: task for task in (about, answer, close, consolidate, open_memory, set_condition)})
