//! The list of certificates that are no longer believed: one a line, `serial <hexadecimal>` or
//! `name <node>`; `#` begins a comment.

use std::collections::BTreeSet;

use super::certificate::Certificate;
use super::identity::check_name;

/// More are a mistake: certificates that have expired need not be listed.
const ENTRIES_MAX: usize = 65_536;

/// One entry.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Revoked {
    Serial(String),
    /// Every certificate of this node.
    Name(String),
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Revocations(BTreeSet<Revoked>);

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidRevocations {
    #[error("line {line}: neither `serial <hexadecimal>` nor `name <node>`")]
    Line { line: usize },
    #[error("more than {ENTRIES_MAX} entries")]
    TooMany,
    #[error("not text")]
    NotText,
}

impl Revoked {
    /// # Errors
    /// It is no entry.
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (kind, value, None) = (words.next()?, words.next()?, words.next()) else { return None };
        match kind {
            "serial" => {
                let digits = value.to_ascii_lowercase().replace(':', "");
                let legal =
                    !digits.is_empty() && digits.len() <= 64 && digits.bytes().all(|d| d.is_ascii_hexdigit());
                legal.then_some(Self::Serial(digits))
            }
            "name" => check_name(value).ok().map(|()| Self::Name(value.to_owned())),
            _ => None,
        }
    }
}

impl std::fmt::Display for Revoked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Serial(serial) => write!(f, "serial {serial}"),
            Self::Name(name) => write!(f, "name {name}"),
        }
    }
}

impl Revocations {
    /// # Errors
    /// A line is no entry: a list that is half understood would let somebody in.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidRevocations> {
        let text = std::str::from_utf8(bytes).map_err(|_error| InvalidRevocations::NotText)?;
        let mut entries = BTreeSet::new();
        for (number, line) in text.lines().enumerate() {
            let entry = line.split('#').next().unwrap_or_default().trim();
            if entry.is_empty() {
                continue;
            }
            entries.insert(Revoked::parse(entry).ok_or(InvalidRevocations::Line { line: number + 1 })?);
            if entries.len() > ENTRIES_MAX {
                return Err(InvalidRevocations::TooMany);
            }
        }
        Ok(Self(entries))
    }

    #[must_use]
    pub fn contains(&self, certificate: &Certificate) -> bool {
        let named = certificate
            .identity
            .as_ref()
            .is_ok_and(|identity| self.0.contains(&Revoked::Name(identity.name.clone())));
        named || self.0.contains(&Revoked::Serial(certificate.serial.clone()))
    }

    /// Whether everything of this name is revoked.
    #[must_use]
    pub fn names(&self, name: &str) -> bool {
        self.0.contains(&Revoked::Name(name.to_owned()))
    }

    /// Whether the entry is new.
    pub fn insert(&mut self, entry: Revoked) -> bool {
        self.0.insert(entry)
    }

    pub fn extend(&mut self, other: &Self) {
        self.0.extend(other.0.iter().cloned());
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As the file has it.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::from(
            "# certificates that are no longer believed: `serial <hexadecimal>` or `name <node>`\n",
        );
        for entry in &self.0 {
            text.push_str(&format!("{entry}\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_as_it_was_written() {
        let text = "\n# stolen\n serial 00:AB:cd  # laptop\nname n2\r\n";
        let list = Revocations::parse(text.as_bytes()).unwrap();
        assert_eq!(list.len(), 2);
        assert!(list.0.contains(&Revoked::Serial("00abcd".to_owned())));
        assert_eq!(Revocations::parse(list.to_text().as_bytes()), Ok(list));
    }

    #[test]
    fn a_line_that_is_not_understood_refuses_the_list() {
        for (text, line) in
            [("serial xyz", 1), ("name n1\nname N2", 2), ("n1", 1), ("name a b", 1), ("serial", 1)]
        {
            assert_eq!(
                Revocations::parse(text.as_bytes()),
                Err(InvalidRevocations::Line { line }),
                "{text:?}"
            );
        }
        assert_eq!(Revocations::parse(b"\xff"), Err(InvalidRevocations::NotText));
    }
}
