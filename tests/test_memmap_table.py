"""PendingRecords against a plain array: whatever the mixture of appends, writes and transforms, reads see it."""

import numpy as np
import pytest

from aesg.backends.memmap.table import PendingRecords, RecordFile

KIND = np.dtype([("id", "<u8"), ("vector", "<f4", (3,)), ("relevance", "<f4"), ("is_active", "u1")])
FIELDS = ["vector", "relevance", "is_active"]


def values_for(rng, field, n):
    if field == "vector":
        return rng.random((n, 3), dtype=np.float32)
    return rng.random(n, dtype=np.float32) if field == "relevance" else rng.integers(0, 2, n).astype(np.uint8)


def new_records(rng, n):
    records = np.zeros(n, KIND)
    for field in FIELDS:
        records[field] = values_for(rng, field, n)
    return records


@pytest.mark.parametrize("seed", range(40))
def test_pending_changes_against_a_plain_array(tmp_path, seed):
    rng = np.random.default_rng(seed)
    (tmp_path / "records").write_bytes(bytes(4 * KIND.itemsize))
    file = RecordFile(tmp_path / "records", KIND, 0, writable=True)
    committed = new_records(rng, int(rng.integers(1, 3000)))
    file.append(0, committed)
    file.count = len(committed)
    pending, model = PendingRecords(file), committed.copy()

    def check():
        for field in FIELDS:
            assert np.array_equal(pending.chunk(field, 0, len(model)), model[field])
            rows = rng.integers(0, len(model), 50)
            assert np.array_equal(pending.gather(field, rows), model[field][rows])

    for _ in range(12):
        match rng.integers(0, 4):
            case 0:
                more = new_records(rng, int(rng.integers(0, 50)))
                pending.append(more)
                model = np.concatenate([model, more])
            case 1:  # few rows, or so many that columns are held
                rows = rng.integers(0, len(model), int(rng.choice([1, 20, 2000])))
                fields = rng.choice(FIELDS, int(rng.integers(1, 4)), replace=False)
                columns = {field: values_for(rng, field, len(rows)) for field in fields}
                pending.write(rows, columns)
                for field, column in columns.items():
                    model[field][rows] = column
            case 2:  # a transform, read and written chunk by chunk, which may change all, some or nothing
                size = int(rng.choice([97, 256, 5000]))
                share = rng.choice([0, 0.01, 0.5, 1])
                late = int(rng.integers(0, len(model)))  # before this row nothing changes
                for start in range(0, len(model), size):
                    stop = min(start + size, len(model))
                    for field in ("relevance", "is_active", "vector"):
                        now = pending.chunk(field, start, stop)
                        assert np.array_equal(now, model[field][start:stop])
                        hit = (rng.random(stop - start) < share) & (np.arange(start, stop) >= late)
                        now[hit] = values_for(rng, field, int(hit.sum()))
                        pending.put_chunk(start, {field: now})
                        model[field][start:stop] = now
                    if rng.random() < 0.2:  # a look in the middle of it
                        check()
            case 3:  # a transform that stops half-way, as one whose function raises
                part = pending.chunk("relevance", 0, len(model) // 2 + 1) * np.float32(0.5)
                pending.put_chunk(0, {"relevance": part})
                model["relevance"][: len(part)] = part
        check()

    assert np.array_equal(file.chunk("relevance", 0, len(committed)), committed["relevance"]), "committed too early"
    pending.apply()
    assert file.count == len(model)
    for field in FIELDS:
        assert np.array_equal(file.chunk(field, 0, len(model)), model[field])
    file.close()
