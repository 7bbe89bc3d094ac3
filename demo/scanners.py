"""Scanners of the demo hospitals: what they make of the same chest."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Scanner:
    """A model of X-ray unit as its pictures show it."""

    manufacturer: str
    model: str
    modality: str            # CR or DX
    photometric: str         # MONOCHROME1 or MONOCHROME2
    bits_allocated: int
    bits_stored: int
    rows: int
    columns: int
    gamma: float             # of the response, on brightness from 0 to 1
    contrast: float          # slope of the S-curve in the middle; 0 is a straight line
    low: float               # darkest and lightest stored value as a part of the range
    high: float
    noise: float             # standard deviation of the grain, as a part of the range
    blur: int                # half width of a box blur in pixels
    sharpen: float           # unsharp mask
    voi: str                 # "window", "sigmoid", "lut" or "none"
    padding: bool            # black collimator border marked by PixelPaddingValue
    syntaxes: tuple          # names of transfer syntaxes in use


SCANNERS = [
    Scanner("FUJIFILM Corporation", "FCR Velocity", "CR", "MONOCHROME1", 16, 10, 224, 224, 0.80, 0.0, 0.05, 0.95, 0.012, 0, 0.0,
            "window", False, ("implicit-le", "jpeg-lossless")),
    Scanner("Philips Medical Systems", "DigitalDiagnost", "DX", "MONOCHROME2", 16, 12, 256, 256, 1.35, 5.0, 0.02, 0.85, 0.006, 0, 0.8,
            "sigmoid", False, ("jpeg-2000", "jpeg-ls")),
    Scanner("GE MEDICAL SYSTEMS", "Definium 8000", "DX", "MONOCHROME2", 16, 16, 240, 232, 1.0, 8.0, 0.10, 0.70, 0.020, 1, 0.0,
            "lut", True, ("explicit-le", "rle")),
    Scanner("Agfa", "ADC Compact", "CR", "MONOCHROME2", 8, 8, 224, 224, 1.7, 0.0, 0.0, 1.0, 0.025, 1, 0.0,
            "none", False, ("jpeg-ls", "explicit-le")),
    Scanner("Canon Inc.", "CXDI-50G", "DX", "MONOCHROME1", 16, 12, 232, 248, 0.6, 3.0, 0.08, 0.92, 0.010, 0, 1.2,
            "window", True, ("jpeg-2000", "rle")),
    Scanner("CARESTREAM HEALTH", "DRX-Evolution", "DX", "MONOCHROME2", 16, 14, 256, 240, 1.1, 6.0, 0.0, 0.6, 0.008, 0, 0.4,
            "sigmoid", False, ("jpeg-lossless", "implicit-le")),
]


def _box(image, half):
    for axis in (0, 1):
        padded = np.pad(image, [(half, half) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        total = np.cumsum(padded, axis=axis, dtype=np.float64)
        total = np.insert(total, 0, 0, axis=axis)
        size = image.shape[axis]
        window = 2 * half + 1
        image = (np.take(total, range(window, window + size), axis) - np.take(total, range(size), axis)) / window
    return image


def expose(scanner, picture, rng):
    """Stored values (as unsigned integers of `bits_stored` bits) of a picture of shades from 0 to 255, white
    for bone, and the collimated border that the unit marks as padding.

    The picture is resized by the caller; here come the response, the grain and the bit depth.
    """
    light = picture.astype(np.float64) / 255.0
    if scanner.blur:
        light = _box(light, scanner.blur)
    if scanner.sharpen:
        light = np.clip(light + scanner.sharpen * (light - _box(light, 2)), 0, 1)
    light = light ** scanner.gamma
    if scanner.contrast:
        s_curve = 1 / (1 + np.exp(-scanner.contrast * (light - 0.5)))
        edge = 1 / (1 + np.exp(scanner.contrast / 2))
        light = (s_curve - edge) / (1 - 2 * edge)
    exposure = rng.normal(0, 0.02)
    light = np.clip(light + exposure + rng.normal(0, scanner.noise, light.shape), 0, 1)
    top = (1 << scanner.bits_stored) - 1
    stored = np.rint((scanner.low + light * (scanner.high - scanner.low)) * top)
    stored = np.clip(stored, 0, top).astype(np.uint16)
    if scanner.photometric == "MONOCHROME1":
        stored = top - stored
    border = np.zeros(stored.shape, bool)
    if scanner.padding:
        width = int(rng.integers(2, 7))
        border[:, :width] = border[:, -width:] = True
        stored[border] = padding_value(scanner)
    return stored, border


def padding_value(scanner):
    """What stands where no X-ray came: the value that shows as black."""
    return (1 << scanner.bits_stored) - 1 if scanner.photometric == "MONOCHROME1" else 0
