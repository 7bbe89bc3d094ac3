"""Writes an image and structured reports about it, as other makers' software does. Argument: a folder.

image.dcm       a CR image of pydicom's making
tid1500.dcm     highdicom: TID 1500 with a qualitative evaluation of the image (finding: pneumonia)
presence.dcm    pydicom: Basic Text SR, concept "Pneumonia" with the value "Absent"
"""

import pathlib
import sys

import highdicom
import numpy
import pydicom
from highdicom.sr import CodedConcept
from pydicom.sr.codedict import codes
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import BasicTextSRStorage, ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

folder = pathlib.Path(sys.argv[1])


def begin(sop_class, modality):
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop_class
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.Modality = modality
    dataset.SeriesInstanceUID = generate_uid()
    dataset.PatientID = "pseudonym"
    dataset.PatientName = dataset.PatientBirthDate = dataset.PatientSex = ""
    dataset.StudyID = dataset.ReferringPhysicianName = ""
    dataset.AccessionNumber = "ACC-77"
    dataset.StudyDate = "20240101"
    dataset.StudyTime = "120000"
    dataset.SeriesNumber = dataset.InstanceNumber = 1
    return dataset


image = begin(ComputedRadiographyImageStorage, "CR")
image.StudyInstanceUID = generate_uid()
image.Rows = image.Columns = 32
image.SamplesPerPixel = 1
image.PhotometricInterpretation = "MONOCHROME2"
image.BitsAllocated = image.BitsStored = 8
image.HighBit = 7
image.PixelRepresentation = 0
image.PixelData = numpy.arange(1024, dtype=numpy.uint8).tobytes()
image.save_as(folder / "image.dcm", enforce_file_format=True)

pneumonia = CodedConcept("233604007", "SCT", "Pneumonia")
report = highdicom.sr.Comprehensive3DSR(
    evidence=[image],
    content=highdicom.sr.MeasurementReport(
        observation_context=highdicom.sr.ObservationContext(
            observer_person_context=highdicom.sr.ObserverContext(
                observer_type=codes.DCM.Person,
                observer_identifying_attributes=highdicom.sr.PersonObserverIdentifyingAttributes(name="Reader^One"),
            )
        ),
        procedure_reported=CodedConcept("399208008", "SCT", "Plain chest X-ray"),
        imaging_measurements=[
            highdicom.sr.MeasurementsAndQualitativeEvaluations(
                tracking_identifier=highdicom.sr.TrackingIdentifier(uid=generate_uid(), identifier="finding 1"),
                source_images=[highdicom.sr.SourceImageForMeasurementGroup.from_source_image(image)],
                qualitative_evaluations=[
                    highdicom.sr.QualitativeEvaluation(name=codes.DCM.Finding, value=pneumonia)
                ],
            )
        ],
    )[0],
    series_number=2,
    series_instance_uid=generate_uid(),
    sop_instance_uid=generate_uid(),
    instance_number=1,
    manufacturer="highdicom",
    is_complete=True,
    is_final=True,
)
report.ContentDate = "20240102"
report.ContentTime = "090000"
report.save_as(folder / "tid1500.dcm")


def code(value, scheme, meaning):
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


text = begin(BasicTextSRStorage, "SR")
text.StudyInstanceUID = image.StudyInstanceUID
text.ContentDate, text.ContentTime = "20240103", "101500"
text.CompletionFlag, text.VerificationFlag = "COMPLETE", "VERIFIED"
text.ValueType, text.ContinuityOfContent = "CONTAINER", "SEPARATE"
text.ConceptNameCodeSequence = [code("18748-4", "LN", "Diagnostic imaging report")]
statement = Dataset()
statement.RelationshipType, statement.ValueType = "CONTAINS", "CODE"
statement.ConceptNameCodeSequence = [code("233604007", "SCT", "Pneumonia")]
statement.ConceptCodeSequence = [code("2667000", "SCT", "Absent")]
text.ContentSequence = [statement]
reference = Dataset()
reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
series = Dataset()
series.SeriesInstanceUID, series.ReferencedSOPSequence = image.SeriesInstanceUID, [reference]
study = Dataset()
study.StudyInstanceUID, study.ReferencedSeriesSequence = image.StudyInstanceUID, [series]
text.CurrentRequestedProcedureEvidenceSequence = [study]
text.save_as(folder / "presence.dcm", enforce_file_format=True)
