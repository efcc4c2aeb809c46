//! From layers of text to options that a node can start with, or to every reason why not.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::cluster::ClusterOptions;
use crate::config::edges;
use crate::config::error::ConfigError;
use crate::config::keys::{Bounds, KEYS, LogFormat, LogLevel, NodeConfig, Secret};
use crate::config::links::{self, LinkTable, Variables};
use crate::config::sources::Layers;
use crate::config::units::{ByteSize, Span};
use crate::edges::HubOptions;
use crate::gateway::{GatewayLimits, GatewayOptions};
use crate::grpc::GrpcOptions;
use crate::otlp::Endpoint;

/// How clients prove who they are.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Authentication {
    #[default]
    None,
    User {
        user: String,
        password: Secret,
    },
    Token(Secret),
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TlsFiles {
    pub certificates: PathBuf,
    pub key: PathBuf,
    pub client_authorities: Option<PathBuf>,
}

/// Tasks, where they are served.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TasksOptions {
    /// Folder of policies.
    pub policies: Option<PathBuf>,
    pub strict: bool,
    /// Tasks without a result at a time.
    pub open_max: u32,
    /// Where spans go, if they go anywhere.
    pub spans: Option<Endpoint>,
    /// Where gateways ask for back-pressure.
    pub backpressure: Option<SocketAddr>,
    /// What control commands must show, if anything.
    pub control_token: Option<Secret>,
    /// Their tenant when they name none.
    pub control_tenant: Option<String>,
}

/// What a [`crate::Node`] is started with. `NodeOptions::default()` is `beamlog serve` without flags.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    pub listen: SocketAddr,
    /// `None` starts no admin server.
    pub admin: Option<SocketAddr>,
    pub data_dir: PathBuf,
    /// `None` takes a name made from the store's identity.
    pub server_name: Option<String>,
    pub authentication: Authentication,
    pub auth_timeout: Duration,
    pub tls: Option<TlsFiles>,
    pub connections_max: u32,
    pub payload_bytes_max: usize,
    pub control_line_bytes_max: usize,
    pub pending_bytes_max: usize,
    pub write_deadline: Duration,
    pub ping_interval: Duration,
    pub pings_outstanding_max: u32,
    pub segment_bytes: u64,
    pub scrub_period: Duration,
    /// `None` stands alone.
    pub cluster: Option<ClusterOptions>,
    /// It votes in its cluster and keeps no messages: clients, links, tasks and everything about them are not there.
    pub witness: bool,
    /// `None` is no hub.
    pub hub: Option<HubOptions>,
    pub drain_timeout: Duration,
    /// `None` serves no tasks.
    pub tasks: Option<TasksOptions>,
    /// `None` starts no gateway; it needs tasks.
    pub gateway: Option<GatewayOptions>,
    /// `None` serves no gRPC; it needs tasks.
    pub grpc: Option<GrpcOptions>,
    pub log_format: LogFormat,
    pub log_level: LogLevel,
    /// Links of the configuration; the data directory may have more.
    pub links: Vec<LinkTable>,
    /// What `…_env` keys of links are looked up in.
    pub variables: Variables,
}

impl Default for NodeOptions {
    fn default() -> Self {
        let layers = Layers::gather(None, &Default::default(), NodeConfig::default())
            .expect("without a file and variables there is nothing to refuse");
        Self::resolve(&layers).expect("the defaults are inside their own bounds")
    }
}

impl NodeOptions {
    /// Checks every value and every combination.
    ///
    /// # Errors
    /// All that is wrong, not only the first.
    pub fn resolve(layers: &Layers) -> Result<Self, Vec<ConfigError>> {
        let config = layers.merged();
        let mut errors = out_of_range(&config, layers);
        let tls = tls(&config, &mut errors);
        let authentication = authentication(&config, &mut errors);
        if let Some(name) = &config.server_name
            && (name.is_empty() || name.contains(char::is_whitespace))
        {
            errors.push(ConfigError::Invalid {
                key: "server_name",
                problem: "must not be empty or contain white space",
            });
        }
        let cluster = cluster(&config, &mut errors);
        let hub = hub(&config, layers, &mut errors);
        let tasks = tasks(&config, &mut errors);
        let gateway = gateway(&config, &mut errors);
        let witness = witness(&config, cluster.as_ref(), layers, &mut errors);
        let grpc = grpc(&config, &mut errors);
        let listen = config.listen.expect("has a default");
        let admin = config.admin.expect("has a default").0;
        if !config.insecure.unwrap_or(false) {
            if !witness && !listen.ip().is_loopback() && authentication == Authentication::None {
                errors.push(ConfigError::OpenWithoutAuthentication { address: listen });
            }
            if let Some(address) = admin.filter(|address| !address.ip().is_loopback()) {
                errors.push(ConfigError::AdminOpen { address });
            }
            if let Some(GatewayOptions { listen, .. }) = gateway
                && !listen.ip().is_loopback()
            {
                errors.push(ConfigError::GatewayOpen { key: "gateway", address: listen });
            }
            if let Some(GrpcOptions { listen, .. }) = grpc
                && !listen.ip().is_loopback()
            {
                errors.push(ConfigError::GatewayOpen { key: "grpc", address: listen });
            }
        }
        let links = links(layers, &mut errors);
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Self {
            listen,
            admin,
            data_dir: config.data_dir.expect("has a default"),
            server_name: config.server_name,
            authentication,
            auth_timeout: span(config.auth_timeout),
            tls,
            connections_max: config.connections_max.expect("has a default"),
            payload_bytes_max: size(config.payload_bytes_max),
            control_line_bytes_max: size(config.control_line_bytes_max),
            pending_bytes_max: size(config.pending_bytes_max),
            write_deadline: span(config.write_deadline),
            ping_interval: span(config.ping_interval),
            pings_outstanding_max: config.pings_outstanding_max.expect("has a default"),
            segment_bytes: config.segment_bytes.expect("has a default").0,
            scrub_period: span(config.scrub_period),
            cluster,
            witness,
            hub,
            drain_timeout: span(config.drain_timeout),
            tasks,
            gateway,
            grpc,
            log_format: config.log_format.unwrap_or_default(),
            log_level: config.log_level.unwrap_or_default(),
            links,
            variables: layers.variables().clone(),
        })
    }
}

fn links(layers: &Layers, errors: &mut Vec<ConfigError>) -> Vec<LinkTable> {
    let links = match layers.links() {
        Ok(links) => links,
        Err(more) => {
            errors.extend(more.into_iter().map(Box::new).map(ConfigError::Link));
            return Vec::new();
        }
    };
    let mut refused = links::check(&links);
    // What is refused already would be refused again, in other words.
    if refused.is_empty() {
        refused
            .extend(links.iter().filter_map(|link| links::resolve(link, layers.variables()).err()).flatten());
    }
    errors.extend(refused.into_iter().map(Box::new).map(ConfigError::Link));
    links
}

/// Tasks, if they are served; all of their keys need `tasks`.
fn tasks(config: &NodeConfig, errors: &mut Vec<ConfigError>) -> Option<TasksOptions> {
    let (token, file) = (&config.tasks_control_token, &config.tasks_control_token_file);
    let control_token = secret("tasks_control_token", token, "tasks_control_token_file", file, errors);
    let mut invalid = |key, problem| errors.push(ConfigError::Invalid { key, problem });
    if !config.tasks.unwrap_or(false) {
        for (key, is_said) in [
            ("tasks_policies", config.tasks_policies.is_some()),
            ("tasks_strict", config.tasks_strict == Some(true)),
            ("tasks_backpressure", config.tasks_backpressure.is_some()),
            ("tasks_control_token", token.is_some() || file.is_some()),
            ("tasks_control_tenant", config.tasks_control_tenant.is_some()),
            ("otlp_endpoint", config.otlp_endpoint.is_some()),
        ] {
            if is_said {
                invalid(key, "needs tasks");
            }
        }
        return None;
    }
    let spans = config.otlp_endpoint.as_deref().and_then(|url| {
        let endpoint = Endpoint::parse(url);
        if endpoint.is_none() {
            invalid("otlp_endpoint", "is not http://HOST:PORT");
        }
        endpoint
    });
    Some(TasksOptions {
        policies: config.tasks_policies.clone(),
        strict: config.tasks_strict.unwrap_or(false),
        open_max: config.tasks_open_max.expect("has a default"),
        spans,
        backpressure: config.tasks_backpressure,
        control_token,
        control_tenant: config.tasks_control_tenant.clone(),
    })
}

/// What edges find here, if they are to find something; all of its keys, and `[[edge]]`, need `edge_listen`.
fn hub(config: &NodeConfig, layers: &Layers, errors: &mut Vec<ConfigError>) -> Option<HubOptions> {
    let edges = edges::grants(layers.edges(), errors);
    let mut invalid = |key, problem| errors.push(ConfigError::Invalid { key, problem });
    let Some(listen) = config.edge_listen else {
        if config.edge_certificates.is_some() {
            invalid("edge_certificates", "needs edge_listen");
        }
        if !layers.edges().is_empty() {
            invalid("[[edge]]", "needs edge_listen");
        }
        return None;
    };
    if config.cluster_listen == Some(listen) && listen.port() != 0 {
        invalid("edge_listen", "must differ from cluster_listen");
    }
    let Some(certificates) = config.edge_certificates.clone().or_else(|| config.cluster_certificates.clone())
    else {
        invalid("edge_certificates", "is needed with edge_listen: `beamlog cert node` makes the folder");
        return None;
    };
    Some(HubOptions { listen, certificates, edges })
}

/// The gateway, if there is to be one.
fn gateway(config: &NodeConfig, errors: &mut Vec<ConfigError>) -> Option<GatewayOptions> {
    let listen = config.gateway?;
    if !config.tasks.unwrap_or(false) {
        errors.push(ConfigError::Invalid { key: "gateway", problem: "needs tasks" });
    }
    let count = |value: Option<u32>| value.expect("has a default");
    Some(GatewayOptions {
        listen,
        authorization: config.gateway_authorization.unwrap_or(false),
        limits: GatewayLimits {
            decide: count(config.gateway_limit_decide),
            messages: count(config.gateway_limit_messages),
            registry: count(config.gateway_limit_registry),
            other: count(config.gateway_limit_other),
            window: config.gateway_limit_window.expect("has a default").0,
        },
    })
}

/// Whether this is a witness, which has a cluster that it joins, and nothing else.
fn witness(
    config: &NodeConfig,
    cluster: Option<&ClusterOptions>,
    layers: &Layers,
    errors: &mut Vec<ConfigError>,
) -> bool {
    if !config.witness.unwrap_or(false) {
        return false;
    }
    let mut invalid = |key, problem| errors.push(ConfigError::Invalid { key, problem });
    if cluster.is_none_or(|cluster| cluster.join.is_empty()) {
        invalid("witness", "needs cluster_listen and cluster_join: a witness begins no cluster");
    }
    for (key, is_said) in [
        ("tasks", config.tasks == Some(true)),
        ("gateway", config.gateway.is_some()),
        ("edge_listen", config.edge_listen.is_some()),
        ("[[link]]", layers.links().is_ok_and(|links| !links.is_empty())),
    ] {
        if is_said {
            invalid(key, "is not for a witness, which keeps no messages");
        }
    }
    true
}

/// gRPC, if it is to be served.
fn grpc(config: &NodeConfig, errors: &mut Vec<ConfigError>) -> Option<GrpcOptions> {
    let (key, file) = (&config.grpc_admin_key, &config.grpc_admin_key_file);
    let admin_key = secret("grpc_admin_key", key, "grpc_admin_key_file", file, errors);
    let Some(listen) = config.grpc else {
        if key.is_some() || file.is_some() {
            errors.push(ConfigError::Invalid { key: "grpc_admin_key", problem: "needs grpc" });
        }
        return None;
    };
    if !config.tasks.unwrap_or(false) {
        errors.push(ConfigError::Invalid { key: "grpc", problem: "needs tasks" });
    }
    Some(GrpcOptions { listen, admin_key })
}

/// The cluster, if there is to be one; all of its keys need `cluster_listen`.
fn cluster(config: &NodeConfig, errors: &mut Vec<ConfigError>) -> Option<ClusterOptions> {
    let mut invalid = |key, problem| errors.push(ConfigError::Invalid { key, problem });
    let Some(listen) = config.cluster_listen else {
        let others = [
            ("cluster_certificates", config.cluster_certificates.is_some()),
            ("cluster_advertise", config.cluster_advertise.is_some()),
            ("client_advertise", config.client_advertise.is_some()),
            ("cluster_join", config.cluster_join.is_some()),
        ];
        for (key, _) in others.into_iter().filter(|(_, said)| *said) {
            invalid(key, "needs cluster_listen");
        }
        return None;
    };
    let is_address = |text: &str| {
        text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
    };
    if config.cluster_advertise.as_deref().is_some_and(|address| !is_address(address)) {
        invalid("cluster_advertise", "must be host:port");
    }
    if config.client_advertise.as_deref().is_some_and(|address| !is_address(address)) {
        invalid("client_advertise", "must be host:port");
    }
    if config.cluster_advertise.is_none() && listen.ip().is_unspecified() {
        invalid("cluster_advertise", "is needed when cluster_listen is every address of the machine");
    }
    let join: Vec<String> = config
        .cluster_join
        .iter()
        .flat_map(|text| text.split(','))
        .map(|address| address.trim().to_owned())
        .filter(|address| !address.is_empty())
        .collect();
    if !join.iter().all(|address| is_address(address)) {
        invalid("cluster_join", "must be host:port, with commas between several");
    }
    let Some(certificates) = config.cluster_certificates.clone() else {
        invalid(
            "cluster_certificates",
            "is needed with cluster_listen: `beamlog cert node` makes the folder",
        );
        return None;
    };
    let advertise = config.cluster_advertise.clone();
    let clients = config.client_advertise.clone().or_else(|| clients(config, listen, advertise.as_deref()));
    Some(ClusterOptions { listen, advertise, clients, certificates, join })
}

/// Where clients reach a node that was not told: where it listens, or its peers' host if that is every address.
fn clients(config: &NodeConfig, cluster: SocketAddr, advertise: Option<&str>) -> Option<String> {
    // Of a port that the system chooses nobody can be told before.
    let listen = config.listen.filter(|listen| listen.port() != 0)?;
    if !listen.ip().is_unspecified() {
        return Some(listen.to_string());
    }
    let peers = advertise.map_or_else(|| cluster.to_string(), str::to_owned);
    let (host, _port) = peers.rsplit_once(':')?;
    Some(format!("{host}:{}", listen.port()))
}

fn span(span: Option<Span>) -> Duration {
    span.expect("has a default").0
}

fn size(size: Option<ByteSize>) -> usize {
    usize::try_from(size.expect("has a default").0).expect("bounds fit a usize of 32 bits")
}

fn out_of_range(config: &NodeConfig, layers: &Layers) -> Vec<ConfigError> {
    let values = toml::Table::try_from(config).expect("a configuration is a table");
    let mut errors = Vec::new();
    for key in KEYS {
        let Some(value) = values.get(key.name) else { continue };
        let text = value.as_str().unwrap_or_default();
        let (fits, min, max) = match key.bounds {
            Bounds::Any => continue,
            Bounds::Count { min, max } => {
                let actual = value.as_integer().and_then(|n| u64::try_from(n).ok());
                (is_inside(actual, min, max), min.to_string(), max.to_string())
            }
            Bounds::Size { min, max } => {
                let actual = text.parse::<ByteSize>().ok().map(|size| size.0);
                (is_inside(actual, min, max), ByteSize(min).to_string(), ByteSize(max).to_string())
            }
            Bounds::Span { min, max } => {
                let actual =
                    text.parse::<Span>().ok().and_then(|span| u64::try_from(span.0.as_millis()).ok());
                let shown = |millis| Span(Duration::from_millis(millis)).to_string();
                (is_inside(actual, min, max), shown(min), shown(max))
            }
        };
        if !fits {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let origin = layers.origin(key.name);
            errors.push(ConfigError::OutOfRange { key: key.name, value, origin, min, max });
        }
    }
    errors
}

fn is_inside(actual: Option<u64>, min: u64, max: u64) -> bool {
    actual.is_some_and(|actual| (min..=max).contains(&actual))
}

fn tls(config: &NodeConfig, errors: &mut Vec<ConfigError>) -> Option<TlsFiles> {
    let client_authorities = config.tls_client_ca_file.clone();
    match (&config.tls_cert_file, &config.tls_key_file) {
        (Some(certificates), Some(key)) => {
            Some(TlsFiles { certificates: certificates.clone(), key: key.clone(), client_authorities })
        }
        (Some(_), None) => {
            errors.push(ConfigError::Incomplete { key: "tls_cert_file", missing: "tls_key_file" });
            None
        }
        (None, Some(_)) => {
            errors.push(ConfigError::Incomplete { key: "tls_key_file", missing: "tls_cert_file" });
            None
        }
        (None, None) => {
            if client_authorities.is_some() {
                errors.push(ConfigError::Incomplete { key: "tls_client_ca_file", missing: "tls_cert_file" });
            }
            None
        }
    }
}

fn authentication(config: &NodeConfig, errors: &mut Vec<ConfigError>) -> Authentication {
    let password = secret(
        "auth_password",
        &config.auth_password,
        "auth_password_file",
        &config.auth_password_file,
        errors,
    );
    let token = secret("auth_token", &config.auth_token, "auth_token_file", &config.auth_token_file, errors);
    match (config.auth_user.clone(), password, token) {
        (None, None, None) => Authentication::None,
        (None, None, Some(token)) => Authentication::Token(token),
        (Some(user), Some(password), None) => Authentication::User { user, password },
        (Some(_), _, Some(_)) | (None, Some(_), Some(_)) => {
            errors.push(ConfigError::Conflict { first: "auth_user", second: "auth_token" });
            Authentication::None
        }
        (Some(_), None, None) => {
            errors.push(ConfigError::Incomplete { key: "auth_user", missing: "auth_password_file" });
            Authentication::None
        }
        (None, Some(_), None) => {
            errors.push(ConfigError::Incomplete { key: "auth_password", missing: "auth_user" });
            Authentication::None
        }
    }
}

fn secret(
    key: &'static str,
    value: &Option<Secret>,
    file_key: &'static str,
    file: &Option<PathBuf>,
    errors: &mut Vec<ConfigError>,
) -> Option<Secret> {
    match (value, file) {
        (None, None) => None,
        (Some(_), Some(_)) => {
            errors.push(ConfigError::Conflict { first: key, second: file_key });
            None
        }
        (Some(value), None) if value.0.is_empty() => {
            errors.push(ConfigError::Invalid { key, problem: "must not be empty" });
            None
        }
        (Some(value), None) => Some(value.clone()),
        (None, Some(path)) => match fs::read_to_string(path) {
            Ok(text) if text.trim_end().is_empty() => {
                errors.push(ConfigError::SecretEmpty { key: file_key, path: path.clone() });
                None
            }
            Ok(text) => Some(Secret(text.trim_end().to_owned())),
            Err(source) => {
                errors.push(ConfigError::SecretUnreadable { key: file_key, path: path.clone(), source });
                None
            }
        },
    }
}
