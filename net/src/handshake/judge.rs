//! What is refused, and why. Both sides judge by the same rules.

use super::message::Hello;
use super::{VERSION_HIGHEST, VERSION_LOWEST};
use crate::certificates::Identity;
use crate::peer::{PeerId, Role};

macro_rules! reasons {
    ($($variant:ident = $code:literal, $name:literal, $text:literal;)+) => {
        /// Why a peer is refused, or a connection closed. The codes are QUIC application error codes and
        /// never change their meaning.
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        #[repr(u16)]
        pub enum Reason { $($variant = $code),+ }

        impl Reason {
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            #[must_use]
            pub const fn code(self) -> u16 {
                self as u16
            }

            #[must_use]
            pub fn of_code(code: u64) -> Option<Self> {
                Self::ALL.iter().copied().find(|reason| u64::from(reason.code()) == code)
            }

            /// As metrics name it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// As people read it.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }
    };
}

reasons! {
    Tls = 1, "tls", "no session by TLS: not of this cluster's authority, expired, revoked, or not our protocol";
    Malformed = 2, "malformed", "what it said cannot be read";
    TooOld = 3, "too_old", "it speaks only older versions of the protocol";
    TooNew = 4, "too_new", "it speaks only newer versions of the protocol";
    WrongCluster = 5, "wrong_cluster", "it is of another cluster";
    NotItsCertificate = 6, "not_its_certificate", "its words and its certificate differ";
    WrongRole = 7, "wrong_role", "its role has no business at this address";
    Itself = 8, "itself", "it is this very node";
    NameTaken = 9, "name_taken", "a node of this name is known under another id";
    IdTaken = 10, "id_taken", "a node with this id is known under another name, or runs elsewhere";
    Unexpected = 11, "unexpected", "another node answers at this address";
    NotAdmitted = 12, "not_admitted", "the cluster does not want it";
    AlreadyConnected = 13, "already_connected", "there is a session with it already";
    Revoked = 14, "revoked", "its certificate was revoked or has expired";
    Slow = 15, "slow", "it did not finish the handshake in time";
    Replaced = 16, "replaced", "a newer connection took its place";
    Reset = 17, "reset", "the session was reset";
    Leaving = 18, "leaving", "the node shuts down";
    Violation = 19, "violation", "it broke the protocol";
    Busy = 20, "busy", "too many connections at once";
    Token = 21, "token", "it has no certificate, and no token that is taken here";
    Guessing = 22, "guessing", "too many wrong tokens from its address: wait a minute";
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text())
    }
}

impl Reason {
    /// Whether trying again soon is of no use.
    #[must_use]
    pub const fn is_lasting(self) -> bool {
        match self {
            Self::Tls
            | Self::Malformed
            | Self::TooOld
            | Self::TooNew
            | Self::WrongCluster
            | Self::NotItsCertificate
            | Self::WrongRole
            | Self::Itself
            | Self::NameTaken
            | Self::IdTaken
            | Self::Unexpected
            | Self::NotAdmitted
            | Self::Revoked
            | Self::Violation
            | Self::Token
            | Self::Guessing => true,
            Self::AlreadyConnected
            | Self::Slow
            | Self::Replaced
            | Self::Reset
            | Self::Leaving
            | Self::Busy => false,
        }
    }
}

/// What this side knows when it judges.
#[derive(Clone, Debug)]
pub struct Ours<'a> {
    pub identity: &'a Identity,
    pub id: PeerId,
    /// The roles that may be at the other end.
    pub accepts: &'a [Role],
    /// Who was dialled, if that is known.
    pub expected: Option<PeerId>,
    /// The id this name was seen with before.
    pub known_by_name: Option<PeerId>,
    /// The name this id was seen with before.
    pub known_by_id: Option<&'a str>,
}

/// The version to speak: the highest that both can.
///
/// # Errors
/// There is none.
pub fn agree(lowest: u16, highest: u16) -> Result<u16, Reason> {
    if highest < VERSION_LOWEST {
        Err(Reason::TooOld)
    } else if lowest > VERSION_HIGHEST {
        Err(Reason::TooNew)
    } else {
        Ok(highest.min(VERSION_HIGHEST))
    }
}

/// Judges what a peer said against its certificate and what is known.
///
/// # Errors
/// Why it is refused.
pub fn judge(ours: &Ours<'_>, certificate: &Identity, hello: &Hello) -> Result<u16, Reason> {
    if hello.cluster != ours.identity.cluster || certificate.cluster != ours.identity.cluster {
        return Err(Reason::WrongCluster);
    }
    let version = agree(hello.version_lowest, hello.version_highest)?;
    if hello.name != certificate.name || hello.role != certificate.role {
        return Err(Reason::NotItsCertificate);
    }
    if hello.id == ours.id && hello.name == ours.identity.name {
        return Err(Reason::Itself);
    }
    // Our own name with another id, or our own id under another name: a copy of us.
    if hello.name == ours.identity.name {
        return Err(Reason::NameTaken);
    }
    if hello.id == ours.id {
        return Err(Reason::IdTaken);
    }
    if !ours.accepts.contains(&hello.role) {
        return Err(Reason::WrongRole);
    }
    if ours.expected.is_some_and(|expected| expected != hello.id) {
        return Err(Reason::Unexpected);
    }
    if ours.known_by_name.is_some_and(|known| known != hello.id) {
        return Err(Reason::NameTaken);
    }
    if ours.known_by_id.is_some_and(|known| known != hello.name) {
        return Err(Reason::IdTaken);
    }
    Ok(version)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn check(change: impl FnOnce(&mut Ours<'_>, &mut Identity, &mut Hello)) -> Result<u16, Reason> {
        let us = Identity::new("c1", Role::Node, "n1").unwrap();
        let mut ours = Ours {
            identity: &us,
            id: PeerId(1),
            accepts: &[Role::Node, Role::Witness],
            expected: None,
            known_by_name: None,
            known_by_id: None,
        };
        let mut certificate = Identity::new("c1", Role::Node, "n2").unwrap();
        let mut hello = Hello {
            version_lowest: VERSION_LOWEST,
            version_highest: VERSION_HIGHEST,
            id: PeerId(2),
            incarnation: 0,
            dial: 0,
            role: Role::Node,
            cluster: "c1".to_owned(),
            name: "n2".to_owned(),
            advertise: String::new(),
            claims: Bytes::new(),
        };
        change(&mut ours, &mut certificate, &mut hello);
        judge(&ours, &certificate, &hello)
    }

    #[test]
    fn a_node_of_the_cluster_is_welcome() {
        assert_eq!(check(|_, _, _| ()), Ok(VERSION_HIGHEST));
        assert_eq!(check(|ours, _, _| ours.expected = Some(PeerId(2))), Ok(VERSION_HIGHEST));
        assert_eq!(check(|ours, _, _| ours.known_by_id = Some("n2")), Ok(VERSION_HIGHEST));
        assert_eq!(check(|ours, _, _| ours.known_by_name = Some(PeerId(2))), Ok(VERSION_HIGHEST));
        // One that also speaks what comes next: a rolling upgrade.
        assert_eq!(check(|_, _, hello| hello.version_highest = 9), Ok(VERSION_HIGHEST));
    }

    #[test]
    fn each_reason_has_its_case() {
        let wrong = |result, reason| assert_eq!(result, Err(reason));
        wrong(check(|_, _, hello| hello.cluster = "c2".into()), Reason::WrongCluster);
        wrong(check(|_, certificate, _| certificate.cluster = "c2".into()), Reason::WrongCluster);
        wrong(check(|_, _, hello| (hello.version_lowest, hello.version_highest) = (0, 0)), Reason::TooOld);
        wrong(check(|_, _, hello| (hello.version_lowest, hello.version_highest) = (2, 3)), Reason::TooNew);
        wrong(check(|_, certificate, _| certificate.name = "n3".into()), Reason::NotItsCertificate);
        wrong(check(|_, _, hello| hello.role = Role::Witness), Reason::NotItsCertificate);
        let edge = |certificate: &mut Identity, hello: &mut Hello| {
            (certificate.role, hello.role) = (Role::Edge, Role::Edge);
        };
        wrong(check(|_, certificate, hello| edge(certificate, hello)), Reason::WrongRole);
        let named = |certificate: &mut Identity, hello: &mut Hello, id| {
            (certificate.name, hello.name, hello.id) = ("n1".into(), "n1".into(), PeerId(id));
        };
        wrong(check(|_, certificate, hello| named(certificate, hello, 1)), Reason::Itself);
        wrong(check(|_, certificate, hello| named(certificate, hello, 7)), Reason::NameTaken);
        wrong(check(|_, _, hello| hello.id = PeerId(1)), Reason::IdTaken);
        wrong(check(|ours, _, _| ours.expected = Some(PeerId(3))), Reason::Unexpected);
        wrong(check(|ours, _, _| ours.known_by_name = Some(PeerId(3))), Reason::NameTaken);
        wrong(check(|ours, _, _| ours.known_by_id = Some("n3")), Reason::IdTaken);
    }

    #[test]
    fn codes_are_read_as_they_are_written() {
        for reason in Reason::ALL {
            assert_eq!(Reason::of_code(u64::from(reason.code())), Some(*reason));
        }
        assert_eq!(Reason::of_code(0), None);
    }
}
