//! Geometry and values of prepared inputs, and pixels on their way back into objects.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[path = "../../objects/tests/real/mod.rs"]
mod real;

use dicom_core::value::{PixelFragmentSequence, PrimitiveValue};
use dicom_core::{DataElement, Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{DefaultDicomObject, FileMetaTableBuilder, InMemDicomObject};
use medinet_imaging::{
    ImagingError, Photometric, Pixels, SampleFormat, Samples, Volume, decode, prepare, prepare_pixels,
    replace_pixels, stored_frames,
};
use medinet_model::{InputShape, Intensity, Normalisation, Preprocessing, Resize, Slices};
use proptest::prelude::*;

fn preprocessing(resize: Resize) -> Preprocessing {
    Preprocessing {
        slices: Slices::Single,
        intensity: Intensity::Voi,
        denoise: false,
        spacing_mm: None,
        resize,
        normalisation: Normalisation::Fixed { mean: 0.0, std: 1.0 },
    }
}

fn shape(channels: u32, height: u32, width: u32) -> InputShape {
    InputShape { channels, height, width }
}

fn put(object: &mut InMemDicomObject, tag: Tag, vr: VR, value: impl Into<PrimitiveValue>) {
    object.put(DataElement::new(tag, vr, value.into()));
}

/// A grey image of 16 allocated bits; `high` is the number of stored bits.
fn grey(
    rows: u16,
    columns: u16,
    bits: u16,
    signed: bool,
    photometric: &str,
    samples: &[u16],
) -> DefaultDicomObject {
    let mut object = InMemDicomObject::new_empty();
    put(&mut object, tags::ROWS, VR::US, rows);
    put(&mut object, tags::COLUMNS, VR::US, columns);
    put(&mut object, tags::SAMPLES_PER_PIXEL, VR::US, 1u16);
    put(&mut object, tags::PHOTOMETRIC_INTERPRETATION, VR::CS, photometric);
    put(&mut object, tags::BITS_ALLOCATED, VR::US, 16u16);
    put(&mut object, tags::BITS_STORED, VR::US, bits);
    put(&mut object, tags::HIGH_BIT, VR::US, bits - 1);
    put(&mut object, tags::PIXEL_REPRESENTATION, VR::US, u16::from(signed));
    object.put(DataElement::new(tags::PIXEL_DATA, VR::OW, PrimitiveValue::U16(samples.into())));
    in_file(object, uids::EXPLICIT_VR_LITTLE_ENDIAN)
}

fn in_file(object: InMemDicomObject, syntax: &str) -> DefaultDicomObject {
    let meta = FileMetaTableBuilder::new()
        .transfer_syntax(syntax)
        .media_storage_sop_class_uid(uids::CT_IMAGE_STORAGE)
        .media_storage_sop_instance_uid("2.25.1")
        .build()
        .unwrap();
    object.with_exact_meta(meta)
}

proptest! {
    #[test]
    fn letterbox_is_centred_black_around_and_keeps_the_aspect(
        width in 1u32..200, height in 1u32..200, to_width in 28u32..80, to_height in 28u32..80,
    ) {
        let white = vec![255u8; (width * height) as usize];
        let pixels = Pixels { width, height, channels: 1, samples: Samples::U8(&white) };
        let to = shape(1, to_height, to_width);
        let input = prepare_pixels(pixels, &preprocessing(Resize::Letterbox), to).unwrap();
        let filled: Vec<(u32, u32)> = (0..to_height)
            .flat_map(|y| (0..to_width).map(move |x| (x, y)))
            .filter(|(x, y)| input.values[(y * to_width + x) as usize] > 0.5)
            .collect();
        let bounds = |side: fn(&(u32, u32)) -> u32| {
            let sides: Vec<u32> = filled.iter().map(side).collect();
            (*sides.iter().min().unwrap(), *sides.iter().max().unwrap() + 1)
        };
        let ((left, right), (top, bottom)) = (bounds(|p| p.0), bounds(|p| p.1));
        // One axis is filled, the other centred, and the filled part is a full rectangle.
        prop_assert!(right - left == to_width || bottom - top == to_height);
        prop_assert!(left.abs_diff(to_width - right) <= 1 && top.abs_diff(to_height - bottom) <= 1);
        prop_assert_eq!(filled.len() as u32, (right - left) * (bottom - top));
        // The other side is the exact one rounded, and at least a pixel.
        let scale = (f64::from(to_width) / f64::from(width)).min(f64::from(to_height) / f64::from(height));
        prop_assert!((f64::from(right - left) - (f64::from(width) * scale).max(1.0)).abs() <= 0.5);
        prop_assert!((f64::from(bottom - top) - (f64::from(height) * scale).max(1.0)).abs() <= 0.5);
        prop_assert!(input.values.iter().all(|v| *v == 0.0 || (*v - 1.0).abs() < 1e-5));
    }

    #[test]
    fn monochrome1_is_the_negative_of_monochrome2(samples in prop::collection::vec(0u16..4096, 64)) {
        let images = ["MONOCHROME1", "MONOCHROME2"].map(|photometric| {
            let mut object = grey(8, 8, 12, false, photometric, &samples);
            put(&mut object, tags::WINDOW_CENTER, VR::DS, "2000");
            put(&mut object, tags::WINDOW_WIDTH, VR::DS, "1500");
            let image = decode(&object).unwrap();
            prepare(&image, 0, &preprocessing(Resize::Stretch), shape(1, 8, 8)).unwrap()
        });
        for (negative, positive) in images[0].values.iter().zip(&images[1].values) {
            prop_assert!((negative + positive - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn signed_samples_of_any_width_keep_their_value(bits in 2u16..=16, values in prop::collection::vec(any::<i16>(), 16)) {
        let values: Vec<i16> = values.into_iter().map(|v| v >> (16 - bits)).collect();
        // Rubbish above the stored bits, as overlays and careless modalities leave it.
        let mask = u16::MAX.checked_shl(u32::from(bits)).unwrap_or(0);
        let stored: Vec<u16> = values.iter().map(|&v| (v as u16 & !mask) | (0xa5a5 & mask)).collect();
        let mut object = grey(4, 4, bits, true, "MONOCHROME2", &stored);
        put(&mut object, tags::RESCALE_SLOPE, VR::DS, "2.5");
        put(&mut object, tags::RESCALE_INTERCEPT, VR::DS, "-1024");
        let image = decode(&object).unwrap();
        let expected: Vec<f32> = values.iter().map(|&v| f32::from(v) * 2.5 - 1024.0).collect();
        prop_assert_eq!(image.modality_values(0).unwrap(), expected);
    }

    #[test]
    fn replaced_pixels_read_back(
        rows in 1u16..9, columns in 1u16..9, frames in 1usize..4, bits in prop::sample::select(vec![1u16, 8, 16, 32]),
        signed: bool, seed: u8,
    ) {
        let mut object = grey(1, 1, 12, false, "MONOCHROME2", &[0]);
        put(&mut object, tags::NUMBER_OF_FRAMES, VR::IS, "1");
        let mut frames_now = stored_frames(&object).unwrap();
        frames_now.rows = rows.into();
        frames_now.columns = columns.into();
        frames_now.bits_allocated = bits;
        frames_now.bits_stored = bits;
        frames_now.format = if signed && bits > 1 { SampleFormat::Signed } else { SampleFormat::Unsigned };
        let length = frames_now.frame_bytes();
        frames_now.frames = (0..frames)
            .map(|f| {
                let byte = |i: usize| (i * 31 + f * 7) as u8 ^ seed;
                (0..length).map(|i| if bits == 1 { byte(i) & 1 } else { byte(i) }).collect()
            })
            .collect();
        replace_pixels(&mut object, frames_now.clone()).unwrap();
        prop_assert_eq!(&stored_frames(&object).unwrap(), &frames_now);
        let mut file = Vec::new();
        object.write_all(&mut file).unwrap();
        let read = dicom_object::from_reader(&file[..]).unwrap();
        prop_assert_eq!(stored_frames(&read).unwrap(), frames_now);
    }

    /// Any bytes as a compressed stream, and any sizes, give an error or an image, never a panic.
    #[test]
    fn broken_streams_are_refused(
        stream in prop::collection::vec(any::<u8>(), 0..300), head in 0usize..5, rows in 0u16..70, columns in 0u16..70,
        bits in prop::sample::select(vec![0u16, 1, 8, 12, 16, 32, 64]), samples in 0u16..5,
        codec in prop::sample::select(vec![
            "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80",
            "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.1.98",
        ]),
    ) {
        let heads: [&[u8]; 5] =
            [&[], &[0xff, 0xd8, 0xff], &[0xff, 0x4f, 0xff, 0x51], &[3, 0, 0, 0], &[1, 0, 0, 0, 64, 0, 0, 0]];
        let fragment = [heads[head], &stream[..]].concat();
        let mut object = InMemDicomObject::new_empty();
        put(&mut object, tags::ROWS, VR::US, rows);
        put(&mut object, tags::COLUMNS, VR::US, columns);
        put(&mut object, tags::SAMPLES_PER_PIXEL, VR::US, samples);
        put(&mut object, tags::BITS_ALLOCATED, VR::US, bits);
        put(&mut object, tags::PHOTOMETRIC_INTERPRETATION, VR::CS, if samples == 3 { "RGB" } else { "MONOCHROME2" });
        object.put(DataElement::new(tags::PIXEL_DATA, VR::OB, PixelFragmentSequence::new_fragments(vec![fragment])));
        let _ = decode(&in_file(object, codec));
    }
}

#[test]
fn files_that_are_cut_or_altered_never_panic() {
    let folder = real::carried_folder();
    let names = [
        "JPEG2000.dcm",
        "MR_small_RLE.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
        "JPEG-lossy.dcm",
        "SC_rgb_rle_2frame.dcm",
        "SC_rgb_dcmtk_+eb+cy+np.dcm",
    ];
    let mut errors = 0;
    for name in names {
        let original = dicom_object::open_file(folder.join(name)).unwrap();
        let fragments: Vec<Vec<u8>> =
            original.element(tags::PIXEL_DATA).unwrap().fragments().unwrap().to_vec();
        for step in 0..60usize {
            let mut broken = fragments.clone();
            let stream = broken.last_mut().unwrap();
            let at = stream.len() * step / 60;
            if step % 2 == 0 {
                stream.truncate(at);
            } else {
                stream[at] ^= 0x5a;
                let next = (at + 13) % stream.len();
                stream[next] = 0xff;
            }
            let mut object = original.clone();
            object.put(DataElement::new(
                tags::PIXEL_DATA,
                VR::OB,
                PixelFragmentSequence::new_fragments(broken),
            ));
            errors += u32::from(decode(&object).is_err());
        }
    }
    assert!(errors > 50, "{errors}");
}

#[test]
fn sizes_beyond_the_limit_are_refused_before_anything_is_allocated() {
    let mut object = grey(1, 1, 16, false, "MONOCHROME2", &[0]);
    put(&mut object, tags::ROWS, VR::US, 65_535u16);
    put(&mut object, tags::COLUMNS, VR::US, 65_535u16);
    put(&mut object, tags::NUMBER_OF_FRAMES, VR::IS, "1000000");
    assert!(matches!(decode(&object), Err(ImagingError::TooLarge { .. })));
    put(&mut object, tags::NUMBER_OF_FRAMES, VR::IS, "99999999999");
    assert!(matches!(decode(&object), Err(ImagingError::Inconsistent { what: "NumberOfFrames", .. })));
    put(&mut object, tags::NUMBER_OF_FRAMES, VR::IS, "1");
    put(&mut object, tags::ROWS, VR::US, 2u16);
    assert!(matches!(decode(&object), Err(ImagingError::Truncated { .. })));
}

#[test]
fn padding_is_black_and_does_not_move_percentiles() {
    let mut samples: Vec<u16> = (100..164).collect();
    samples[0] = 4000;
    samples[1] = 4001;
    for photometric in ["MONOCHROME1", "MONOCHROME2"] {
        let mut object = grey(8, 8, 12, false, photometric, &samples);
        put(&mut object, tags::PIXEL_PADDING_VALUE, VR::US, 4000u16);
        put(&mut object, tags::PIXEL_PADDING_RANGE_LIMIT, VR::US, 4095u16);
        let mut settings = preprocessing(Resize::Stretch);
        settings.intensity = Intensity::Percentile { low: 0.0, high: 100.0 };
        let input = prepare(&decode(&object).unwrap(), 0, &settings, shape(1, 8, 8)).unwrap();
        assert_eq!(input.values[..2], [0.0, 0.0]);
        let (first, last) = if photometric == "MONOCHROME1" { (1.0, 0.0) } else { (0.0, 1.0) };
        assert_eq!((input.values[2], input.values[63]), (first, last), "{photometric}");
    }
}

#[test]
fn spacing_makes_pixels_square() {
    // 8 rows 2 mm apart and 16 columns 1 mm apart are a square of 16 mm.
    let samples: Vec<u16> = (0..128).map(|i| if i % 16 < 8 { 0 } else { 4095 }).collect();
    let mut object = grey(8, 16, 12, false, "MONOCHROME2", &samples);
    let spacing = PrimitiveValue::Strs(["2", "1"].map(str::to_owned).into_iter().collect());
    object.put(DataElement::new(tags::PIXEL_SPACING, VR::DS, spacing));
    let mut settings = preprocessing(Resize::Letterbox);
    let image = decode(&object).unwrap();
    settings.intensity = Intensity::Window { center: 2048.0, width: 4096.0 };
    let anisotropic = prepare(&image, 0, &settings, shape(1, 32, 32)).unwrap();
    assert!(anisotropic.values[..32].iter().all(|&v| v == 0.0), "a bar above: the rows are too few");
    settings.spacing_mm = Some(1.0);
    let square = prepare(&image, 0, &settings, shape(1, 32, 32)).unwrap();
    assert!(square.values[31] > 0.99 && square.values[0] < 0.01, "no bar above");
}

#[test]
fn colour_serves_one_and_three_channels() {
    let colours = [255u8, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 255];
    let pixels = Pixels { width: 2, height: 2, channels: 3, samples: Samples::U8(&colours) };
    let three = prepare_pixels(pixels, &preprocessing(Resize::Stretch), shape(3, 2, 2)).unwrap();
    assert_eq!(three.values, [1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0]);
    let one = prepare_pixels(pixels, &preprocessing(Resize::Stretch), shape(1, 2, 2)).unwrap();
    let luma = [0.299, 0.587, 0.114, 1.0];
    assert!(one.values.iter().zip(luma).all(|(got, expected)| (got - expected).abs() < 1e-5), "{one:?}");
    let grey = Pixels { width: 1, height: 1, channels: 1, samples: Samples::U8(&[51]) };
    let grey = prepare_pixels(grey, &preprocessing(Resize::Stretch), shape(3, 1, 1)).unwrap();
    assert!(grey.values.iter().all(|v| (v - 0.2).abs() < 1e-6));
}

#[test]
fn equalised_inputs_do_not_know_the_scanners_response() {
    let settings =
        Preprocessing { normalisation: Normalisation::Equalised, ..preprocessing(Resize::Stretch) };
    let seen = |samples: &[u8]| {
        let pixels = Pixels { width: 16, height: 4, channels: 1, samples: Samples::U8(samples) };
        prepare_pixels(pixels, &settings, shape(1, 4, 16)).unwrap().values
    };
    // 7 and 64 have no common divisor: the samples are the numbers 0 to 63 in another order.
    let linear: Vec<u8> = (0..64).map(|i| (i * 7 % 64) as u8).collect();
    let curved: Vec<u8> =
        linear.iter().map(|&v| (f64::from(v) / 63.0).powf(0.5).mul_add(255.0, 0.0) as u8).collect();
    let input = seen(&linear);
    assert_eq!(input, seen(&curved));
    let mean = input.iter().sum::<f32>() / 64.0;
    let variance = input.iter().map(|v| v * v).sum::<f32>() / 64.0;
    assert!(mean.abs() < 1e-5 && (variance - 1.0).abs() < 1e-3, "{mean} {variance}");
    // Equal samples stay equal, and a picture of one shade is all zero.
    let halves: Vec<u8> = (0..64).map(|i| u8::from(i >= 32)).collect();
    let input = seen(&halves);
    assert!(input[..32].iter().all(|v| *v == input[0]) && input[0] < 0.0 && input[63] == -input[0]);
    assert!(seen(&[9; 64]).iter().all(|v| *v == 0.0));
}

#[test]
fn a_crop_takes_the_middle() {
    let samples: Vec<u8> = (0..300).map(|i| if (10..20).contains(&(i % 30)) { 255 } else { 0 }).collect();
    let pixels = Pixels { width: 30, height: 10, channels: 1, samples: Samples::U8(&samples) };
    let input = prepare_pixels(pixels, &preprocessing(Resize::CenterCrop), shape(1, 10, 10)).unwrap();
    assert!(input.values.iter().all(|&v| v == 1.0));
}

#[test]
fn settings_that_cannot_be_carried_out_are_refused() {
    let pixels = Pixels { width: 1, height: 1, channels: 1, samples: Samples::F32(&[1.0]) };
    let good = preprocessing(Resize::Stretch);
    let bad = [
        Preprocessing { intensity: Intensity::Window { center: 0.0, width: 0.0 }, ..good.clone() },
        Preprocessing { intensity: Intensity::Percentile { low: 50.0, high: 50.0 }, ..good.clone() },
        Preprocessing { intensity: Intensity::Percentile { low: f32::NAN, high: 50.0 }, ..good.clone() },
        Preprocessing { spacing_mm: Some(0.0), ..good.clone() },
        Preprocessing { normalisation: Normalisation::Fixed { mean: 0.0, std: 0.0 }, ..good.clone() },
    ];
    for settings in bad {
        assert!(prepare_pixels(pixels, &settings, shape(1, 2, 2)).is_err(), "{settings:?}");
    }
    assert!(prepare_pixels(pixels, &good, shape(2, 2, 2)).is_err());
    assert!(prepare_pixels(Pixels { width: 2, ..pixels }, &good, shape(1, 2, 2)).is_err());
    assert!(
        prepare_pixels(Pixels { samples: Samples::F32(&[f32::NAN]), ..pixels }, &good, shape(1, 2, 2))
            .is_ok()
    );
}

#[test]
fn blanking_hides_a_region_and_adds_no_new_shade() {
    let samples: Vec<u16> = (0..64).map(|i| 500 + i).collect();
    let object = grey(8, 8, 12, false, "MONOCHROME1", &samples);
    let mut frames = stored_frames(&object).unwrap();
    frames.blank(0, 2, 6, 100, 100).unwrap();
    let values = frames.values(0).unwrap();
    // In MONOCHROME1 the highest value is the darkest.
    assert!(values[50..56].iter().chain(&values[58..]).all(|&v| v == 563.0));
    assert_eq!((values[49], values[57], values[42]), (549.0, 557.0, 542.0));
    assert!(frames.blank(1, 0, 0, 1, 1).is_err());
    assert_eq!(frames.photometric, Photometric::Monochrome1);
}

#[test]
fn series_become_volumes_on_a_regular_grid() {
    let slices = [3, 0, 2, 1].map(|index: u16| {
        let mut object = grey(4, 4, 12, false, "MONOCHROME2", &[index * 100; 16]);
        let numbers = |text: &str| PrimitiveValue::Strs(text.split('\\').map(str::to_owned).collect());
        object.put(DataElement::new(tags::PIXEL_SPACING, VR::DS, numbers("1\\1")));
        let position = format!("0\\0\\{}", f32::from(index) * 5.0);
        object.put(DataElement::new(tags::IMAGE_POSITION_PATIENT, VR::DS, numbers(&position)));
        object.put(DataElement::new(tags::IMAGE_ORIENTATION_PATIENT, VR::DS, numbers("1\\0\\0\\0\\1\\0")));
        decode(&object).unwrap()
    });
    let volume = Volume::new(slices.to_vec()).unwrap();
    assert!(volume.order().is_regular());
    let first = |index| {
        let (image, frame) = volume.slice(index).unwrap();
        image.modality_values(frame).unwrap()[0]
    };
    assert_eq!([0, 1, 2, 3].map(first), [0.0, 100.0, 200.0, 300.0]);
    let grid = volume.resampled([5.0, 2.0, 2.0]).unwrap();
    assert_eq!((grid.depth, grid.height, grid.width), (4, 2, 2));
    assert_eq!(grid.values.iter().step_by(4).copied().collect::<Vec<_>>(), [0.0, 100.0, 200.0, 300.0]);
    let fine = volume.resampled([2.5, 1.0, 1.0]).unwrap();
    assert_eq!(fine.depth, 8);
    assert_eq!(fine.values[2 * 16], 75.0, "linear between slices");
    let alone = Preprocessing {
        intensity: Intensity::Window { center: 150.0, width: 301.0 },
        ..preprocessing(Resize::Stretch)
    };
    let settings = Preprocessing { slices: Slices::Neighbours, ..alone.clone() };
    let stacks: Vec<_> = volume.inputs(&settings, shape(3, 4, 4)).map(|s| s.unwrap().values).collect();
    let planes = |stack: &[f32]| [stack[0], stack[16], stack[32]].map(|v| (v * 3.0).round() as i32);
    assert_eq!(planes(&stacks[0]), [0, 0, 1], "the lowest slice repeats itself below");
    assert_eq!(planes(&stacks[2]), [1, 2, 3]);
    assert_eq!(planes(&stacks[3]), [2, 3, 3], "the highest above");
    assert_eq!(stacks.len(), 4);
    let slices: Vec<_> = volume.inputs(&alone, shape(3, 4, 4)).map(|s| s.unwrap().values).collect();
    assert_eq!(planes(&slices[2]), [2, 2, 2], "a task of single slices sees no neighbours");

    let (image, frame) = volume.slice(2).unwrap();
    assert_eq!(prepare(image, frame, &alone, shape(3, 4, 4)).unwrap().values, slices[2]);
    let error = prepare(image, frame, &settings, shape(3, 4, 4)).unwrap_err();
    assert_eq!(error, ImagingError::NeedsSeries);
    let error = volume.inputs(&settings, shape(1, 4, 4)).next().unwrap().unwrap_err();
    assert!(matches!(error, ImagingError::Preprocessing { setting: "input.channels", .. }), "{error}");
}
