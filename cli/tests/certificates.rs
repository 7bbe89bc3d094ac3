//! The certificate commands, as an operator runs them.
#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use medinet_identity::{Identity, IdentityFiles};
use medinet_types::{Role, UnixMillis};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::time::SystemTime;

/// Runs `medinet` in `dir` with the words of `line`.
fn medinet(dir: &Path, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_medinet"))
        .args(line.split_whitespace())
        .current_dir(dir)
        .output()
        .unwrap()
}

/// What a command that must succeed prints.
#[track_caller]
fn done(dir: &Path, line: &str) -> String {
    let output = medinet(dir, line);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What a command that must fail says; it prints no result.
#[track_caller]
fn refused(dir: &Path, line: &str) -> String {
    let output = medinet(dir, line);
    assert!(!output.status.success(), "{line} was done");
    assert!(output.stdout.is_empty(), "{line} printed a result");
    String::from_utf8(output.stderr).unwrap()
}

/// Days and serial numbers replaced, so that the rest can be compared.
fn filtered(text: &str) -> String {
    let digits =
        |word: &str, count: usize| word.len() == count && word.chars().all(|c| c.is_ascii_hexdigit());
    let filter = |word: &str| {
        let core = word.trim_end_matches(',');
        let parts: Vec<&str> = core.split('-').collect();
        let day = matches!(parts[..], [y, m, d] if digits(y, 4) && digits(m, 2) && digits(d, 2));
        match core {
            _ if day => word.replace(core, "DAY"),
            _ if digits(core, 32) => word.replace(core, "SERIAL"),
            _ => word.to_owned(),
        }
    };
    text.lines().map(|line| line.split(' ').map(filter).collect::<Vec<_>>().join(" ") + "\n").collect()
}

fn load(dir: &Path, certificate: &str) -> Identity {
    let files = IdentityFiles {
        certificate: dir.join(certificate),
        key: dir.join("key.pem"),
        ca: dir.join("../ca/ca.pem"),
        crl: Some(dir.join("../ca/crl.pem")),
    };
    Identity::load(&files).unwrap()
}

fn now() -> UnixMillis {
    UnixMillis(0).after(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap())
}

#[test]
fn a_site_is_enrolled_by_request_and_signature() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    assert_eq!(
        filtered(&done(dir, "ca init ca --name Chest")),
        "made the certificate authority \"Chest\", valid until DAY\n  \
         trusted by every party:  ca/ca.pem\n  \
         revocation list:         ca/crl.pem, to be renewed before DAY\n  \
         keep secret and back up: ca/ca.key\n"
    );
    assert_eq!(
        done(dir, "identity new --role site --name north --out north"),
        "made a key and a request for site:north\n  \
         stays on this machine:     north/key.pem\n  \
         send to the authority:     north/request.csr\n  \
         the authority then runs:   medinet ca sign --ca DIR --csr request.csr --role site --name north\n"
    );
    let mode = |file: &str| dir.join(file).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("ca/ca.key"), mode("north/key.pem"), mode("north")), (0o600, 0o600, 0o700));
    assert_eq!(
        filtered(&done(dir, "ca sign --ca ca --csr north/request.csr --role site --name north --days 30")),
        "issued a certificate to site:north, valid until DAY, serial SERIAL\n  \
         certificate: north/certificate.pem\n  \
         the party also needs ca/ca.pem and ca/crl.pem\n"
    );
    let identity = load(&dir.join("north"), "certificate.pem");
    assert_eq!(identity.principal().to_string(), "site:north");
    let days = identity.not_after().since(now()).as_secs_f64() / 86_400.0;
    assert!((29.9..30.1).contains(&days), "{days}");
}

#[test]
fn a_broker_is_enrolled_in_one_step_with_its_names() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    done(dir, "ca init ca --name Chest");
    assert_eq!(
        filtered(&done(
            dir,
            "enrol --ca ca --role broker --name hub --dns Hub.Example.org --ip 127.0.0.1 --ip ::1 --out hub"
        )),
        "issued a certificate to broker:hub at hub.example.org, 127.0.0.1, ::1, valid until DAY, serial SERIAL\n  \
         key.pem, certificate.pem, ca.pem and crl.pem are in hub\n"
    );
    let files = IdentityFiles {
        certificate: dir.join("hub/certificate.pem"),
        key: dir.join("hub/key.pem"),
        ca: dir.join("hub/ca.pem"),
        crl: Some(dir.join("hub/crl.pem")),
    };
    assert_eq!(Identity::load(&files).unwrap().principal().role, Role::Broker);
    let again = refused(dir, "enrol --ca ca --role broker --name hub --dns localhost --out hub");
    assert!(again.contains("expected no key in hub"), "{again}");
    let list = done(dir, "ca list --ca ca");
    assert_eq!(list.lines().count(), 2, "what was refused is not registered: {list}");
}

#[test]
fn what_is_revoked_is_listed_and_refused() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    done(dir, "ca init ca --name Chest");
    done(dir, "enrol --ca ca --role site --name north --out north");
    done(dir, "enrol --ca ca --role aggregator --name aggregator --out aggregator");
    let north = load(&dir.join("north"), "certificate.pem");
    let prove = || {
        north.trust().reload_crl().unwrap();
        use medinet_wire::envelope::Signer as _;
        north.trust().prove(north.certificate_der(), now())
    };
    prove().unwrap();
    assert_eq!(
        filtered(&done(dir, "ca revoke --ca ca --role site --name north")),
        "revoked the certificate of site:north, serial SERIAL\n  \
         give the new revocation list to every party: ca/crl.pem\n"
    );
    assert!(prove().unwrap_err().to_string().contains("revoked"));
    let renewed = done(dir, "ca crl --ca ca --days 10");
    assert!(renewed.starts_with("renewed the revocation list until "), "{renewed}");
    assert!(prove().unwrap_err().to_string().contains("revoked"), "a renewed list still holds it");
    let days = north.trust().crl_end().unwrap().since(now()).as_secs_f64() / 86_400.0;
    assert!((9.9..10.1).contains(&days), "{days}");

    let list = filtered(&done(dir, "ca list --ca ca"));
    let lines: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["PARTY", "STATE", "UNTIL", "SERIAL", "SERVER", "NAMES"]);
    assert_eq!(lines[1], ["site:north", "revoked", "DAY", "DAY", "SERIAL"]);
    assert_eq!(lines[2], ["aggregator:aggregator", "valid", "DAY", "SERIAL"]);
    let json: serde_json::Value = serde_json::from_str(&done(dir, "ca list --ca ca --json")).unwrap();
    assert_eq!(json[0]["principal"]["name"], "north");
    assert!(json[0]["revoked_at"].is_u64() && json[1]["revoked_at"].is_null());
    let serial = json[1]["serial"].as_str().unwrap();
    done(dir, &format!("ca revoke --ca ca --serial {serial}"));
    let none = refused(dir, "ca revoke --ca ca --role aggregator --name aggregator");
    assert!(none.contains("aggregator:aggregator"), "{none}");
}

#[test]
fn an_operator_is_told_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    done(dir, "ca init ca --name Chest");
    done(dir, "identity new --role site --name north --out north");
    let sign = "ca sign --ca ca --csr north/request.csr";
    for (line, wanted) in [
        ("ca init ca --name Other", "expected a folder without a certificate authority"),
        ("identity new --role site --name north --out north", "a party keeps its key"),
        ("identity new --role site --name No --out x", "expected a site id of 1 to 63 characters"),
        ("identity new --role king --name north --out x", "expected site, aggregator, broker or operator"),
        (&format!("{sign} --role site --name south"), "of site:south, as approved, got one of site:north"),
        (&format!("{sign} --role site --name north --dns localhost"), "only a broker is a server"),
        (&format!("{sign} --role site --name north --dns 127.0.0.1"), "use --ip"),
        (&format!("{sign} --role site --name north --days 20000"), "within the authority's own"),
        ("ca sign --ca ca --csr none.csr --role site --name north", "cannot read the request none.csr"),
        (
            "ca sign --ca ca --csr ca/ca.pem --role site --name north",
            "expected a certificate signing request",
        ),
        ("ca list --ca none", "`medinet ca init` makes one"),
        ("ca revoke --ca ca", "--serial"),
        ("ca revoke --ca ca --role site", "--name"),
        ("ca revoke --ca ca --serial 12", "32 hexadecimal digits"),
    ] {
        let said = refused(dir, line);
        assert!(said.contains(wanted), "{line}: expected {wanted:?} in {said:?}");
        assert!(!said.contains("panicked"), "{line}: {said}");
    }
    assert!(!dir.join("north/certificate.pem").exists());
    assert_eq!(done(dir, "ca list --ca ca").lines().count(), 1);
}
