//! A model as an ONNX file, written from its manifest and flat parameters without a training framework.

mod graph;
mod proto;

use crate::architecture::Architecture;
use crate::layout::ParameterLayout;
use crate::manifest::TaskSpec;
use crate::parameters::{ModelParameters, ParameterError};
use graph::GraphBuilder;
use prost::Message as _;
use proto::{ModelProto, OperatorSetIdProto, StringStringEntryProto};

/// ONNX operator set of the exported graph, the first with every operator that it uses in its current form
/// and old enough for runtimes of 2022.
pub const OPSET: i64 = 17;
/// ONNX IR version that belongs to [`OPSET`].
const IR_VERSION: i64 = 8;

/// Name of the graph's input: `[N, channels, height, width]` float32, preprocessed.
pub const INPUT_NAME: &str = "image";
/// Name of the graph's first output: `[N, classes]` float32, before softmax.
pub const LOGITS_NAME: &str = "logits";
/// Name of the graph's optional second output: the feature map before the pooling,
/// `[N, features, height, width]` float32.
pub const FEATURES_NAME: &str = "features";

/// Keys of the model's `metadata_props`.
pub mod metadata {
    /// The task's identifier.
    pub const TASK: &str = "medinet.task";
    /// The model digest, 64 hexadecimal digits.
    pub const MODEL_DIGEST: &str = "medinet.model_digest";
    /// The class labels as a JSON array, in the order of the logits.
    pub const CLASSES: &str = "medinet.classes";
    /// The whole [`TaskSpec`](crate::TaskSpec) as JSON, network and preprocessing among it.
    pub const TASK_SPEC: &str = "medinet.task_spec";
}

/// What an exported graph holds beside the logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OnnxOptions {
    /// Adds the feature map before the pooling as output [`FEATURES_NAME`], for heat maps (class activation
    /// maps need it and the last layer alone) and for out-of-distribution detection.
    pub features: bool,
}

/// Writes a model as a serialised ONNX `ModelProto`, its weights inside. The same input gives the same bytes.
///
/// # Errors
/// When the parameters are not this network's.
pub fn to_onnx(
    spec: &TaskSpec,
    parameters: &ModelParameters,
    options: OnnxOptions,
) -> Result<Vec<u8>, ParameterError> {
    let layout = ParameterLayout::of(&spec.network)?;
    let values = parameters.as_slice();
    if values.len() != layout.len() {
        return Err(ParameterError::Length { expected: layout.len(), got: values.len() });
    }
    let architecture = Architecture::of(&spec.network);
    let graph = GraphBuilder::new(&layout, values, architecture.groups).network(spec, &architecture, options);
    let json =
        |value: serde_json::Result<String>| value.expect("strings, numbers and enums serialise to JSON");
    let property = |key: &str, value: String| StringStringEntryProto { key: key.into(), value };
    let model = ModelProto {
        ir_version: IR_VERSION,
        producer_name: "medinet".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        doc_string: spec.purpose.clone(),
        graph: Some(graph),
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
        metadata_props: vec![
            property(metadata::TASK, spec.task.to_string()),
            property(metadata::MODEL_DIGEST, parameters.digest(&spec.network).to_string()),
            property(metadata::CLASSES, json(serde_json::to_string(&spec.network.classes))),
            property(metadata::TASK_SPEC, json(serde_json::to_string(spec))),
        ],
    };
    Ok(model.encode_to_vec())
}

/// A graph that does not say what task it is for.
#[derive(Debug, thiserror::Error)]
pub enum OnnxMetadataError {
    /// Not an ONNX file, or damaged.
    #[error("expected an ONNX model, got bytes that do not decode; fetch the file again")]
    Malformed,
    /// Another program wrote it.
    #[error(
        "expected the metadata property {:?}, which MediNet's export writes; got a graph without it",
        metadata::TASK_SPEC
    )]
    Missing,
    /// The property is there and holds something else.
    #[error(
        "the metadata property {:?} holds no task specification; export the model again",
        metadata::TASK_SPEC
    )]
    Spec(#[source] serde_json::Error),
}

/// Reads the task's specification out of a graph that [`to_onnx`] wrote. It is what the file says of itself: only the
/// ledger proves that it was released so.
///
/// # Errors
/// When the bytes are no ONNX model or hold no specification.
pub fn task_spec(onnx: &[u8]) -> Result<TaskSpec, OnnxMetadataError> {
    let model = proto::ModelMetadata::decode(onnx).map_err(|_| OnnxMetadataError::Malformed)?;
    let property = model.metadata_props.iter().find(|property| property.key == metadata::TASK_SPEC);
    let property = property.ok_or(OnnxMetadataError::Missing)?;
    serde_json::from_str(&property.value).map_err(OnnxMetadataError::Spec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{
        InputShape, Intensity, NetworkManifest, Normalisation, Preprocessing, Resize, Slices,
    };
    use medinet_types::TaskId;

    fn spec() -> TaskSpec {
        let input = InputShape { channels: 1, height: 28, width: 28 };
        TaskSpec {
            task: TaskId::new("pneumonia").expect("a name"),
            purpose: "a test".into(),
            network: NetworkManifest::small(input, vec!["normal".into(), "pneumonia".into()]),
            preprocessing: Preprocessing {
                slices: Slices::Single,
                intensity: Intensity::Voi,
                denoise: false,
                spacing_mm: None,
                resize: Resize::Letterbox,
                normalisation: Normalisation::PerImage,
            },
        }
    }

    #[test]
    fn an_exported_graph_names_its_task() {
        let spec = spec();
        let parameters = ModelParameters::initial(&spec.network, 1).expect("a network");
        let onnx = to_onnx(&spec, &parameters, OnnxOptions::default()).expect("its parameters");
        assert_eq!(task_spec(&onnx).expect("a specification"), spec);
        assert!(matches!(task_spec(&onnx[..onnx.len() - 1]), Err(OnnxMetadataError::Malformed)));
    }

    #[test]
    fn a_foreign_graph_is_told_from_a_damaged_one() {
        let mut model = ModelProto { ir_version: IR_VERSION, ..ModelProto::default() };
        assert!(matches!(task_spec(&model.encode_to_vec()), Err(OnnxMetadataError::Missing)));
        let (key, value) = (metadata::TASK_SPEC.to_owned(), "{}".to_owned());
        model.metadata_props.push(StringStringEntryProto { key, value });
        assert!(matches!(task_spec(&model.encode_to_vec()), Err(OnnxMetadataError::Spec(_))));
    }
}
