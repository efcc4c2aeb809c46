//! `cert token`: tokens of edges that have no certificate. The authority's folder keeps the digests, as it keeps the list
//! of the revoked; `cert renew --trust-only` brings them to the hubs.

use std::path::Path;

use beamlog_net::certificates::{
    Identity, TOKEN_FILE, TOKENS_FILE, Tokens, check_name, new_token, read_bounded,
};
use beamlog_net::peer::Role;
use serde_json::json;

use crate::cli::cert::{authority, copy_trust, failed, write, wrong};
use crate::cli::exit::Failure;
use crate::cli::output::Output;

const NEXT: &str = "`beamlog cert renew --trust-only` brings that to a hub";

pub(super) fn make(name: &str, ca: &Path, out: &Path, output: Output) -> Result<(), Failure> {
    let authority = authority(ca)?;
    let identity = Identity::new(authority.cluster(), Role::Edge, name).map_err(|error| wrong(&error))?;
    let mut tokens = read(ca)?;
    let token = new_token(identity).map_err(|error| failed(&error))?;
    tokens.insert(name, token.digest()).map_err(|error| {
        Failure::failed(format!("{name}: {error}; `beamlog cert token {name} --retire` keeps the newest"))
    })?;
    copy_trust(ca, out, Role::Edge)?;
    // Taken first: a token that nobody takes would be of no use after a crash in between.
    write(&ca.join(TOKENS_FILE), tokens.to_text().as_bytes())?;
    let path = out.join(TOKEN_FILE);
    write(&path, format!("{}\n", token.reveal()).as_bytes())?;
    let value = json!({
        "edge": name,
        "cluster": authority.cluster(),
        "token_file": path.display().to_string(),
        "digest": token.digest().to_string(),
    });
    output.value(&value, |_| {
        format!("token of edge {name} in {}, its digest in {}\n{NEXT}\n", path.display(), ca.display())
    })
}

/// Only the newest of the edge is taken.
pub(super) fn retire(name: &str, ca: &Path, output: Output) -> Result<(), Failure> {
    change(name, ca, output, |tokens| tokens.retire(name))
}

/// None of the edge is taken.
pub(super) fn revoke(name: &str, ca: &Path, output: Output) -> Result<(), Failure> {
    change(name, ca, output, |tokens| tokens.remove(name))
}

fn change(
    name: &str,
    ca: &Path,
    output: Output,
    change: impl FnOnce(&mut Tokens) -> usize,
) -> Result<(), Failure> {
    check_name(name).map_err(|error| wrong(&error))?;
    // Only where there is an authority: a list elsewhere would be replaced by the next `renew`.
    authority(ca)?;
    let mut tokens = read(ca)?;
    if !tokens.knows(name) {
        return Err(Failure::failed(format!("{name} has no token in {}", ca.display())));
    }
    let gone = change(&mut tokens);
    write(&ca.join(TOKENS_FILE), tokens.to_text().as_bytes())?;
    let value = json!({ "edge": name, "removed": gone });
    output.value(&value, |_| format!("{gone} of the tokens of {name} are not taken any more\n{NEXT}\n"))
}

fn read(ca: &Path) -> Result<Tokens, Failure> {
    let path = ca.join(TOKENS_FILE);
    if !path.exists() {
        return Ok(Tokens::default());
    }
    let text = read_bounded(&path).map_err(|error| failed(&error))?;
    Tokens::parse(&text).map_err(|error| Failure::failed(format!("{}: {error}", path.display())))
}
