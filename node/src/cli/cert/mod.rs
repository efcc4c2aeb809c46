//! `cert …`: certificates of a cluster, in folders. Nothing here speaks to a node; a node looks at its folder.

mod arguments;
mod show;
mod token;

pub(crate) use arguments::CertCommand;

use std::path::Path;
use std::time::{Duration, SystemTime};

use beamlog_net::certificates::{
    AUTHORITY_FILE, Authority, Certificate, IDENTITY_FILE, Identity, Issued, REVOKED_FILE, ROOTS_FILE,
    Revocations, Revoked, TOKENS_FILE, certificates_of_pem, check_name, read_bounded, read_secret,
    write_atomically,
};
use beamlog_net::peer::Role;
use serde_json::json;

use crate::cli::cert::arguments::IssueArguments;
use crate::cli::cert::show::{describe, rows, show};
use crate::cli::exit::{Failure, err_chain};
use crate::cli::output::Output;

const DAY: Duration = Duration::from_secs(24 * 3600);

pub(crate) fn cert(command: CertCommand, output: Output) -> Result<(), Failure> {
    match command {
        CertCommand::Ca { dir, cluster: Some(cluster), days, .. } => {
            check_name(&cluster).map_err(|error| wrong(&error))?;
            if dir.join(AUTHORITY_FILE).exists() {
                return Err(Failure::failed(format!(
                    "{} has an authority already; --rotate makes a new one",
                    dir.display()
                )));
            }
            make_authority(&dir, &cluster, days, output)
        }
        CertCommand::Ca { dir, rotate: true, days, .. } => {
            let cluster = authority(&dir)?.cluster().to_owned();
            make_authority(&dir, &cluster, days, output)
        }
        CertCommand::Ca { dir, .. } => retire(&dir, output),
        CertCommand::Node { name, issue, witness } => {
            let role = if witness { Role::Witness } else { Role::Node };
            issue_new(&name, role, &issue, output)
        }
        CertCommand::Edge { name, issue } => issue_new(&name, Role::Edge, &issue, output),
        CertCommand::Token { name, ca, out, retire, .. } => match out {
            Some(out) => token::make(&name, &ca, &out, output),
            None if retire => token::retire(&name, &ca, output),
            None => token::revoke(&name, &ca, output),
        },
        CertCommand::Renew { dir, ca, days, trust_only } => renew(&dir, &ca, days, trust_only, output),
        CertCommand::Revoke { dir, name, serial } => revoke(&dir, name, serial, output),
        CertCommand::Show { path } => show(&path, output),
    }
}

/// What the user gave is wrong.
fn wrong(error: &dyn std::error::Error) -> Failure {
    Failure::cannot_start(err_chain(error))
}

fn failed(error: &dyn std::error::Error) -> Failure {
    Failure::failed(err_chain(error))
}

fn days(count: i64) -> Duration {
    DAY * u32::try_from(count).unwrap_or(u32::MAX)
}

fn authority(dir: &Path) -> Result<Authority, Failure> {
    let path = dir.join(AUTHORITY_FILE);
    let pem = read_secret(&path).map_err(|error| failed(&error))?;
    Authority::from_pem(&pem)
        .map_err(|error| Failure::failed(format!("{}: {}", path.display(), err_chain(&error))))
}

/// A new authority, believed beside those that were.
fn make_authority(dir: &Path, cluster: &str, valid: i64, output: Output) -> Result<(), Failure> {
    let issued =
        Authority::create(cluster, SystemTime::now(), days(valid)).map_err(|error| failed(&error))?;
    let roots = dir.join(ROOTS_FILE);
    let before =
        if roots.exists() { read_bounded(&roots).map_err(|error| failed(&error))? } else { Vec::new() };
    let mut believed = public_part(&issued).into_bytes();
    believed.extend_from_slice(&before);
    // Believed first: an authority that nobody believes would be of no use after a crash in between.
    write(&roots, &believed)?;
    write(&dir.join(AUTHORITY_FILE), issued.pem.as_bytes())?;
    tell(&issued.certificate, &format!("authority of cluster {cluster} in {}", dir.display()), output)
}

/// Only the newest authority is believed.
fn retire(dir: &Path, output: Output) -> Result<(), Failure> {
    let newest = authority(dir)?;
    let roots = dir.join(ROOTS_FILE);
    let pem = read_bounded(&roots).map_err(|error| failed(&error))?;
    let text = String::from_utf8_lossy(&pem).into_owned();
    let mut kept = None;
    for section in text.split_inclusive("-----END CERTIFICATE-----") {
        let found = certificates_of_pem(section.as_bytes()).ok().and_then(|found| found.into_iter().next());
        if let Some(der) = found
            && Certificate::read(&der).as_ref() == Ok(newest.certificate())
        {
            kept = Some(format!("{}\n", section.trim()));
        }
    }
    let Some(kept) = kept else {
        return Err(Failure::failed(format!("{} does not hold the newest authority", roots.display())));
    };
    write(&roots, kept.as_bytes())?;
    tell(newest.certificate(), &format!("only the newest authority is in {} now", roots.display()), output)
}

fn issue_new(name: &str, role: Role, issue: &IssueArguments, output: Output) -> Result<(), Failure> {
    let authority = authority(&issue.ca)?;
    let identity = Identity::new(authority.cluster(), role, name).map_err(|error| wrong(&error))?;
    let path = issue.out.join(IDENTITY_FILE);
    if path.exists() {
        return Err(Failure::failed(format!("{} exists; `beamlog cert renew` replaces it", path.display())));
    }
    copy_trust(&issue.ca, &issue.out, role)?;
    let issued =
        authority.issue(&identity, SystemTime::now(), days(issue.days)).map_err(|error| failed(&error))?;
    write(&path, issued.pem.as_bytes())?;
    tell(&issued.certificate, &format!("certificate of {role} {name} in {}", issue.out.display()), output)
}

fn renew(dir: &Path, ca: &Path, valid: i64, trust_only: bool, output: Output) -> Result<(), Failure> {
    let path = dir.join(IDENTITY_FILE);
    let old = first(&path)?;
    let identity = old
        .identity()
        .map_err(|error| Failure::failed(format!("{}: {}", path.display(), err_chain(&error))))?
        .clone();
    let authority = authority(ca)?;
    if authority.cluster() != identity.cluster {
        return Err(Failure::failed(format!(
            "{} is of cluster {}, the authority of {}",
            path.display(),
            identity.cluster,
            authority.cluster()
        )));
    }
    // What is believed first: the new certificate may be of an authority that this folder does not know yet.
    copy_trust(ca, dir, identity.role)?;
    if trust_only {
        return tell(&old, &format!("{} believes what {} does", dir.display(), ca.display()), output);
    }
    let issued =
        authority.issue(&identity, SystemTime::now(), days(valid)).map_err(|error| failed(&error))?;
    write(&path, issued.pem.as_bytes())?;
    tell(&issued.certificate, &format!("new certificate of {} in {}", identity.name, dir.display()), output)
}

fn revoke(dir: &Path, name: Option<String>, serial: Option<String>, output: Output) -> Result<(), Failure> {
    let line = match (name, serial) {
        (Some(name), _) => format!("name {name}"),
        (None, serial) => format!("serial {}", serial.unwrap_or_default()),
    };
    let entry = Revoked::parse(&line).ok_or_else(|| {
        Failure::cannot_start("neither a name of a node nor a serial number in hexadecimal")
    })?;
    // Only where there is an authority: a list elsewhere would be replaced by the next `renew`.
    authority(dir)?;
    let path = dir.join(REVOKED_FILE);
    let mut list = Revocations::default();
    if path.exists() {
        let text = read_bounded(&path).map_err(|error| failed(&error))?;
        list = Revocations::parse(&text)
            .map_err(|error| Failure::failed(format!("{}: {error}", path.display())))?;
    }
    let is_new = list.insert(entry.clone());
    write(&path, list.to_text().as_bytes())?;
    let value = json!({ "revoked": entry.to_string(), "new": is_new, "entries": list.len() });
    output.value(&value, |_| {
        format!("revoked: {entry}\n`beamlog cert renew --trust-only` brings the list to a node\n")
    })
}

/// What the authority's folder believes and revokes, and for one that may be a hub the tokens of edges.
fn copy_trust(ca: &Path, dir: &Path, role: Role) -> Result<(), Failure> {
    let roots = read_bounded(&ca.join(ROOTS_FILE)).map_err(|error| failed(&error))?;
    write(&dir.join(ROOTS_FILE), &roots)?;
    let lists: &[&str] = match role {
        Role::Node => &[REVOKED_FILE, TOKENS_FILE],
        Role::Witness | Role::Edge => &[REVOKED_FILE],
    };
    for name in lists {
        let list = ca.join(name);
        if list.exists() {
            write(&dir.join(name), &read_bounded(&list).map_err(|error| failed(&error))?)?;
        }
    }
    Ok(())
}

/// The first certificate of a file.
fn first(path: &Path) -> Result<Certificate, Failure> {
    let pem = read_bounded(path).map_err(|error| failed(&error))?;
    let broken = |error: &dyn std::error::Error| Failure::failed(format!("{}: {error}", path.display()));
    let found = certificates_of_pem(&pem).map_err(|error| broken(&error))?;
    Certificate::read(&found[0]).map_err(|error| broken(&error))
}

fn public_part(issued: &Issued) -> String {
    issued.pem.split("-----BEGIN PRIVATE KEY-----").next().unwrap_or_default().to_owned()
}

fn write(path: &Path, content: &[u8]) -> Result<(), Failure> {
    write_atomically(path, content).map_err(|error| failed(&error))
}

fn tell(certificate: &Certificate, done: &str, output: Output) -> Result<(), Failure> {
    let value = describe(certificate, SystemTime::now());
    output.value(&value, |value| format!("{done}\n{}", rows(std::slice::from_ref(value))))
}
