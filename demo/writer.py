"""Writes one study as the DICOM files of a hospital's archive, with identifiers wherever real ones hide."""

import dataclasses
import datetime
import pathlib
import shutil
import subprocess
import tempfile

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydicom import config, dcmread
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, generate_uid,
)

from people import DOCTORS, NURSES, Planted, fold
from scanners import expose, padding_value

config.settings.writing_validation_mode = config.IGNORE
config.settings.reading_validation_mode = config.IGNORE

SYNTAXES = {
    "explicit-le": ExplicitVRLittleEndian,
    "implicit-le": ImplicitVRLittleEndian,
    "rle": RLELossless,
    "jpeg-lossless": JPEGLosslessSV1,
    "jpeg-ls": JPEGLSLossless,
    "jpeg-2000": JPEG2000Lossless,
}
CLASSES = {"CR": "1.2.840.10008.5.1.4.1.1.1", "DX": "1.2.840.10008.5.1.4.1.1.1.1"}
# A private root for the demo (PS3.5 B.2 would be random; these have to come out alike for the same seed).
UID_PREFIX = "1.2.826.0.1.3680043.8.498."
# Two private blocks: one that a PACS fills with people, one that the standard's list of safe attributes knows.
PACS_BLOCK = "ACME ARCHIVE 3.1"
SAFE_BLOCK = "GEMS_PARM_01"


def item(**attributes):
    """A sequence item."""
    out = Dataset()
    for keyword, value in attributes.items():
        setattr(out, keyword, value)
    return out


def code(value, scheme, meaning):
    return item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def da(date):
    return date.strftime("%Y%m%d")


class Study:
    """One study of one patient."""

    def __init__(self, rng, hospital, scanner, patient, seed):
        self.rng, self.hospital, self.scanner, self.patient = rng, hospital, scanner, patient
        self.seed = "/".join(map(str, seed))
        self.uid = self.make_uid("study")
        self.date = patient.birth_date + datetime.timedelta(days=int(rng.integers(370, 5 * 365)))
        self.time = f"{rng.integers(7, 19):02d}{rng.integers(60):02d}{rng.integers(60):02d}"
        self.accession_number = f"{hospital.id_prefix[0]}{self.date.year % 100}{rng.integers(10**6, 10**7)}"
        self.study_id = f"S{rng.integers(10**5, 10**6)}"
        self.visit = f"V{rng.integers(10**6, 10**7)}"
        self.requested_procedure = f"RP{rng.integers(10**6, 10**7)}"
        self.scheduled_step = f"SPS{rng.integers(10**6, 10**7)}"
        self.referring = DOCTORS[rng.integers(len(DOCTORS))]
        self.performing = DOCTORS[rng.integers(len(DOCTORS))]
        self.operator = NURSES[rng.integers(len(NURSES))]
        if patient.charset not in ("ISO_IR 100", "ISO_IR 192"):
            # A character set that lacks the hospital's letters: its clerks write without accents.
            self.hospital = dataclasses.replace(hospital, name=fold(hospital.name), department=fold(hospital.department))
        self.serial = f"SN{rng.integers(10**7, 10**8)}"
        self.scheme = rng.integers(4)

    def make_uid(self, what):
        return generate_uid(prefix=UID_PREFIX, entropy_srcs=[self.seed, what])

    def write(self, folder, picture, number, burn):
        """Writes one instance; gives its file name and what was planted in it."""
        planted = Planted()
        rng, scanner = self.rng, self.scanner
        data = Dataset()
        self.describe_patient(data, planted)
        self.describe_study(data, planted, number)
        self.describe_device(data, planted)
        self.hide_in_corners(data, planted)
        stored, _ = expose(scanner, picture, rng)
        if burn:
            stored = self.burn_in(data, stored, planted)
        self.describe_image(data, stored)
        syntax = SYNTAXES[scanner.syntaxes[rng.integers(len(scanner.syntaxes))]]
        name = f"{data.SOPInstanceUID[len(UID_PREFIX):][:24]}.dcm"
        self.save(pathlib.Path(folder) / name, data, syntax, planted)
        return name, planted.as_json()

    def describe_patient(self, data, planted):
        patient, hospital = self.patient, self.hospital
        if patient.charset:
            data.SpecificCharacterSet = patient.charset.split("\\")
        data.PatientName = patient.name
        for word in patient.words:
            planted.add("name", word, "PatientName")
        data.PatientID = planted.add("id", patient.patient_id, "PatientID")
        data.IssuerOfPatientID = planted.add("institution", hospital.issuer, "IssuerOfPatientID")
        data.PatientBirthDate = planted.add("date", da(patient.birth_date), "PatientBirthDate")
        data.PatientBirthTime = "031500"
        data.PatientSex = patient.sex
        data.PatientAge = f"{(self.date - patient.birth_date).days // 365:03d}Y"
        data.PatientWeight = str(round(float(self.rng.uniform(8, 25)), 1))
        data.PatientAddress = planted.add("address", patient.address, "PatientAddress")
        data.PatientTelephoneNumbers = planted.add("telephone", patient.telephone, "PatientTelephoneNumbers")
        data.PatientMotherBirthName = patient.mother
        for word in patient.mother.split("^"):
            planted.add("name", word, "PatientMotherBirthName")
        data.Occupation = planted.add("text", patient.occupation, "Occupation")
        data.MedicalRecordLocator = planted.add("id", f"MRL-{patient.insurance}", "MedicalRecordLocator")
        data.OtherPatientIDsSequence = Sequence([
            item(PatientID=planted.add("id", patient.other_id, "OtherPatientIDsSequence/PatientID"), TypeOfPatientID="TEXT",
                 IssuerOfPatientID=hospital.issuer),
            item(PatientID=planted.add("id", patient.insurance, "OtherPatientIDsSequence/PatientID"), TypeOfPatientID="TEXT"),
        ])
        data.PatientComments = (
            f"Mother {fold(patient.mother.replace('^', ', '))} to be called on {patient.telephone} or "
            f"{planted.add('email', patient.email, 'PatientComments')} before discharge")
        data.AdditionalPatientHistory = f"Known to {self.referring.split('^')[0]} since birth, ins. no. {patient.insurance}; cough, fever"

    def describe_study(self, data, planted, number):
        hospital, date = self.hospital, self.date
        data.StudyInstanceUID = planted.add("uid", self.uid, "StudyInstanceUID")
        data.SeriesInstanceUID = planted.add("uid", self.make_uid(f"series {number}"), "SeriesInstanceUID")
        data.SOPInstanceUID = planted.add("uid", self.make_uid(f"instance {number}"), "SOPInstanceUID")
        data.SOPClassUID = CLASSES[self.scanner.modality]
        data.FrameOfReferenceUID = planted.add("uid", self.make_uid("frame"), "FrameOfReferenceUID")
        data.StudyDate = data.SeriesDate = planted.add("date", da(date), "StudyDate")
        data.AcquisitionDate = data.ContentDate = da(date)
        data.StudyTime = data.SeriesTime = data.AcquisitionTime = data.ContentTime = self.time
        data.InstanceCreationDate, data.InstanceCreationTime = da(date), self.time
        data.AcquisitionDateTime = f"{da(date)}{self.time}.120000+0100"
        data.TimezoneOffsetFromUTC = "+0100"
        data.AccessionNumber = planted.add("id", self.accession_number, "AccessionNumber")
        data.StudyID = planted.add("id", self.study_id, "StudyID")
        data.SeriesNumber, data.InstanceNumber = str(number), "1"
        data.Modality = self.scanner.modality
        data.BodyPartExamined = "CHEST"
        data.ViewPosition = "AP"
        data.ReferringPhysicianName = self.referring
        data.PerformingPhysicianName = self.performing
        data.OperatorsName = self.operator
        data.RequestingPhysician = self.referring
        data.NameOfPhysiciansReadingStudy = self.performing
        for person, where in ((self.referring, "ReferringPhysicianName"), (self.performing, "PerformingPhysicianName"),
                              (self.operator, "OperatorsName")):
            for word in person.split("^")[:2]:
                planted.add("name", word, where)
        data.ReferringPhysicianTelephoneNumbers = planted.add("telephone", "+49 6203 77812345", "ReferringPhysicianTelephoneNumbers")
        data.ReferringPhysicianIdentificationSequence = Sequence([item(
            InstitutionName=planted.add("institution", f"Praxis {self.referring.split('^')[0]}", "ReferringPhysicianIdentificationSequence"),
            PersonTelephoneNumbers="+49 6203 77812345",
            PersonIdentificationCodeSequence=Sequence([
                code(planted.add("id", "LANR-7745512", "PersonIdentificationCodeSequence"), "99LOCAL", self.referring.replace("^", " "))]))])
        data.InstitutionName = planted.add("institution", hospital.name, "InstitutionName")
        data.InstitutionAddress = planted.add("address", hospital.address, "InstitutionAddress")
        data.InstitutionalDepartmentName = planted.add("institution", hospital.department, "InstitutionalDepartmentName")
        words = self.patient.words
        data.StudyDescription = [
            "Thorax a.p.", f"CHEST 1 VIEW {words[0]}", f"Chest AP bedside, ward {hospital.station}", "XR chest pneumonia?"][self.scheme]
        data.SeriesDescription = ["Chest AP", f"AP {self.patient.patient_id}", "Thorax", f"{words[-1]} chest AP"][self.scheme]
        data.ProtocolName = ["Chest paediatric", "CHEST PEDIATRIC AP", f"Child {words[0]}", "thorax 1-5y"][self.scheme]
        data.AdmittingDiagnosesDescription = f"Cough and fever; referred by {self.referring.split('^')[0]}"
        data.RequestedProcedureDescription = "Chest radiograph"
        data.RequestedProcedureComments = f"Please phone ward for {words[0]}"
        data.ReasonForTheRequestedProcedure = "Suspected pneumonia"
        data.ImageComments = f"Repeat of {words[0]}, {self.patient.birth_date.strftime('%d.%m.%Y')}: motion"
        planted.add("date", self.patient.birth_date.strftime("%d.%m.%Y"), "ImageComments")
        data.AdmissionID = planted.add("id", self.visit, "AdmissionID")
        data.CurrentPatientLocation = planted.add("institution", f"Ward {hospital.id_prefix}-4 bed 12", "CurrentPatientLocation")
        data.PatientInstitutionResidence = hospital.name
        data.PerformedProcedureStepStartDate = da(date)
        data.PerformedProcedureStepStartTime = self.time
        data.PerformedProcedureStepID = planted.add("id", f"PPS{self.requested_procedure}", "PerformedProcedureStepID")
        data.PerformedProcedureStepDescription = f"Chest AP by {self.operator.split('^')[0]}"
        data.ProcedureCodeSequence = Sequence([code("36643-5", "LN", "XR Chest 2 Views")])
        data.RequestAttributesSequence = Sequence([item(
            RequestedProcedureID=planted.add("id", self.requested_procedure, "RequestAttributesSequence/RequestedProcedureID"),
            ScheduledProcedureStepID=planted.add("id", self.scheduled_step, "RequestAttributesSequence/ScheduledProcedureStepID"),
            RequestedProcedureDescription=f"Chest for {words[0]}",
            ScheduledProcedureStepDescription=f"Bedside, {self.referring.split('^')[0]} asks",
            AccessionNumber=self.accession_number,
            StudyInstanceUID=self.uid,
            ScheduledProtocolCodeSequence=Sequence([code("CXR1", "99LOCAL", f"Chest {words[0]}")]),
        )])
        previous = self.make_uid("previous study")
        data.ReferencedStudySequence = Sequence([item(
            ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",
            ReferencedSOPInstanceUID=planted.add("uid", previous, "ReferencedStudySequence"))])
        data.ReferencedPatientSequence = Sequence([item(
            ReferencedSOPClassUID="1.2.840.10008.3.1.2.1.1",
            ReferencedSOPInstanceUID=planted.add("uid", self.make_uid("patient object"), "ReferencedPatientSequence"))])
        data.SourceImageSequence = Sequence([item(
            ReferencedSOPClassUID=data.SOPClassUID,
            ReferencedSOPInstanceUID=planted.add("uid", self.make_uid("raw image"), "SourceImageSequence"),
            PurposeOfReferenceCodeSequence=Sequence([code("121320", "DCM", "Uncompressed predecessor")]))])

    def describe_device(self, data, planted):
        scanner, hospital = self.scanner, self.hospital
        data.Manufacturer = scanner.manufacturer
        data.ManufacturerModelName = scanner.model
        data.StationName = planted.add("institution", hospital.station, "StationName")
        data.DeviceSerialNumber = planted.add("id", self.serial, "DeviceSerialNumber")
        data.DetectorID = planted.add("id", f"DET-{self.serial}", "DetectorID")
        data.PlateID = planted.add("id", f"PL{self.serial[2:]}A", "PlateID")
        data.SoftwareVersions = "V5.2.1"
        data.KVP = str(int(self.rng.integers(58, 76)))
        data.ExposureTime = str(int(self.rng.integers(3, 12)))
        data.Exposure = str(int(self.rng.integers(1, 4)))
        data.DistanceSourceToDetector = "1150"
        data.ImagerPixelSpacing = ["1.2", "1.2"]

    def hide_in_corners(self, data, planted):
        """The places that de-identifiers forget."""
        patient, rng = self.patient, self.rng
        first = patient.words[0]
        # What a PACS changed, with the old values: three levels deep.
        old = item(PatientID=planted.add("id", f"TMP{patient.other_id[4:]}", "OriginalAttributesSequence"),
                   RequestAttributesSequence=Sequence([item(
                       RequestedProcedureComments=f"was booked for {self.referring.split('^')[1]}",
                       RequestedProcedureID=planted.add("id", f"OLD{self.requested_procedure}", "OriginalAttributesSequence"))]))
        old.PatientName = patient.name
        data.OriginalAttributesSequence = Sequence([item(
            SourceOfPreviousValues=planted.add("institution", f"{self.hospital.issuer}-OLD", "OriginalAttributesSequence"),
            AttributeModificationDateTime=f"{da(self.date)}235959",
            ModifyingSystem=self.hospital.ae_title,
            ReasonForTheAttributeModification="CORRECT",
            ModifiedAttributesSequence=Sequence([old]))])
        block = data.private_block(0x0009, PACS_BLOCK, create=True)
        block.add_new(0x01, "LO", patient.patient_id)
        block.add_new(0x02, "PN", patient.name)
        block.add_new(0x03, "LT", f"imported for {first} on {da(self.date)} by {self.operator.split('^')[0]}")
        inner = item(PatientID=patient.other_id)
        inner.PatientName = patient.name
        block.add_new(0x10, "SQ", Sequence([inner]))
        block.add_new(0x11, "OB", b"<xml><patient>" + fold(patient.ascii_name).encode() + b"</patient></xml>")
        safe = data.private_block(0x0043, SAFE_BLOCK, create=True)
        safe.add_new(0x27, "SH", "0.938:1")
        safe.add_new(0x28, "OB", fold(patient.ascii_name).encode().ljust(32, b" "))
        # Attributes that the tables do not list, or in a form that they do not expect.
        data.add_new(0x00100999, "LO", f"{first}, room 12")
        data.DerivationDescription = f"Cropped for {first}"
        data.ManufacturerModelName = f"{data.ManufacturerModelName}" + (f" ({patient.patient_id})" if rng.random() < 0.2 else "")
        data.AcquisitionDeviceProcessingDescription = f"CHEST {first}"
        if rng.random() < 0.3:
            group = 0x6000
            data.add_new((group, 0x0010), "US", 16)
            data.add_new((group, 0x0011), "US", 16)
            data.add_new((group, 0x0040), "CS", "G")
            data.add_new((group, 0x0050), "SS", [1, 1])
            data.add_new((group, 0x0100), "US", 1)
            data.add_new((group, 0x0102), "US", 0)
            data.add_new((group, 0x3000), "OW", bytes(32))
            data.add_new((group, 0x4000), "LT", f"marked by {self.performing.split('^')[0]}")

    def burn_in(self, data, stored, planted):
        """Writes the patient's name and number into the picture as a console does."""
        rng, scanner = self.rng, self.scanner
        size = int(rng.integers(11, 16))
        name = self.patient.ascii_name.replace("^", " ").upper().strip()[:22]
        lines = [name, self.patient.patient_id]
        if rng.random() < 0.5:
            lines.append(self.patient.birth_date.strftime("%d.%m.%Y"))
        font = ImageFont.load_default(size)
        mask = Image.new("L", (stored.shape[1], stored.shape[0]))
        draw = ImageDraw.Draw(mask)
        width = max(draw.textlength(line, font=font) for line in lines)
        right, bottom = rng.random() < 0.5, rng.random() < 0.5
        x = stored.shape[1] - width - 8 if right else 8
        y = stored.shape[0] - len(lines) * (size + 2) - 8 if bottom else 6
        top = (1 << scanner.bits_stored) - 1
        white = 0 if scanner.photometric == "MONOCHROME1" else top
        black = top - white
        for i, line in enumerate(lines):
            at = (max(x, 2), y + i * (size + 2))
            draw.text(at, line, fill=255, font=font)
            alone = Image.new("L", mask.size)
            ImageDraw.Draw(alone).text(at, line, fill=255, font=font)
            planted.add_ink(line, np.asarray(alone, dtype=np.float64) / 255)
        ink = np.asarray(mask, dtype=np.float64) / 255
        out = stored.astype(np.float64)
        if rng.random() < 0.35:  # on a black strip
            strip = slice(max(int(y) - 2, 0), int(y) + len(lines) * (size + 2) + 2)
            out[strip, max(int(x) - 4, 0):int(x + width) + 4] = black
        out = out * (1 - ink) + white * ink
        for word in name.split():
            planted.add("burned-in", word, "PixelData")
        planted.add("burned-in", self.patient.patient_id, "PixelData")
        # The attribute that should say so is right, missing or wrong.
        says = rng.random()
        if says < 0.4:
            data.BurnedInAnnotation = "YES"
        elif says < 0.7:
            data.BurnedInAnnotation = "NO"
        return np.rint(out).astype(np.uint16)

    def describe_image(self, data, stored):
        scanner = self.scanner
        data.ImageType = ["ORIGINAL", "PRIMARY"] if scanner.modality == "CR" else ["DERIVED", "PRIMARY"]
        data.SamplesPerPixel = 1
        data.PhotometricInterpretation = scanner.photometric
        data.Rows, data.Columns = stored.shape
        data.BitsAllocated, data.BitsStored, data.HighBit = scanner.bits_allocated, scanner.bits_stored, scanner.bits_stored - 1
        data.PixelRepresentation = 0
        if scanner.modality == "DX":
            data.PresentationIntentType = "FOR PRESENTATION"
            data.PixelIntensityRelationship, data.PixelIntensityRelationshipSign = "LOG", -1 if scanner.photometric == "MONOCHROME2" else 1
            data.RescaleIntercept, data.RescaleSlope, data.RescaleType = "0", "1", "US"
            data.PresentationLUTShape = "INVERSE" if scanner.photometric == "MONOCHROME1" else "IDENTITY"
            data.ImageLaterality = "U"
        top = (1 << scanner.bits_stored) - 1
        low, high = scanner.low * top, scanner.high * top
        if scanner.photometric == "MONOCHROME1":
            low, high = top - high, top - low
        if scanner.voi in ("window", "sigmoid"):
            data.WindowCenter, data.WindowWidth = str(round((low + high) / 2)), str(max(1, round(high - low)))
        if scanner.voi == "sigmoid":
            data.VOILUTFunction = "SIGMOID"
        if scanner.voi == "lut":
            first, entries = int(low), int(high) - int(low)
            ramp = np.rint((np.arange(entries) / (entries - 1)) ** 1.2 * 65535).astype("<u2")
            data.VOILUTSequence = Sequence([item(LUTExplanation="STANDARD")])
            lut = data.VOILUTSequence[0]
            lut.add_new("LUTDescriptor", "US", [entries, first, 16])
            lut.add_new("LUTData", "OW", ramp.tobytes())
            data.WindowCenter, data.WindowWidth = str(round((low + high) / 2)), str(max(1, round(high - low)))
        if scanner.padding:
            data.add_new("PixelPaddingValue", "US", padding_value(scanner))
        raw = stored.astype("u1" if scanner.bits_allocated == 8 else "<u2").tobytes()
        data.add_new("PixelData", "OB" if scanner.bits_allocated == 8 else "OW", raw)

    def save(self, path, data, syntax, planted):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = data.SOPClassUID
        meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax != ImplicitVRLittleEndian else syntax
        meta.ImplementationClassUID = "1.2.826.0.1.3680043.8.498.1"
        meta.ImplementationVersionName = "ACME_31"
        preamble = bytes(128)
        if self.rng.random() < 0.3:
            preamble = f"cached for {self.patient.patient_id} {fold(self.patient.ascii_name)}".encode()[:128].ljust(128, b"\0")
        file = FileDataset(str(path), data, file_meta=meta, preamble=preamble, is_implicit_VR=syntax == ImplicitVRLittleEndian,
                           is_little_endian=True)
        if syntax == JPEGLosslessSV1:
            encapsulate_with_dcmtk(file)
        elif syntax not in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
            file.compress(syntax, generate_instance_uid=False)
        meta = file.file_meta
        meta.SourceApplicationEntityTitle = planted.add("institution", self.hospital.ae_title, "file meta SourceApplicationEntityTitle")
        meta.SendingApplicationEntityTitle = self.hospital.ae_title
        meta.PrivateInformationCreatorUID = planted.add("uid", self.make_uid("private information"), "file meta PrivateInformationCreatorUID")
        meta.PrivateInformation = self.patient.patient_id.encode().ljust(20, b" ")
        file.save_as(path, enforce_file_format=True)


def encapsulate_with_dcmtk(file):
    """Replaces native pixel data by JPEG lossless (process 14, selection value 1), for which Python has no encoder."""
    if shutil.which("dcmcjpeg") is None:
        raise SystemExit("dcmcjpeg is missing; install it with: apt-get install dcmtk")
    pixels = Dataset()
    for keyword in ("SOPClassUID", "SOPInstanceUID", "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated",
                    "BitsStored", "HighBit", "PixelRepresentation"):
        setattr(pixels, keyword, getattr(file, keyword))
    pixels["PixelData"] = file["PixelData"]
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    pixels.file_meta = meta
    with tempfile.TemporaryDirectory() as folder:
        before, after = pathlib.Path(folder) / "in.dcm", pathlib.Path(folder) / "out.dcm"
        pixels.save_as(before, enforce_file_format=True)
        subprocess.run(["dcmcjpeg", "+e1", "-q", str(before), str(after)], check=True)
        compressed = dcmread(after)
        file["PixelData"] = compressed["PixelData"]
    file["PixelData"].is_undefined_length = True
    file.file_meta.TransferSyntaxUID = JPEGLosslessSV1
