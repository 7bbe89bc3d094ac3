#!/usr/bin/env python3
"""Independent judge of de-identified files: looks with pydicom and tesseract for everything that was planted.

    judge.py IDENTIFIERS.json LIST.tsv [--ocr N]

LIST.tsv has a line for each file to judge: its key in IDENTIFIERS.json, a tab, the path of the file that is to be clean. The untouched
files lie beside IDENTIFIERS.json, by their keys. Prints one line of JSON for each finding and a last line of totals.
Exits 0 whatever it finds: the caller decides, since it also runs on untouched files and wants them found there.

Text in pictures is looked for in every picture by its strokes, which IDENTIFIERS.json holds: none may be left, whether anybody could read
it or not. Reading (--ocr, in the first N pictures that had text) is a second look, at what stands elsewhere too.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import unicodedata
import warnings

import numpy as np
from PIL import Image, ImageChops, ImageFilter, ImageOps
from pydicom import config, dcmread

warnings.filterwarnings("ignore")
config.settings.reading_validation_mode = config.IGNORE
ENCODINGS = ("utf-8", "latin-1", "utf-16-le", "utf-16-be", "iso8859_5", "iso8859_7", "iso2022_jp", "shift_jis", "euc_jp")
# Words and dates are too short to be looked for in raw pixels, where they stand by chance.
SHORTEST_IN_BYTES = 6
# How alike strokes and picture must be for the strokes to be seen: of the untouched pictures' letters all but one in some hundreds are
# alike above 0.7, and where a rectangle has one shade nothing is.
SEEN = 0.6


def fold(text):
    plain = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in plain if not unicodedata.combining(c))


def is_word(value):
    return value.isalpha() or len(value) < 6


def elements(dataset, path=""):
    """All elements at every depth, with where they stand and their value as text."""
    for element in dataset:
        where = f"{path}{element.keyword or element.tag}"
        if element.VR == "SQ":
            for i, item in enumerate(element.value or []):
                yield from elements(item, f"{where}[{i}]/")
        elif isinstance(element.value, bytes):
            if element.keyword != "PixelData":
                yield where, element.value.decode("latin-1"), element
        else:
            yield where, str(element.value), element


def judge_elements(dataset, meta, planted):
    """Everything planted that is still in an element.

    A birth date is not looked for in other dates: those of an examination, moved into the past, may fall on it by chance.
    """
    found = list(elements(dataset)) + [("meta/" + where, value, element) for where, value, element in elements(meta)]
    folded = [(where, fold(text), set(re.findall(r"\w+", fold(text))), element) for where, text, element in found]
    for entry in planted:
        value = fold(entry["value"])
        for where, text, words, element in folded:
            if entry["where"] == "PatientBirthDate" and element.VR in ("DA", "DT") and element.keyword != "PatientBirthDate":
                continue
            if (value in words) if is_word(value) else (value in text):
                yield entry, where


def judge_bytes(raw, skip, planted):
    """The file's bytes without its pixels, preamble included."""
    start, end = skip
    lower = (raw[:start] + raw[end:]).lower()
    for entry in planted:
        value = entry["value"]
        if entry["kind"] == "date" or len(value) < SHORTEST_IN_BYTES:
            continue
        forms = {value, fold(value)}
        for form in forms:
            for encoding in ENCODINGS:
                try:
                    pattern = form.encode(encoding).lower()
                except UnicodeError:
                    continue
                if len(pattern) >= SHORTEST_IN_BYTES and pattern in lower:
                    yield entry, f"bytes as {encoding}"


def pixel_span(dataset, raw):
    if "PixelData" not in dataset:
        return (0, 0)
    data = dataset.PixelData
    at = raw.rfind(data[:4096]) if len(data) > 4096 else -1
    return (at, at + len(data)) if at >= 0 else (0, 0)


def picture(dataset):
    """The first frame as a viewer would show it, enlarged: as dark text on light, the reverse, and with local contrast."""
    values = dataset.pixel_array.astype(np.float64)
    while values.ndim > 2:
        values = values[0] if values.shape[-1] not in (3, 4) else values.mean(axis=-1)
    low, high = values.min(), values.max()
    grey = Image.fromarray(np.uint8((values - low) * 255 / max(high - low, 1)))
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        grey = ImageOps.invert(grey)
    views = [ImageOps.invert(grey), grey]
    # Strokes against what surrounds them, in both polarities.
    around = grey.filter(ImageFilter.MedianFilter(9))
    views.append(ImageOps.invert(ImageOps.autocontrast(ImageChops.subtract(grey, around), cutoff=(0, 1))))
    views.append(grey.point(lambda v: 0 if v > 225 else 255))
    return [view.resize((view.width * 4, view.height * 4), Image.Resampling.BICUBIC) for view in views]


def read_text(image):
    done = subprocess.run(["tesseract", "-", "-", "--psm", "11"], input=png(image), capture_output=True, check=True,
                          env={"OMP_THREAD_LIMIT": "1", "PATH": "/usr/local/bin:/usr/bin:/bin"})
    return done.stdout.decode("utf-8", "replace")


def png(image):
    import io

    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def close(a, b):
    """Whether two words differ by at most a letter in five, as reading by machine may."""
    if abs(len(a) - len(b)) > 2:
        return False
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1] <= len(a) // 5


def letters(coverage):
    """Pieces of a line about as wide as a letter, each half over the next: whoever leaves one letter leaves a piece."""
    height, width = coverage.shape
    size = min(width, max(height, 6))
    starts = [*range(0, width - size, max(size // 2, 1)), width - size]
    return [slice(start, start + size) for start in starts]


def likeness(strokes, values):
    """Of strokes and picture, 0 to 1, whether they are lighter or darker than what is around them."""
    if strokes.std() == 0 or values.std() == 0:
        return 0.0
    return abs(float(np.corrcoef(strokes.ravel(), values.ravel())[0, 1]))


def judge_ink(dataset, untouched, planted):
    """What is left of each burned-in line: its text, pieces and those in which strokes are seen, pixels of strokes and those that are as they were."""
    values, before = dataset.pixel_array, untouched.pixel_array
    if values.shape != before.shape or values.ndim != 2:
        raise SystemExit(f"expected a picture of {before.shape} as before, got {values.shape}: strokes cannot be looked for")
    for entry in planted:
        if entry["kind"] != "ink":
            continue
        coverage = np.array([[int(digit, 16) for digit in row] for row in entry["strokes"]]) / 15
        rows = slice(entry["top"], entry["top"] + coverage.shape[0])
        columns = slice(entry["left"], entry["left"] + coverage.shape[1])
        box = values[rows, columns].astype(np.float64)
        pieces = letters(coverage)
        seen = sum(likeness(coverage[:, piece], box[:, piece]) >= SEEN for piece in pieces)
        strokes = coverage >= 0.5
        kept = int(np.count_nonzero((values == before)[rows, columns] & strokes))
        yield {"value": entry["value"], "pieces": len(pieces), "seen": seen, "strokes": int(strokes.sum()), "kept": kept}


def judge_pixels(dataset, planted):
    wanted = [fold(e["value"]) for e in planted if e["kind"] == "burned-in" and len(e["value"]) >= 5]
    read = set()
    for image in picture(dataset):
        read |= {word for word in re.findall(r"\w+", fold(read_text(image))) if len(word) >= 4}
    return [value for value in wanted if any(close(value, word) for word in read)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("identifiers")
    parser.add_argument("list")
    parser.add_argument("--ocr", type=int, default=30, help="at most so many pictures with burned-in text are read")
    options = parser.parse_args()
    record = json.load(open(options.identifiers, encoding="utf-8"))["files"]
    totals = {"files": 0, "with_findings": 0, "planted": 0, "found": 0, "unmarked": 0, "burned": 0, "pieces": 0, "seen": 0, "strokes": 0,
              "kept": 0, "with_ink": 0, "ocr": 0, "ocr_found": 0}
    for line in open(options.list, encoding="utf-8"):
        key, path = line.rstrip("\n").split("\t")
        planted = record[key]
        dataset = dcmread(path)
        raw = open(path, "rb").read()
        findings = {}
        attributes = [e for e in planted if e["kind"] not in ("burned-in", "ink")]
        for entry, where in judge_elements(dataset, dataset.file_meta, attributes):
            findings.setdefault(entry["value"], where)
        for entry, where in judge_bytes(raw, pixel_span(dataset, raw), attributes):
            findings.setdefault(entry["value"], where)
        if any(raw[:128]):
            findings.setdefault("(preamble)", "preamble")
        if dataset.get("PatientIdentityRemoved") != "YES" or "DeidentificationMethodCodeSequence" not in dataset:
            totals["unmarked"] += 1
        totals["files"] += 1
        totals["planted"] += len({e["value"] for e in attributes})
        totals["found"] += len([value for value in findings if value != "(preamble)"])
        totals["with_findings"] += bool(findings)
        if any(e["kind"] == "ink" for e in planted):
            totals["burned"] += 1
            lines = list(judge_ink(dataset, dcmread(pathlib.Path(options.identifiers).parent / key), planted))
            for count in ("pieces", "seen", "strokes", "kept"):
                totals[count] += sum(line[count] for line in lines)
            left = [line for line in lines if line["seen"] or line["kept"]]
            totals["with_ink"] += bool(left)
            for line in left:
                where = f"ink: {line['seen']} of {line['pieces']} pieces seen, {line['kept']} of {line['strokes']} pixels as they were"
                findings.setdefault(line["value"], where)
            if totals["ocr"] < options.ocr:
                totals["ocr"] += 1
                read = judge_pixels(dataset, planted)
                totals["ocr_found"] += bool(read)
                for value in read:
                    findings.setdefault(value, "read in the picture")
        for value, where in findings.items():
            print(json.dumps({"file": key, "value": value, "where": where}, ensure_ascii=False))
    print(json.dumps(totals))
    return 0


if __name__ == "__main__":
    sys.exit(main())
