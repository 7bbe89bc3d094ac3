"""Writes DICOM files for the intake's tests: usage fixtures.py FOLDER. Nothing in them belongs to a real person.

Prints the folder of the test files that pydicom brings along.
"""

import sys
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    ComputedRadiographyImageStorage, CTImageStorage, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian,
    ImplicitVRLittleEndian, MRImageStorage, RLELossless, SecondaryCaptureImageStorage,
)

ROOT = "1.2.826.0.1.3680043.10.1611"
out = Path(sys.argv[1])
(out / "good").mkdir(parents=True)
(out / "broken").mkdir()


def image(study, series, number, sop_class, modality, date, name, syntax=ExplicitVRLittleEndian, frames=1):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = f"{ROOT}.{study}.{series}.{number}"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == RLELossless else syntax
    ds = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"{ROOT}.{study}", f"{ROOT}.{study}.{series}"
    ds.StudyDate, ds.StudyTime, ds.AccessionNumber = date, "101112", f"A{study}"
    ds.Modality, ds.PatientName, ds.PatientID, ds.PatientBirthDate = modality, name, f"P{study}", "19500101"
    ds.PatientSex, ds.ReferringPhysicianName, ds.StudyID, ds.SeriesNumber = "O", "", str(study), series
    ds.InstanceNumber, ds.Rows, ds.Columns, ds.SamplesPerPixel = number, 32, 32, 1
    ds.PhotometricInterpretation, ds.BitsAllocated, ds.BitsStored, ds.HighBit = "MONOCHROME2", 16, 12, 11
    ds.PixelRepresentation = 0
    if frames > 1:
        ds.NumberOfFrames = frames
    seed = np.random.default_rng(study * 10_000 + series * 100 + number)
    ds.PixelData = seed.integers(0, 4096, (frames, 32, 32), dtype=np.uint16).tobytes()
    if syntax == RLELossless:
        ds.compress(RLELossless, generate_instance_uid=False)
    return ds


def save(ds, name):
    ds.save_as(out / "good" / f"{name}.dcm", enforce_file_format=True)


# A CT of two series, plain and implicit.
for number in range(1, 9):
    save(image(1, 1, number, CTImageStorage, "CT", "20260101", "Probe^Eins"), f"ct-{number}")
for number in range(1, 5):
    save(image(1, 2, number, CTImageStorage, "CT", "20260101", "Probe^Eins", ImplicitVRLittleEndian), f"ct2-{number}")
# An MR in RLE, with a name in kanji.
for number in range(1, 7):
    save(image(2, 1, number, MRImageStorage, "MR", "20260215", "Yamada^Tarou=山田^太郎", RLELossless), f"mr-{number}")
# Single pictures in studies of their own, one without a date, one with a date of ACR-NEMA times.
for study, date in enumerate(["20260301", "20260302", "20250101", "", "1997.04.24", "20260304"], start=10):
    sop_class, code = ((ComputedRadiographyImageStorage, "CR"), (DigitalXRayImageStorageForPresentation, "DX"))[study % 2]
    with pydicom.config.disable_value_validation():
        save(image(study, 1, 1, sop_class, code, date, f"Probe^{study}"), f"x-{study}")
# A multi-frame secondary capture.
save(image(20, 1, 1, SecondaryCaptureImageStorage, "OT", "20260305", "Probe^Film", RLELossless, frames=5), "sc-multi")
# A long series, so that pages of 3 and the retrieval of a whole series both have work.
for number in range(1, 12):
    save(image(30, 1, number, CTImageStorage, "CT", "20260310", "Probe^Lang"), f"long-{number:02}")

broken = out / "broken"
(broken / "notes.txt").write_text("not a DICOM file\n")
(broken / "empty.dcm").write_bytes(b"")
whole = (out / "good" / "ct-1.dcm").read_bytes()
(broken / "cut.dcm").write_bytes(whole[:150])
nameless = image(40, 1, 1, CTImageStorage, "CT", "20260101", "Probe^Namenlos")
del nameless.SOPInstanceUID
del nameless.file_meta.MediaStorageSOPInstanceUID
pydicom.dcmwrite(broken / "nameless.dcm", nameless, enforce_file_format=False)
# The same SOPInstanceUID as ct-1, other content: it must not replace ct-1, nor get lost without a word.
twin = image(1, 1, 1, CTImageStorage, "CT", "20260101", "Probe^Zwilling")
pydicom.dcmwrite(broken / "twin-of-ct-1.dcm", twin)

print(Path(pydicom.__file__).parent / "data" / "test_files")
