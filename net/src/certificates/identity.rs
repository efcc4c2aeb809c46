//! Who a certificate names: `spiffe://<cluster>/<role>/<name>`, its only URI. The form is that of SPIFFE
//! ids, so that an authority a site already has can issue them too.

use std::fmt;

use crate::peer::Role;

/// Longest name of a node, longest name of a cluster.
pub const NAME_BYTES_MAX: usize = 63;
const SCHEME: &str = "spiffe://";

/// Cluster, role and name.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Identity {
    pub cluster: String,
    pub role: Role,
    pub name: String,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidIdentity {
    #[error(
        "a name has 1 to {NAME_BYTES_MAX} of a-z, 0-9, '-', '_' and '.', and begins with a letter or digit"
    )]
    Name,
    #[error("not of the form spiffe://<cluster>/<node, witness or edge>/<name>")]
    Form,
}

/// Whether this may name a node or a cluster. Lower case only: two names that people read as the same are the same.
///
/// # Errors
/// It may not.
pub fn check_name(name: &str) -> Result<(), InvalidIdentity> {
    let legal = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.');
    let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if begins && name.len() <= NAME_BYTES_MAX && name.bytes().all(legal) {
        Ok(())
    } else {
        Err(InvalidIdentity::Name)
    }
}

impl Identity {
    /// # Errors
    /// A name is not one.
    pub fn new(cluster: &str, role: Role, name: &str) -> Result<Self, InvalidIdentity> {
        check_name(cluster)?;
        check_name(name)?;
        Ok(Self { cluster: cluster.to_owned(), role, name: name.to_owned() })
    }

    /// # Errors
    /// It is not exactly of the form.
    pub fn parse(uri: &str) -> Result<Self, InvalidIdentity> {
        let rest = uri.strip_prefix(SCHEME).ok_or(InvalidIdentity::Form)?;
        let mut parts = rest.split('/');
        let (Some(cluster), Some(role), Some(name), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(InvalidIdentity::Form);
        };
        Self::new(cluster, Role::parse(role).ok_or(InvalidIdentity::Form)?, name)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}/{}", self.cluster, self.role, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_read_again() {
        for role in Role::ALL {
            let identity = Identity::new("eu.prod-1", role, "n_1").unwrap();
            assert_eq!(Identity::parse(&identity.to_string()), Ok(identity));
        }
    }

    #[test]
    fn other_forms_are_refused() {
        let long = format!("spiffe://c/node/{}", "n".repeat(NAME_BYTES_MAX + 1));
        for uri in [
            "",
            "spiffe://",
            "spiffe://c",
            "spiffe://c/node",
            "spiffe://c/node/",
            "spiffe://c/node/n/",
            "spiffe://c/node/n/m",
            "spiffe://c/king/n",
            "spiffe://C/node/n",
            "spiffe://c/node/N",
            "spiffe://c/node/.n",
            "spiffe://c/node/n\0",
            "spiffe://c/node/n%20",
            "spiffe:///node/n",
            "SPIFFE://c/node/n",
            "https://c/node/n",
            long.as_str(),
        ] {
            assert!(Identity::parse(uri).is_err(), "{uri:?}");
        }
    }
}
