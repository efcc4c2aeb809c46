//! The C gateway, as it was seen on the wire: a new connection for every request, CONNECT and PING first, a
//! SUB with two spaces before its sid, no headers, an abrupt close.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::wire::{Connect, Wire, publish};

static INBOXES: AtomicU64 = AtomicU64::new(0);

/// One request on a connection of its own.
pub(crate) fn request(address: &str, subject: &str, body: &Value) -> io::Result<Value> {
    let mut wire = Wire::open(address, &Connect::C)?;
    wire.patience(Duration::from_secs(5))?;
    let inbox = format!("_INBOX.{:022}", INBOXES.fetch_add(1, Ordering::Relaxed));
    wire.send(&format!("SUB {inbox}.*  1\r\n"))?;
    wire.send(&publish(subject, &format!("{inbox}.0"), &body.to_string()))?;
    let answer = wire.next()?;
    assert_eq!(answer.subject, format!("{inbox}.0"));
    if answer.headers.contains("503") {
        return Err(io::Error::other("no responders"));
    }
    serde_json::from_slice(&answer.payload).map_err(io::Error::other)
}

/// As [`request`], again until there is an answer that is no refusal: a node may be starting meanwhile.
pub(crate) fn insist(address: &dyn Fn() -> String, subject: &str, body: &Value) -> Value {
    for _ in 0..6_000 {
        match request(&address(), subject, body) {
            Ok(answer) if answer["ok"] != false => return answer,
            Ok(_) | Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
    panic!("no answer to {body}");
}

pub(crate) fn admin(address: &str, name: &str, body: &Value) -> Value {
    insist(&|| address.to_owned(), &format!("beamline.router.v1.admin.{name}"), body)
}
