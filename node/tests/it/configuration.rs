//! Where configuration comes from, what wins, and how each mistake is named.

use std::fs;
use std::time::Duration;

use beamlog::config::{
    AdminAddress, Authentication, ByteSize, Environment, KEYS, Layers, LogFormat, NodeConfig, NodeOptions,
    Origin, Span,
};
use tempfile::TempDir;

fn environment(variables: &[(&str, &str)]) -> Environment {
    variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Resolves a file's text, variables and flags; errors as the lines a user reads.
fn resolve(file: &str, variables: &[(&str, &str)], flags: NodeConfig) -> Result<NodeOptions, Vec<String>> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("node.toml");
    fs::write(&path, file).unwrap();
    let layers = Layers::gather(Some(&path), &environment(variables), flags)
        .map_err(|e| vec![e.to_string().replace(path.to_str().unwrap(), "node.toml")])?;
    NodeOptions::resolve(&layers).map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

/// What is refused is refused with these words.
fn check_refused(file: &str, variables: &[(&str, &str)], words: &[&str]) {
    let errors = resolve(file, variables, NodeConfig::default()).unwrap_err();
    for word in words {
        assert!(errors.iter().any(|error| error.contains(word)), "{word:?} is not in {errors:?}");
    }
}

#[test]
fn nothing_said_is_a_node_on_loopback() {
    let options = NodeOptions::default();
    assert_eq!(options.listen, "127.0.0.1:4222".parse().unwrap());
    assert_eq!(options.admin, Some("127.0.0.1:8222".parse().unwrap()));
    assert_eq!(options.data_dir, std::path::Path::new("./beamlog-data"));
    assert_eq!(options.authentication, Authentication::None);
    assert_eq!(options.payload_bytes_max, 1 << 20);
}

#[test]
fn flags_win_over_variables_over_the_file_over_defaults() {
    let file = "[node]\nlisten = \"127.0.0.1:1\"\nwrite_deadline = \"1s\"\nlog_format = \"json\"\n";
    let variables = [("BEAMLOG_LISTEN", "127.0.0.1:2"), ("BEAMLOG_WRITE_DEADLINE", "2s")];
    let flags = NodeConfig { listen: Some("127.0.0.1:3".parse().unwrap()), ..Default::default() };
    let options = resolve(file, &variables, flags).unwrap();
    assert_eq!(options.listen.port(), 3);
    assert_eq!(options.write_deadline, Duration::from_secs(2));
    assert_eq!(options.log_format, LogFormat::Json);
    assert_eq!(options.ping_interval, Duration::from_secs(120));
}

#[test]
fn the_origin_of_each_value_is_known() {
    let variables = environment(&[("BEAMLOG_ADMIN", "off")]);
    let flags = NodeConfig { segment_bytes: Some(ByteSize(32 << 20)), ..Default::default() };
    let layers = Layers::gather(None, &variables, flags).unwrap();
    assert_eq!(layers.merged().admin, Some(AdminAddress(None)));
    assert_eq!(layers.origin("admin"), Origin::Environment);
    assert_eq!(layers.origin("segment_bytes"), Origin::Flag);
    assert_eq!(layers.origin("listen"), Origin::Default);
}

#[test]
fn every_key_has_a_variable() {
    for key in KEYS {
        let value = match (key.default, key.kind) {
            (Some(default), _) => default,
            (None, "address") => "127.0.0.1:1",
            (None, _) => "some-text",
        };
        let variable = format!("BEAMLOG_{}", key.name.to_uppercase());
        let layers = Layers::gather(None, &environment(&[(&variable, value)]), NodeConfig::default());
        let layers = layers.unwrap_or_else(|e| panic!("{variable}={value}: {e}"));
        assert_eq!(layers.origin(key.name), Origin::Environment, "{variable}");
    }
}

#[test]
fn a_misspelt_key_is_an_error_that_names_it() {
    check_refused("[node]\nlistne = \"127.0.0.1:1\"\n", &[], &["node.toml", "line 2", "listne"]);
    check_refused("[nod]\n", &[], &["nod"]);
    check_refused("", &[("BEAMLOG_LISTNE", "x")], &["BEAMLOG_LISTNE", "did you mean BEAMLOG_LISTEN?"]);
    check_refused("", &[("BEAMLOG_XYZZY", "x")], &["BEAMLOG_XYZZY is not a configuration key;"]);
}

#[test]
fn a_value_of_the_wrong_kind_is_an_error_that_names_it() {
    check_refused("[node]\nlisten = 4222\n", &[], &["line 2"]);
    check_refused("[node]\nlisten = \"4222\"\n", &[], &["line 2", "socket address"]);
    check_refused("[node]\nsegment_bytes = \"64MB\"\n", &[], &["64MB", "MiB"]);
    check_refused("[node]\nwrite_deadline = \"10\"\n", &[], &["\"10\" is not a duration"]);
    check_refused("not toml", &[], &["node.toml"]);
    check_refused(
        "",
        &[("BEAMLOG_WRITE_DEADLINE", "soon")],
        &["BEAMLOG_WRITE_DEADLINE", "\"soon\" is not a duration"],
    );
    check_refused("", &[("BEAMLOG_CONNECTIONS_MAX", "many")], &["BEAMLOG_CONNECTIONS_MAX", "whole number"]);
    check_refused("", &[("BEAMLOG_INSECURE", "yes")], &["BEAMLOG_INSECURE", "neither true nor false"]);
    check_refused("", &[("BEAMLOG_LOG_FORMAT", "xml")], &["BEAMLOG_LOG_FORMAT", "xml"]);
}

#[test]
fn every_bound_is_held_and_named() {
    for key in KEYS {
        use beamlog::config::Bounds;
        let (inside, outside) = match key.bounds {
            Bounds::Any => continue,
            Bounds::Count { min, max } => {
                ([min.to_string(), max.to_string()], [(min - 1).to_string(), (max + 1).to_string()])
            }
            Bounds::Size { min, max } => (
                [ByteSize(min).to_string(), ByteSize(max).to_string()],
                [ByteSize(min - 1).to_string(), ByteSize(max + 1).to_string()],
            ),
            Bounds::Span { min, max } => {
                let text = |millis| Span(Duration::from_millis(millis)).to_string();
                ([text(min), text(max)], [text(min.saturating_sub(1)), text(max + 1)])
            }
        };
        let variable = format!("BEAMLOG_{}", key.name.to_uppercase());
        for value in &inside {
            resolve("", &[(&variable, value)], NodeConfig::default()).unwrap();
        }
        for value in outside.iter().filter(|value| !inside.contains(value)) {
            check_refused(
                "",
                &[(&variable, value)],
                &[&format!("{} = {value} (environment) is out of range", key.name)],
            );
        }
    }
}

#[test]
fn an_open_address_needs_authentication_or_an_explicit_wish() {
    let open = ("BEAMLOG_LISTEN", "0.0.0.0:4222");
    check_refused("", &[open], &["--insecure", "0.0.0.0:4222"]);
    check_refused("", &[("BEAMLOG_ADMIN", "[::]:8222")], &["admin = [::]:8222"]);
    let allowed = |variables: &[(&str, &str)]| resolve("", variables, NodeConfig::default()).unwrap();
    allowed(&[open, ("BEAMLOG_INSECURE", "true")]);
    allowed(&[open, ("BEAMLOG_AUTH_TOKEN", "secret")]);
    allowed(&[open, ("BEAMLOG_AUTH_USER", "joe"), ("BEAMLOG_AUTH_PASSWORD", "secret")]);
}

#[test]
fn what_belongs_together_comes_together() {
    check_refused("", &[("BEAMLOG_AUTH_USER", "joe")], &["auth_user is set, auth_password_file is not"]);
    check_refused("", &[("BEAMLOG_AUTH_PASSWORD", "x")], &["auth_user is not"]);
    check_refused("", &[("BEAMLOG_TLS_CERT_FILE", "c.pem")], &["tls_key_file is not"]);
    check_refused("", &[("BEAMLOG_TLS_KEY_FILE", "k.pem")], &["tls_cert_file is not"]);
    check_refused("", &[("BEAMLOG_TLS_CLIENT_CA_FILE", "a.pem")], &["tls_cert_file is not"]);
    let all = [("BEAMLOG_AUTH_USER", "j"), ("BEAMLOG_AUTH_PASSWORD", "p"), ("BEAMLOG_AUTH_TOKEN", "t")];
    check_refused("", &all, &["auth_user and auth_token are both set"]);
    check_refused("", &[("BEAMLOG_AUTH_TOKEN", "")], &["auth_token: must not be empty"]);
    check_refused("", &[("BEAMLOG_SERVER_NAME", "a b")], &["server_name"]);
}

#[test]
fn all_mistakes_are_told_at_once() {
    let variables = [
        ("BEAMLOG_SEGMENT_BYTES", "1KiB"),
        ("BEAMLOG_PINGS_OUTSTANDING_MAX", "0"),
        ("BEAMLOG_AUTH_USER", "j"),
    ];
    assert_eq!(resolve("", &variables, NodeConfig::default()).unwrap_err().len(), 3);
}

#[test]
fn a_secret_comes_from_a_file_and_is_never_shown() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("token");
    fs::write(&path, "s3cret-token\n").unwrap();
    let variables = [("BEAMLOG_AUTH_TOKEN_FILE", path.to_str().unwrap())];
    let options = resolve("", &variables, NodeConfig::default()).unwrap();
    let Authentication::Token(token) = &options.authentication else { panic!("no token") };
    assert_eq!(token.0, "s3cret-token");
    assert!(!format!("{options:?}").contains("s3cret"));
    let layers =
        Layers::gather(None, &environment(&[("BEAMLOG_AUTH_TOKEN", "s3cret")]), NodeConfig::default())
            .unwrap();
    assert!(!format!("{layers:?}").contains("s3cret"));
    assert!(!serde_json::to_string(&layers.merged()).unwrap().contains("s3cret"));
    fs::write(&path, "\n").unwrap();
    check_refused("", &variables, &["auth_token_file", "is empty"]);
    check_refused("", &[("BEAMLOG_AUTH_TOKEN_FILE", "/nowhere/token")], &["/nowhere/token"]);
}
