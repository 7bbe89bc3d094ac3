//! Hospitals whose studies lie in a real PACS, as in the demo.

use crate::fixture::{
    SECURE, SECURE_ROUNDS, SITES, Undisturbed, dicom_files, folder, hospital, plan, released, run, studies,
    trained,
};
use bytes::Bytes;
use medinet_lab::gateway::{Demand, Gateway};
use medinet_lab::orthanc::Orthanc;
use medinet_lab::{Federation, Source};
use medinet_pacs::dicomweb::{DicomWebClient, StoreOutcome};
use medinet_pacs::{DicomWebAuth, DicomWebSettings};
use medinet_settings::SecretFile;
use std::fs;
use std::path::Path;

/// A PACS with the studies of one hospital, stored over STOW-RS.
async fn archive(folder: &Path, number: usize) -> Orthanc {
    let name = format!("hospital-{number}");
    let orthanc = Orthanc::start(&folder.join(&name), &name, &format!("password{number}")).unwrap();
    let settings = DicomWebSettings {
        auth: DicomWebAuth::Basic {
            user: orthanc.user.clone(),
            password_file: SecretFile::new(&orthanc.password_file),
        },
        ..stranger(&orthanc.url, None)
    };
    let files = dicom_files(&studies(number));
    let objects: Vec<Bytes> = files.iter().map(|path| fs::read(path).unwrap().into()).collect();
    let outcomes = DicomWebClient::new(&settings).unwrap().store(&objects).await.unwrap();
    assert_eq!(outcomes, vec![StoreOutcome::Stored; objects.len()]);
    orthanc
}

/// Who knows where the PACS is and has nothing to show to it.
fn stranger(url: &str, ca_file: Option<&Path>) -> DicomWebSettings {
    DicomWebSettings {
        ca_file: ca_file.map(|path| path.to_owned().into()),
        max_attempts: 1,
        ..DicomWebSettings::new(url.parse().unwrap())
    }
}

/// Three hospitals sign in each in its own way: with a password to the PACS itself, with a token and with a certificate to a
/// gateway in front of it. What they pull makes the very model that the same studies make out of watched folders.
#[test]
fn studies_in_archives_make_the_same_model_as_studies_in_folders() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let folder = folder("dicomweb");
    let archives: Vec<Orthanc> =
        (1..=SITES).map(|number| runtime.block_on(archive(&folder, number))).collect();
    let token = Gateway::start(&folder.join("token"), &archives[1], Demand::Token("s3cret")).unwrap();
    let certificate = Gateway::start(&folder.join("certificate"), &archives[2], Demand::Certificate).unwrap();

    // Each asks for what its hospital has to show, and whoever shows nothing is refused.
    let refused = |url: &str, ca_file| {
        let client = DicomWebClient::new(&stranger(url, ca_file)).unwrap();
        let searched = runtime.block_on(client.dangerous().search_studies(&[]));
        assert!(searched.is_err(), "{url} lets anybody in");
    };
    refused(&archives[0].url, None);
    for gateway in [&token, &certificate] {
        refused(&gateway.access.url, Some(&gateway.access.ca_file));
    }

    let password = Source::Dicomweb {
        url: archives[0].url.clone(),
        user: archives[0].user.clone(),
        password_file: archives[0].password_file.clone(),
    };
    let sources = [password]
        .into_iter()
        .chain([&token, &certificate].map(|gateway| Source::Gateway(gateway.access.clone())));
    let sites = (1..=SITES).zip(sources);
    let sites = sites.map(|(number, source)| hospital(number, source, studies(number).join("labels.csv")));
    let plan = plan(&folder, sites.collect(), SECURE_ROUNDS, SECURE);
    let mut federation = Federation::prepare(plan).unwrap();
    let mut taken = [0; SITES];
    run(&mut federation, |federation, status| {
        for (taken, site) in taken.iter_mut().zip(&federation.plan().sites) {
            let status = status.sites.get(&site.id);
            *taken = status.map_or(0, |site| site.instances + site.quarantined).max(*taken);
        }
        Ok(())
    })
    .unwrap();

    let stored: Vec<u64> = (1..=SITES).map(|number| dicom_files(&studies(number)).len() as u64).collect();
    assert_eq!(taken, stored[..], "every object was pulled");
    // The stranger asked first; whoever had something to show was never refused.
    for (gateway, refusal) in [(&token, "401 "), (&certificate, "400 ")] {
        let answers = gateway.answers().unwrap();
        let refused = answers.lines().take_while(|line| line.starts_with(refusal)).count();
        let mut given = answers.lines().skip(refused);
        assert!(
            refused > 0 && given.clone().any(|line| line.starts_with("200 GET /dicom-web/studies/")),
            "{answers}"
        );
        assert!(given.all(|line| line.starts_with('2')), "{answers}");
    }
    assert_eq!(trained(&federation), Undisturbed::secure().rounds);
    assert_eq!(released(&federation).unwrap(), Undisturbed::secure().model);
}
