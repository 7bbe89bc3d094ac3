//! A released model, and a site's own images to attack it with.

use super::federations::{Recipe, Variant};
use super::membership::{Answers, Pool, attack};
use super::{AuditStudy, Outcome, VariantOutcome, unit, verdicts};
use crate::data::{Dataset, Images};
use crate::federation::in_parallel;
use anyhow::{Context as _, Result, bail, ensure};
use dicom_core::Tag;
use medinet_inference::Model;
use medinet_ledger::{LedgerPublicKey, ModelBundle, TrustedKeys};
use medinet_model::{ModelParameters, TaskSpec};
use medinet_training::TrainingData as _;
use medinet_types::{Digest, FederationId};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Most files of one folder: an audit keeps all images in memory.
const MOST_FILES: usize = 100_000;
/// PatientID.
const PATIENT_ID: Tag = Tag(0x0010, 0x0020);

/// A model that the federation's ledger proves to have been released.
pub struct Released {
    model: Model,
    title: String,
}

impl Released {
    /// Opens a bundle and verifies it against the ledger's public key, which is 64 hexadecimal digits or a signed-note verifier key.
    ///
    /// # Errors
    /// When a file cannot be read, or the bundle does not prove that this model was released.
    pub fn open(bundle: &Path, ledger_key: &Path, federation: &FederationId) -> Result<Self> {
        let read =
            |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let text = String::from_utf8(read(ledger_key)?).context("a ledger key is text")?;
        let mut key = [0; 32];
        let ledger = if hex::decode_to_slice(text.trim(), &mut key).is_ok() {
            LedgerPublicKey::new(federation, key)
        } else {
            let key: Option<LedgerPublicKey> = text.trim().parse().ok();
            key.with_context(|| {
                format!("expected a ledger's public key of 64 hexadecimal digits in {}", ledger_key.display())
            })?
        };
        let refused = || format!("the model in {} is refused", bundle.display());
        let verified = ModelBundle::decode(&read(bundle)?)
            .and_then(|bundle| bundle.verify(&TrustedKeys { ledger }))
            .with_context(refused)?;
        let title = format!(
            "{} version {}, digest {}",
            verified.spec().task,
            verified.version(),
            verified.digest().short()
        );
        Ok(Self { model: Model::load(&verified).with_context(refused)?, title })
    }

    /// The task, as it was released with the model.
    #[must_use]
    pub fn spec(&self) -> &TaskSpec {
        self.model.spec()
    }

    fn answers(&self, images: &Images, queries: usize) -> Result<Answers> {
        let shape = images.shape();
        let size = (shape.channels * shape.height * shape.width) as usize;
        Answers::of(self.model.classes().len(), images, queries, |data| {
            let (mut values, mut all) = (vec![0.0; size], Vec::new());
            for index in 0..data.len() {
                data.read(index, &mut values)?;
                all.extend(self.model.logits(&values)?);
            }
            Ok(all)
        })
    }
}

/// Reads DICOM files from a folder that has a folder for each class of the task, named like it; files may lie deeper. Each is prepared as the
/// appliance prepares it for the model, and every frame is an image. Whose it is follows from PatientID, pseudonyms included.
///
/// # Errors
/// When a class has no folder, a file cannot be read, or says no patient.
pub fn folder_of_images(folder: &Path, spec: &TaskSpec) -> Result<Images> {
    let shape = spec.network.input;
    let (mut values, mut classes, mut patients) = (Vec::new(), Vec::new(), Vec::new());
    let mut numbers: BTreeMap<Digest, u32> = BTreeMap::new();
    for (class, name) in spec.network.classes.iter().enumerate() {
        // A class may be called anything; a folder's name is one part of a path.
        ensure!(
            Path::new(name).file_name().is_some_and(|part| part == name.as_str()),
            "expected a class whose name can be a folder's, got {name:?}"
        );
        let of_class = folder.join(name);
        ensure!(
            of_class.is_dir(),
            "expected the folder {} with the DICOM files of class {name}: make one for each class of the task",
            of_class.display()
        );
        // Files are counted, not named: a name may be a patient's.
        for (number, file) in files(&of_class)?.into_iter().enumerate() {
            let what = || format!("file {} in {}", number + 1, of_class.display());
            let object =
                medinet_objects::read(&std::fs::read(&file).with_context(what)?).with_context(what)?;
            let patient = object.element(PATIENT_ID).ok().and_then(|element| element.to_str().ok());
            let Some(patient) = patient.filter(|id| !id.trim().is_empty()) else {
                bail!("{}: expected a PatientID, got none: patients cannot be told apart", what());
            };
            let next = u32::try_from(numbers.len())?;
            let patient = *numbers.entry(Digest::of(patient.trim().as_bytes())).or_insert(next);
            let image = medinet_imaging::decode(&object).with_context(what)?;
            for frame in 0..image.frame_count() {
                let input =
                    medinet_imaging::prepare(&image, frame, &spec.preprocessing, shape).with_context(what)?;
                values.extend_from_slice(&input.values);
                classes.push(class);
                patients.push(patient);
            }
        }
    }
    Images::new(shape, values, classes, patients)
}

/// All files below a folder, in order.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut open) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(folder) = open.pop() {
        let entries =
            std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            // Links are not followed: they could lead round in a circle.
            let kind = entry.file_type()?;
            if kind.is_dir() {
                open.push(entry.path());
            } else if kind.is_file() {
                found.push(entry.path());
            }
        }
        ensure!(found.len() <= MOST_FILES, "expected at most {MOST_FILES} files, got more");
    }
    found.sort();
    Ok(found)
}

impl AuditStudy {
    /// Attacks a released model: who of `members` and `others` was it trained on? Shadow models are trained from the task's own network, in one
    /// place, for as many rounds and epochs as this study says. Where it asks for a control, the same attacks are shown a model that leaks for certain.
    ///
    /// A bundle does not say how its model was trained. Shadow models are trained on half of the patients at one site, in float32, without
    /// augmentation or weight decay. So they fit the released model worse than the control's fit the control, and a leak may be missed that is
    /// as large as the one that is found there.
    ///
    /// # Errors
    /// When the images do not fit, or a training fails.
    pub fn run_on_released(
        &self,
        released: &Released,
        members: &Images,
        others: &Images,
        threads: usize,
        watch: &(dyn Fn(&str) + Sync),
    ) -> Result<Outcome> {
        let network = released.spec().network.clone();
        ensure!(
            members.shape() == network.input,
            "expected images of {:?}, got {:?}",
            network.input,
            members.shape()
        );
        let pool = Pool::given(members, others, self.shadows, self.seed)?;
        let recipe = Recipe { network, sites: 1, ..self.recipe(members) };
        let shadows = in_parallel(threads, self.shadows, |shadow| {
            let images = pool.images_of(&pool.shadows[shadow]);
            let model = recipe.train(Variant::Released, images, others, self.seed, 1)?.model;
            watch(&format!("shadow model {} of {} trained", shadow + 1, self.shadows));
            Answers::ask(&recipe.network, &model, &pool.images, self.queries)
        })?;
        let answers = released.answers(&pool.images, self.queries)?;
        let mut membership = vec![VariantOutcome {
            variant: Variant::Released,
            title: Variant::Released.title(),
            test: None,
            members: None,
            others: None,
            attacks: attack(&pool, &answers, &shadows, recipe.delta, self.seed)?,
            in_turn: Vec::new(),
        }];
        if self.control {
            // A model of the task's own network that knows some of these images by heart: attacks that miss it say nothing of the released one.
            let data = Dataset {
                name: "control",
                training: pool.images.clone(),
                validation: pool.images.select(&[]),
                test: others.clone(),
            };
            let (control, _) = self.variant(Variant::Control, &recipe, &pool, &data, (threads, watch))?;
            membership.extend(control);
        }
        Ok(Outcome {
            source: "the site's own images".to_owned(),
            unit: unit(&pool).to_owned(),
            parameters: ModelParameters::initial(&recipe.network, 1)?.as_slice().len(),
            images: pool.images.len(),
            study: Some(self.clone()),
            released: Some(released.title.clone()),
            verdicts: verdicts(&membership, &[]),
            membership,
            inversion: Vec::new(),
        })
    }
}
