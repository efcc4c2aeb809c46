//! The configuration keys, each written once: from this table come the TOML file, the `BEAMLOG_…`
//! variables, the flags of `serve`, `config show` and `docs/reference/config.md`.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::config::units::{ByteSize, Span};

/// What a key's value may be, besides what its type says.
#[derive(Clone, Copy, Debug)]
pub enum Bounds {
    /// Everything the type can say.
    Any,
    Count {
        min: u64,
        max: u64,
    },
    Size {
        min: u64,
        max: u64,
    },
    /// Milliseconds.
    Span {
        min: u64,
        max: u64,
    },
}

/// One row of the reference.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    pub name: &'static str,
    pub kind: &'static str,
    pub default: Option<&'static str>,
    pub bounds: Bounds,
    /// Absent flags keep secrets out of the process list.
    pub has_flag: bool,
    pub text: &'static [&'static str],
}

macro_rules! keys {
    (@default) => { None };
    (@default $default:literal) => { Some($default) };
    (@flag flag) => { true };
    (@flag no_flag) => { false };
    ($(
        $(#[doc = $text:literal])+
        $(#[arg($($arg:tt)*)])?
        $flag:ident $name:ident: $type:ty, $kind:literal $(= $default:literal)?, $bounds:expr;
    )*) => {
        /// One layer of configuration: what a file, the environment or the flags say. Nothing said is `None`.
        #[derive(Clone, Debug, Default, Deserialize, Serialize, clap::Args)]
        #[serde(deny_unknown_fields)]
        pub struct NodeConfig {
            $(
                $(#[doc = $text])+
                $(#[arg($($arg)*)])?
                #[serde(skip_serializing_if = "Option::is_none")]
                pub $name: Option<$type>,
            )*
        }

        impl NodeConfig {
            /// What this layer says, and below it what `lower` says.
            #[must_use]
            pub fn over(self, lower: Self) -> Self {
                Self { $($name: self.$name.or(lower.$name),)* }
            }

            /// The keys that this layer sets.
            #[must_use]
            pub fn said(&self) -> Vec<&'static str> {
                let mut said = Vec::new();
                $(if self.$name.is_some() { said.push(stringify!($name)); })*
                said
            }
        }

        pub static KEYS: &[Key] = &[$(
            Key {
                name: stringify!($name),
                kind: $kind,
                default: keys!(@default $($default)?),
                bounds: $bounds,
                has_flag: keys!(@flag $flag),
                text: &[$($text),+],
            },
        )*];
    };
}

const ANY: Bounds = Bounds::Any;
const MIB: u64 = 1 << 20;

keys! {
    /// Address of the NATS endpoint; port 0 takes a free one.
    #[arg(long, value_name = "IP:PORT")]
    flag listen: SocketAddr, "address" = "127.0.0.1:4222", ANY;
    /// Address of the admin HTTP server, or "off".
    #[arg(long, value_name = "IP:PORT|off")]
    flag admin: AdminAddress, "address or \"off\"" = "127.0.0.1:8222", ANY;
    /// Folder of the log and of everything derived from it.
    #[arg(long, value_name = "FOLDER")]
    flag data_dir: PathBuf, "path" = "./beamlog-data", ANY;
    /// Name that clients and monitoring see; made from the store's identity when absent.
    #[arg(long, value_name = "NAME")]
    flag server_name: String, "text", ANY;
    /// Log lines: text or json, on stderr.
    #[arg(long, value_name = "FORMAT")]
    flag log_format: LogFormat, "\"text\" or \"json\"" = "text", ANY;
    /// Least severe level that is logged.
    #[arg(long, value_name = "LEVEL")]
    flag log_level: LogLevel, "\"error\", \"warn\", \"info\", \"debug\" or \"trace\"" = "info", ANY;
    /// Allow an address other than loopback without authentication.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    flag insecure: bool, "boolean" = "false", ANY;
    /// User that clients log in as; needs auth_password or auth_password_file.
    #[arg(skip)]
    no_flag auth_user: String, "text", ANY;
    /// Password of auth_user.
    #[arg(skip)]
    no_flag auth_password: Secret, "secret text", ANY;
    /// File with the password of auth_user; one line.
    #[arg(long, value_name = "FILE")]
    flag auth_password_file: PathBuf, "path", ANY;
    /// Token that clients present instead of a user.
    #[arg(skip)]
    no_flag auth_token: Secret, "secret text", ANY;
    /// File with the token; one line.
    #[arg(long, value_name = "FILE")]
    flag auth_token_file: PathBuf, "path", ANY;
    /// How long a new connection may take to authenticate.
    #[arg(long, value_name = "DURATION")]
    flag auth_timeout: Span, "duration" = "2s", Bounds::Span { min: 10, max: 60_000 };
    /// Certificate chain in PEM; with tls_key_file it turns TLS on for every NATS client.
    #[arg(long, value_name = "FILE")]
    flag tls_cert_file: PathBuf, "path", ANY;
    /// Private key of the certificate, in PEM.
    #[arg(long, value_name = "FILE")]
    flag tls_key_file: PathBuf, "path", ANY;
    /// Certificate authorities of client certificates, in PEM; when set, clients must present one.
    #[arg(long, value_name = "FILE")]
    flag tls_client_ca_file: PathBuf, "path", ANY;
    /// Connections at a time; a further one is refused.
    #[arg(long, value_name = "COUNT")]
    flag connections_max: u32, "number" = "65536", Bounds::Count { min: 1, max: 1_000_000 };
    /// Largest headers + payload of a message.
    #[arg(long, value_name = "SIZE")]
    flag payload_bytes_max: ByteSize, "size" = "1MiB", Bounds::Size { min: 1024, max: 8 * MIB };
    /// Largest control line (verb, subject, reply, sizes).
    #[arg(long, value_name = "SIZE")]
    flag control_line_bytes_max: ByteSize, "size" = "4KiB", Bounds::Size { min: 512, max: MIB };
    /// What may wait in memory for one client that reads slowly; more, and it is disconnected.
    #[arg(long, value_name = "SIZE")]
    flag pending_bytes_max: ByteSize, "size" = "64MiB", Bounds::Size { min: MIB, max: 1024 * MIB };
    /// How long one write to a client may stall before it is disconnected.
    #[arg(long, value_name = "DURATION")]
    flag write_deadline: Span, "duration" = "10s", Bounds::Span { min: 100, max: 600_000 };
    /// Idle time after which a client is pinged.
    #[arg(long, value_name = "DURATION")]
    flag ping_interval: Span, "duration" = "2m", Bounds::Span { min: 100, max: 3_600_000 };
    /// Unanswered pings after which a client is disconnected.
    #[arg(long, value_name = "COUNT")]
    flag pings_outstanding_max: u32, "number" = "2", Bounds::Count { min: 1, max: 100 };
    /// Size at which a segment of the log is sealed.
    #[arg(long, value_name = "SIZE")]
    flag segment_bytes: ByteSize, "size" = "64MiB", Bounds::Size { min: 16 * MIB, max: 1024 * MIB };
    /// How long one search of the sealed log for damage takes; twice as long under load.
    #[arg(long, value_name = "DURATION")]
    flag scrub_period: Span, "duration" = "7d", Bounds::Span { min: 3_600_000, max: 365 * 86_400_000 };
    /// UDP address for the other nodes of a cluster; without it the node stands alone.
    #[arg(long, value_name = "IP:PORT")]
    flag cluster_listen: SocketAddr, "address", ANY;
    /// Folder with this node's certificate of the cluster, as `beamlog cert node` writes it.
    #[arg(long, value_name = "FOLDER")]
    flag cluster_certificates: PathBuf, "path", ANY;
    /// How other nodes reach cluster_listen (host:port); cluster_listen itself when absent.
    #[arg(long, value_name = "HOST:PORT")]
    flag cluster_advertise: String, "text", ANY;
    /// How clients reach this node (host:port), which the nodes of its cluster tell theirs; listen when absent.
    #[arg(long, value_name = "HOST:PORT")]
    flag client_advertise: String, "text", ANY;
    /// Nodes through which this one joins its cluster (host:port, with commas between); when absent it begins one.
    #[arg(long, value_name = "HOST:PORT,…")]
    flag cluster_join: String, "text", ANY;
    /// Vote in the cluster and keep no messages; needs cluster_join and the certificate of a witness.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    flag witness: bool, "boolean" = "false", ANY;
    /// UDP address where edges connect, whose links name this node by quic://; without it none does.
    #[arg(long, value_name = "IP:PORT")]
    flag edge_listen: SocketAddr, "address", ANY;
    /// Folder with this node's certificate for edges, as `beamlog cert node` writes it; cluster_certificates when absent.
    #[arg(long, value_name = "FOLDER")]
    flag edge_certificates: PathBuf, "path", ANY;
    /// Decide, assign and meter tasks: the subjects beamline.router.v1.* and caf.exec.* are served.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    flag tasks: bool, "boolean" = "false", ANY;
    /// Folder of policies, FOLDER/TENANT/POLICY.json, put in place at the start; tenant "_all" is everybody.
    #[arg(long, value_name = "FOLDER")]
    flag tasks_policies: PathBuf, "path", ANY;
    /// Take requests only as the documents say, not as today's programs send them.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    flag tasks_strict: bool, "boolean" = "false", ANY;
    /// Tasks without a result at a time; beyond, those that expire first are shed, each with a dead letter.
    #[arg(long, value_name = "COUNT")]
    flag tasks_open_max: u32, "number" = "100000", Bounds::Count { min: 1, max: 10_000_000 };
    /// Token that control commands (beamline.router.control.v1.*) must show; without one they need none.
    #[arg(skip)]
    no_flag tasks_control_token: Secret, "secret text", ANY;
    /// File with that token; one line.
    #[arg(long, value_name = "FILE")]
    flag tasks_control_token_file: PathBuf, "path", ANY;
    /// Tenant of control commands that name none.
    #[arg(long, value_name = "TENANT")]
    flag tasks_control_tenant: String, "text", ANY;
    /// Address where gateways ask whether tasks are overloaded.
    #[arg(long, value_name = "IP:PORT")]
    flag tasks_backpressure: SocketAddr, "address", ANY;
    /// Address of BeamLine's REST gateway, built in; needs tasks.
    #[arg(long, value_name = "IP:PORT")]
    flag gateway: SocketAddr, "address", ANY;
    /// Ask for an Authorization header with requests for decisions; what is in it is not looked at.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    flag gateway_authorization: bool, "boolean" = "false", ANY;
    /// Requests for decisions that a tenant may make at the gateway in one gateway_limit_window.
    #[arg(long, value_name = "COUNT")]
    flag gateway_limit_decide: u32, "number" = "50", Bounds::Count { min: 1, max: 1_000_000_000 };
    /// The same for messages.
    #[arg(long, value_name = "COUNT")]
    flag gateway_limit_messages: u32, "number" = "100", Bounds::Count { min: 1, max: 1_000_000_000 };
    /// The same for the registry of blocks.
    #[arg(long, value_name = "COUNT")]
    flag gateway_limit_registry: u32, "number" = "200", Bounds::Count { min: 1, max: 1_000_000_000 };
    /// The same for all other routes of the API.
    #[arg(long, value_name = "COUNT")]
    flag gateway_limit_other: u32, "number" = "1000", Bounds::Count { min: 1, max: 1_000_000_000 };
    /// How long requests are counted together by the gateway's limits.
    #[arg(long, value_name = "DURATION")]
    flag gateway_limit_window: Span, "duration" = "60s", Bounds::Span { min: 1_000, max: 86_400_000 };
    /// Address of BeamLine's gRPC services, Router and RouterAdmin; needs tasks.
    #[arg(long, value_name = "IP:PORT")]
    flag grpc: SocketAddr, "address", ANY;
    /// Key that callers of RouterAdmin show; without one nobody may call it.
    #[arg(skip)]
    no_flag grpc_admin_key: Secret, "secret text", ANY;
    /// File with that key; one line.
    #[arg(long, value_name = "FILE")]
    flag grpc_admin_key_file: PathBuf, "path", ANY;
    /// Collector that gets the spans of tasks, as OTLP over HTTP: http://HOST:PORT; without it there are none.
    #[arg(long, value_name = "URL")]
    flag otlp_endpoint: String, "url", ANY;
    /// How long a stopping node waits for its clients to take what is theirs.
    #[arg(long, value_name = "DURATION")]
    flag drain_timeout: Span, "duration" = "10s", Bounds::Span { min: 0, max: 600_000 };
}

/// Where the admin server listens, if it does.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct AdminAddress(pub Option<SocketAddr>);

impl FromStr for AdminAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self(None)),
            address => match address.parse() {
                Ok(address) => Ok(Self(Some(address))),
                Err(_) => Err(format!("{text:?} is neither an IP address with a port nor \"off\"")),
            },
        }
    }
}

impl TryFrom<String> for AdminAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<AdminAddress> for String {
    fn from(address: AdminAddress) -> Self {
        address.0.map_or_else(|| "off".to_owned(), |address| address.to_string())
    }
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

/// A text that never shows itself: not in logs, not in `config show`, not in errors.
#[derive(Clone, Deserialize, Eq, PartialEq)]
#[serde(transparent)]
pub struct Secret(pub String);

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("(hidden)")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}
