//! The keys of a link and of its rules, each written once: what is not here is refused, and
//! `docs/reference/config.md` is made from this.

/// A key, what its value is, and what it is for.
#[derive(Clone, Copy, Debug)]
pub struct LinkKey {
    pub name: &'static str,
    pub kind: &'static str,
    pub text: &'static str,
}

const fn key(name: &'static str, kind: &'static str, text: &'static str) -> LinkKey {
    LinkKey { name, kind, text }
}

/// Keys of `[[link]]`.
pub static LINK_KEYS: &[LinkKey] = &[
    key("name", "text", "What commands, metrics and logs call it; 1 to 64 letters, digits, `-` and `_`."),
    key(
        "urls",
        "list of text",
        "Servers of one NATS cluster: `nats://`, `tls://` (TLS required), `ws://` or `wss://` (WebSocket). Or hubs of one \
         Beamlog cluster: `quic://host:port`. At most 16.",
    ),
    key("user", "text", "User to log in as; needs a password."),
    key(
        "password_file",
        "path",
        "File with the password; one line. Read again at each reconnect, like every secret.",
    ),
    key("password_env", "text", "Variable with the password."),
    key(
        "token_file",
        "path",
        "File with a token. With `quic://` the one that `beamlog cert token` writes, instead of certificates, and \
         `tls_ca_file` with it.",
    ),
    key("token_env", "text", "Variable with a token."),
    key("nkey_file", "path", "File with an nkey seed (`SU…`)."),
    key("nkey_env", "text", "Variable with an nkey seed."),
    key("creds_file", "path", "A `.creds` file: user JWT and seed."),
    key("creds_env", "text", "Variable with what a `.creds` file has."),
    key(
        "tls_ca_file",
        "path",
        "Certificate authorities to trust, in PEM; TLS is required then. With a token for `quic://`: `roots.pem` beside it.",
    ),
    key("tls_cert_file", "path", "Our certificate in PEM, for servers that ask for one."),
    key("tls_key_file", "path", "Its key."),
    key(
        "tls_first",
        "boolean",
        "TLS before the server's INFO line, as `handshake_first` of nats-server wants it.",
    ),
    key(
        "certificates",
        "path",
        "With `quic://`: folder with this edge's certificate, as `beamlog cert edge` writes it.",
    ),
    key("domain", "text", "JetStream domain there."),
    key("api_prefix", "text", "JetStream API prefix there, when it is another one than `$JS.API`."),
    key(
        "bytes_per_second",
        "size",
        "Most that stored messages may take in each direction. No limit when absent.",
    ),
    key("paused", "boolean", "Begin paused: the link is known and carries nothing."),
    key("import", "list of rules", "What comes from there."),
    key("export", "list of rules", "What goes there."),
    key("requests", "list of rules", "Requests that are answered on the other side."),
];

/// Keys of a rule of `import` and `export`.
pub static RULE_KEYS: &[LinkKey] = &[
    key("stream", "text", "A stream by name: every message is stored on the other side once."),
    key(
        "subject",
        "text",
        "Messages on this filter, while both sides are there; nothing is stored for later.",
    ),
    key("bucket", "text", "A key-value bucket. In `import` and `export` of one link: both ways."),
    key(
        "as",
        "text",
        "With an imported stream, or a bucket: its name on the receiving side, when it is another. An exported stream lands where its subjects are captured.",
    ),
    key("filter", "text", "With stream: only subjects that this filter matches."),
    key(
        "to",
        "text",
        "With stream or subject: the subject on the receiving side. `$1` is what the first `*` stood for, a last `>` \
         the tail.",
    ),
    key("queue", "text", "With subject: queue group, so that of several nodes one gets each message."),
    key(
        "start",
        "`\"all\"` or `\"new\"`",
        "With stream: where to begin when there is no position yet. Default all.",
    ),
    key("start_sequence", "number", "With stream: begin at this sequence."),
    key("start_time", "time", "With stream: begin at this time, like `2026-01-31T12:00:00Z`."),
    key(
        "keep_sequence",
        "boolean",
        "With an imported stream that nobody else writes here: messages keep the sequence they have there.",
    ),
    key(
        "conflict",
        "`\"last_writer\"`, `\"here\"` or `\"there\"`",
        "With a bucket that goes both ways: whose value wins when both sides wrote a key. Default last_writer, by the \
         time of the write.",
    ),
];

/// Keys of a rule of `requests`.
pub static REQUEST_KEYS: &[LinkKey] = &[
    key("subject", "text", "Requests on this filter."),
    key(
        "direction",
        "`\"in\"` or `\"out\"`",
        "out: asked here, answered there. in: asked there, answered here.",
    ),
    key("to", "text", "The subject on the answering side."),
    key("queue", "text", "With `in`: queue group there, so that of several nodes one answers."),
    key("timeout", "duration", "How long an answer may take. Default 10s, at most 5m."),
];

pub(super) fn names(keys: &[LinkKey]) -> String {
    keys.iter().map(|key| key.name).collect::<Vec<_>>().join(", ")
}
