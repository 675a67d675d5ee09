"""Sources that are a table of image files and labels, as spreadsheets and other programs write them."""

import csv
import io
import math
from pathlib import Path

import numpy
import torch

from gankd.data.config import READERS, DataConfig, Kind
from gankd.data.readers.images import encoded_images
from gankd.data.readers.labels import encode_labels
from gankd.data.sets import ImageSet
from generators.settings import nearest

SEPARATORS = ",;\t|"


@READERS.register("csv")
def read_csv(config: DataConfig, kind: Kind, *, label: str = "label") -> tuple[ImageSet, ImageSet | None]:
    """A CSV file, or a folder with labels.csv: a row an image, files relative to the table.

    Columns: `path`, the label (`label` names the column), and optionally `split` (train, validation or test; validation
    rows join train, from which validation is cut) and `group` (an empty cell: a group of its own). The task decides what a
    label is: a class by its spelling, or a number. Cells are separated by commas, semicolons, tabs or bars.
    Raises ValueError: a missing column, a file that does not exist, an unknown split, a label that is missing or no
    number, or a row that does not fit the header; with the line of the table.
    """
    table = config.place()
    table = table / "labels.csv" if table.is_dir() else table
    if not table.is_file():
        raise ValueError(f"data.root: {table} does not exist; name a CSV file or a folder with labels.csv.")
    columns, lines, separator = _rows(table)
    for column, key in (("path", "data.root"), (label, "data.label")):
        if column not in columns:
            raise ValueError(f"{key}: {table} has no column '{column}'{nearest(column, columns)}")
    parts: dict[str, list[tuple]] = {"train": [], "test": []}
    for number, row in lines:
        place = f"{table}, row {number}"
        image = next((file for file in _places(table.parent, row["path"]) if row["path"] and file.is_file()), None)
        if image is None:
            raise ValueError(f"{place}: {table.parent / row['path']} does not exist; correct or remove the row.")
        split = row.get("split", "").lower() or "train"
        if split not in ("train", "validation", "test"):
            raise ValueError(f"{place}: split '{split}' is none of train, validation, test.")
        value = _finite_number(row[label], place, separator) if kind == "regression" else _class_name(row[label], place)
        group = row.get("group") or f"row {number} alone"
        parts["test" if split == "test" else "train"].append((image, value, group))
    if not parts["train"]:
        raise ValueError(f"data.root: {table} has no rows to train on.")
    filled = [part for part in parts.values() if part]
    labels, class_names = encode_labels([numpy.array([row[1] for row in part]) for part in filled], config, kind)
    group_names = sorted({row[2] for part in filled for row in part})
    group_ids = {group: group_id for group_id, group in enumerate(group_names)}
    sets = []
    for part, part_labels in zip(filled, labels, strict=True):
        images, contents = encoded_images([row[0] for row in part], config, name=config.name)
        groups = torch.tensor([group_ids[row[2]] for row in part]) if "group" in columns else None
        fields = {"class_names": class_names, "groups": groups, "contents": contents, "name": config.name}
        sets.append(ImageSet(images, part_labels, **fields))
    return sets[0], sets[1] if len(sets) == 2 else None


def read_text(file: Path) -> str:
    """A text file in UTF-8, in UTF-16, or else in the 8-bit code of Western Windows (a superset of Latin-1's letters).
    Raises ValueError: it is no text."""
    data = file.read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding = "utf-16"
    elif b"\0" in data[:2]:
        encoding = "utf-16-le" if data[1:2] == b"\0" else "utf-16-be"
    else:
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            encoding = "cp1252" if b"\0" not in data else "ascii"
    try:
        return data.decode(encoding, errors="replace" if encoding == "cp1252" else "strict")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8, UTF-16 or Latin-1 ({error}); save it as UTF-8.") from error


def _rows(table: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]], str]:
    """The names of the columns, every row that is not empty with the number of its line, and what separates the cells, which
    come without spaces around them.

    Raises ValueError: no header, a column twice, a quote that is not closed, or a row of another length.
    """
    lines = io.StringIO(read_text(table), newline="")
    header = lines.readline()
    separator = max(SEPARATORS, key=header.count)
    if header.startswith("sep="):  # how spreadsheets name the separator
        separator, skipped = header[4:5], 1
    else:
        lines.seek(0)
        skipped = 0
    reader = csv.reader(lines, delimiter=separator, strict=True)
    columns, rows = [], []
    while True:
        number = reader.line_num + skipped + 1
        try:
            cells = [cell.strip() for cell in next(reader)]
        except StopIteration:
            break
        except csv.Error as error:
            raise ValueError(
                f'{table}, row {number}: {error}. A quotation mark (") that is not closed takes the following rows with it: '
                "close or double it."
            ) from error
        number = reader.line_num + skipped
        if not any(cells):
            continue
        if not columns:
            columns = cells
            while columns[-1] == "":
                columns.pop()
            if len(set(columns)) < len(columns):
                raise ValueError(f"{table}: the header {', '.join(columns)} names a column twice; rename one.")
            continue
        if any(cells[len(columns) :]):
            raise ValueError(
                f"{table}, row {number} has {len(cells)} cells, the header has {len(columns)}: put a cell that contains "
                f"'{separator}' into quotation marks."
            )
        rows.append((number, dict(zip(columns, cells + [""] * len(columns), strict=False))))
    return columns, rows, separator


def _places(folder: Path, path: str) -> list[Path]:
    """Where an image may lie; Windows writes paths with backslashes."""
    return [folder / path, folder / path.replace("\\", "/")]


def _class_name(text: str, place: str) -> str:
    if not text:
        raise ValueError(f"{place}: the label is empty; fill it in or remove the row.")
    if text.lower() in ("nan", "#n/a", "null", "<na>"):
        raise ValueError(
            f"{place}: the label '{text}' is how programs write a missing value; fill it in, remove the row, or "
            "give the class another name."
        )
    return text


def _finite_number(text: str, place: str, separator: str) -> float:
    try:
        number = float(text if separator == "," else text.replace(",", "."))  # where it is free, the comma is decimal
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{place}: label '{text}' is no finite number; correct it or remove the row.")
    return number
