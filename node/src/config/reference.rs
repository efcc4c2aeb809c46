//! `docs/reference/config.md`, made from the table of keys; a test fails when the file differs.

use std::fmt::Write;
use std::time::Duration;

use crate::config::keys::{Bounds, KEYS, Key};
use crate::config::links::{LINK_KEYS, REQUEST_KEYS, RULE_KEYS};
use crate::config::units::{ByteSize, Span};

const HEAD: &str = "\
# Configuration

Made from `node/src/config/keys.rs`; do not edit: a test writes it
(`BEAMLOG_TEST_UPDATE=1 cargo test -p beamlog`).

`beamlog serve` needs no configuration. A value is taken from the strongest place that says one:

    defaults < TOML file < environment < flags

The file is named by `--config` or `BEAMLOG_CONFIG`; its keys stand in `[node]`. A key `data_dir` is the
variable `BEAMLOG_DATA_DIR` and the flag `--data-dir`. Sizes and durations carry units: `\"64MiB\"`, `\"30s\"`.
An unknown key, an unknown `BEAMLOG_` variable or a value out of range is an error that names it; nothing
is clamped. Secrets have no flag, because flags show in the list of processes.

    beamlog config check --config node.toml     # every error, exit code 2 when there is one
    beamlog config show                         # the values that count, and who said them

";

#[must_use]
pub fn markdown() -> String {
    let mut out = HEAD.to_owned();
    out.push_str(
        "| key | kind | default | at least | at most | flag | what it is |\n|---|---|---|---|---|---|---|\n",
    );
    for key in KEYS {
        let (min, max) = bounds(key);
        let default = key.default.map_or_else(String::new, |text| format!("`{text}`"));
        let flag =
            if key.has_flag { format!("`--{}`", key.name.replace('_', "-")) } else { "none".to_owned() };
        let text = key.text.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
        writeln!(out, "| `{}` | {} | {default} | {min} | {max} | {flag} | {text} |", key.name, key.kind)
            .expect("a String takes everything");
    }
    out.push_str(TAIL);
    out.push_str(EDGES);
    out.push_str(LINKS);
    for (heading, keys) in [
        ("`[[link]]`", LINK_KEYS),
        ("A rule of `import` or `export`", RULE_KEYS),
        ("A rule of `requests`", REQUEST_KEYS),
    ] {
        write!(out, "\n### {heading}\n\n| key | kind | what it is |\n|---|---|---|\n")
            .expect("a String takes everything");
        for key in keys {
            writeln!(out, "| `{}` | {} | {} |", key.name, key.kind, key.text)
                .expect("a String takes everything");
        }
    }
    out
}

const EDGES: &str = "
## Edges

A node with `edge_listen` is a hub: the links of other nodes reach it by `quic://`. Without `[[edge]]` every edge with a
certificate of the authority, or with a token that the folder of `edge_certificates` lists, may come, and may do what a
client may. With one or more of them in the file, only those that are named:

```toml
[[edge]]
name = \"site7\"                   # as in its certificate or token
streams = [\"ORDERS\"]             # it may read, and ask about
buckets = [\"settings\"]           # it may read, write and make
subjects = [\"telemetry.site7.>\"] # it may publish and subscribe to
```

`unrestricted = true` in place of the three lists is all that a client may. Exported streams land on subjects: name
these, and the stream that takes them in. Answers to requests that an edge takes over go to any `_INBOX.>`.

";

const LINKS: &str = "
## Links

What a link does and how to run one: [operations/links.md](../operations/links.md). Links stand in the file only,
or are added while the node runs (`beamlog link add`); these are kept in `links.toml` in the data directory. A link
of the file wins over an added one of the same name. Secrets are named, never written: by file, or by variable; a
variable may have any name, but one that begins with `BEAMLOG_` must begin with `BEAMLOG_LINK_`.

```toml
[[link]]
name = \"core\"
urls = [\"nats://127.0.0.1:4222\"]
creds_file = \"core.creds\"
import = [ { stream = \"ORDERS\" }, { subject = \"cmd.>\", queue = \"edge\" }, { bucket = \"settings\" } ]
export = [ { stream = \"TELEMETRY\", to = \"telemetry.site7.>\" }, { subject = \"alerts.>\" }, { bucket = \"state\" } ]
requests = [ { subject = \"rpc.inventory.>\", direction = \"out\" } ]
```

Refused, with the rule named: unknown keys; subjects of the system (`$…`, `_INBOX`); mappings that cannot be carried
out; two rules that carry the same message the same way between the same two sides; and two rules of which one brings
back what the other took away. A bucket in `import` and `export` is no loop: it is kept the same on both sides.
";

const TAIL: &str = "
## Rules between keys

* `listen` on an address other than loopback without `auth_token` or `auth_user` is refused, unless
  `insecure` is set. So is `admin` on such an address: it has no authentication.
* `edge_listen` needs `edge_certificates` or `cluster_certificates`; `[[edge]]` needs `edge_listen`.
* `auth_user` needs `auth_password` or `auth_password_file`; `auth_token` excludes them.
* `tls_cert_file` and `tls_key_file` come together; `tls_client_ca_file` needs both.

## Example

```toml
[node]
listen = \"127.0.0.1:4222\"
data_dir = \"./beamlog-data\"
log_format = \"json\"
write_deadline = \"10s\"
segment_bytes = \"64MiB\"
```
";

fn bounds(key: &Key) -> (String, String) {
    match key.bounds {
        Bounds::Any => (String::new(), String::new()),
        Bounds::Count { min, max } => (min.to_string(), max.to_string()),
        Bounds::Size { min, max } => (ByteSize(min).to_string(), ByteSize(max).to_string()),
        Bounds::Span { min, max } => {
            let shown = |millis| Span(Duration::from_millis(millis)).to_string();
            (shown(min), shown(max))
        }
    }
}
