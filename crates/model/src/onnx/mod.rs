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
