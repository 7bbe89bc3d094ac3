//! What can go wrong between a verified model and a prediction, and whose fault it is.

/// A model that does not run, or an input that it does not take. No text here carries a pixel value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InferenceError {
    /// The graph cannot be read or optimised; whoever released it is at fault.
    #[error("the model's ONNX graph does not load: {reason}; report it to whoever released the model")]
    Graph {
        /// The runtime's own words.
        reason: String,
    },
    /// The graph's outputs do not fit the task; whoever released it is at fault.
    #[error(
        "expected an ONNX graph with the float32 output \"logits\" of shape {expected:?}, got {got}; report it to whoever released the model"
    )]
    Output {
        /// One row of as many values as there are classes.
        expected: [usize; 2],
        /// What the graph declares.
        got: String,
    },
    /// The input has another number of values than the model takes; the caller prepared it for another model.
    #[error(
        "expected {expected} values (channels x height x width), got {got}; prepare the image with this model's specification"
    )]
    InputLength {
        /// Values of one image.
        expected: usize,
        /// Values that came.
        got: usize,
    },
    /// The input holds values that are no numbers; the caller's preparation is at fault.
    #[error("expected finite input values, got a NaN or an infinity at position {position}")]
    InputNotFinite {
        /// Where the first one is.
        position: usize,
    },
    /// The network's output holds values that are no numbers; the model is broken.
    #[error("expected finite logits, got a NaN or an infinity for class {class}; do not use this model")]
    OutputNotFinite {
        /// Index of the first such class.
        class: usize,
    },
    /// No temperature that logits can be divided by; our API misused.
    #[error("expected a temperature above 0 and finite, got {got}")]
    Temperature {
        /// What came.
        got: String,
    },
    /// The runtime failed on a sound input; environment, most likely memory.
    #[error("the model could not be run: {reason}")]
    Run {
        /// The runtime's own words.
        reason: String,
    },
}
