//! Every command's way through, against a running node, read as a program reads it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use crate::repository;
use crate::running::{Node, beamlog, outcome};

/// Starts a command that announces itself on stderr, and waits until it has.
fn ready(node: &Node, arguments: &[&str]) -> Child {
    let mut child = node.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("subscribed") || line.starts_with("watching"), "{line}");
    child
}

fn lines(child: Child) -> Vec<Value> {
    let text = outcome(&child.wait_with_output().unwrap()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn messages_go_from_pub_to_sub() {
    let node = Node::start();
    let subscriber = ready(&node, &["sub", "a.*", "--count", "2", "-o", "json"]);
    node.run(&["pub", "a.b", "one", "-H", "Key: value"]).unwrap();
    let mut publisher = node.command(&["pub", "a.c"]).stdin(Stdio::piped()).spawn().unwrap();
    publisher.stdin.take().unwrap().write_all(&[0xff, 0x00]).unwrap();
    assert!(publisher.wait().unwrap().success());
    let received = lines(subscriber);
    assert_eq!(received[0], json!({"subject": "a.b", "headers": {"Key": ["value"]}, "payload": "one"}));
    assert_eq!(received[1]["payload_base64"], "/wA=");
}

#[test]
fn requests_are_answered_or_have_no_responders() {
    let node = Node::start();
    let service = ready(&node, &["reply", "echo", "--count", "1"]);
    assert_eq!(node.json(&["request", "echo", "hello"])["payload"], "hello");
    assert!(service.wait_with_output().unwrap().status.success());
    let error = node.run(&["request", "echo", "hello"]).unwrap_err();
    assert!(error.starts_with("Some(1)") && error.contains("no responders"), "{error}");
}

#[test]
fn a_stream_is_made_filled_read_changed_and_deleted() {
    let node = Node::start();
    let added =
        node.json(&["stream", "add", "S", "--subjects", "s.>,t", "--max-age", "1h", "--discard", "new"]);
    assert_eq!(added["config"]["subjects"], json!(["s.>", "t"]));
    assert_eq!(added["config"]["max_age"], 3_600_000_000_000_u64);
    let stored = node.json(&["pub", "s.a", "one", "--message-id", "1"]);
    assert_eq!(stored, json!({"stream": "S", "sequence": 1, "duplicate": false}));
    assert_eq!(node.json(&["pub", "s.a", "one", "--message-id", "1"])["duplicate"], true);
    node.run(&["pub", "s.b", "two", "--ack", "-H", "K: v"]).unwrap();
    assert_eq!(node.json(&["stream", "ls"])[0]["config"]["name"], "S");
    assert_eq!(node.json(&["stream", "ls", "--subject", "other"]), json!([]));
    assert_eq!(node.json(&["stream", "info", "S"])["state"]["messages"], 2);
    assert_eq!(node.json(&["stream", "subjects", "S"]), json!({"s.a": 1, "s.b": 1}));
    let last = node.json(&["stream", "get", "S", "--last", "s.b"]);
    assert_eq!((&last["payload"], &last["headers"]), (&json!("two"), &json!({"K": ["v"]})));
    assert_eq!(node.json(&["stream", "get", "S", "--next", "s.>"])["sequence"], 1);
    assert_eq!(node.json(&["stream", "get", "S"])["sequence"], 2);
    let edited = node.json(&["stream", "edit", "S", "--max-messages", "7"]);
    assert_eq!((&edited["config"]["max_msgs"], &edited["config"]["discard"]), (&json!(7), &json!("new")));
    node.run(&["stream", "delete-message", "S", "1"]).unwrap();
    assert_eq!(node.json(&["stream", "purge", "S", "--filter", "s.b"])["purged"], 1);
    node.run(&["stream", "rm", "S"]).unwrap();
    let error = node.run(&["stream", "info", "S"]).unwrap_err();
    assert!(error.contains("stream not found (10059)"), "{error}");
    assert_eq!(error.lines().count(), 1);
}

#[test]
fn a_consumer_is_made_read_paused_and_deleted() {
    let node = Node::start();
    node.run(&["stream", "add", "S", "--subjects", "s.>"]).unwrap();
    for number in 1..=3 {
        node.run(&["pub", "s.a", &number.to_string(), "--ack"]).unwrap();
    }
    let added = node.json(&["consumer", "add", "S", "c", "--filter", "s.a", "--ack-wait", "5s"]);
    assert_eq!(added["config"]["ack_wait"], 5_000_000_000_u64);
    assert_eq!(node.json(&["consumer", "ls", "S"])[0]["name"], "c");
    let text = node.run(&["consumer", "next", "S", "c", "--count", "2", "-o", "json"]).unwrap();
    let received: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(received.len(), 2);
    assert_eq!((&received[1]["payload"], &received[1]["sequence"]), (&json!("2"), &json!(2)));
    let info = node.json(&["consumer", "info", "S", "c"]);
    assert_eq!((&info["ack_floor"]["stream_seq"], &info["num_pending"]), (&json!(2), &json!(1)));
    assert_eq!(node.json(&["consumer", "pause", "S", "c", "--for", "10m"])["paused"], true);
    assert_eq!(node.json(&["consumer", "resume", "S", "c"])["paused"], false);
    node.run(&["consumer", "edit", "S", "c", "--max-ack-pending", "9"]).unwrap();
    node.run(&["consumer", "next", "S", "c"]).unwrap();
    let error = node.run(&["consumer", "next", "S", "c", "--wait", "0s"]).unwrap_err();
    assert!(error.contains("no messages"), "{error}");
    node.run(&["consumer", "rm", "S", "c"]).unwrap();
    let error = node.run(&["consumer", "info", "S", "c"]).unwrap_err();
    assert!(error.contains("consumer not found (10014)"), "{error}");
}

#[test]
fn a_bucket_keeps_keys() {
    let node = Node::start();
    node.run(&["kv", "add", "B", "--history", "3"]).unwrap();
    assert_eq!(node.json(&["kv", "put", "B", "k", "one"])["revision"], 1);
    assert_eq!(node.json(&["kv", "update", "B", "k", "two", "1"])["revision"], 2);
    assert!(node.run(&["kv", "update", "B", "k", "three", "1"]).is_err());
    assert!(node.run(&["kv", "create", "B", "k", "x"]).is_err());
    assert_eq!(node.run(&["kv", "get", "B", "k"]).unwrap(), "two\n");
    assert_eq!(node.json(&["kv", "get", "B", "k", "--revision", "1"])["payload"], "one");
    node.run(&["kv", "create", "B", "other", "x"]).unwrap();
    assert_eq!(node.json(&["kv", "ls", "B"]), json!(["k", "other"]));
    assert_eq!(node.json(&["kv", "ls"])[0]["bucket"], "B");
    let history = node.run(&["kv", "history", "B", "k", "-o", "json"]).unwrap();
    assert_eq!(history.lines().count(), 2);
    let watcher = ready(&node, &["kv", "watch", "B", "k", "--count", "2", "-o", "json"]);
    node.run(&["kv", "del", "B", "k"]).unwrap();
    let seen = lines(watcher);
    assert_eq!((&seen[0]["operation"], &seen[1]["operation"]), (&json!("put"), &json!("del")));
    assert!(node.run(&["kv", "get", "B", "k"]).unwrap_err().contains("there is no k in B"));
    node.run(&["kv", "purge", "B", "other"]).unwrap();
    assert_eq!(node.json(&["kv", "info", "B"])["history"], 3);
    node.run(&["kv", "rm", "B"]).unwrap();
    assert!(node.run(&["kv", "get", "B", "k"]).unwrap_err().contains("kv ls"));
}

#[test]
fn a_store_is_read_when_its_node_has_stopped() {
    let node = Node::start();
    node.run(&["stream", "add", "S", "--subjects", "s.>"]).unwrap();
    node.run(&["pub", "s.a", "kept", "--ack"]).unwrap();
    let data = node.data();
    let (_, folder) = node.stop();
    let store = |arguments: &[&str]| {
        let output = beamlog().arg("store").args(arguments).arg(&data).args(["-o", "json"]).output().unwrap();
        outcome(&output)
    };
    let checked: Value = serde_json::from_str(&store(&["check"]).unwrap()).unwrap();
    assert_eq!((&checked["sound"], &checked["segments"][0]["state"]), (&json!(true), &json!("OpenClean")));
    let stats: Value = serde_json::from_str(&store(&["stats"]).unwrap()).unwrap();
    assert_eq!(stats["streams"][0]["messages"], 1);
    let dumped = store(&["dump", "--messages"]).unwrap();
    let message: Value = serde_json::from_str(dumped.trim()).unwrap();
    assert_eq!((&message["subject"], &message["payload"]), (&json!("s.a"), &json!("kept")));
    let repaired: Value = serde_json::from_str(&store(&["repair", "--accept-tail-loss"]).unwrap()).unwrap();
    assert_eq!(repaired["lost_bytes"], 0);

    // One flipped bit in the message: found and named.
    let shard = data.join("shard-0000");
    let flip = |file: &std::path::Path| {
        let mut bytes = std::fs::read(file).unwrap();
        let at = bytes.windows(4).position(|window| window == b"kept")?;
        bytes[at] ^= 1;
        std::fs::write(file, bytes).unwrap();
        Some(())
    };
    let files = std::fs::read_dir(&shard).unwrap().map(|entry| entry.unwrap().path());
    assert!(files.filter_map(|file| flip(&file)).count() > 0);
    let error = store(&["check"]).unwrap_err();
    assert!(error.starts_with("Some(1)") && error.contains("damaged"), "{error}");
    let error =
        outcome(&beamlog().args(["store", "check"]).arg(folder.path().join("none")).output().unwrap());
    assert!(error.unwrap_err().contains("there is no store"));
}

#[test]
fn the_small_commands_answer() {
    let node = Node::start();
    assert_eq!(node.json(&["version"])["store_format"], 1);
    assert_eq!(node.json(&["config", "check"])["valid"], true);
    assert_eq!(node.json(&["config", "show"])["listen"]["origin"], "default");
    for shell in ["bash", "zsh", "fish"] {
        assert!(node.run(&["completion", shell]).unwrap().contains("beamlog"), "{shell}");
    }
    let messages = ["--messages", "200"];
    for what in ["publish", "stream", "request"] {
        let result = node.json(&[&["bench", what], messages.as_slice()].concat());
        assert_eq!(result["messages"], 200, "{what}");
    }
    assert_eq!(node.json(&["stream", "ls"]), json!([]), "bench cleans up");
}

#[test]
fn every_command_has_help_with_an_example() {
    for command in [
        "serve",
        "pub",
        "sub",
        "request",
        "reply",
        "stream",
        "consumer",
        "kv",
        "store",
        "config",
        "bench",
        "completion",
    ] {
        let help = outcome(&beamlog().args([command, "--help"]).output().unwrap()).unwrap();
        assert!(help.contains("Examples:"), "{command}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let output = std::process::Command::new("sh")
        .args([
            "-c",
            "\"$0\" completion bash | head -n 1; exit ${PIPESTATUS:-0}",
            env!("CARGO_BIN_EXE_beamlog"),
        ])
        .output()
        .unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The first tour of the README, as a new user pastes it.
#[test]
fn the_tour_of_the_readme_works() {
    let node = Node::start();
    let readme = std::fs::read_to_string(repository::root().join("README.md")).unwrap();
    let tour = readme.split("## A first tour").nth(1).expect("the README has a first tour");
    let script = tour.split("```sh\n").nth(1).unwrap().split("```").next().unwrap();
    let commands = script.lines().filter(|line| line.starts_with("beamlog ")).count();
    assert!(commands >= 8, "{script}");
    let folder = std::path::Path::new(env!("CARGO_BIN_EXE_beamlog")).parent().unwrap().to_owned();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let output = node
        .command(&[])
        .env("PATH", path)
        .get_envs()
        .fold(std::process::Command::new("sh"), |mut shell, (name, value)| {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
            shell
        })
        .args(["-e", "-c", script])
        .output()
        .unwrap();
    let text = outcome(&output).unwrap_or_else(|error| panic!("{error}"));
    assert!(text.contains("two apples"), "{text}");
}
