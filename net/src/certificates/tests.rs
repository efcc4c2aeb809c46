//! Issuing, loading, exchanging, on real files.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::*;
use crate::peer::Role;

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

fn authority(cluster: &str) -> (Authority, String) {
    let issued = Authority::create(cluster, SystemTime::now(), 10 * YEAR).unwrap();
    let certificate = issued.pem.split("-----BEGIN PRIVATE").next().unwrap().to_owned();
    (Authority::from_pem(issued.pem.as_bytes()).unwrap(), certificate)
}

fn write_node(directory: &Path, authority: &Authority, roots: &str, name: &str) -> Certificate {
    let identity = Identity::new(authority.cluster(), Role::Node, name).unwrap();
    let issued = authority.issue(&identity, SystemTime::now(), YEAR).unwrap();
    write_atomically(&directory.join(IDENTITY_FILE), issued.pem.as_bytes()).unwrap();
    write_atomically(&directory.join(ROOTS_FILE), roots.as_bytes()).unwrap();
    issued.certificate
}

#[test]
fn an_issued_certificate_says_who_it_is_for_and_ends_with_its_authority() {
    let now = SystemTime::now();
    let issued = Authority::create("c1", now, YEAR).unwrap();
    let authority = Authority::from_pem(issued.pem.as_bytes()).unwrap();
    assert_eq!((authority.cluster(), authority.certificate().is_authority), ("c1", true));
    let identity = Identity::new("c1", Role::Edge, "van-7").unwrap();
    let node = authority.issue(&identity, now, 5 * YEAR).unwrap().certificate;
    assert_eq!(node.identity, Ok(identity));
    assert!(!node.is_authority && node.not_before < now);
    assert!(node.not_after <= authority.certificate().not_after);
    let other = Identity::new("c2", Role::Node, "n1").unwrap();
    assert!(matches!(authority.issue(&other, now, YEAR), Err(AuthorityError::OtherCluster { .. })));
}

#[test]
fn a_nodes_certificate_is_no_authority() {
    let (authority, _) = authority("c1");
    let identity = Identity::new("c1", Role::Node, "n1").unwrap();
    let node = authority.issue(&identity, SystemTime::now(), YEAR).unwrap();
    assert!(matches!(Authority::from_pem(node.pem.as_bytes()), Err(AuthorityError::NotAuthority)));
}

#[test]
fn files_are_for_their_owner_only_and_wider_keys_are_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let directory = temporary.path().join("made");
    let (authority, roots) = authority("c1");
    write_node(&directory, &authority, &roots, "n1");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&directory), 0o700);
    let identity = directory.join(IDENTITY_FILE);
    assert_eq!(mode(&identity), 0o600);
    Certificates::load(CertificateFiles::in_directory(&directory)).unwrap();
    fs::set_permissions(&identity, fs::Permissions::from_mode(0o640)).unwrap();
    let refused = Certificates::load(CertificateFiles::in_directory(&directory)).unwrap_err();
    assert!(matches!(refused, LoadError::File(FileError::Exposed { mode: 0o640, .. })), "{refused}");
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
    let refused = write_atomically(&identity, b"").unwrap_err();
    assert!(matches!(refused, FileError::ExposedDirectory { mode: 0o777, .. }), "{refused}");
    let left: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "no temporary file stays: {left:?}");
}

#[test]
fn a_changed_file_is_loaded_and_a_broken_one_leaves_what_was_there() {
    let temporary = tempfile::tempdir().unwrap();
    let directory = temporary.path().join("n1");
    let (authority, roots) = authority("c1");
    let first = write_node(&directory, &authority, &roots, "n1");
    let certificates = Certificates::load(CertificateFiles::in_directory(&directory)).unwrap();
    assert_eq!(certificates.status().own.unwrap().serial, first.serial);
    certificates.refresh();
    assert_eq!(certificates.status().generation, 1, "nothing changed");

    let second = write_node(&directory, &authority, &roots, "n1");
    certificates.refresh();
    assert_eq!(certificates.status().own.unwrap().serial, second.serial);

    for (file, content) in [(IDENTITY_FILE, "no PEM"), (ROOTS_FILE, ""), (REVOKED_FILE, "what is this")] {
        let path = directory.join(file);
        let before = fs::read(&path).ok();
        write_atomically(&path, content.as_bytes()).unwrap();
        certificates.refresh();
        let status = certificates.status();
        assert_eq!(status.own.unwrap().serial, second.serial, "{file}");
        assert!(status.reload_error.unwrap().contains(file), "{file}");
        match before {
            Some(before) => write_atomically(&path, &before).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        certificates.refresh();
        assert_eq!(certificates.status().reload_error, None, "{file}");
    }
    // Another node's certificate in its place is a mistake.
    write_node(&directory, &authority, &roots, "n2");
    certificates.refresh();
    assert!(certificates.status().reload_error.unwrap().contains("restart"));
}

#[test]
fn a_certificate_of_another_authority_and_a_leaf_among_the_roots_are_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let directory = temporary.path().join("n1");
    let (ours, roots) = authority("c1");
    let (theirs, _) = authority("c1");
    write_node(&directory, &theirs, &roots, "n1");
    let files = CertificateFiles::in_directory(&directory);
    assert!(matches!(Certificates::load(files.clone()), Err(LoadError::UnknownIssuer { .. })));
    let leaf = ours.issue(&Identity::new("c1", Role::Node, "n1").unwrap(), SystemTime::now(), YEAR).unwrap();
    let leaf = leaf.pem.split("-----BEGIN PRIVATE").next().unwrap().to_owned();
    write_node(&directory, &ours, &format!("{roots}{leaf}"), "n1");
    assert!(matches!(Certificates::load(files), Err(LoadError::NotAuthority { .. })));
}

#[test]
fn the_end_is_told_in_time() {
    let temporary = tempfile::tempdir().unwrap();
    let (authority, roots) = authority("c1");
    write_node(temporary.path().join("n").as_path(), &authority, &roots, "n1");
    let status =
        Certificates::load(CertificateFiles::in_directory(&temporary.path().join("n"))).unwrap().status();
    let day = Duration::from_secs(24 * 3600);
    let left = |days: u32| status.severity(status.ends() - days * day - Duration::from_secs(1));
    assert_eq!(
        [left(31), left(29), left(6), left(0)],
        [Severity::Fine, Severity::Soon, Severity::Near, Severity::Imminent]
    );
    assert_eq!(status.severity(status.ends()), Severity::Expired);
}

#[test]
fn the_clusters_revocations_stand_beside_those_of_the_file() {
    let temporary = tempfile::tempdir().unwrap();
    let directory = temporary.path().join("n1");
    let (authority, roots) = authority("c1");
    write_node(&directory, &authority, &roots, "n1");
    write_atomically(&directory.join(REVOKED_FILE), b"name n7\n").unwrap();
    let certificates = Certificates::load(CertificateFiles::in_directory(&directory)).unwrap();
    let list = Revocations::parse(b"name n8\nname n9").unwrap();
    certificates.set_revoked_by_cluster(list).unwrap();
    assert_eq!(certificates.status().revoked, 3);
    write_atomically(&directory.join(REVOKED_FILE), b"").unwrap();
    certificates.refresh();
    assert_eq!(certificates.status().revoked, 2);
    certificates.set_revoked_by_cluster(Revocations::default()).unwrap();
    assert_eq!(certificates.status().revoked, 0);
}

#[test]
fn text_that_is_no_certificate_is_refused() {
    for bytes in [&b""[..], b"\x30", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        assert!(Certificate::read(bytes).is_err());
        assert!(Authority::from_pem(bytes).is_err());
    }
}
