//! Certificates as people and programs read them. Never a key.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use beamlog_net::certificates::{
    AUTHORITY_FILE, Certificate, IDENTITY_FILE, REVOKED_FILE, ROOTS_FILE, Revocations, certificates_of_pem,
    read_bounded,
};
use serde_json::{Value, json};

use crate::cli::cert::failed;
use crate::cli::exit::Failure;
use crate::cli::output::{Output, columns, printable};
use crate::cli::subjects::rfc3339;

pub(super) fn show(path: &Path, output: Output) -> Result<(), Failure> {
    let files = if path.is_dir() {
        let known = [AUTHORITY_FILE, IDENTITY_FILE, ROOTS_FILE].map(|name| path.join(name));
        known.into_iter().filter(|file| file.exists()).collect()
    } else {
        vec![path.to_owned()]
    };
    if files.is_empty() {
        return Err(Failure::failed(format!("{} has no certificates", path.display())));
    }
    let revoked = path.join(REVOKED_FILE);
    let mut list = Revocations::default();
    if path.is_dir() && revoked.exists() {
        let text = read_bounded(&revoked).map_err(|error| failed(&error))?;
        list = Revocations::parse(&text)
            .map_err(|error| Failure::failed(format!("{}: {error}", revoked.display())))?;
    }
    let now = SystemTime::now();
    let mut found = Vec::new();
    for file in files {
        let pem = read_bounded(&file).map_err(|error| failed(&error))?;
        let broken = |error: &dyn std::error::Error| Failure::failed(format!("{}: {error}", file.display()));
        for der in certificates_of_pem(&pem).map_err(|error| broken(&error))? {
            let certificate = Certificate::read(&der).map_err(|error| broken(&error))?;
            let mut value = describe(&certificate, now);
            value["file"] = json!(file.display().to_string());
            if list.contains(&certificate) {
                value["state"] = json!("revoked");
            }
            found.push(value);
        }
    }
    output.value(&json!({ "certificates": found, "revoked": list.len() }), |value| {
        let found = value["certificates"].as_array().map(Vec::as_slice).unwrap_or_default();
        rows(found)
    })
}

/// One certificate, as JSON.
pub(super) fn describe(certificate: &Certificate, now: SystemTime) -> Value {
    let left = certificate.not_after.duration_since(now).map_or(0, |left| left.as_secs() / (24 * 3600));
    let state = if now >= certificate.not_after {
        "expired"
    } else if now < certificate.not_before {
        "not yet valid"
    } else {
        "valid"
    };
    let mut value = json!({
        "subject": certificate.subject,
        "serial": certificate.serial,
        "authority": certificate.is_authority,
        "not_before": moment(certificate.not_before),
        "not_after": moment(certificate.not_after),
        "days_left": left,
        "state": state,
    });
    if let Ok(identity) = certificate.identity() {
        value["identity"] = json!(identity.to_string());
        value["cluster"] = json!(identity.cluster);
        value["role"] = json!(identity.role.name());
        value["name"] = json!(identity.name);
    }
    value
}

fn moment(at: SystemTime) -> String {
    rfc3339(at.duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// A table of certificates.
pub(super) fn rows(certificates: &[Value]) -> String {
    let text = |value: &Value| printable(value.as_str().unwrap_or_default());
    let rows: Vec<Vec<String>> = certificates
        .iter()
        .map(|value| {
            let name = if value["identity"].is_string() { &value["identity"] } else { &value["subject"] };
            vec![
                text(name),
                text(&value["state"]),
                value["days_left"].to_string(),
                text(&value["not_after"]),
                text(&value["serial"]),
            ]
        })
        .collect();
    columns(&["certificate", "state", "days left", "until", "serial"], &rows)
}
