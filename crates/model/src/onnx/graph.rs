//! The graph's nodes, layer by layer.

use super::proto::{
    ATTRIBUTE_FLOAT, ATTRIBUTE_INT, ATTRIBUTE_INTS, AttributeProto, Dimension, FLOAT, GraphProto, INT64,
    NodeProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use super::{FEATURES_NAME, INPUT_NAME, LOGITS_NAME, OnnxOptions};
use crate::architecture::{Architecture, Block, Conv, ConvNorm, HEAD, NORM_EPSILON};
use crate::layout::ParameterLayout;
use crate::manifest::TaskSpec;

/// Names of the constants that every normalisation shares.
const GROUPED: &str = "norm.grouped_shape";
const GROUP_SCALE: &str = "norm.group_scale";
const GROUP_OFFSET: &str = "norm.group_offset";

pub(super) struct GraphBuilder<'a> {
    layout: &'a ParameterLayout,
    values: &'a [f32],
    groups: usize,
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
}

impl<'a> GraphBuilder<'a> {
    pub(super) fn new(layout: &'a ParameterLayout, values: &'a [f32], groups: usize) -> Self {
        Self { layout, values, groups, nodes: Vec::new(), initializers: Vec::new() }
    }

    pub(super) fn network(
        mut self,
        spec: &TaskSpec,
        architecture: &Architecture,
        options: OnnxOptions,
    ) -> GraphProto {
        // Every normalisation sees its input as [N, groups, channels / groups * height * width], N kept (0).
        self.constant_i64(GROUPED, &[0, self.groups as i64, -1]);
        self.constant_f32(GROUP_SCALE, &[self.groups], &vec![1.0; self.groups]);
        self.constant_f32(GROUP_OFFSET, &[self.groups], &vec![0.0; self.groups]);

        let input = spec.network.input;
        let mut sides = [input.height as usize, input.width as usize];
        let mut x = self.conv_norm(&architecture.stem, INPUT_NAME, &mut sides);
        x = self.relu(&architecture.stem.norm, &x);
        if architecture.stem_pool {
            let attributes =
                vec![ints("kernel_shape", &[3, 3]), ints("pads", &[1; 4]), ints("strides", &[2, 2])];
            x = self.node("MaxPool", "maxpool", vec![x], "maxpool.out", attributes);
            sides = sides.map(|side| side.div_ceil(2));
        }
        for (i, block) in architecture.blocks.iter().enumerate() {
            let last = i + 1 == architecture.blocks.len();
            let output = if last { FEATURES_NAME.to_owned() } else { format!("block{i}.out") };
            x = self.block(block, &x, &output, &mut sides);
        }
        let pooled = self.node("GlobalAveragePool", "avgpool", vec![x], "avgpool.out", vec![]);
        let flat = self.node("Flatten", "flatten", vec![pooled], "flatten.out", vec![int("axis", 1)]);
        let (weight, bias) =
            (self.parameter(&format!("{HEAD}.weight")), self.parameter(&format!("{HEAD}.bias")));
        self.node("Gemm", HEAD, vec![flat, weight, bias], LOGITS_NAME, vec![int("transB", 1)]);

        let image = [input.channels as usize, input.height as usize, input.width as usize];
        let mut output = vec![value_info(LOGITS_NAME, &[architecture.classes])];
        if options.features {
            output.push(value_info(FEATURES_NAME, &[architecture.features, sides[0], sides[1]]));
        }
        GraphProto {
            node: self.nodes,
            name: spec.task.to_string(),
            initializer: self.initializers,
            input: vec![value_info(INPUT_NAME, &image)],
            output,
        }
    }

    fn block(&mut self, block: &Block, x: &str, output: &str, sides: &mut [usize; 2]) -> String {
        let mut shortcut_sides = *sides;
        let first = self.conv_norm(&block.first, x, sides);
        let first = self.relu(&block.first.norm, &first);
        let second = self.conv_norm(&block.second, &first, sides);
        let shortcut = match &block.shortcut {
            Some(layer) => self.conv_norm(layer, x, &mut shortcut_sides),
            None => x.to_owned(),
        };
        let name = format!("{output}.add");
        let sum = self.node("Add", &name, vec![second, shortcut], &format!("{name}.out"), vec![]);
        self.node("Relu", &format!("{output}.relu"), vec![sum], output, vec![])
    }

    fn conv_norm(&mut self, layer: &ConvNorm, x: &str, sides: &mut [usize; 2]) -> String {
        let y = self.conv(&layer.conv, x);
        *sides = sides.map(|side| side.div_ceil(layer.conv.stride));
        self.group_norm(&layer.norm, &y, layer.conv.outputs, *sides)
    }

    fn conv(&mut self, conv: &Conv, x: &str) -> String {
        let weight = self.parameter(&format!("{}.weight", conv.name));
        let (kernel, padding, stride) = (conv.kernel as i64, conv.padding() as i64, conv.stride as i64);
        let attributes = vec![
            ints("kernel_shape", &[kernel, kernel]),
            ints("pads", &[padding; 4]),
            ints("strides", &[stride, stride]),
        ];
        self.node("Conv", &conv.name, vec![x.to_owned(), weight], &format!("{}.out", conv.name), attributes)
    }

    /// Group normalisation as instance normalisation of the groups: opset 17 has no operator of its own.
    fn group_norm(&mut self, name: &str, x: &str, channels: usize, sides: [usize; 2]) -> String {
        let out = |part: &str| format!("{name}.{part}");
        let grouped = self.node(
            "Reshape",
            &out("group"),
            vec![x.to_owned(), GROUPED.to_owned()],
            &out("group.out"),
            vec![],
        );
        let normalised = self.node(
            "InstanceNormalization",
            &out("normalise"),
            vec![grouped, GROUP_SCALE.to_owned(), GROUP_OFFSET.to_owned()],
            &out("normalise.out"),
            vec![float("epsilon", NORM_EPSILON)],
        );
        let shape = out("shape");
        self.constant_i64(&shape, &[0, channels as i64, sides[0] as i64, sides[1] as i64]);
        let image =
            self.node("Reshape", &out("ungroup"), vec![normalised, shape], &out("ungroup.out"), vec![]);
        let weight = self.channel_parameter(&out("weight"), channels);
        let bias = self.channel_parameter(&out("bias"), channels);
        let scaled = self.node("Mul", &out("scale"), vec![image, weight], &out("scale.out"), vec![]);
        self.node("Add", &out("offset"), vec![scaled, bias], &out("offset.out"), vec![])
    }

    fn relu(&mut self, name: &str, x: &str) -> String {
        self.node("Relu", &format!("{name}.relu"), vec![x.to_owned()], &format!("{name}.relu.out"), vec![])
    }

    fn node(
        &mut self,
        op_type: &str,
        name: &str,
        input: Vec<String>,
        output: &str,
        attribute: Vec<AttributeProto>,
    ) -> String {
        self.nodes.push(NodeProto {
            input,
            output: vec![output.to_owned()],
            name: name.to_owned(),
            op_type: op_type.to_owned(),
            attribute,
        });
        output.to_owned()
    }

    /// A tensor of the layout as an initializer of its own shape.
    fn parameter(&mut self, name: &str) -> String {
        self.parameter_shaped(name, None)
    }

    /// A tensor of the layout with one value per channel, shaped `[channels, 1, 1]` so that it broadcasts.
    fn channel_parameter(&mut self, name: &str, channels: usize) -> String {
        self.parameter_shaped(name, Some(&[channels, 1, 1]))
    }

    fn parameter_shaped(&mut self, name: &str, shape: Option<&[usize]>) -> String {
        let tensors = self.layout.tensors();
        let slot =
            tensors.iter().find(|t| t.name == name).expect("layout and graph come from one architecture");
        let shape = shape.unwrap_or(&slot.shape);
        self.constant_f32(name, shape, &self.values[slot.range()]);
        name.to_owned()
    }

    fn constant_f32(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        self.initializers.push(TensorProto {
            dims: shape.iter().map(|&d| d as i64).collect(),
            data_type: FLOAT,
            name: name.to_owned(),
            raw_data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        });
    }

    fn constant_i64(&mut self, name: &str, values: &[i64]) {
        self.initializers.push(TensorProto {
            dims: vec![values.len() as i64],
            data_type: INT64,
            name: name.to_owned(),
            raw_data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        });
    }
}

/// A float32 tensor of `[N, shape...]` with N symbolic.
fn value_info(name: &str, shape: &[usize]) -> ValueInfoProto {
    let batch = Dimension { dim_value: None, dim_param: Some("N".into()) };
    let fixed = shape.iter().map(|&d| Dimension { dim_value: Some(d as i64), dim_param: None });
    let shape = TensorShapeProto { dim: std::iter::once(batch).chain(fixed).collect() };
    let tensor_type = TensorTypeProto { elem_type: FLOAT, shape: Some(shape) };
    ValueInfoProto { name: name.to_owned(), r#type: Some(TypeProto { tensor_type: Some(tensor_type) }) }
}

fn attribute(name: &str, r#type: i32) -> AttributeProto {
    AttributeProto { name: name.to_owned(), f: None, i: None, ints: Vec::new(), r#type }
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { i: Some(value), ..attribute(name, ATTRIBUTE_INT) }
}

fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto { ints: values.to_vec(), ..attribute(name, ATTRIBUTE_INTS) }
}

fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto { f: Some(value), ..attribute(name, ATTRIBUTE_FLOAT) }
}
