//! `[[link]]`: what is understood, and how each mistake is named.

use std::fs;

use beamlog::config::links::{LINK_KEYS, LinkTable, REQUEST_KEYS, RULE_KEYS};
use beamlog::config::{Environment, Layers, NodeConfig, NodeOptions};
use tempfile::TempDir;

fn resolve(file: &str, variables: &[(&str, &str)]) -> Result<NodeOptions, Vec<String>> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("node.toml");
    fs::write(&path, file).unwrap();
    let environment: Environment =
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let layers =
        Layers::gather(Some(&path), &environment, NodeConfig::default()).map_err(|e| vec![e.to_string()])?;
    NodeOptions::resolve(&layers).map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

/// A link named `core` with these lines more.
fn link(lines: &str) -> String {
    format!("[[link]]\nname = \"core\"\nurls = [\"nats://127.0.0.1:4222\"]\n{lines}\n")
}

/// The only error has all these words.
fn check_refused(file: &str, words: &[&str]) {
    let errors = resolve(file, &[]).unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:?}");
    for word in words {
        assert!(errors[0].contains(word), "{word:?} is not in {errors:?}");
    }
}

fn check_taken(file: &str) {
    if let Err(errors) = resolve(file, &[]) {
        panic!("{file}: {errors:?}");
    }
}

#[test]
fn the_example_of_the_reference_is_understood() {
    let page = beamlog::config::reference::markdown();
    let example = page.split("```toml\n").nth(3).unwrap().split("```").next().unwrap();
    let folder = TempDir::new().unwrap();
    let creds = folder.path().join("core.creds");
    fs::write(&creds, "x").unwrap();
    let example = example.replace("core.creds", creds.to_str().unwrap());
    let options = resolve(&example, &[]).unwrap();
    let link = &options.links[0];
    assert_eq!((link.import.len(), link.export.len(), link.requests.len()), (3, 3, 1));
    assert_eq!(link.export[0].to.as_deref(), Some("telemetry.site7.>"));
}

#[test]
fn every_key_is_one_that_a_table_reads_back() {
    let file = "name = \"a\"\nurls = [\"nats://h:1\"]\nuser = \"u\"\npassword_file = \"f\"\npassword_env = \"v\"\n\
        token_file = \"f\"\ntoken_env = \"v\"\nnkey_file = \"f\"\nnkey_env = \"v\"\ncreds_file = \"f\"\n\
        creds_env = \"v\"\ntls_ca_file = \"f\"\ntls_cert_file = \"f\"\ntls_key_file = \"f\"\ntls_first = true\n\
        certificates = \"f\"\n\
        domain = \"d\"\napi_prefix = \"p\"\nbytes_per_second = \"1MiB\"\npaused = true\n\
        import = [{ stream = \"S\", subject = \"s\", bucket = \"b\", as = \"t\", filter = \"f\", to = \"t\", \
        queue = \"q\", start = \"all\", start_sequence = 1, start_time = \"t\", keep_sequence = true, \
        conflict = \"here\" }]\nexport = [{ bucket = \"c\" }]\n\
        requests = [{ subject = \"s\", direction = \"in\", to = \"t\", queue = \"q\", timeout = \"1s\" }]\n";
    let written: toml::Table = file.parse().unwrap();
    let table = LinkTable::read(written.clone()).unwrap().to_table();
    assert_eq!(table, written);
    let keys = |keys: &[beamlog::config::links::LinkKey]| keys.iter().map(|key| key.name).collect::<Vec<_>>();
    let mut found: Vec<&str> = table.keys().map(String::as_str).collect();
    let mut expected = keys(LINK_KEYS);
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected);
    for (list, expected) in [("import", RULE_KEYS), ("requests", REQUEST_KEYS)] {
        let mut found: Vec<&str> = table[list][0].as_table().unwrap().keys().map(String::as_str).collect();
        let mut expected = keys(expected);
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected);
    }
}

#[test]
fn all_mistakes_are_told_at_once() {
    let file = link(
        "nmae = 1\ndomain = 2\nimport = [{ subject = \"a.>\", colour = \"red\" }, 7]\n\
         requests = [{ subject = \"a\", direction = \"up\" }]",
    );
    let errors = resolve(&file, &[]).unwrap_err();
    for word in ["nmae is not a key", "domain: ", "colour", "import 2", "unknown variant `up`"] {
        assert!(errors.iter().any(|error| error.contains(word)), "{word:?} is not in {errors:?}");
    }
    assert_eq!(errors.len(), 5, "{errors:?}");
}

#[test]
fn names_and_addresses_are_checked() {
    check_refused("[[link]]\nurls = [\"nats://h\"]\nexport = [{ subject = \"a\" }]\n", &["name is missing"]);
    check_refused("[[link]]\nname = \"a\"\nexport = [{ subject = \"a\" }]\n", &["\"a\"", "urls is missing"]);
    check_refused(
        "[[link]]\nname = \"a b\"\nurls = [\"nats://h\"]\nexport = [{ subject = \"a\" }]\n",
        &["64 letters"],
    );
    for (url, words) in [
        ("http://h:1", &["http://h:1", "ws://"][..]),
        ("h:4222", &["is not a URL"]),
        ("nats://", &["is not a URL"]),
        ("nats://joe:geheim@h:1", &["nats://h:1", "password_file"]),
        ("nats://geheim@h:1", &["nats://h:1", "token_file"]),
        ("quic://h:1", &["quic://h:1 needs certificates", "beamlog cert edge"]),
        ("quic://h", &["quic://h is not a URL", "quic://host:4433"]),
        ("quic://joe@h:1", &["is not a URL", "h:1"]),
    ] {
        let file = format!("[[link]]\nname = \"a\"\nurls = [\"{url}\"]\nexport = [{{ subject = \"a\" }}]\n");
        check_refused(&file, words);
        assert!(!resolve(&file, &[]).unwrap_err()[0].contains("geheim"));
    }
    check_refused(&link(""), &["nothing to carry"]);
    let many = "{ subject = \"a\" }, ".repeat(300);
    check_refused(&link(&format!("import = [ {many} ]")), &["import are at most 256"]);
    let twice = format!("{0}{0}", link("export = [{ subject = \"a\" }]"));
    assert!(resolve(&twice, &[]).unwrap_err()[0].contains("another link has this name"));
}

#[test]
fn a_link_goes_to_nats_or_to_a_hub() {
    let rule = "export = [{ subject = \"a\" }]";
    let link = |urls: &str, more: &str| format!("[[link]]\nname = \"a\"\nurls = [{urls}]\n{more}\n{rule}\n");
    check_refused(
        &link("\"quic://h:1\", \"nats://h:2\"", "certificates = \"x\""),
        &["a NATS server and a Beamlog hub"],
    );
    check_refused(
        &link("\"nats://h:2\"", "certificates = \"x\""),
        &["certificates does not go with nats://"],
    );
    for more in ["user = \"joe\"", "nkey_env = \"T\"", "tls_ca_file = \"ca.pem\"", "tls_first = true"] {
        let key = more.split(' ').next().unwrap();
        let said = format!("certificates = \"x\"\n{more}");
        check_refused(&link("\"quic://h:1\"", &said), &[&format!("{key} does not go with quic://")]);
    }
    // A token in place of certificates, and not beside them.
    for (said, words) in [
        ("certificates = \"x\"\ntoken_env = \"T\"", "certificates and token_env are both set"),
        ("token_file = \"t\"", "tls_ca_file is not"),
        ("tls_ca_file = \"ca.pem\"", "needs certificates"),
        (
            "token_file = \"t\"\ntls_ca_file = \"ca.pem\"\ntls_first = true",
            "tls_first does not go with quic://",
        ),
    ] {
        check_refused(&link("\"quic://h:1\"", said), &[words]);
    }
    check_refused(&link("\"quic://h:1\"", "certificates = \"nowhere\""), &["the certificates in nowhere"]);
    // Two links to one hub are two to one cluster.
    let twice = format!(
        "{}{}",
        link("\"quic://h:1\"", "certificates = \"x\""),
        link("\"quic://H:1\"", "certificates = \"x\"").replace("name = \"a\"", "name = \"b\"")
    );
    check_refused(&twice, &["both carry"]);
}

#[test]
fn edges_are_named_with_what_they_may_carry() {
    let hub = "[node]\nedge_listen = \"127.0.0.1:0\"\nedge_certificates = \"x\"\n";
    let edge = |more: &str| format!("{hub}[[edge]]\nname = \"site7\"\n{more}\n");
    for (file, words) in [
        (edge(""), &["edge \"site7\"", "names nothing"][..]),
        (edge("streams = [\"A.B\"]"), &["site7", "A.B"]),
        (edge("subjects = [\"a..b\"]"), &["site7", "a..b"]),
        (edge("subjects = [\"$JS.>\"]"), &["site7", "$JS.>"]),
        (edge("unrestricted = true\nstreams = [\"A\"]"), &["site7", "unrestricted excludes"]),
        (edge("colour = \"red\""), &["colour"]),
        (
            format!(
                "{0}{1}",
                edge("unrestricted = true"),
                "[[edge]]\nname = \"site7\"\nunrestricted = true\n"
            ),
            &["another edge"],
        ),
        ("[[edge]]\nname = \"a\"\nunrestricted = true\n".to_owned(), &["[[edge]]: needs edge_listen"]),
        ("[node]\nedge_certificates = \"x\"\n".to_owned(), &["edge_certificates: needs edge_listen"]),
        ("[node]\nedge_listen = \"127.0.0.1:0\"\n".to_owned(), &["edge_certificates: is needed"]),
    ] {
        check_refused(&file, words);
    }
    assert!(resolve(&edge("streams = [\"A\"]\nbuckets = [\"b\"]\nsubjects = [\"c.>\"]"), &[]).is_ok());
}

#[test]
fn secrets_are_named_and_never_shown() {
    let rule = "export = [{ subject = \"a\" }]";
    for key in ["password", "token", "nkey", "creds"] {
        let file = link(&format!("{key} = \"geheim\"\n{rule}"));
        check_refused(&file, &[&format!("{key}_file"), &format!("{key}_env")]);
    }
    check_refused(&link(&format!("user = \"joe\"\n{rule}")), &["user is set, password_file is not"]);
    check_refused(&link(&format!("password_env = \"X\"\n{rule}")), &["user is not"]);
    check_refused(&link(&format!("token_env = \"X\"\n{rule}")), &["the variable X is not set"]);
    check_refused(&link(&format!("token_file = \"/nowhere/t\"\n{rule}")), &["token_file", "/nowhere/t"]);
    check_refused(&link(&format!("tls_ca_file = \"/nowhere/ca\"\n{rule}")), &["tls_ca_file"]);
    check_refused(&link(&format!("tls_cert_file = \"Cargo.toml\"\n{rule}")), &["tls_key_file is not"]);
    check_refused(
        &link(&format!("creds_file = \"Cargo.toml\"\ncreds_env = \"X\"\n{rule}")),
        &["creds_file and creds_env are both set"],
    );
    check_refused(
        &link(&format!("token_file = \"Cargo.toml\"\ncreds_file = \"Cargo.toml\"\n{rule}")),
        &["token and creds are both set"],
    );
    let file = link(&format!("user = \"joe\"\npassword_env = \"BEAMLOG_LINK_PASSWORD\"\n{rule}"));
    let options = resolve(&file, &[("BEAMLOG_LINK_PASSWORD", "geheim")]).unwrap();
    assert!(!format!("{options:?}").contains("geheim"));
}

#[test]
fn rules_that_cannot_be_carried_out_are_named() {
    let one = |rule: &str| link(&format!("import = [{{ {rule} }}]"));
    check_refused(&one(""), &["import 1", "one of stream, subject or bucket"]);
    check_refused(&one("stream = \"S\", subject = \"a\""), &["one of stream, subject or bucket"]);
    check_refused(&one("stream = \"a.b\""), &["\"a.b\" is not a legal stream name"]);
    check_refused(&one("bucket = \"a b\""), &["bucket name"]);
    check_refused(&one("subject = \"a..b\""), &["import 1 { subject = \"a..b\" }", "subject filter"]);
    check_refused(&one("subject = \"$SYS.>\""), &["belongs to the system"]);
    check_refused(&one("subject = \"_INBOX.>\""), &["belongs to the system"]);
    check_refused(&one("subject = \"a.*\", to = \"b.$2\""), &["\"b.$2\"", "out of range"]);
    check_refused(&one("subject = \"a.>\", to = \"b\""), &["cannot become \"b\""]);
    check_refused(&one("subject = \"a\", to = \"$JS.x\""), &["$JS.x"]);
    check_refused(&one("subject = \"a\", start = \"new\""), &["start does not go with subject"]);
    check_refused(&one("bucket = \"b\", queue = \"q\""), &["queue does not go with bucket"]);
    check_refused(&one("stream = \"S\", start = \"new\", start_sequence = 3"), &["give one of start"]);
    check_refused(&one("stream = \"S\", start_time = \"yesterday\""), &["\"yesterday\" is not a time"]);
    check_refused(&one("stream = \"S\", start_sequence = 0"), &["sequence"]);
    check_refused(&link("export = [{ stream = \"S\", as = \"T\" }]"), &["as does not go with stream"]);
    check_refused(
        &link("requests = [{ subject = \"a\", direction = \"out\", queue = \"q\" }]"),
        &["queue does not go with direction"],
    );
    check_refused(&link("requests = [{ subject = \"a\" }]"), &["direction is missing"]);
    check_refused(
        &link("requests = [{ subject = \"a\", direction = \"in\", timeout = \"6m\" }]"),
        &["timeout"],
    );
    check_refused(
        &link("domain = \"d\"\napi_prefix = \"p\"\nexport = [{ subject = \"a\" }]"),
        &["domain and"],
    );
    check_refused(&link("bytes_per_second = \"1B\"\nexport = [{ subject = \"a\" }]"), &["at least 1KiB"]);
}

#[test]
fn rules_that_overlap_are_refused() {
    check_refused(
        &link("import = [{ subject = \"a.*\" }, { subject = \"a.b\" }]"),
        &["import 2", "import 1 { subject = \"a.*\" }", "twice"],
    );
    check_refused(
        &link("export = [{ subject = \"a.b\" }]\nrequests = [{ subject = \"a.>\", direction = \"out\" }]"),
        &["requests 1", "export 1"],
    );
    check_refused(&link("import = [{ stream = \"S\" }, { stream = \"S\" }]"), &["both fill stream \"S\""]);
    check_refused(&link("import = [{ bucket = \"a\" }, { bucket = \"b\", as = \"a\" }]"), &["bucket \"a\""]);
    let two = |first: &str, second: &str| {
        format!("{}{}", link(first), link(second).replace("\"core\"", "\"other\""))
    };
    check_refused(
        &two("import = [{ subject = \"a\" }]", "import = [{ subject = \"a\" }]"),
        &["link \"other\", import 1", "link \"core\", import 1"],
    );
    // Another cluster's.
    let far = two("export = [{ subject = \"a\" }]", "export = [{ subject = \"a\" }]");
    check_taken(&far.replacen("127.0.0.1:4222", "127.0.0.1:5222", 1));
    check_taken(&link("import = [{ stream = \"S\", filter = \"a\" }, { stream = \"S\", filter = \"b\" }]"));
    check_taken(&link("import = [{ stream = \"S\" }, { stream = \"T\" }, { subject = \"S\" }]"));
}

#[test]
fn a_loop_by_configuration_is_refused() {
    check_refused(
        &link("import = [{ subject = \"a.>\" }]\nexport = [{ subject = \"a.b\" }]"),
        &["export 1", "import 1", "loop"],
    );
    check_refused(
        &link(
            "import = [{ subject = \"a.>\", to = \"b.>\" }]\nexport = [{ subject = \"b.>\", to = \"a.x.>\" }]",
        ),
        &["loop"],
    );
    check_refused(&link("import = [{ stream = \"S\" }]\nexport = [{ stream = \"S\" }]"), &["loop"]);
    check_refused(
        &link(
            "requests = [{ subject = \"a\", direction = \"in\" }, { subject = \"a\", direction = \"out\" }]",
        ),
        &["requests 2", "loop"],
    );
    // What comes in lies beside what goes out, or does not match again.
    check_taken(&link(
        "import = [{ subject = \"a.>\", to = \"there.a.>\" }]\nexport = [{ subject = \"a.>\", to = \"here.a.>\" }]",
    ));
    // Kept the same on both sides.
    check_taken(&link("import = [{ bucket = \"b\" }]\nexport = [{ bucket = \"b\" }]"));
}
