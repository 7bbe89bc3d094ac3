#!/usr/bin/env python3
"""Turns the carried chest X-rays into what the archives of several hospitals would hold.

    make_studies.py --out DIR [--sites 3] [--seed 1] [--share 1.0] [--burned-in 0.06]

Writes, for every hospital, DIR/site-N/*.dcm and DIR/site-N/labels.csv (accession_number,label); a common test set of other
patients and mixed scanners in DIR/common-test/; and DIR/identifiers.json with everything that was planted in each
file and that no de-identifier may let through, of text in pictures its strokes too. The same seed gives the same bytes.

Pictures: Kermany et al. 2018, CC BY 4.0, see images/LICENSE.md. All people, numbers and hospitals are made up.
"""

import argparse
import csv
import json
import pathlib
import re
import sys
import warnings

import numpy as np
from PIL import Image

import writer
from people import HOSPITALS, make_patient
from scanners import SCANNERS

# Studies and share of pneumonia of the first hospitals; further ones repeat them.
MIXES = [(220, 0.80), (180, 0.20), (140, 0.50)]
LABELS = ("normal", "pneumonia")


def patient_number(path):
    """What the set's file names say of the patient: person773, IM-0115, NORMAL2-IM-0862."""
    return re.match(r"(person\d+|(?:NORMAL2-)?IM-\d+)", path.name).group(1)


def groups(folder, label, rng):
    """The pictures of one label by patient, in an order that the seed gives."""
    by_patient = {}
    for path in sorted((folder / label).glob("*.jpeg")):
        by_patient.setdefault(patient_number(path), []).append(path)
    keys = sorted(by_patient)
    rng.shuffle(keys)
    return [by_patient[key] for key in keys]


def take(pool, count):
    """Whole patients with about `count` pictures in all, taken out of the pool."""
    taken, pictures = [], 0
    while pool and pictures < count:
        patient = pool.pop()
        taken.append(patient)
        pictures += len(patient)
    return taken


def write_patients(site, patients, folder, options, first_number, record):
    """Writes all studies of some patients; gives the rows of labels.csv."""
    rows = []
    for offset, (label, pictures, hospital, scanner) in enumerate(patients):
        rng = np.random.default_rng([options.seed, site, first_number + offset])
        patient = make_patient(rng, hospital, first_number + offset)
        start = 0
        while start < len(pictures):
            # Mostly one picture a study, sometimes two.
            count = 2 if rng.random() < 0.25 else 1
            study = writer.Study(rng, hospital, scanner, patient, seed=(options.seed, site, first_number + offset, start))
            for number, path in enumerate(pictures[start:start + count], 1):
                with Image.open(path) as image:
                    picture = image.convert("L").resize((scanner.columns, scanner.rows), Image.Resampling.BILINEAR)
                burn = rng.random() < options.burned_in
                name, planted = study.write(folder, np.asarray(picture), number, burn)
                record[f"{folder.name}/{name}"] = planted
            rows.append((study.accession_number, label))
            start += count
    return rows


def write_labels(folder, rows):
    with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(("accession_number", "label"))
        out.writerows(sorted(rows))


def main():
    here = pathlib.Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write to; made where it is not there")
    parser.add_argument("--sites", type=int, default=3, help="hospitals (default 3)")
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same files (default 1)")
    parser.add_argument("--share", type=float, default=1.0, help="part of the usual number of studies (default 1.0)")
    parser.add_argument("--burned-in", type=float, default=0.06, help="part of pictures with burned-in text (default 0.06)")
    parser.add_argument("--all", action="store_true", help="deal out every training picture rather than the usual number")
    parser.add_argument("--images", type=pathlib.Path, default=here / "images", help="folder with the pictures")
    options = parser.parse_args()
    if not 1 <= options.sites <= 100 or not 0 < options.share or not 0 <= options.burned_in <= 1:
        parser.error("expected 1 to 100 sites, a share above 0 and burned-in from 0 to 1")
    warnings.filterwarnings("ignore", module="pydicom")

    rng = np.random.default_rng([options.seed, 0xC0FFEE])
    pools = {label: groups(options.images / "train", label, rng) for label in LABELS}
    available = {label: sum(map(len, pool)) for label, pool in pools.items()}
    wanted = []
    for site in range(options.sites):
        studies, pneumonia = MIXES[site % len(MIXES)]
        pictures = studies * options.share * 1.12  # some studies hold two
        wanted.append({"pneumonia": pictures * pneumonia, "normal": pictures * (1 - pneumonia)})
    for label in LABELS:
        total = sum(mix[label] for mix in wanted)
        if total > available[label] or options.all:
            if not options.all:
                print(f"only {available[label]} pictures of {label} for {total:.0f}: the hospitals get fewer", file=sys.stderr)
            for mix in wanted:
                mix[label] *= available[label] / total

    record = {}
    for site, mix in enumerate(wanted):
        folder = options.out / f"site-{site + 1}"
        folder.mkdir(parents=True, exist_ok=True)
        hospital, scanner = HOSPITALS[site % len(HOSPITALS)], SCANNERS[site % len(SCANNERS)]
        dealt = [(label, pictures, hospital, scanner) for label in LABELS for pictures in take(pools[label], mix[label])]
        order = np.random.default_rng([options.seed, site, 1]).permutation(len(dealt))
        rows = write_patients(site, [dealt[i] for i in order], folder, options, 100, record)
        write_labels(folder, rows)
        counts = {label: sum(1 for row in rows if row[1] == label) for label in LABELS}
        print(f"{folder.name}: {len(rows)} studies of {len(dealt)} patients, {counts['pneumonia']} with pneumonia, "
              f"{scanner.manufacturer} {scanner.model}, {', '.join(scanner.syntaxes)}")

    # The common test set: patients of their own, on the scanners of all hospitals and, for one in four, on others.
    folder = options.out / "common-test"
    folder.mkdir(parents=True, exist_ok=True)
    test_rng = np.random.default_rng([options.seed, 0x7E57])
    dealt = []
    for label in LABELS:
        pool = groups(options.images / "test", label, test_rng)
        total = sum(map(len, pool))
        for pictures in take(pool, max(1, total * min(1.0, options.share))):
            known = test_rng.random() < 0.75
            scanner = SCANNERS[test_rng.integers(min(options.sites, len(SCANNERS))) if known else test_rng.integers(len(SCANNERS))]
            dealt.append((label, pictures, HOSPITALS[SCANNERS.index(scanner)], scanner))
    rows = write_patients(1000, dealt, folder, options, 50_000, record)
    write_labels(folder, rows)
    print(f"{folder.name}: {len(rows)} studies of {len(dealt)} patients")

    with open(options.out / "identifiers.json", "w", encoding="utf-8") as file:
        json.dump({"seed": options.seed, "files": record}, file, ensure_ascii=False, indent=0, sort_keys=True)


if __name__ == "__main__":
    main()
