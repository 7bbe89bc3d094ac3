//! The flat parameter vector: how it starts, its digest, and its form as a blob.

use crate::layout::{ParameterLayout, TensorRole, TensorSlot};
use crate::manifest::{ManifestError, NetworkManifest};
use medinet_types::{Digest, ModelDigest};
use rand_chacha::ChaCha12Rng;
use rand_core::{Rng, SeedableRng};

/// A network's parameters in the order of its [`ParameterLayout`], all finite.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelParameters(Vec<f32>);

/// Values that are no network's parameters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// The manifest describes no network.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The count is another network's.
    #[error("model parameters: expected {expected} values for this network, got {got}")]
    Length {
        /// What the layout holds.
        expected: usize,
        /// What came.
        got: usize,
    },
    /// A value is infinite or not a number: training diverged or the sender is at fault.
    #[error("model parameters: expected finite values, got a non-finite one in {tensor}")]
    NotFinite {
        /// Name of the tensor that holds it.
        tensor: String,
    },
}

impl ModelParameters {
    /// Takes values over after checking them against the manifest's layout.
    ///
    /// # Errors
    /// When their number is wrong or one is not finite.
    pub fn new(manifest: &NetworkManifest, values: Vec<f32>) -> Result<Self, ParameterError> {
        let layout = ParameterLayout::of(manifest)?;
        if values.len() != layout.len() {
            return Err(ParameterError::Length { expected: layout.len(), got: values.len() });
        }
        if let Some(bad) = values.iter().position(|v| !v.is_finite()) {
            let tensor = layout.tensors().iter().find(|t| t.range().contains(&bad));
            let tensor = tensor.map_or_else(String::new, |t| t.name.clone());
            return Err(ParameterError::NotFinite { tensor });
        }
        Ok(Self(values))
    }

    /// The parameters that a task starts from: convolutions normally distributed with the variance of
    /// He et al. 2015, eq. 10 (2 over the fan-in), normalisations one and zero, the last layer normal with
    /// deviation 0.01 and no offset.
    ///
    /// The same manifest and seed give the same bits on every platform: each tensor has its own ChaCha12
    /// key, SHA-256 over (domain, seed, name), and a normal deviate is the sum of twelve uniform 16-bit
    /// integers (Irwin-Hall), which needs no logarithm or cosine, whose last bits differ between
    /// mathematics libraries. Its tails end at six deviations.
    ///
    /// # Errors
    /// When the manifest describes no network that can be built.
    pub fn initial(manifest: &NetworkManifest, seed: u64) -> Result<Self, ManifestError> {
        let layout = ParameterLayout::of(manifest)?;
        let mut values = Vec::with_capacity(layout.len());
        for tensor in layout.tensors() {
            let len = tensor.len();
            match tensor.role {
                TensorRole::NormWeight => values.resize(values.len() + len, 1.0),
                TensorRole::NormBias | TensorRole::LinearBias => values.resize(values.len() + len, 0.0),
                TensorRole::ConvWeight => {
                    let fan_in: usize = tensor.shape[1..].iter().product();
                    push_normal(&mut values, tensor, seed, (2.0 / fan_in as f32).sqrt());
                }
                TensorRole::LinearWeight => push_normal(&mut values, tensor, seed, 0.01),
            }
        }
        Ok(Self(values))
    }

    /// The values in canonical order.
    #[must_use]
    pub fn as_slice(&self) -> &[f32] {
        &self.0
    }

    /// The values in canonical order.
    #[must_use]
    pub fn into_vec(self) -> Vec<f32> {
        self.0
    }

    /// Names the model that these parameters and their manifest make.
    #[must_use]
    pub fn digest(&self, manifest: &NetworkManifest) -> ModelDigest {
        model_digest(manifest, &self.0)
    }
}

impl AsRef<[f32]> for ModelParameters {
    fn as_ref(&self) -> &[f32] {
        &self.0
    }
}

fn push_normal(values: &mut Vec<f32>, tensor: &TensorSlot, seed: u64, deviation: f32) {
    let key =
        Digest::of_parts(&[b"medinet initial parameters 1", &seed.to_le_bytes(), tensor.name.as_bytes()]);
    let mut random = ChaCha12Rng::from_seed(key.0);
    for _ in 0..tensor.len() {
        let mut sum = 0u32;
        for _ in 0..3 {
            let bits = random.next_u64();
            sum += (0..4).map(|i| (bits >> (16 * i)) as u32 & 0xffff).sum::<u32>();
        }
        // Twelve integers uniform on 0 to 65535: mean 12 * 32767.5, variance 65536^2 - 1.
        let centred = (i64::from(sum) - 393_210) as f32;
        values.push(centred / 65_536.0 * deviation);
    }
}

/// Names the model that a manifest and parameters make: SHA-256 over a domain, the layout's version, the
/// manifest in postcard, and the parameters as little-endian float32.
#[must_use]
pub fn model_digest(manifest: &NetworkManifest, parameters: &[f32]) -> ModelDigest {
    let manifest = postcard::to_allocvec(manifest).expect("a manifest of strings and integers serialises");
    let mut bytes = Vec::with_capacity(parameters.len() * 4);
    bytes.extend(parameters.iter().flat_map(|v| v.to_le_bytes()));
    let version = ParameterLayout::VERSION.to_le_bytes();
    ModelDigest(Digest::of_parts(&[b"medinet model 1", &version, &manifest, &bytes]))
}

const BLOB_VERSION: u8 = 1;
const BLOB_HEADER: usize = 9;
/// zstd's own default.
const BLOB_LEVEL: i32 = 3;

/// A blob that does not hold the parameters that were expected of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParameterBlobError {
    /// Shorter than a header.
    #[error("parameter blob: expected at least {BLOB_HEADER} bytes, got {0}")]
    Truncated(usize),
    /// Written by a newer program, or no parameter blob.
    #[error("parameter blob: expected version {BLOB_VERSION}, got {0}; a newer program may have written it")]
    Version(u8),
    /// Holds another number of values.
    #[error("parameter blob: expected {expected} values, got {got}")]
    Length {
        /// What the layout holds.
        expected: usize,
        /// What the blob states.
        got: u64,
    },
    /// The compressed part is damaged or holds more or less than it states.
    #[error("parameter blob: the compressed part does not hold {expected} values")]
    Content {
        /// What the layout holds.
        expected: usize,
    },
    /// A value is infinite or not a number.
    #[error("parameter blob: expected finite values, got a non-finite one")]
    NotFinite,
}

/// Parameters as a blob: version byte, count as eight little-endian bytes, then one zstd frame of the
/// four byte planes (all lowest bytes, then all second bytes, and so on), because signs and exponents
/// compress once they stand together.
#[must_use]
pub fn encode_parameters(parameters: &[f32]) -> Vec<u8> {
    let count = parameters.len();
    let mut planes = vec![0u8; count * 4];
    for (i, value) in parameters.iter().enumerate() {
        for (plane, byte) in value.to_le_bytes().into_iter().enumerate() {
            planes[plane * count + i] = byte;
        }
    }
    let packed =
        zstd::bulk::compress(&planes, BLOB_LEVEL).expect("compression into a growing buffer succeeds");
    let mut blob = Vec::with_capacity(BLOB_HEADER + packed.len());
    blob.push(BLOB_VERSION);
    blob.extend_from_slice(&(count as u64).to_le_bytes());
    blob.extend_from_slice(&packed);
    blob
}

/// The parameters in a blob from [`encode_parameters`], which must be `expected` many. Allocates eight
/// bytes per expected value whatever the blob says, and nothing before the header has been checked.
///
/// # Errors
/// When the blob is damaged, of another version or length, or holds values that are not finite.
pub fn decode_parameters(blob: &[u8], expected: usize) -> Result<Vec<f32>, ParameterBlobError> {
    let (header, packed) =
        blob.split_first_chunk::<BLOB_HEADER>().ok_or(ParameterBlobError::Truncated(blob.len()))?;
    let [version, count @ ..] = *header;
    if version != BLOB_VERSION {
        return Err(ParameterBlobError::Version(version));
    }
    let got = u64::from_le_bytes(count);
    if got != expected as u64 {
        return Err(ParameterBlobError::Length { expected, got });
    }
    let mut planes = vec![0u8; expected * 4];
    match zstd::bulk::decompress_to_buffer(packed, &mut planes) {
        Ok(written) if written == planes.len() => {}
        Ok(_) | Err(_) => return Err(ParameterBlobError::Content { expected }),
    }
    let byte = |plane: usize, i: usize| planes[plane * expected + i];
    let values: Vec<f32> =
        (0..expected).map(|i| f32::from_le_bytes([byte(0, i), byte(1, i), byte(2, i), byte(3, i)])).collect();
    if values.iter().all(|v| v.is_finite()) { Ok(values) } else { Err(ParameterBlobError::NotFinite) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::InputShape;
    use proptest::prelude::*;

    fn manifest() -> NetworkManifest {
        let input = InputShape { channels: 1, height: 28, width: 28 };
        NetworkManifest::small(input, vec!["normal".into(), "pneumonia".into()])
    }

    #[test]
    fn initial_parameters_are_pinned() {
        // A change here changes the model that every federation starts from.
        let parameters = ModelParameters::initial(&manifest(), 7).unwrap();
        assert_eq!(parameters.as_slice().len(), 77_234);
        assert_eq!(parameters.digest(&manifest()).short(), "9eba21b02b08");
    }

    #[test]
    fn initial_convolutions_have_hes_variance() {
        let manifest = manifest();
        let layout = ParameterLayout::of(&manifest).unwrap();
        let parameters = ModelParameters::initial(&manifest, 1).unwrap();
        let tensor = layout.tensors().iter().find(|t| t.name == "layer3.0.conv2.weight").unwrap();
        let values = &parameters.as_slice()[tensor.range()];
        let n = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let variance = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
        let expected = 2.0 / (64.0 * 9.0);
        assert!((variance / expected - 1.0).abs() < 0.03, "{variance} {expected}");
        assert!(mean.abs() < 4.0 * (expected / n).sqrt(), "{mean}");
    }

    #[test]
    fn seeds_differ() {
        let of = |seed| ModelParameters::initial(&manifest(), seed).unwrap().digest(&manifest());
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }

    #[test]
    fn the_digest_covers_manifest_and_every_value() {
        let parameters = ModelParameters::initial(&manifest(), 1).unwrap();
        let digest = parameters.digest(&manifest());
        let mut renamed = manifest();
        renamed.classes[1] = "other".into();
        assert_ne!(digest, parameters.digest(&renamed));
        let mut values = parameters.into_vec();
        *values.last_mut().unwrap() += 1e-7;
        assert_ne!(digest, model_digest(&manifest(), &values));
    }

    #[test]
    fn wrong_values_are_refused() {
        let got = ModelParameters::new(&manifest(), vec![0.0; 3]);
        assert!(matches!(got, Err(ParameterError::Length { got: 3, .. })));
        let mut values = ModelParameters::initial(&manifest(), 1).unwrap().into_vec();
        *values.last_mut().unwrap() = f32::NAN;
        let got = ModelParameters::new(&manifest(), values).unwrap_err();
        assert_eq!(got, ParameterError::NotFinite { tensor: "fc.bias".into() });
    }

    #[test]
    fn damaged_blobs_are_refused() {
        let blob = encode_parameters(&[1.0, -2.5, 0.0]);
        assert_eq!(decode_parameters(&blob, 3), Ok(vec![1.0, -2.5, 0.0]));
        assert_eq!(decode_parameters(&blob, 4), Err(ParameterBlobError::Length { expected: 4, got: 3 }));
        assert_eq!(decode_parameters(&blob[..5], 3), Err(ParameterBlobError::Truncated(5)));
        let content = Err(ParameterBlobError::Content { expected: 3 });
        assert_eq!(decode_parameters(&blob[..blob.len() - 1], 3), content);
        let mut newer = blob.clone();
        newer[0] = 2;
        assert_eq!(decode_parameters(&newer, 3), Err(ParameterBlobError::Version(2)));
        // States three values and holds four.
        let mut more = encode_parameters(&[1.0; 4]);
        more[1] = 3;
        assert_eq!(decode_parameters(&more, 3), content);
        let nan = encode_parameters(&[f32::NAN]);
        assert_eq!(decode_parameters(&nan, 1), Err(ParameterBlobError::NotFinite));
        assert_eq!(decode_parameters(&encode_parameters(&[]), 0), Ok(vec![]));
    }

    proptest! {
        #[test]
        fn blobs_round_trip(values in prop::collection::vec(-1e30f32..1e30, 0..300)) {
            prop_assert_eq!(decode_parameters(&encode_parameters(&values), values.len()), Ok(values));
        }

        #[test]
        fn any_bytes_decode_without_panic(blob in prop::collection::vec(any::<u8>(), 0..200), expected in 0usize..64) {
            let _ = decode_parameters(&blob, expected);
        }
    }
}
