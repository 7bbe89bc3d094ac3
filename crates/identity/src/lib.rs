//! Who is who: certificate authority, enrolment, TLS configurations and signatures.
//!
//! Every party holds one ECDSA P-256 key (the kind that TPM 2.0 chips hold) and one X.509 certificate (RFC 5280)
//! of the federation's own certificate authority. The same key proves the party in TLS and signs its envelopes.
//!
//! * [`Authority`] signs requests and revokes certificates; it lives where the federation is governed.
//! * [`new_key_and_csr`] makes a key and a certificate signing request at the party, so that the key never travels.
//! * [`Identity`] is a party's own certificate and key: it signs envelopes and makes the TLS configurations.
//! * [`Trust`] is the CA's certificate and revocation list: it proves others.
//!
//! A certificate says who its holder is twice: subject common name = name (a foreign MQTT broker takes it as the
//! user name), and the URI `urn:medinet:<role>:<name>` as subject alternative name. [`principal_of`] demands both.

mod authority;
mod csr;
mod file;
#[doc(hidden)]
pub mod fuzzing;
mod identity;
mod issued;
mod principal;
mod tls;
mod trust;

pub use authority::{Authority, AuthorityError, DEFAULT_CRL_VALIDITY, Issue, Target};
pub use csr::{RequestError, new_key_and_csr};
pub use file::{FileError, read_private, write_private, write_public};
pub use identity::{Identity, IdentityError, IdentityFiles};
pub use issued::{Issued, ParseSerialError, Serial};
pub use principal::{CertificateSummary, Host, ParseHostError, PrincipalError, principal_of};
pub use tls::{install_default_provider, provider};
pub use trust::{Trust, TrustError};
