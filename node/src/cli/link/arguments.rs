//! What `link` and its commands take.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Map, Value, json};

use crate::cli::exit::Failure;
use crate::config::{ByteSize, Span};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
A link carries messages between this node and a NATS cluster that already runs. When the cluster is away, local
work goes on and the link catches up later.

Examples:
  beamlog link add core --url nats://nats.example:4222 --creds-file core.creds --import stream=ORDERS
  beamlog link add core --url nats://10.0.0.1:4222 --url nats://10.0.0.2:4222 \\
      --export stream=TELEMETRY,to=telemetry.site7.'>' --import subject=cmd.'>',queue=edge \\
      --import bucket=settings --requests subject=rpc.inventory.'>',direction=out
  beamlog link add core --from-file core.toml            # one [[link]] as in the configuration file
  beamlog link status core                               # state, cause, lag and counters of each rule
  beamlog link diff core                                 # what is here and not there; exit code 1 when it differs

Links that are added here are kept in the data directory and start with the node. Links of the configuration
file are paused and resumed here, and changed there. How to migrate with links: docs/operations/links.md.")]
pub(crate) struct LinkArguments {
    #[command(subcommand)]
    pub(crate) command: LinkCommand,
    #[command(flatten)]
    pub(crate) access: AdminArguments,
}

/// Which node, and as whom.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct AdminArguments {
    /// Admin address of the node; links are changed from its own machine.
    #[arg(
        long,
        global = true,
        env = "BEAMLOG_ADMIN",
        value_name = "IP:PORT",
        default_value = "127.0.0.1:8222"
    )]
    pub(crate) admin: String,
    /// User that the node's clients log in as.
    #[arg(long, global = true, env = "BEAMLOG_USER", value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// Password of the user. The variable keeps it out of the process list.
    #[arg(long, global = true, env = "BEAMLOG_PASSWORD", value_name = "TEXT", hide_env_values = true)]
    pub(crate) password: Option<String>,
    /// Token that the node's clients log in with.
    #[arg(long, global = true, env = "BEAMLOG_TOKEN", value_name = "TEXT", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// How long to wait for the node.
    #[arg(long, global = true, value_name = "DURATION", default_value = "30s")]
    pub(crate) timeout: Span,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LinkCommand {
    /// Add a link and start it.
    Add {
        name: String,
        #[command(flatten)]
        settings: Box<LinkSettings>,
        /// Put it in place of an added link of this name.
        #[arg(long)]
        replace: bool,
    },
    /// Stop and forget an added link. What it carried stays on both sides.
    Rm { name: String },
    /// List the links and how they are.
    #[command(visible_alias = "list")]
    Ls,
    /// Show state, cause, lag and counters, of one link or of all.
    Status { name: Option<String> },
    /// Stop a link until it is resumed, also over restarts.
    Pause { name: String },
    /// Start a paused link; it goes on where it was.
    Resume { name: String },
    /// Have both sides compared anew, now.
    Resync { name: String },
    /// Compare streams and buckets here and there; exit code 1 when something is missing on the receiving side.
    Diff { name: String },
}

/// What a link can be told.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Link")]
pub(crate) struct LinkSettings {
    /// A TOML file with one [[link]], as in the configuration file; flags go over it.
    #[arg(long, value_name = "FILE")]
    pub(crate) from_file: Option<PathBuf>,
    /// Server of the cluster: nats://, tls://, ws:// or wss://; or hub: quic://. May be given several times.
    #[arg(long = "url", value_name = "URL")]
    pub(crate) urls: Vec<String>,
    /// What comes from there: stream=, subject= or bucket=, and more keys after commas.
    #[arg(long, value_name = "RULE")]
    pub(crate) import: Vec<String>,
    /// What goes there.
    #[arg(long, value_name = "RULE")]
    pub(crate) export: Vec<String>,
    /// Requests answered on the other side: subject=…,direction=in|out.
    #[arg(long, value_name = "RULE")]
    pub(crate) requests: Vec<String>,
    /// User to log in as there.
    #[arg(long, value_name = "NAME")]
    pub(crate) link_user: Option<String>,
    /// File with the password; the node reads it at each connection.
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// Variable of the node's process with the password.
    #[arg(long, value_name = "VARIABLE")]
    pub(crate) password_env: Option<String>,
    /// File with a token; of a hub: as `beamlog cert token` writes it, with --tls-ca-file.
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Variable with a token.
    #[arg(long, value_name = "VARIABLE")]
    pub(crate) token_env: Option<String>,
    /// File with an nkey seed.
    #[arg(long, value_name = "FILE")]
    pub(crate) nkey_file: Option<PathBuf>,
    /// Variable with an nkey seed.
    #[arg(long, value_name = "VARIABLE")]
    pub(crate) nkey_env: Option<String>,
    /// A .creds file.
    #[arg(long, value_name = "FILE")]
    pub(crate) creds_file: Option<PathBuf>,
    /// Variable with what a .creds file has.
    #[arg(long, value_name = "VARIABLE")]
    pub(crate) creds_env: Option<String>,
    /// Certificate authorities to trust, in PEM; asks for TLS.
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_ca_file: Option<PathBuf>,
    /// Our certificate in PEM.
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_cert_file: Option<PathBuf>,
    /// Its key.
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_key_file: Option<PathBuf>,
    /// TLS before the server says anything.
    #[arg(long)]
    pub(crate) tls_first: bool,
    /// Of a hub: folder with this edge's certificate, as `beamlog cert edge` writes it.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) certificates: Option<PathBuf>,
    /// JetStream domain there.
    #[arg(long, value_name = "NAME")]
    pub(crate) domain: Option<String>,
    /// JetStream API prefix there.
    #[arg(long, value_name = "PREFIX")]
    pub(crate) api_prefix: Option<String>,
    /// Most that stored messages may take in each direction, like 1MiB.
    #[arg(long, value_name = "SIZE")]
    pub(crate) bytes_per_second: Option<ByteSize>,
    /// Add it, and carry nothing yet.
    #[arg(long)]
    pub(crate) paused: bool,
}

impl LinkSettings {
    /// The link as the admin server takes it. Relative files become absolute: the node may work elsewhere.
    pub(crate) fn table(&self, name: &str) -> Result<Value, Failure> {
        let mut link = match &self.from_file {
            None => Map::new(),
            Some(path) => from_file(path, name)?,
        };
        link.insert("name".to_owned(), name.into());
        let mut set = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                link.insert(key.to_owned(), value);
            }
        };
        set("urls", (!self.urls.is_empty()).then(|| json!(self.urls)));
        set("user", self.link_user.as_ref().map(|user| json!(user)));
        for (key, file) in [
            ("password_file", &self.password_file),
            ("token_file", &self.token_file),
            ("nkey_file", &self.nkey_file),
            ("creds_file", &self.creds_file),
            ("tls_ca_file", &self.tls_ca_file),
            ("tls_cert_file", &self.tls_cert_file),
            ("tls_key_file", &self.tls_key_file),
            ("certificates", &self.certificates),
        ] {
            set(key, file.as_ref().map(|file| json!(file)));
        }
        for (key, text) in [
            ("password_env", &self.password_env),
            ("token_env", &self.token_env),
            ("nkey_env", &self.nkey_env),
            ("creds_env", &self.creds_env),
            ("domain", &self.domain),
            ("api_prefix", &self.api_prefix),
        ] {
            set(key, text.as_ref().map(|text| json!(text)));
        }
        set("bytes_per_second", self.bytes_per_second.map(|size| json!(size)));
        set("tls_first", self.tls_first.then_some(Value::Bool(true)));
        set("paused", self.paused.then_some(Value::Bool(true)));
        for (key, rules) in [("import", &self.import), ("export", &self.export), ("requests", &self.requests)]
        {
            if !rules.is_empty() {
                let rules: Vec<Value> = rules.iter().map(|text| rule(text)).collect::<Result<_, _>>()?;
                link.insert(key.to_owned(), rules.into());
            }
        }
        for (key, value) in &mut link {
            if (key.ends_with("_file") || key == "certificates")
                && let Some(file) = value.as_str()
                && let Ok(absolute) = std::path::absolute(file)
            {
                *value = json!(absolute);
            }
        }
        Ok(Value::Object(link))
    }
}

fn from_file(path: &std::path::Path, name: &str) -> Result<Map<String, Value>, Failure> {
    let wrong = |problem: String| Failure::cannot_start(format!("{}: {problem}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
    let table: toml::Table =
        text.parse().map_err(|e: toml::de::Error| wrong(e.message().replace('\n', " ")))?;
    let value = serde_json::to_value(table).map_err(|e| wrong(e.to_string()))?;
    let links = value["link"].as_array().map(Vec::as_slice).unwrap_or_default();
    let named = links.iter().find(|link| link["name"].as_str() == Some(name));
    match (named, links) {
        (Some(link), _) | (None, [link]) => Ok(link.as_object().cloned().unwrap_or_default()),
        (None, _) => Err(wrong(format!("it has no [[link]] with name = {name:?}"))),
    }
}

/// `key=value,key=value`. What the keys mean is the node's to judge.
fn rule(text: &str) -> Result<Value, Failure> {
    let mut rule = Map::new();
    for part in text.split(',') {
        let Some((key, value)) = part.split_once('=') else {
            return Err(Failure::cannot_start(format!(
                "{part:?} in {text:?} is not key=value; a rule is like stream=ORDERS or subject=cmd.>,queue=edge"
            )));
        };
        let value = match (key, value.parse::<u64>(), value.parse::<bool>()) {
            ("start_sequence", Ok(number), _) => json!(number),
            ("keep_sequence", _, Ok(truth)) => json!(truth),
            _ => json!(value),
        };
        if rule.insert(key.to_owned(), value).is_some() {
            return Err(Failure::cannot_start(format!("{key} stands twice in {text:?}")));
        }
    }
    Ok(Value::Object(rule))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_keys_and_values() {
        let read = rule("stream=ORDERS,start_sequence=7,to=a.$1").map_err(|e| e.message);
        assert_eq!(read, Ok(json!({ "stream": "ORDERS", "start_sequence": 7, "to": "a.$1" })));
        assert!(rule("ORDERS").is_err());
        assert!(rule("stream=A,stream=B").is_err());
    }
}
