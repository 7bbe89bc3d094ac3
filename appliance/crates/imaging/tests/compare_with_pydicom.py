"""Judges decoded images with pydicom. Argument: the folder that against_pydicom.rs wrote."""

import json
import pathlib
import sys
import warnings

import numpy as np
import pydicom
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array

warnings.simplefilter("ignore")
folder = pathlib.Path(sys.argv[1])
counts = dict.fromkeys(
    "files judged identical within_one different not_decoded only_decoded_here modality modality_wrong voi voi_wrong".split(),
    0,
)


def note(kind, path, text=""):
    print(f"{kind:>18}  {path.name}  {text}")


def display_range(dataset):
    """The output range of pydicom's apply_windowing."""
    if dataset.PixelRepresentation == 0:
        low, high = 0, 2**dataset.BitsStored - 1
    else:
        low, high = -(2 ** (dataset.BitsStored - 1)), 2 ** (dataset.BitsStored - 1) - 1
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    if slope is not None and intercept is not None:
        low, high = low * slope + intercept, high * slope + intercept
    return float(low), float(high)


for entry in json.loads((folder / "list.json").read_text()):
    path = pathlib.Path(entry["path"])
    counts["files"] += 1
    try:
        dataset = pydicom.dcmread(path)
        expected = pixel_array(dataset)
    except Exception as error:
        if "image" in entry:
            counts["only_decoded_here"] += 1
            note("only decoded here", path, str(error).splitlines()[0][:90])
        continue
    counts["judged"] += 1
    if "image" not in entry:
        counts["not_decoded"] += 1
        note("not decoded", path, entry.get("error") or entry.get("unopened"))
        continue
    ours = folder / str(entry["index"])
    image = entry["image"]
    shape = [image["rows"], image["columns"]]
    if image["frames"] > 1:
        shape = [image["frames"], *shape]
    if image["channels"] > 1:
        shape = [*shape, image["channels"]]
    stored = np.fromfile(ours / "stored", f"<{image['kind']}{image['bytes']}").reshape(shape)
    palette = dataset.PhotometricInterpretation == "PALETTE COLOR"
    if palette:
        expected = apply_color_lut(expected, dataset)
    expected = expected.reshape(shape)
    gap = np.abs(expected.astype(np.float64) - stored.astype(np.float64))
    if gap.max() == 0:
        counts["identical"] += 1
    if gap.max() <= 1:
        counts["within_one"] += 1
    else:
        counts["different"] += 1
        note("different", path, f"max {gap.max():g}, {np.mean(gap > 1):.2%} of samples, {dataset.PhotometricInterpretation}")
        continue
    if image["channels"] > 1:
        continue
    modality = np.fromfile(ours / "modality", "<f4").reshape(shape)
    if "FloatPixelData" not in dataset and "PerFrameFunctionalGroupsSequence" not in dataset:
        counts["modality"] += 1
        # Judged on the same stored values, so that a rounding of the codec is not counted twice.
        reference = apply_modality_lut(stored.astype(np.int64), dataset).astype(np.float64)
        if not np.allclose(reference, modality, rtol=1e-5, atol=1e-4):
            counts["modality_wrong"] += 1
            note("modality", path, f"max {np.abs(reference - modality).max():g}")
        elif image["voi"] and "DoseGridScaling" not in dataset:
            counts["voi"] += 1
            first = modality if image["frames"] == 1 else modality[0]
            display = np.fromfile(ours / "voi", "<f4").reshape(first.shape)
            lut = dataset.get("VOILUTSequence")
            if lut:
                values = np.round(first).astype(np.int32)
                reference = apply_voi_lut(values, dataset).astype(np.float64) / (2 ** lut[0].LUTDescriptor[2] - 1)
            else:
                low, high = display_range(dataset)
                reference = (apply_voi_lut(first.astype(np.float64), dataset) - low) / (high - low)
            if np.abs(reference - display).max() > 1 / 255:
                counts["voi_wrong"] += 1
                note("voi", path, f"max {np.abs(reference - display).max():g}")

print(counts)
(folder / "counts.json").write_text(json.dumps(counts))
