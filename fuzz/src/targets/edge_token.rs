//! The token of an edge, from its file; and the list of tokens at a hub, with what somebody shows.

use beamlog_net::certificates::{TOKEN_BYTES_MAX, TOKENS_EACH_MAX, Token, Tokens};

pub const WORDS: &[&[u8]] = &[
    b"beamlog-edge/",
    b"c1/site7/",
    b"/",
    b"site7 ",
    b"00000000000000000000000000000000",
    b"abcdef",
    b"#",
    b"\r\n",
    b" ",
];

pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(token) = Token::parse(&text) {
        assert_eq!(token.reveal(), text, "nothing is left out and nothing is put in");
        assert!(text.len() <= TOKEN_BYTES_MAX);
        let secret = text.rsplit('/').next().expect("it has parts");
        assert!(!format!("{token:?}").contains(secret), "a secret is not printed");
        let mut tokens = Tokens::default();
        let name = &token.identity().name;
        tokens.insert(name, token.digest()).expect("it is the first");
        assert_eq!(tokens.verify(name, text.as_bytes()), Some(token.digest()));
        assert_eq!(tokens.verify(name, &data[1..]), None);
    }
    let Ok(tokens) = Tokens::parse(data) else { return };
    assert_eq!(Tokens::parse(tokens.to_text().as_bytes()), Ok(tokens.clone()));
    let edges: Vec<String> =
        tokens.to_text().lines().skip(1).filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
    for edge in edges {
        // A digest is no token.
        assert!(tokens.knows(&edge) && tokens.verify(&edge, data).is_none());
        let mut fewer = tokens.clone();
        assert!(fewer.retire(&edge) < TOKENS_EACH_MAX);
        assert_eq!(fewer.remove(&edge), 1);
        assert!(!fewer.knows(&edge));
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    [
        format!("beamlog-edge/c1/site7/{digest}"),
        format!("beamlog-edge/eu.prod-1/s_1/{}", "0".repeat(64)),
        format!("beamlog-edge/c1/site7/{digest}\n"),
        format!("# tokens\nsite7 {digest}\nsite7 {} # old\n\nsite8 {digest}\r\n", "0".repeat(64)),
        format!("site7 {digest} {digest}\n"),
    ]
    .map(String::into_bytes)
    .to_vec()
}
