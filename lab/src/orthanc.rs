//! A real PACS for one hospital: Debian's Orthanc with its DICOMweb plugin, on loopback, with a password.

use crate::process::Running;
use anyhow::{Context as _, Result, bail};
use serde_json::json;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Debian's Orthanc.
const PROGRAM: &str = "/usr/sbin/Orthanc";
/// Debian's DICOMweb plugin.
const PLUGIN: &str = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so";

/// A running PACS; stopped when dropped.
pub struct Orthanc {
    /// Root of its DICOMweb service.
    pub url: String,
    /// The user that the appliance signs in as.
    pub user: String,
    /// A file that holds the password.
    pub password_file: PathBuf,
    pub(crate) port: u16,
    _process: Running,
}

/// A TCP port on loopback that was free a moment ago.
///
/// # Errors
/// When the machine has none.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0").context("no free port on loopback")?.local_addr()?.port())
}

impl Orthanc {
    /// Starts an empty PACS whose files lie in `folder`.
    ///
    /// # Errors
    /// When Orthanc is not installed or does not answer within half a minute.
    pub fn start(folder: &Path, name: &str, password: &str) -> Result<Self> {
        if !Path::new(PROGRAM).exists() || !Path::new(PLUGIN).exists() {
            bail!(
                "expected Orthanc at {PROGRAM} and its DICOMweb plugin at {PLUGIN}: `cargo xtask setup` installs them"
            );
        }
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let password_file = folder.join("password");
        medinet_identity::write_private(&password_file, password)?;
        let port = free_port()?;
        let user = "medinet".to_owned();
        let configuration = json!({
            "Name": name,
            "StorageDirectory": folder.join("db"),
            "IndexDirectory": folder.join("db"),
            "Plugins": [PLUGIN],
            "HttpPort": port,
            "HttpBindAddresses": ["127.0.0.1"],
            "RemoteAccessAllowed": false,
            "AuthenticationEnabled": true,
            "RegisteredUsers": { user.as_str(): password },
            "DicomServerEnabled": false,
            "OrthancExplorerEnabled": false,
            "WebDavEnabled": false,
            "SyncStorageArea": false,
            "DicomWeb": {
                "Enable": true, "Root": "/dicom-web/", "EnableWado": false,
                "StudiesMetadata": "Full", "SeriesMetadata": "Full"
            }
        });
        let configuration_file = folder.join("orthanc.json");
        medinet_identity::write_private(&configuration_file, &configuration.to_string())?;
        let url = format!("http://127.0.0.1:{port}/dicom-web");
        let mut command = Command::new(PROGRAM);
        command.arg("--no-jobs").arg(&configuration_file).current_dir(folder);
        let mut process = Running::start("orthanc", command, &folder.join("orthanc.log"))?;
        process.listens_on(port)?;
        Ok(Self { url, user, password_file, port, _process: process })
    }
}
