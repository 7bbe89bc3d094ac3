//! nginx in front of a hospital's PACS, as hospitals have one: TLS by the hospital's own authority, and a token or a certificate of
//! each client in place of the PACS's password, which the gateway alone knows.

use crate::enrolment::{authority, enrol, loopback};
use crate::orthanc::{Orthanc, free_port};
use crate::process::Running;
use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use medinet_identity::write_private;
use medinet_types::Role;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Debian's nginx.
const PROGRAM: &str = "/usr/sbin/nginx";

/// What a gateway asks of its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demand<'a> {
    /// This bearer token, of letters and digits.
    Token(&'a str),
    /// A certificate of the hospital's authority.
    Certificate,
}

/// How the hospital's appliance reaches a PACS behind a gateway.
#[derive(Debug, Clone)]
pub struct Access {
    /// Root of the DICOMweb service.
    pub url: String,
    /// The authority of the gateway's certificate.
    pub ca_file: PathBuf,
    /// What the appliance shows.
    pub proof: Proof,
}

/// What an appliance shows to a gateway.
#[derive(Debug, Clone)]
pub enum Proof {
    /// A bearer token.
    Token {
        /// Holds it.
        file: PathBuf,
    },
    /// A certificate.
    Certificate {
        /// The certificate.
        certificate: PathBuf,
        /// Its private key.
        key: PathBuf,
    },
}

/// A running gateway; stopped when dropped.
pub struct Gateway {
    /// How to reach the PACS through it.
    pub access: Access,
    folder: PathBuf,
    _process: Running,
}

impl Gateway {
    /// Starts a gateway whose files lie in `folder` in front of a PACS.
    ///
    /// # Errors
    /// When nginx is not installed or does not listen within half a minute.
    pub fn start(folder: &Path, pacs: &Orthanc, demand: Demand<'_>) -> Result<Self> {
        ensure!(
            Path::new(PROGRAM).exists(),
            "expected nginx at {PROGRAM}: `cargo xtask setup` installs what the tests need"
        );
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        // nginx takes other paths as its own installation's.
        let folder = &fs::canonicalize(folder)?;
        let authority = authority(&folder.join("ca"), "hospital CA")?;
        // Who may be a server is called a broker by this authority.
        let own = enrol(&authority, folder, Role::Broker, "gateway", &loopback()?)?;
        let (asked, refused, proof) = match demand {
            Demand::Token(token) => {
                ensure!(
                    token.bytes().all(|byte| byte.is_ascii_alphanumeric()),
                    "expected a token of letters and digits, got {token:?}"
                );
                let file = folder.join("token");
                write_private(&file, token)?;
                let refused = format!("if ($http_authorization != \"Bearer {token}\") {{ return 401; }}");
                (String::new(), refused, Proof::Token { file })
            }
            Demand::Certificate => {
                let client = enrol(&authority, folder, Role::Site, "appliance", &[])?;
                let asked = format!("ssl_client_certificate {}; ssl_verify_client on;", own.ca.display());
                let proof = Proof::Certificate { certificate: client.certificate, key: client.key };
                (asked, String::new(), proof)
            }
        };
        let password = fs::read_to_string(&pacs.password_file).context("the password of the PACS")?;
        let credentials = STANDARD.encode(format!("{}:{password}", pacs.user));
        let (port, upstream, here) = (free_port()?, pacs.port, folder.display());
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {here}/{name}; "))
            .concat();
        // One process, without a worker that would outlive it; pictures go through its memory alone.
        let configuration = format!(
            "daemon off; master_process off; pid {here}/pid; error_log {here}/error.log;
events {{ worker_connections 64; }}
http {{
  log_format answers '$status $request_method $uri'; access_log {here}/answers.log answers;
  {temporary}
  server {{
    listen 127.0.0.1:{port} ssl; ssl_certificate {certificate}; ssl_certificate_key {key};
    {asked}
    location / {{
      {refused}
      proxy_pass http://127.0.0.1:{upstream}; proxy_http_version 1.1; proxy_max_temp_file_size 0;
      proxy_set_header Host $http_host; proxy_set_header Authorization \"Basic {credentials}\";
    }}
  }}
}}
",
            certificate = own.certificate.display(),
            key = own.key.display(),
        );
        let file = folder.join("nginx.conf");
        write_private(&file, &configuration)?;
        let mut command = Command::new(PROGRAM);
        command.arg("-c").arg(&file).arg("-e").arg(folder.join("error.log"));
        let mut process = Running::start("nginx", command, &folder.join("nginx.log"))?;
        process.listens_on(port)?;
        let access = Access { url: format!("https://127.0.0.1:{port}/dicom-web"), ca_file: own.ca, proof };
        Ok(Self { access, folder: folder.clone(), _process: process })
    }

    /// What the gateway has answered so far, a line each: status, method and path.
    ///
    /// # Errors
    /// When its log cannot be read.
    pub fn answers(&self) -> Result<String> {
        let log = self.folder.join("answers.log");
        fs::read_to_string(&log).with_context(|| format!("cannot read {}", log.display()))
    }
}
