"""Long CSV files: rows that stay on the disk until they are asked for."""

import csv
import hashlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO


class CsvRows(Sequence):
    """Rows of CSV files as dictionaries; of each only its place is kept in memory (10 bytes)."""

    def __init__(self, paths: list[Path]):
        self._paths = paths
        self._file, self._offset = array("H"), array("q")
        self._opened: tuple[int, BinaryIO, list[str]] | None = None

    def append(self, file: int, offset: int) -> None:
        """Adds the row that begins at a byte of a file, both as `scan` gives them."""
        self._file.append(file)
        self._offset.append(offset)

    def __len__(self) -> int:
        return len(self._offset)

    def __getitem__(self, index: int) -> dict[str, str]:
        number = self._file[index]
        if self._opened is None or self._opened[0] != number:
            if self._opened is not None:
                self._opened[1].close()
            file = self._paths[number].open("rb")
            self._opened = (number, file, _header(next(csv.reader(_Lines(file)))))
        _, file, header = self._opened
        file.seek(self._offset[index])
        return dict(zip(header, next(csv.reader(_Lines(file))), strict=True))


def scan(paths: list[Path], columns: set[str]) -> Iterator[tuple[int, int, dict[str, str]]]:
    """Each row of the files, with the number of its file and the byte where it begins.

    Raises ValueError where a file lacks one of the columns or a row is not as long as the header.
    """
    for number, path in enumerate(paths):
        with path.open("rb") as file:
            lines = _Lines(file)
            reader = csv.reader(lines)
            header = _header(next(reader, []))
            if missing := columns - set(header):
                raise ValueError(f"{path} has no column {', '.join(sorted(missing))}")
            offset = lines.offset
            for row in reader:
                if len(row) == len(header):
                    yield number, offset, dict(zip(header, row, strict=True))
                elif row:
                    raise ValueError(
                        f"{path}: the row at line {reader.line_num} has {len(row)} columns, "
                        f"the first line names {len(header)}"
                    )
                offset = lines.offset


def csv_files(directory: Path, given: list[str | Path] | None) -> list[Path]:
    """The given files, or those named *.csv in a directory.

    Raises FileNotFoundError where there is none.
    """
    paths = [Path(path) for path in given] if given else sorted(directory.glob("*.csv"))
    absent = [path for path in paths if not path.is_file()]
    if absent or not paths:
        where = absent[0] if absent else f"{directory}/*.csv"
        raise FileNotFoundError(f"no list of videos: {where} (name it with --lists FILE)")
    return paths


def hash_files(paths: list[Path]) -> str:
    """The SHA-256 of the contents of files, one after another, and of their names."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.name} {content}\n".encode())
    return total.hexdigest()


class _Lines:
    """The lines of a binary file as text, and how many bytes of it were read."""

    def __init__(self, file: BinaryIO):
        self._file, self.offset = file, 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = next(self._file)
        self.offset += len(line)
        return line.decode("utf-8", errors="replace")  # a letter of a caption must end nothing


def _header(names: list[str]) -> list[str]:
    """The names of the columns, without the mark that some programs put before the first."""
    return [name.removeprefix("\ufeff") for name in names]
