"""A parquet file in the DAPO/verl schema, with every problem once: `python launch/unique_rows.py FROM TO`.

Published files have problems several times: DAPO-Math-17k has 1.79 million rows for 17 thousand problems, benchmarks
have theirs 32 times. Training draws without replacement, and `evaluate.samples` repeats, so once is enough.
"""

import json
import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROWS_AT_ONCE = 10_000


def write_unique(source: Path, target: Path) -> tuple[int, int]:
    """Writes the first row of every problem (prompt and ground truth), in their order; `target` appears when whole.

    Returns:
        Rows read, and rows written.
    """
    seen: set[str] = set()
    num_rows = 0
    partial = target.with_name(f".{target.name}.partial")
    with pq.ParquetFile(source) as file, pq.ParquetWriter(partial, file.schema_arrow) as writer:
        for batch in file.iter_batches(ROWS_AT_ONCE):
            keep = []
            for prompt, answer in zip(batch["prompt"].to_pylist(), batch["reward_model"].to_pylist(), strict=True):
                problem = json.dumps([prompt, answer["ground_truth"] if answer else None])
                keep.append(problem not in seen)
                seen.add(problem)
            num_rows += len(keep)
            writer.write_batch(batch.filter(pa.array(keep)))
    os.replace(partial, target)
    return num_rows, len(seen)


if __name__ == "__main__":
    read, written = write_unique(Path(sys.argv[1]), Path(sys.argv[2]))
    print(f"data: {sys.argv[2]}, {written:,} problems" + (f" of {read:,} rows" if read > written else ""))
