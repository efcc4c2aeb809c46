//! Starting and stopping the real binary, and every reason not to start.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::running::{Node, beamlog, check_cannot_start, outcome, write};

#[test]
fn a_port_in_use_is_exit_code_2_and_names_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let folder = TempDir::new().unwrap();
    for (flag, other) in [("--listen", "--admin"), ("--admin", "--listen")] {
        let output = beamlog()
            .args(["serve", flag, &address, other, "127.0.0.1:0", "--data-dir"])
            .arg(folder.path().join("data"))
            .output()
            .unwrap();
        check_cannot_start(&output, &[&address, "Address already in use", "choose another port"]);
    }
}

#[test]
fn a_folder_in_use_is_exit_code_2_and_is_not_touched() {
    let node = Node::start();
    let output = beamlog()
        .args(["serve", "--listen", "127.0.0.1:0", "--admin", "off", "--data-dir"])
        .arg(node.data())
        .output()
        .unwrap();
    check_cannot_start(&output, &["in use by another process", "--data-dir"]);
    node.run(&["pub", "still.there", "yes"]).unwrap();
    let output = beamlog().args(["store", "check"]).arg(node.data()).output().unwrap();
    check_cannot_start(&output, &["in use by another process"]);
}

#[test]
fn a_foreign_folder_is_exit_code_2_and_is_not_touched() {
    let folder = TempDir::new().unwrap();
    write(&folder.path().join("thesis.txt"), "years of work");
    let output = beamlog()
        .args(["serve", "--listen", "127.0.0.1:0", "--admin", "off", "--data-dir"])
        .arg(folder.path())
        .output()
        .unwrap();
    check_cannot_start(&output, &["not a beamlog data directory", "thesis.txt"]);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn an_unknown_format_version_is_exit_code_2_and_names_it() {
    let node = Node::start();
    let data = node.data();
    let (code, folder) = node.stop();
    assert_eq!(code, Some(0));
    let identity = data.join("identity");
    let text = std::fs::read_to_string(&identity).unwrap().replace("beamlog store 1", "beamlog store 99");
    let body: String = text.lines().take(4).map(|line| format!("{line}\n")).collect();
    write(&identity, &format!("{body}crc32 {:08x}\n", crc32(body.as_bytes())));
    let output = beamlog()
        .args(["serve", "--listen", "127.0.0.1:0", "--admin", "off", "--data-dir"])
        .arg(&data)
        .output()
        .unwrap();
    check_cannot_start(&output, &["99", "the version of beamlog that wrote it"]);
    drop(folder);
}

/// The checksum of the identity file, bit by bit: not the code that is tested.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0_u32, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

#[test]
fn a_bad_configuration_is_exit_code_2_before_anything_is_opened() {
    let folder = TempDir::new().unwrap();
    let data = folder.path().join("data");
    let output =
        beamlog().args(["serve", "--listen", "0.0.0.0:0", "--data-dir"]).arg(&data).output().unwrap();
    check_cannot_start(&output, &["0.0.0.0:0", "--insecure"]);
    let output = beamlog().args(["serve", "--config", "/nowhere/node.toml"]).output().unwrap();
    check_cannot_start(&output, &["/nowhere/node.toml"]);
    let output = beamlog().args(["serve", "--no-such-flag"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(!data.exists());
}

#[test]
fn certificates_that_cannot_be_read_are_exit_code_2() {
    let output = beamlog()
        .args(["serve", "--tls-cert-file", "/nowhere/c.pem", "--tls-key-file", "/nowhere/k.pem"])
        .output()
        .unwrap();
    check_cannot_start(&output, &["/nowhere/c.pem", "tls_cert_file"]);
}

#[test]
fn a_signal_drains_and_what_was_acked_is_there_after_the_restart() {
    for signal in ["-TERM", "-INT"] {
        let mut node = Node::start();
        node.run(&["stream", "add", "S", "--subjects", "s.>"]).unwrap();
        for number in 1..=3 {
            node.run(&["pub", "s.a", &number.to_string(), "--ack"]).unwrap();
        }
        node.signal(signal);
        assert_eq!(node.child.wait().unwrap().code(), Some(0), "{}", node.log());
        assert!(node.log().contains("stopped clean=true"), "{}", node.log());
        let (_, folder) = node.stop_ended();
        let node = Node::start_with(folder, &[]);
        assert!(node.log().contains("tail=Clean"), "{}", node.log());
        assert_eq!(node.json(&["stream", "info", "S"])["state"]["messages"], 3);
        assert_eq!(node.json(&["stream", "get", "S", "--sequence", "3"])["payload"], "3");
    }
}

#[test]
fn a_second_signal_ends_a_long_drain_at_once() {
    let mut node = Node::start_with(TempDir::new().unwrap(), &["--drain-timeout", "10m"]);
    // A client that does not go when it is told.
    let mut subscriber = node.command(&["sub", "x"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(subscriber.stderr.take().unwrap()).read_line(&mut said).unwrap();
    assert!(said.starts_with("subscribed"), "{said}");
    let start = Instant::now();
    node.signal("-TERM");
    while !node.log().contains("draining") {
        assert!(start.elapsed() < Duration::from_secs(20), "{}", node.log());
        std::thread::yield_now();
    }
    node.signal("-TERM");
    assert_eq!(node.child.wait().unwrap().code(), Some(130), "{}", node.log());
    subscriber.kill().unwrap();
    subscriber.wait().unwrap();
}

#[test]
fn log_lines_are_json_when_asked() {
    let node = Node::start_with(TempDir::new().unwrap(), &["--log-format", "json"]);
    let lines: Vec<Value> = node.log().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ready = lines.iter().find(|line| line["message"] == "ready").unwrap();
    assert_eq!(ready["listen"], node.listen.as_str());
    assert_eq!(ready["level"], "INFO");
}

#[test]
fn authentication_is_asked_of_clients() {
    let folder = TempDir::new().unwrap();
    let token = folder.path().join("token");
    write(&token, "open sesame\n");
    let flag = token.to_str().unwrap().to_owned();
    let node = Node::start_with(folder, &["--auth-token-file", &flag]);
    let refused = node.run(&["pub", "a", "b"]).unwrap_err();
    assert!(refused.contains("authorization") && refused.contains("--token"), "{refused}");
    node.run(&["pub", "a", "b", "--token", "open sesame"]).unwrap();
    assert!(!node.log().contains("sesame"));
}

#[test]
fn tls_is_asked_of_clients() {
    let folder = TempDir::new().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let (certificate, key) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
    write(&certificate, &made.cert.pem());
    write(&key, &made.signing_key.serialize_pem());
    let (certificate, key) = (certificate.to_str().unwrap().to_owned(), key.to_str().unwrap().to_owned());
    let node = Node::start_with(folder, &["--tls-cert-file", &certificate, "--tls-key-file", &key]);
    node.run(&["pub", "a", "b", "--tls-ca", &certificate]).unwrap();
    assert!(node.run(&["pub", "a", "b"]).is_err(), "a client that does not trust the certificate");
}

#[test]
fn an_embedded_node_serves_and_stops() {
    let folder = TempDir::new().unwrap();
    let options = beamlog::NodeOptions {
        listen: "127.0.0.1:0".parse().unwrap(),
        admin: None,
        data_dir: folder.path().join("data"),
        ..Default::default()
    };
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let node = beamlog::Node::start(options).await.unwrap();
        let client = async_nats::connect(node.listen_address().to_string()).await.unwrap();
        client.publish("a", "b".into()).await.unwrap();
        client.flush().await.unwrap();
        drop(client);
        node.stop().await.unwrap();
    });
    outcome(&beamlog().args(["store", "check"]).arg(folder.path().join("data")).output().unwrap()).unwrap();
}
