//! Tokens: who an edge without a certificate of its own is. The edge has the token, in a file or a variable; its hub
//! has the digest only, one a line, `<edge> <SHA-256 in hexadecimal>`, the newest of an edge last; `#` begins a comment.
//! It is told to nobody but a node whose certificate the edge's authority signed.

use std::collections::BTreeMap;

use rustls::crypto::SecureRandom;
use sha2::{Digest, Sha256};

use super::identity::{Identity, NAME_BYTES_MAX, check_name};
use crate::peer::Role;

/// Begins a token, so that people and scanners of secrets know one when they see it.
const SCHEME: &str = "beamlog-edge/";
const SECRET_BYTES: usize = 32;
const DIGEST_BYTES: usize = 32;
/// The longest token.
pub const TOKEN_BYTES_MAX: usize = SCHEME.len() + 2 * (NAME_BYTES_MAX + 1) + 2 * SECRET_BYTES;
/// Of one edge, at once: the old one and the new one.
pub const TOKENS_EACH_MAX: usize = 2;
/// More edges than a hub knows.
const EDGES_MAX: usize = 8192;

/// What an edge shows. Never printed.
#[derive(Clone, Eq, PartialEq)]
pub struct Token {
    identity: Identity,
    text: String,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("of", &self.identity).finish_non_exhaustive()
    }
}

/// Not a token. Says nothing of what it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a token of an edge, as `beamlog cert token` makes them")]
pub struct InvalidToken;

/// The system gave no random bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the system has no random bytes")]
pub struct NoRandomness;

impl Token {
    /// A new one for an edge.
    ///
    /// # Errors
    /// There is no randomness.
    ///
    /// # Panics
    /// The identity is not that of an edge.
    pub fn make(identity: Identity, random: &dyn SecureRandom) -> Result<Self, NoRandomness> {
        assert_eq!(identity.role, Role::Edge, "tokens are for edges");
        let mut secret = [0; SECRET_BYTES];
        random.fill(&mut secret).map_err(|_error| NoRandomness)?;
        let text = format!("{SCHEME}{}/{}/{}", identity.cluster, identity.name, hex(&secret));
        Ok(Self { identity, text })
    }

    /// # Errors
    /// It is not exactly of the form.
    pub fn parse(text: &str) -> Result<Self, InvalidToken> {
        let mut parts = text.strip_prefix(SCHEME).ok_or(InvalidToken)?.split('/');
        let (Some(cluster), Some(name), Some(secret), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(InvalidToken);
        };
        bytes::<SECRET_BYTES>(secret).ok_or(InvalidToken)?;
        let identity = Identity::new(cluster, Role::Edge, name).map_err(|_error| InvalidToken)?;
        Ok(Self { identity, text: text.to_owned() })
    }

    /// Which edge it is of, and of which cluster its hub is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The secret itself: for the file of the edge, and for its hub.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.text
    }

    #[must_use]
    pub fn digest(&self) -> TokenDigest {
        TokenDigest::of(self.text.as_bytes())
    }
}

/// What a hub keeps of a token. The secret has 256 random bits: there is nothing to guess from it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TokenDigest([u8; DIGEST_BYTES]);

impl TokenDigest {
    fn of(shown: &[u8]) -> Self {
        Self(Sha256::digest(shown).into())
    }

    /// In the same time, wherever they differ.
    fn is(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).fold(0, |differs, (ours, theirs)| differs | (ours ^ theirs)) == 0
    }
}

impl std::fmt::Display for TokenDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Exactly so many, in lower case.
fn bytes<const N: usize>(hex: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    let pairs = hex.as_bytes().chunks_exact(2);
    if hex.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(pairs) {
        let [high, low] = pair else { return None };
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

/// The tokens that a hub takes, by edge.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Tokens(BTreeMap<String, Vec<TokenDigest>>);

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidTokens {
    #[error("line {line}: not `<edge> <SHA-256 in hexadecimal>`")]
    Line { line: usize },
    #[error("line {line}: an edge has at most {TOKENS_EACH_MAX} tokens")]
    TooManyOfOne { line: usize },
    #[error("more than {EDGES_MAX} edges")]
    TooMany,
    #[error("not text")]
    NotText,
}

/// The edge has as many as it may have.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("an edge has at most {TOKENS_EACH_MAX} tokens")]
pub struct TooManyTokens;

impl Tokens {
    /// # Errors
    /// A line is not one: a list that is half understood would shut somebody out.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidTokens> {
        let text = std::str::from_utf8(bytes).map_err(|_error| InvalidTokens::NotText)?;
        let mut tokens = Self::default();
        for (number, line) in text.lines().enumerate() {
            let line_number = number + 1;
            let mut words = line.split('#').next().unwrap_or_default().split_ascii_whitespace();
            let Some(edge) = words.next() else { continue };
            let invalid = InvalidTokens::Line { line: line_number };
            let (Some(digest), None) = (words.next(), words.next()) else { return Err(invalid) };
            let digest = self::bytes(digest).map(TokenDigest).ok_or(invalid)?;
            check_name(edge).map_err(|_error| invalid)?;
            tokens.insert(edge, digest).map_err(|_full| InvalidTokens::TooManyOfOne { line: line_number })?;
            if tokens.0.len() > EDGES_MAX {
                return Err(InvalidTokens::TooMany);
            }
        }
        Ok(tokens)
    }

    /// Whether what somebody shows is a token of this edge; which one.
    #[must_use]
    pub fn verify(&self, edge: &str, shown: &[u8]) -> Option<TokenDigest> {
        let shown = TokenDigest::of(shown.get(..TOKEN_BYTES_MAX).unwrap_or(shown));
        let ours = self.0.get(edge).map(Vec::as_slice).unwrap_or_default();
        // All of them, so that the time does not tell which one it was.
        ours.iter().fold(None, |found, digest| if digest.is(&shown) { Some(*digest) } else { found })
    }

    /// Whether an edge of this name has any.
    #[must_use]
    pub fn knows(&self, edge: &str) -> bool {
        self.0.contains_key(edge)
    }

    /// Whether this one is still taken.
    #[must_use]
    pub fn holds(&self, edge: &str, digest: &TokenDigest) -> bool {
        self.0.get(edge).is_some_and(|digests| digests.contains(digest))
    }

    /// Takes another token of an edge; one that is there already stays.
    ///
    /// # Errors
    /// It has two.
    pub fn insert(&mut self, edge: &str, digest: TokenDigest) -> Result<(), TooManyTokens> {
        let digests = self.0.entry(edge.to_owned()).or_default();
        if digests.contains(&digest) {
            return Ok(());
        }
        if digests.len() >= TOKENS_EACH_MAX {
            return Err(TooManyTokens);
        }
        digests.push(digest);
        Ok(())
    }

    /// Takes only the newest of an edge from now on. How many went.
    pub fn retire(&mut self, edge: &str) -> usize {
        let Some(digests) = self.0.get_mut(edge) else { return 0 };
        let old = digests.len().saturating_sub(1);
        digests.drain(..old);
        old
    }

    /// Takes no token of an edge any more. How many went.
    pub fn remove(&mut self, edge: &str) -> usize {
        self.0.remove(edge).map_or(0, |digests| digests.len())
    }

    /// Of how many edges there are some.
    #[must_use]
    pub fn edges(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As the file has it.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::from("# tokens of edges: `<edge> <SHA-256 in hexadecimal>`\n");
        for (edge, digests) in &self.0 {
            for digest in digests {
                text.push_str(&format!("{edge} {digest}\n"));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use rustls::crypto::ring;

    use super::*;

    fn made(name: &str) -> Token {
        let identity = Identity::new("c1", Role::Edge, name).unwrap();
        Token::make(identity, ring::default_provider().secure_random).unwrap()
    }

    #[test]
    fn a_token_is_read_as_it_was_made_and_never_twice_the_same() {
        let token = made("site7");
        assert_eq!(Token::parse(token.reveal()), Ok(token.clone()));
        assert_eq!(token.identity().to_string(), "spiffe://c1/edge/site7");
        assert_ne!(made("site7").digest(), token.digest());
        assert!(!format!("{token:?}").contains(&token.reveal()[SCHEME.len() + 9..]), "{token:?}");
        let longest = made(&"s".repeat(NAME_BYTES_MAX)).reveal().len() + NAME_BYTES_MAX - 2;
        assert_eq!(longest, TOKEN_BYTES_MAX);
    }

    #[test]
    fn what_is_not_exactly_a_token_is_refused() {
        let token = made("site7");
        let text = token.reveal();
        for wrong in [
            String::new(),
            format!("{text}\n"),
            format!(" {text}"),
            format!("{text}0"),
            text[..text.len() - 1].to_owned(),
            text.to_uppercase(),
            text.replace("site7", "Site7"),
            text.replace("/c1/", "//"),
            text.replace("beamlog-edge", "beamlog-node"),
            format!("{text}/"),
        ] {
            assert_eq!(Token::parse(&wrong), Err(InvalidToken), "{wrong}");
        }
    }

    #[test]
    fn the_digest_is_that_of_the_text() {
        // As `sha256sum` says of the three letters.
        let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(TokenDigest::of(b"abc").to_string(), digest);
    }

    #[test]
    fn a_hub_takes_the_old_and_the_new_one_and_then_only_the_new_one() {
        let (old, new, other) = (made("site7"), made("site7"), made("site8"));
        let mut tokens = Tokens::default();
        tokens.insert("site7", old.digest()).unwrap();
        tokens.insert("site7", new.digest()).unwrap();
        tokens.insert("site7", new.digest()).unwrap();
        assert_eq!(tokens.insert("site7", other.digest()), Err(TooManyTokens));
        tokens.insert("site8", other.digest()).unwrap();
        let verify =
            |tokens: &Tokens, edge: &str, token: &Token| tokens.verify(edge, token.reveal().as_bytes());
        assert_eq!(verify(&tokens, "site7", &old), Some(old.digest()));
        assert_eq!(verify(&tokens, "site7", &new), Some(new.digest()));
        assert_eq!(verify(&tokens, "site7", &other), None);
        assert_eq!(verify(&tokens, "site9", &other), None);
        assert_eq!(tokens.verify("site7", b""), None);
        assert_eq!(tokens.verify("site7", &[b'x'; 4 * TOKEN_BYTES_MAX]), None);
        assert_eq!(Tokens::parse(tokens.to_text().as_bytes()), Ok(tokens.clone()));
        assert_eq!((tokens.retire("site7"), tokens.retire("site7"), tokens.retire("none")), (1, 0, 0));
        assert_eq!(verify(&tokens, "site7", &old), None);
        assert_eq!(verify(&tokens, "site7", &new), Some(new.digest()));
        assert!(tokens.holds("site7", &new.digest()) && !tokens.holds("site7", &old.digest()));
        assert_eq!((tokens.remove("site7"), tokens.remove("site7"), tokens.edges()), (1, 0, 1));
    }

    #[test]
    fn a_line_that_is_not_understood_refuses_the_list() {
        let digest = made("site7").digest();
        let ends = |rest: &str| format!("# c\n\nsite7 {digest}{rest}");
        assert!(Tokens::parse(ends(" # the old one\r\n").as_bytes()).is_ok());
        for text in [ends(" more"), ends("0"), "a\nb\nsite7".to_owned(), ends("").replace("site7", "Site7")] {
            assert!(matches!(Tokens::parse(text.as_bytes()), Err(InvalidTokens::Line { .. })), "{text:?}");
        }
        let three: String = (0..3).map(|_| format!("site7 {}\n", made("site7").digest())).collect();
        assert_eq!(Tokens::parse(three.as_bytes()), Err(InvalidTokens::TooManyOfOne { line: 3 }));
        assert_eq!(Tokens::parse(b"\xff"), Err(InvalidTokens::NotText));
    }
}
