"""Answers' experts as an array of a numpy file, answer by answer: all of them would be too much for whoever writes.

The file is there, with the rest of what it holds; the experts are added to it, and read with it. Called by batches.py
and groups/file.py.
"""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from megatron_nft.types import Elsewhere, Rollout, TrainSequence

EXPERTS, ROWS, KNOWN = "experts", "experts_rows", "experts_known"
"""The array: all answers' rows end to end. How many each has there, and how many of those are known (NONE: the answer
says nothing of experts); a row that was lost meanwhile is zeros."""
NONE = -1


def add_experts(path: Path, answers: Sequence[Rollout | TrainSequence], *, compressed: bool = False) -> None:
    """Adds the answers' experts to a numpy archive; nothing, where none has any.

    Raises:
        ValueError: they are of different models.
    """
    kinds = {(a.experts_R.shape[1:], a.experts_R.dtype) for a in answers if a.experts_R is not None}
    if not kinds:
        return
    if len(kinds) > 1:
        raise ValueError(f"answers of a file have experts of different models: {sorted(map(str, kinds))}")
    ((width, dtype),) = kinds
    counts = [0 if a.experts_R is None else a.experts_R.shape[0] for a in answers]
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (sum(counts), *width)}
    known = []
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        with archive.open(f"{EXPERTS}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_2_0(file, header)
            for answer, count in zip(answers, counts, strict=True):
                rows = answer.experts_R.load() if isinstance(answer.experts_R, Elsewhere) else answer.experts_R
                known.append(NONE if rows is None else len(rows))
                if rows is not None:
                    file.write(rows.tobytes())
                    file.write(np.zeros((count - len(rows), *width), dtype).tobytes())
        for name, numbers in ((ROWS, counts), (KNOWN, known)):
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, np.array(numbers))


def read_experts(data: Mapping[str, np.ndarray], num_answers: int) -> list[np.ndarray | None]:
    """Each answer's, from all arrays of the file."""
    if EXPERTS not in data:
        return [None] * num_answers
    parts = np.split(data[EXPERTS], np.cumsum(data[ROWS])[:-1])
    return [None if known == NONE else part[:known] for part, known in zip(parts, data[KNOWN].tolist(), strict=True)]
