//! What the authority signs and what it refuses, what identities are loaded, and what others read in our certificates.
#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

mod common;

use common::{DAY, Federation, NOW, localhost, principal};
use medinet_identity::{
    Authority, AuthorityError, Identity, IdentityFiles, Issue, Target, new_key_and_csr, write_private,
};
use medinet_types::{Principal, Role};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

fn north() -> Principal {
    principal(Role::Site, "north")
}

fn issue(
    authority: &Authority,
    csr_pem: &str,
    who: &Principal,
    with_hosts: bool,
    validity: Duration,
) -> Result<String, AuthorityError> {
    let hosts = if with_hosts { localhost() } else { vec![] };
    authority.issue(&Issue { csr_pem, principal: who, hosts: &hosts, validity }, NOW).map(|(pem, _)| pem)
}

#[test]
fn only_what_the_operator_approved_is_signed() {
    let federation = Federation::new(NOW);
    let authority = &federation.authority;
    let (_, csr) = new_key_and_csr(&north()).unwrap();
    let other = issue(authority, &csr, &principal(Role::Site, "south"), false, DAY).unwrap_err();
    assert!(other.to_string().contains("of site:south, as approved, got one of site:north"), "{other}");
    let promoted = issue(authority, &csr, &principal(Role::Aggregator, "north"), false, DAY);
    assert!(matches!(promoted, Err(AuthorityError::OtherPrincipal { .. })));
    let server = issue(authority, &csr, &north(), true, DAY);
    assert!(matches!(server, Err(AuthorityError::Hosts { .. })), "a site is no server");
    let (_, broker) = new_key_and_csr(&principal(Role::Broker, "hub")).unwrap();
    let nameless = issue(authority, &broker, &principal(Role::Broker, "hub"), false, DAY);
    assert!(matches!(nameless, Err(AuthorityError::Hosts { .. })), "a broker has names");
    for validity in [Duration::ZERO, 3651 * DAY, Duration::MAX] {
        let endless = issue(authority, &csr, &north(), false, validity);
        assert!(matches!(endless, Err(AuthorityError::Validity(_))));
    }
    assert!(matches!(issue(authority, "nonsense", &north(), false, DAY), Err(AuthorityError::Request(_))));
    assert_eq!(authority.issued().unwrap(), [], "what was refused is not registered");
    issue(authority, &csr, &north(), false, DAY).unwrap();
    assert_eq!(authority.issued().unwrap().len(), 1);
}

#[test]
fn a_name_is_not_shared_by_two_roles() {
    let federation = Federation::new(NOW);
    let aggregator = principal(Role::Aggregator, "center");
    federation.identity(&aggregator);
    let impostor = principal(Role::Site, "center");
    let (_, csr) = new_key_and_csr(&impostor).unwrap();
    let error = issue(&federation.authority, &csr, &impostor, false, DAY).unwrap_err();
    assert!(error.to_string().contains("aggregator:center holds a certificate"), "{error}");
    federation.authority.revoke(&Target::Principal(aggregator), NOW).unwrap();
    issue(&federation.authority, &csr, &impostor, false, DAY).unwrap();
}

#[test]
fn an_authority_is_the_same_after_it_is_opened_again() {
    let federation = Federation::new(NOW);
    let (files, entry) = federation.files(&north());
    let again = Authority::open(&federation.path("ca")).unwrap();
    assert_eq!(again.certificate_pem(), federation.authority.certificate_pem());
    assert_eq!(again.issued().unwrap(), std::slice::from_ref(&entry));
    let identity = Identity::load(&files).unwrap();
    assert_eq!(again.revoke(&Target::Serial(entry.serial), NOW).unwrap()[0].revoked_at, Some(NOW));
    assert!(identity.trust().reload_crl().unwrap(), "a list by the opened authority is as good");
    let later = again.revoke(&Target::Serial(entry.serial), NOW.after(DAY)).unwrap();
    assert_eq!(later[0].revoked_at, Some(NOW), "revoked once, at that moment");
    let unknown = again.revoke(&Target::Principal(north()), NOW).unwrap_err();
    assert!(unknown.to_string().contains("site:north"), "{unknown}");
    let (csr_key, csr) = new_key_and_csr(&north()).unwrap();
    drop(csr_key);
    issue(&again, &csr, &north(), false, DAY).unwrap();
}

#[test]
fn two_processes_at_once_lose_no_certificate() {
    let federation = Federation::new(NOW);
    let dir = federation.path("ca");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let dir = &dir;
            scope.spawn(move || {
                let authority = Authority::open(dir).unwrap();
                for number in 0..5 {
                    let who = principal(Role::Site, &format!("site-{thread}-{number}"));
                    let (_, csr) = new_key_and_csr(&who).unwrap();
                    issue(&authority, &csr, &who, false, DAY).unwrap();
                }
            });
        }
    });
    assert_eq!(federation.authority.issued().unwrap().len(), 20);
}

#[test]
fn an_authority_is_neither_overwritten_nor_opened_when_something_is_wrong() {
    let federation = Federation::new(NOW);
    let dir = federation.path("ca");
    assert!(matches!(Authority::create(&dir, "Test", DAY, NOW), Err(AuthorityError::Exists(_))));
    assert!(matches!(Authority::create(&federation.path("b"), "", DAY, NOW), Err(AuthorityError::Name(_))));

    let key = dir.join("ca.key");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    assert!(Authority::open(&dir).err().unwrap().to_string().contains("chmod 600"));
    let other = Federation::new(NOW);
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    fs::copy(other.path("ca/ca.key"), &key).unwrap();
    assert!(matches!(Authority::open(&dir), Err(AuthorityError::KeyMismatch(_))));
    fs::write(&key, "nonsense").unwrap();
    assert!(Authority::open(&dir).err().unwrap().to_string().contains("P-256 key"));
    assert!(matches!(Authority::open(&federation.path("none")), Err(AuthorityError::File(_))));
    fs::write(other.path("ca/issued.json"), "{}").unwrap();
    assert!(Authority::open(&other.path("ca")).err().unwrap().to_string().contains("issued.json"));
}

#[test]
fn identities_whose_parts_do_not_belong_together_are_refused() {
    let (federation, other) = (Federation::new(NOW), Federation::new(NOW));
    let (files, _) = federation.files(&north());
    let (south, _) = federation.files(&principal(Role::Site, "south"));
    let error = |files: IdentityFiles| Identity::load(&files).unwrap_err().to_string();

    assert!(error(IdentityFiles { key: south.key.clone(), ..files.clone() }).contains("does not belong"));
    let ca = other.authority.certificate_path();
    assert!(
        error(IdentityFiles { ca: ca.clone(), crl: None, ..files.clone() })
            .contains("not signed by an authority")
    );
    assert!(error(IdentityFiles { ca, ..files.clone() }).contains("revocation list"));
    assert!(
        error(IdentityFiles { ca: files.certificate.clone(), ..files.clone() })
            .contains("of a party, or none")
    );
    assert!(
        error(IdentityFiles { certificate: files.key.clone(), ..files.clone() })
            .contains("a certificate in PEM")
    );
    assert!(
        error(IdentityFiles { certificate: federation.path("none"), ..files.clone() })
            .contains("cannot open")
    );

    let wrong = federation.path("wrong.key");
    write_private(&wrong, "hunter2").unwrap();
    let said = error(IdentityFiles { key: wrong, ..files.clone() });
    assert!(said.contains("a P-256 key in PKCS #8 PEM") && !said.contains("hunter2"), "{said}");

    for mode in [0o640, 0o604, 0o666] {
        fs::set_permissions(&files.key, Permissions::from_mode(mode)).unwrap();
        assert!(error(files.clone()).contains("chmod 600"));
    }
    fs::set_permissions(&files.key, Permissions::from_mode(0o400)).unwrap();
    let identity = Identity::load(&files).unwrap();
    assert!(!format!("{identity:?}").to_lowercase().contains("key"));
}

/// What openssl, which shares no code with ours, says about a file.
fn openssl(args: &[&str], path: &Path) -> String {
    let output = Command::new("openssl").args(args).arg("-in").arg(path).output();
    let output = output.expect("this test needs the program openssl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn openssl_reads_in_our_certificates_what_we_meant() {
    let federation = Federation::new(NOW);
    let (site, _) = federation.files(&north());
    let (broker, entry) = federation.files(&principal(Role::Broker, "hub"));
    federation.authority.revoke(&Target::Serial(entry.serial), NOW).unwrap();

    let ca = openssl(&["x509", "-noout", "-text"], &site.ca);
    for wanted in ["CA:TRUE, pathlen:0", "Certificate Sign, CRL Sign", "ASN1 OID: prime256v1"] {
        assert!(ca.contains(wanted), "{wanted} in {ca}");
    }
    let text = openssl(&["x509", "-noout", "-text"], &site.certificate);
    for wanted in
        ["Subject: CN = north", "URI:urn:medinet:site:north", "TLS Web Client Authentication", "CA:FALSE"]
    {
        assert!(text.contains(wanted), "{wanted} in {text}");
    }
    assert!(!text.contains("Server Authentication"));
    let text = openssl(&["x509", "-noout", "-text"], &broker.certificate);
    for wanted in
        ["TLS Web Server Authentication", "DNS:localhost", "IP Address:127.0.0.1", "urn:medinet:broker:hub"]
    {
        assert!(text.contains(wanted), "{wanted} in {text}");
    }
    let list = openssl(&["crl", "-noout", "-text"], &federation.authority.crl_path());
    assert!(
        list.contains(&entry.serial.to_string().to_uppercase()) && list.contains("Next Update"),
        "{list}"
    );

    let verify = |certificate: &Path| {
        let at = (NOW.0 / 1000).to_string();
        Command::new("openssl")
            .args([
                "verify",
                "-attime",
                &at,
                "-crl_check",
                "-x509_strict",
                "-purpose",
                "sslclient",
                "-CAfile",
            ])
            .arg(&site.ca)
            .arg("-CRLfile")
            .arg(federation.authority.crl_path())
            .arg(certificate)
            .output()
            .unwrap()
    };
    let good = verify(&site.certificate);
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
    let revoked = verify(&broker.certificate);
    assert!(String::from_utf8_lossy(&revoked.stderr).contains("certificate revoked"));
}
