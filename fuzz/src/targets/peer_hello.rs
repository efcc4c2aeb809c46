//! The first words between nodes: read, and judged.

use beamlog_net::{
    certificates::Identity,
    handshake::{Hello, MESSAGE_BYTES_MAX, Message, Ours, agree, judge},
    peer::{PeerId, Role},
};
use bytes::Bytes;

pub const WORDS: &[&[u8]] =
    &[b"BMLG", b"\x01\x00\x01\x00", b"\x02c1", b"\x02n1", &[0xff; 4], &[0; 8], b"\x00\x80\x00\x00"];

/// The first byte is the kind, the rest a body; and all of it a header with what follows.
pub fn run(data: &[u8]) {
    if let Some((kind, body)) = data.split_first() {
        check(*kind, body);
    }
    if let Some((header, body)) = data.split_first_chunk::<5>()
        && let Ok((kind, length)) = Message::header(*header)
    {
        assert!(length <= MESSAGE_BYTES_MAX);
        check(kind, body.get(..length).unwrap_or(body));
    }
}

fn check(kind: u8, body: &[u8]) {
    let Ok(message) = Message::decode(kind, body) else { return };
    if let Message::Hello(hello) | Message::Welcome(hello) = &message {
        assert!(hello.fits());
        let us = Identity::new("c1", Role::Node, "n1").expect("legal names");
        let ours = Ours {
            identity: &us,
            id: PeerId(1),
            accepts: &[Role::Node, Role::Witness],
            expected: None,
            known_by_name: None,
            known_by_id: None,
        };
        let certificate = Identity { cluster: "c1".to_owned(), role: hello.role, name: hello.name.clone() };
        if let Ok(version) = judge(&ours, &certificate, hello) {
            assert_eq!(agree(hello.version_lowest, hello.version_highest), Ok(version));
            assert!(hello.cluster == "c1" && hello.name != "n1" && hello.id != PeerId(1));
        }
        // Of later versions only the beginning is understood.
        if agree(hello.version_lowest, hello.version_highest).is_err() {
            return;
        }
    }
    let again = message.encode();
    assert_eq!(again.get(5..), Some(body), "one message has one spelling");
}

pub fn seeds() -> Vec<Vec<u8>> {
    let hello = Hello {
        version_lowest: 1,
        version_highest: 1,
        id: PeerId(7),
        incarnation: 8,
        dial: 9,
        role: Role::Node,
        cluster: "c1".to_owned(),
        name: "n2".to_owned(),
        advertise: "n2.example:6222".to_owned(),
        claims: Bytes::from_static(b"claims"),
    };
    let later = Hello { version_lowest: 5, version_highest: 6, role: Role::Edge, ..hello.clone() };
    let messages =
        [Message::Hello(hello.clone()), Message::Welcome(hello), Message::Hello(later), Message::Confirm { version: 1 }];
    messages.iter().map(|message| message.encode().to_vec()).collect()
}
