#!/usr/bin/env python3
"""Makes the seeds of the fuzz targets whose inputs are foreign formats, where a fuzzer alone would not find the way in.

    python3 -m venv .venv && .venv/bin/pip install -r requirements-test.txt     (cargo xtask test does that)
    .venv/bin/python fuzz/seeds/make.py

Everything in them is made here; no picture, name or key is anybody's. The certificate's key is thrown away, so it and its request
differ each time. Needs dcmtk and openssl.
"""

import io
import pathlib
import subprocess
import tempfile

import jpeg_ls
import numpy as np
from openjpeg.utils import encode_array
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import get_frame
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, SecondaryCaptureImageStorage

HERE = pathlib.Path(__file__).parent
# OpenJPEG takes no smaller ones.
ROWS, COLUMNS = 33, 32
# As in appliance/crates/imaging/tests/decoders: the index of the transfer syntax, of the bits and of the photometric interpretation.
RLE, BASELINE, LOSSLESS, JPEG_LS, JPEG_2000, NATIVE = 0, 1, 2, 3, 4, 6
BITS_8, BITS_16 = 0, 1
MONOCHROME2, YBR_FULL = 0, 3


def write(target, name, content):
    folder = HERE / target
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)


def picture(kind):
    rows, columns = np.mgrid[:ROWS, :COLUMNS]
    shades = rows * 3 + columns * 2 + 60 * ((rows - 16) ** 2 + (columns - 12) ** 2 < 80)
    return (shades * (150 if kind == np.uint16 else 1)).astype(kind)


def fragment(kind, command):
    """The stream that dcmtk or pydicom makes of the picture."""
    data = Dataset()
    pixels = picture(kind)
    data.SOPClassUID, data.SOPInstanceUID = SecondaryCaptureImageStorage, "2.25.1"
    data.Rows, data.Columns, data.SamplesPerPixel, data.PixelRepresentation = ROWS, COLUMNS, 1, 0
    data.PhotometricInterpretation = "MONOCHROME2"
    bits = pixels.dtype.itemsize * 8
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.PixelData = pixels.tobytes()
    data["PixelData"].VR = "OW"
    if command is None:
        data.compress(RLELossless, generate_instance_uid=False)
    else:
        with tempfile.TemporaryDirectory() as folder:
            before, after = pathlib.Path(folder) / "in.dcm", pathlib.Path(folder) / "out.dcm"
            data.save_as(before, enforce_file_format=True)
            subprocess.run([*command, before, after], check=True)
            data = dcmread(after)
    return get_frame(data.PixelData, 0, number_of_frames=1)


def frames():
    def seed(name, syntax, bits, photometric, stream):
        write("image_frame", name, bytes([syntax, ROWS, COLUMNS, bits, photometric]) + bytes(stream))

    def jpeg(image):
        out = io.BytesIO()
        image.save(out, "JPEG", quality=80)
        return out.getvalue()

    small, wide = picture(np.uint8), picture(np.uint16)
    seed("rle", RLE, BITS_16, MONOCHROME2, fragment(np.uint16, None))
    seed("jpeg-baseline", BASELINE, BITS_8, MONOCHROME2, jpeg(Image.fromarray(small)))
    colour = Image.fromarray(np.stack([small, small[::-1], small[:, ::-1]], axis=-1))
    seed("jpeg-baseline-colour", BASELINE, BITS_8, YBR_FULL, jpeg(colour))
    seed("jpeg-lossless", LOSSLESS, BITS_16, MONOCHROME2, fragment(np.uint16, ["dcmcjpeg", "+e1", "-q"]))
    seed("jpeg-ls", JPEG_LS, BITS_16, MONOCHROME2, jpeg_ls.encode_array(wide))
    seed("jpeg-2000", JPEG_2000, BITS_16, MONOCHROME2, encode_array(wide, codec_format=0))
    seed("native", NATIVE, BITS_8, MONOCHROME2, small.tobytes())


def packets():
    def framed(first, body):
        return bytes([first, len(body)]) + body

    def text(value):
        return len(value).to_bytes(2, "big") + value

    connect = text(b"MQTT") + b"\x04\xee\x00\x1e" + b"".join(map(text, [b"north", b"a/b", b"{}", b"user", b"pw"]))
    write("broker_packet", "connect", framed(0x10, connect))
    write("broker_packet", "publish", framed(0x33, text(b"medinet/v1/chest/site/north/status") + b"\x00\x07{}"))
    write("broker_packet", "subscribe", framed(0x82, b"\x00\x01" + text(b"a/b") + b"\x01" + text(b"c/#") + b"\x00"))
    write("broker_packet", "unsubscribe", framed(0xA2, b"\x00\x01" + text(b"a/b")))


def web():
    part = b"--b\r\nContent-Type: application/dicom\r\n\r\nabc\r\n"
    write("pacs_multipart", "parts", b"\x07" + part + b"--b  \r\n\r\nd\r\n--bc\r\n--b--\r\n")
    write("pacs_content_type", "quoted", b'multipart/related;type="application/dicom; transfer-syntax=1.2";Boundary="a;\\"b c"')
    write("pacs_json", "study", b"""[{"0020000D": {"vr": "UI", "Value": ["1.2"]}, "00080061": {"vr": "CS", "Value": ["CT\\\\MR"]},
"00201208": {"vr": "IS", "Value": [42]}, "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Doe^Jane"}]},
"00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.3"]}}, null]}}]""")


def dicom():
    elements = [(0x0002, b"1.2.840.10008.5.1.4.1.1.2\0"), (0x0100, b"\1\0"), (0x0110, b"\7\0"), (0x0700, b"\0\0"),
                (0x0800, b"\1\0"), (0x1000, b"1.2.3\0")]
    command = b"".join(b"\0\0" + number.to_bytes(2, "little") + len(value).to_bytes(4, "little") + value
                       for number, value in elements)
    write("pacs_command", "c-store", command)
    # A C-ECHO has no instance and no data set.
    echo = command.replace(b"\0\0\0\1\2\0\0\0\1\0", b"\0\0\0\1\2\0\0\0\x30\0").replace(b"\0\0\0\x08\2\0\0\0\1\0", b"\0\0\0\x08\2\0\0\0\1\1")
    write("pacs_command", "c-echo", echo[:-14])
    file = (bytes(128) + b"DICM\x02\0\x10\0UI\x14\0001.2.840.10008.1.2.1\0"
            b"\x08\0\x16\0UI\x04\0001.2\0\x08\0\x18\0UI\x06\0001.2.3\0")
    write("pacs_name", "file", file)


def identities():
    subject = ["-subj", "/CN=north", "-addext", "subjectAltName=URI:urn:medinet:site:north"]
    new = ["openssl", "req", "-new", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-keyout", "/dev/null", *subject]
    request = subprocess.run(new, check=True, capture_output=True).stdout
    write("identity_request", "site", request)
    certificate = subprocess.run([*new, "-x509", "-days", "30", "-outform", "DER"], check=True, capture_output=True).stdout
    write("identity_certificate", "site", certificate)


frames()
packets()
web()
dicom()
identities()
