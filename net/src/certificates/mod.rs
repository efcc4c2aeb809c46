//! Certificates of nodes: a cluster has an authority of its own, and a node is who its certificate
//! says it is.
//!
//! * `identity`: who a certificate names, as a URI. The grammar of names.
//! * `authority`: making the authority, issuing and renewing. Needs the authority's key; a running node
//!   does not have it.
//! * `files`: how they lie on disk: owner only, written whole or not at all.
//! * `revoked`: the list of certificates that are no longer believed.
//! * `tokens`: what an edge without a certificate shows, and what its hub keeps of it.
//! * `loaded`: what a running node holds of all this, exchanged while it runs.
//! * `verify`: what TLS asks.
//!
//! Invariant: one [`Loaded`] is one moment: certificate, key, roots and lists of a handshake never come
//! from two different reloads.

mod authority;
mod certificate;
mod files;
mod identity;
mod loaded;
mod revoked;
mod tokens;
mod verify;

#[cfg(test)]
mod tests;

pub use authority::{Authority, AuthorityError, Issued};
pub use certificate::{Certificate, CertificateError, certificates_of_pem};
pub use files::{
    AUTHORITY_FILE, FileError, IDENTITY_FILE, REVOKED_FILE, ROOTS_FILE, TOKEN_FILE, TOKENS_FILE,
    read_bounded, read_secret, write_atomically,
};
pub use identity::{Identity, InvalidIdentity, NAME_BYTES_MAX, check_name};
pub(crate) use loaded::chain;
pub use loaded::{
    CertificateFiles, CertificateStatus, Certificates, LoadError, Loaded, Own, OwnStatus, RootStatus,
    Severity, TokenSource, new_token,
};
pub use revoked::{InvalidRevocations, Revocations, Revoked};
pub use tokens::{
    InvalidToken, InvalidTokens, NoRandomness, TOKEN_BYTES_MAX, TOKENS_EACH_MAX, Token, TokenDigest, Tokens,
    TooManyTokens,
};
pub use verify::TlsConfigs;
