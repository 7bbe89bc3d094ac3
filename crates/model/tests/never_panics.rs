//! The decoders of this crate on damaged, cut and random bytes: they refuse or accept, and never panic. The same entry points as
//! the targets in `fuzz/`.

mod decoders;

use decoders::{all, graphs, parameters};
use medinet_model::onnx::{OnnxOptions, task_spec, to_onnx};
use medinet_model::{
    InputShape, Intensity, ModelParameters, NetworkManifest, Normalisation, Preprocessing, Resize, Slices,
    TaskSpec, decode_parameters, encode_parameters,
};
use medinet_types::TaskId;
use proptest::prelude::*;
use std::sync::LazyLock;

/// A graph as our export writes it.
static GRAPH: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let input = InputShape { channels: 1, height: 28, width: 28 };
    let network = NetworkManifest::small(input, vec!["normal".into(), "pneumonia".into()]);
    let spec = TaskSpec {
        task: TaskId::new("pneumonia").expect("a good name"),
        purpose: "Tells pneumonia from normal chest X-rays".into(),
        network,
        preprocessing: Preprocessing {
            intensity: Intensity::Voi,
            denoise: false,
            spacing_mm: None,
            resize: Resize::Letterbox,
            normalisation: Normalisation::PerImage,
            slices: Slices::Single,
        },
    };
    let initial = ModelParameters::initial(&spec.network, 1).expect("a network");
    to_onnx(&spec, &initial, OnnxOptions::default()).expect("its parameters")
});

fn blobs() -> Vec<Vec<u8>> {
    let values: Vec<f32> = (0..100).map(|i| (i as f32 * 0.37).sin()).collect();
    [0, 1, 100].map(|count| encode_parameters(&values[..count])).to_vec()
}

#[test]
fn every_flipped_bit_and_every_cut_is_survived() {
    assert!(task_spec(&GRAPH).is_ok() && decode_parameters(&blobs()[2], 100).is_ok());
    for blob in blobs() {
        for position in 0..blob.len() {
            for bit in 0..8 {
                let mut damaged = blob.clone();
                damaged[position] ^= 1 << bit;
                all(&damaged);
            }
            all(&blob[..position]);
        }
    }
    // The task is said at the graph's end.
    for cut in 1..600 {
        graphs(&GRAPH[..GRAPH.len() - cut]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn damage_is_survived(
        which in 0usize..3,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let mut blob = blobs().swap_remove(which);
        let mut graph = GRAPH.clone();
        let last = graph.len().saturating_sub(2000);
        for (index, byte) in edits {
            let position = index.index(blob.len());
            blob[position] = byte;
            let position = last + index.index(graph.len() - last);
            graph[position] = byte;
        }
        parameters(&blob);
        graphs(&graph);
    }

    #[test]
    fn random_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        all(&bytes);
        all(&[&[1, 1, 0, 0, 0, 0, 0, 0, 0], bytes.as_slice()].concat());
    }
}
