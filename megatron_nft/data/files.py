"""A file or a name on the hub -> its rows, as they stand there: tables of plain Python values, in the file's order.

What a row says is read by rows.py. Text files are read by Python's own parsers, a row at a time, as column types would
change what is there: 34 beside 0.5 is 34.0 in a column of floats. pyarrow reads parquet; datasets (2 s) is imported for
the hub's names only.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_nft.data.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]

TEXTS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
KINDS = (".parquet", *TEXTS)
PACKED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
"""Of text files."""
SIGNS = {
    b"PAR1": "parquet, whatever its name says; rename it",
    b"\x1f\x8b": "packed by gzip; give it the ending .gz, or unpack it",
    b"version https://git-lfs": "a pointer of Git LFS, without the data; fetch these: git lfs pull",
    b"<!DOCTYPE": "a web page, not data; download the file itself",
    b"<html": "a web page, not data; download the file itself",
}
"""How a file begins that is no text of rows; nor parquet, but for the first."""
ROWS_AT_ONCE = 1000
MAX_WORDS = 300  # of another library's message


def read_rows(file: str, columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """The rows of a file or of a hub name ("train" split, or the only one), numbered from 0; empty lines are none.

    Args:
        columns: of parquet files and the hub, no others are read.

    Raises:
        DataError: it is missing, or can't be read; a row is broken.
    """
    path = Path(file)
    of_hub = is_hub_name(file)
    try:
        if not of_hub:
            _check_file(path)
        if of_hub:
            yield from _from_hub(file, columns)
        elif kind_of(file) == ".parquet":
            yield from _from_parquet(file, columns)
        else:
            yield from _from_text(file)
    except (DataError, GeneratorExit):
        raise
    except Exception as error:  # pyarrow, datasets, the hub's client and unpackers each raise their own
        remedy = "; offline, download it first and name its parquet files" if of_hub else ""
        raise DataError(f"{file} cannot be read: {in_a_line(error)}{remedy}") from error


def no_rows(file: str) -> DataError:
    """What is said of a file that holds nothing."""
    return DataError(f"{file} has no rows; write or fetch it again, or leave it out")


def is_hub_name(file: str) -> bool:
    """Whether it is owner/name, and nothing here: where a folder `owner` lies, a file of it is meant, and missing."""
    path = Path(file)
    return bool(kind_of(file) is None and re.fullmatch(r"[\w.-]+/[\w.-]+", file)) and not (
        path.exists() or path.parent.is_dir()
    )


def kind_of(file: str) -> str | None:
    """The ending that says how a file is written; None where none does."""
    suffixes = [suffix.lower() for suffix in Path(file).suffixes[-2:]]
    if len(suffixes) == 2 and suffixes[1] in PACKED and suffixes[0] in TEXTS:
        return suffixes[0]
    return suffixes[-1] if suffixes and suffixes[-1] in KINDS else None


def stem_of(file: str) -> str:
    """A file's name without folder and ending; a hub name's last part."""
    path = Path(file)
    if kind_of(file) is None:
        return path.name
    return path.with_suffix("").stem if path.suffix.lower() in PACKED else path.stem


def in_a_line(error: BaseException) -> str:
    """What a library says, which may be many lines."""
    words = f"{error} ({error.__cause__})" if error.__cause__ else str(error)
    words = " ".join(words.split()) or type(error).__name__
    return words if len(words) <= MAX_WORDS else f"{words[:MAX_WORDS]} ..."


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path} is a folder; name the files in it")
    if not path.is_file():
        raise DataError(f"no data file {path} (looked in {os.getcwd()})")
    if kind_of(str(path)) is None:
        raise DataError(
            f"{path}: unknown kind of file; data comes as {', '.join(KINDS)}, the texts also as {', '.join(PACKED)}"
        )
    if kind_of(str(path)) == ".parquet":
        with path.open("rb") as stream:
            _check_start(stream.read(64), str(path), but=b"PAR1")


def _check_start(start: bytes, file: str, but: bytes = b"") -> None:
    for sign, what in SIGNS.items():
        if start.startswith(sign) and sign != but:
            raise DataError(f"{file} is {what}")


# --- Parquet and the hub ---------------------------------------------------------------------------------------------


def _from_parquet(file: str, columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as parquet:
        names = parquet.schema_arrow.names
        if twice := [name for name, count in Counter(names).items() if count > 1 and name in columns]:
            raise DataError(f"{file} has the column {twice[0]} twice; which one counts would be chance: leave one")
        wanted = [name for name in names if name in columns]
        if not wanted:
            raise DataError(_without_columns(file, names, columns))
        yield from _plain_rows(parquet.iter_batches(ROWS_AT_ONCE, columns=wanted), file)


def _from_hub(name: str, columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
    import datasets

    were_disabled = datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        splits = datasets.load_dataset(name)
    finally:
        if not were_disabled:
            datasets.enable_progress_bars()
    if "train" not in splits and len(splits) > 1:
        raise DataError(
            f"{name} has the splits {', '.join(splits)} and no train; save the one you mean as a parquet file"
        )
    split = splits["train"] if "train" in splits else next(iter(splits.values()))
    wanted = [column for column in split.column_names if column in columns]
    if not wanted:
        raise DataError(_without_columns(name, split.column_names, columns))
    tables = split.select_columns(wanted).with_format("arrow").iter(ROWS_AT_ONCE)
    yield from _plain_rows((batch for table in tables for batch in table.to_batches()), name)


def _without_columns(file: str, there: Iterable[str], columns: Sequence[str]) -> str:
    return f"{file} has none of the columns {', '.join(columns)}; it has {', '.join(there)}"


def _plain_rows(batches: "Iterable[pa.RecordBatch]", file: str) -> Iterator[tuple[int, Row]]:
    first, short = 0, {}
    for batch in batches:
        short = short or {field.name: _shortest(field.type) for field in batch.schema}
        try:
            rows = batch.to_pylist(maps_as_pydicts="strict")
        except Exception:  # of one row: text that is no UTF-8, a date beyond the calendar
            rows = (_plain_row(batch, place, f"{file}, row {first + place}") for place in range(len(batch)))
        for number, row in enumerate(rows, start=first):
            yield number, {name: change(row[name]) if (change := short[name]) else row[name] for name in row}
        first += len(batch)


def _plain_row(batch: "pa.RecordBatch", place: int, where: str) -> Row:
    try:
        return batch.slice(place, 1).to_pylist(maps_as_pydicts="strict")[0]
    except Exception as error:
        raise DataError(f"{where}: it can't be read: {in_a_line(error)}") from error


def _shortest(kind: "pa.DataType") -> Callable[[Any], Any] | None:
    """Makes 0.1 of the 0.10000000149 that a float of 32 bits is, which nobody wrote; None where there are none."""
    import pyarrow.types as types

    if types.is_float32(kind) or types.is_float16(kind):
        import numpy as np

        number = np.float32 if types.is_float32(kind) else np.float16
        return lambda value: None if value is None else float(str(number(value)))
    if types.is_struct(kind):
        inner = {field.name: _shortest(field.type) for field in kind}
        if any(inner.values()):
            return lambda row: row and {k: f(v) if (f := inner[k]) else v for k, v in row.items()}
    if types.is_map(kind) and (one := _shortest(kind.item_type)):
        return lambda table: table and {key: one(value) for key, value in table.items()}
    if types.is_dictionary(kind):
        return _shortest(kind.value_type)
    if any(is_such(kind) for is_such in _lists(types)) and (one := _shortest(kind.value_type)):
        return lambda values: values and [one(value) for value in values]
    return None


def _lists(types: Any) -> tuple[Callable[[Any], bool], ...]:
    return (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)


# --- Text ------------------------------------------------------------------------------------------------------------


def _from_text(file: str) -> Iterator[tuple[int, Row]]:
    path = Path(file)
    with PACKED.get(path.suffix.lower(), open)(path, "rb") as stream:
        start = stream.read(64)
        _check_start(start, file)
        stream.seek(0)
        if (kind := kind_of(file)) in (".csv", ".tsv"):
            yield from _from_csv(stream, file, "," if kind == ".csv" else "\t")
        elif re.match(rb"(?:\xef\xbb\xbf)?\s*\[", start):
            yield from _from_array(stream.read(), file)
        else:
            yield from _from_lines(stream, file)


def _from_lines(lines: Iterable[bytes], file: str) -> Iterator[tuple[int, Row]]:
    number = 0
    for line, content in enumerate(lines, start=1):
        if content.strip(b" \t\r\n\xef\xbb\xbf" if line == 1 else None):
            where = f"{file}, row {number} (line {line})"
            yield number, _table(_json(content.removeprefix(b"\xef\xbb\xbf") if line == 1 else content, where), where)
            number += 1


def _from_array(content: bytes, file: str) -> Iterator[tuple[int, Row]]:
    for number, value in enumerate(_json(content.removeprefix(b"\xef\xbb\xbf"), file)):
        yield number, _table(value, f"{file}, row {number}")


def _from_csv(stream: Iterable[bytes], file: str, delimiter: str) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.DictReader(
        io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""), delimiter=delimiter, strict=True
    )
    number = -1
    try:
        names = reader.fieldnames or []
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise DataError(f"{file} has the column {twice[0]!r} twice; leave one")
        for number, row in enumerate(reader):
            if None in row or None in row.values():
                raise DataError(f"{file}, row {number}: it has not as many fields as the first line, {len(names)}")
            yield number, row
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{file}, row {number + 1}: it can't be read: {in_a_line(error)}") from error


def _json(content: bytes, where: str) -> Any:
    """Decimal fractions stay as they are written; a name that is there twice is refused: one value would be lost."""
    try:
        return json.loads(content.decode("utf-8"), parse_float=Decimal, object_pairs_hook=_once_each)
    except RecursionError:
        raise DataError(f"{where}: it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: it is no UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except ValueError as error:
        raise DataError(f"{where}: it is no JSON: {in_a_line(error)}") from None


def _once_each(pairs: list[tuple[str, Any]]) -> Row:
    table = dict(pairs)
    if len(table) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"{twice!r} is there twice in one table; leave one")
    return table


def _table(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: it is a {type(value).__name__}, not a table {{name: value}}")
    return value
