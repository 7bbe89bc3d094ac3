//! The tasks that the lab knows.

use medinet_model::{
    Augmentation, Body, ClassBalance, InputShape, Intensity, NetworkManifest, Normalisation, Preprocessing,
    Resize, Slices, Stem, TaskSpec, TrainingPlan,
};
use medinet_types::TaskId;

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskKind {
    /// Pneumonia on chest X-rays at 64 pixels.
    Demo,
    /// The same on a network of a few thousand parameters at 28 pixels, for tests.
    Tiny,
}

impl TaskKind {
    /// The task's specification.
    #[must_use]
    pub fn spec(self) -> TaskSpec {
        let classes = vec!["normal".to_owned(), "pneumonia".to_owned()];
        let network = match self {
            Self::Demo => NetworkManifest::small(InputShape { channels: 1, height: 64, width: 64 }, classes),
            Self::Tiny => NetworkManifest {
                input: InputShape { channels: 1, height: 28, width: 28 },
                classes,
                body: Body::ResNet {
                    stem: Stem::Stride2,
                    stage_channels: vec![4, 8],
                    stage_blocks: vec![1, 1],
                    groups: 2,
                },
            },
        };
        TaskSpec {
            task: TaskId::new("pneumonia").expect("nine lower-case letters are a name"),
            purpose: "tells pneumonia from normal in chest X-rays of children".to_owned(),
            network,
            preprocessing: Preprocessing {
                slices: Slices::Single,
                intensity: Intensity::Voi,
                denoise: false,
                spacing_mm: None,
                resize: Resize::Letterbox,
                normalisation: Normalisation::Equalised,
            },
        }
    }

    /// The norm that updates of the first round are clipped to under secure aggregation; it follows their norms from then on.
    #[must_use]
    pub fn clip_norm(self) -> f32 {
        match self {
            Self::Demo => 0.7,
            Self::Tiny => 2.0,
        }
    }

    /// How a site trains in one round.
    #[must_use]
    pub fn training(self, local_epochs: u32, seed: u64) -> TrainingPlan {
        let augmentation = match self {
            Self::Demo => Augmentation {
                shift_fraction: 0.05,
                rotate_degrees: 5.0,
                scale_fraction: 0.05,
                brightness: 0.1,
                contrast: 0.1,
                ..Augmentation::none()
            },
            Self::Tiny => Augmentation::none(),
        };
        TrainingPlan {
            local_epochs,
            batch_size: 16,
            learning_rate: 0.05,
            momentum: 0.9,
            weight_decay: 1e-4,
            proximal_mu: 0.0,
            augmentation,
            class_balance: ClassBalance::WeightedLoss,
            early_stopping_epochs: 0,
            seed,
            privacy: None,
        }
    }
}
