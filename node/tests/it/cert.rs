//! `beamlog cert`: folders of certificates, as a person makes them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use beamlog_net::certificates::{CertificateFiles, Certificates};
use beamlog_net::peer::Role;
use serde_json::Value;

use crate::running::{beamlog, outcome};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, line: &str) -> Result<String, String> {
        let output = beamlog()
            .current_dir(self.0.path())
            .arg("cert")
            .args(line.split_whitespace())
            .args(["-o", "json"])
            .output()
            .unwrap();
        outcome(&output)
    }

    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.run(line).unwrap()).unwrap()
    }

    fn load(&self, name: &str) -> Certificates {
        Certificates::load(CertificateFiles::in_directory(&self.path(name))).unwrap()
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn an_authority_a_node_an_edge_and_a_witness_are_made_and_shown() {
    let folder = Folder::new();
    let ca = folder.json("ca ca --cluster c1 --days 100");
    assert_eq!((ca["authority"].as_bool(), ca["state"].as_str()), (Some(true), Some("valid")));
    let node = folder.json("node n1 --ca ca --out n1");
    assert_eq!(node["identity"], "spiffe://c1/node/n1");
    // It ends with its authority.
    assert!(node["days_left"].as_u64().unwrap() <= 100, "{node}");
    assert_eq!(folder.json("edge van-7 --ca ca --out van --days 7")["identity"], "spiffe://c1/edge/van-7");
    assert_eq!(folder.json("node w --witness --ca ca --out w")["role"], "witness");
    for name in ["ca", "n1"] {
        assert_eq!(mode(&folder.path(name)), 0o700);
        for entry in fs::read_dir(folder.path(name)).unwrap() {
            assert_eq!(mode(&entry.unwrap().path()), 0o600);
        }
    }
    let loaded = folder.load("n1").status();
    assert_eq!((loaded.identity.name.as_str(), loaded.identity.role), ("n1", Role::Node));
    let shown = folder.json("show n1");
    assert_eq!(shown["certificates"].as_array().unwrap().len(), 2, "its own and the authority's");
    for name in ["ca", "n1", "n1/node.pem"] {
        let text = folder.run(&format!("show {name}")).unwrap();
        assert!(!text.contains("PRIVATE"), "a key is never shown");
    }
}

#[test]
fn nothing_is_replaced_by_mistake_and_mistakes_are_told() {
    let folder = Folder::new();
    folder.run("ca ca --cluster c1").unwrap();
    folder.run("node n1 --ca ca --out n1").unwrap();
    let refused = |line: &str, code: &str, words: &str| {
        let error = folder.run(line).unwrap_err();
        assert!(error.starts_with(&format!("Some({code})")) && error.contains(words), "{line}: {error}");
    };
    refused("ca ca --cluster c2", "1", "--rotate");
    refused("node n2 --ca ca --out n1", "1", "renew");
    refused("node N2 --ca ca --out n2", "2", "a-z");
    refused("ca other --cluster a/b", "2", "a-z");
    refused("node n2 --ca nowhere --out n2", "1", "nowhere");
    refused("ca ca", "2", "--cluster");
    refused("node n2 --ca ca --out n2 --days 0", "2", "--days");
    refused("revoke ca", "2", "--name");
    refused("revoke ca --serial xyz", "2", "hexadecimal");
    refused("revoke n1 --name n2", "1", "ca.pem");
    refused("show .", "1", "no certificates");
    refused("renew nowhere --ca ca", "1", "nowhere");
    folder.run("ca ca2 --cluster c2").unwrap();
    refused("renew n1 --ca ca2", "1", "of cluster c1");
    // A key that others can read is not used.
    fs::set_permissions(folder.path("ca").join("ca.pem"), fs::Permissions::from_mode(0o644)).unwrap();
    refused("node n2 --ca ca --out n2", "1", "0600");
    assert!(!folder.path("n2").join("node.pem").exists());
}

#[test]
fn a_certificate_is_renewed_revoked_and_its_authority_exchanged() {
    let folder = Folder::new();
    folder.run("ca ca --cluster c1").unwrap();
    let first = folder.json("node n1 --ca ca --out n1");
    let certificates = folder.load("n1");
    let second = folder.json("renew n1 --ca ca");
    assert_eq!(second["identity"], first["identity"]);
    assert_ne!(second["serial"], first["serial"]);
    // As a running node sees it.
    certificates.refresh();
    assert_eq!(certificates.status().own.unwrap().serial, second["serial"].as_str().unwrap());

    folder.run("revoke ca --name n7").unwrap();
    let serial = first["serial"].as_str().unwrap();
    assert_eq!(folder.json(&format!("revoke ca --serial {serial}"))["entries"], 2);
    assert_eq!(folder.json(&format!("revoke ca --serial {serial}"))["new"], false);
    folder.run("renew n1 --ca ca --trust-only").unwrap();
    certificates.refresh();
    assert_eq!(
        (certificates.status().revoked, certificates.status().own.unwrap().serial.as_str()),
        (2, second["serial"].as_str().unwrap())
    );

    let old = folder.json("show ca")["certificates"][0]["serial"].clone();
    let new = folder.json("ca ca --rotate")["serial"].clone();
    assert_ne!(old, new);
    folder.run("renew n1 --ca ca").unwrap();
    certificates.refresh();
    let status = certificates.status();
    let roots: Vec<&str> = status.roots.iter().map(|root| root.serial.as_str()).collect();
    assert_eq!(roots, [new.as_str().unwrap(), old.as_str().unwrap()]);
    folder.run("ca ca --retire").unwrap();
    folder.run("renew n1 --ca ca --trust-only").unwrap();
    certificates.refresh();
    let status = certificates.status();
    assert_eq!((status.roots.len(), status.reload_error), (1, None));
    assert_eq!(status.roots[0].serial, new.as_str().unwrap());
    // A list in the folder marks what it names.
    let third = folder.json("show n1")["certificates"][0]["serial"].as_str().unwrap().to_owned();
    folder.run(&format!("revoke ca --serial {third}")).unwrap();
    folder.run("renew n1 --ca ca --trust-only").unwrap();
    assert_eq!(folder.json("show n1")["certificates"][0]["state"], "revoked");
}
