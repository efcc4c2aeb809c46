//! The same bytes to a real nats-server and to us; every byte of the answers compared.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::raw::{PATIENCE, options, start};

/// A nats-server of its own, on a free port.
pub(crate) struct NatsServer {
    process: Child,
    pub(crate) address: SocketAddr,
    _directory: TempDir,
}

fn binary() -> PathBuf {
    let path = match std::env::var_os("BEAMLOG_TEST_NATS_SERVER") {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/bin/nats-server"),
    };
    assert!(
        path.exists(),
        "this test compares with a real nats-server and there is none at {}: run scripts/test, which fetches \
         one, or name one in BEAMLOG_TEST_NATS_SERVER",
        path.display()
    );
    path
}

impl NatsServer {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut process = Command::new(binary())
            .args(["-a", "127.0.0.1", "-p", "-1", "-sd"])
            .arg(directory.path())
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
        let address = log
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| Some(line.split_once("client connections on ")?.1.trim().parse().unwrap()))
            .expect("nats-server says where it listens");
        // Read on, or it would block on a full pipe.
        std::thread::spawn(move || log.for_each(drop));
        Self { process, address, _directory: directory }
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// Sends a script with a PING behind it, and reads until all PINGs are answered or the connection ends.
async fn answers(address: SocketAddr, script: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut got = Vec::new();
    let mut chunk = [0; 4096];
    while !got.ends_with(b"\r\n") {
        let count = tokio::time::timeout(PATIENCE, stream.read(&mut chunk)).await.unwrap().unwrap();
        assert!(count > 0, "no INFO");
        got.extend_from_slice(&chunk[..count]);
    }
    got.clear();
    let is_ping = |line: &&[u8]| line.get(..4).is_some_and(|verb| verb.eq_ignore_ascii_case(b"PING"));
    let pings = script.split(|&byte| byte == b'\n').filter(is_ping).count() + 1;
    // A server that has closed already refuses the rest; what it said before is what counts.
    let mut gone = stream.write_all(script).await.is_err();
    gone |= stream.write_all(b"PING\r\n").await.is_err();
    while count(&got, b"PONG\r\n") < pings {
        match tokio::time::timeout(PATIENCE, stream.read(&mut chunk)).await {
            Ok(Ok(count @ 1..)) => got.extend_from_slice(&chunk[..count]),
            Ok(Ok(_) | Err(_)) => {
                got.extend_from_slice(b"<end>");
                break;
            }
            Err(_) => panic!(
                "neither answered nor closed (gone: {gone}) after {:?}: {:?}",
                String::from_utf8_lossy(script),
                String::from_utf8_lossy(&got)
            ),
        }
    }
    // Identities differ; that there is an INFO does not.
    let text = String::from_utf8_lossy(&got).into_owned();
    let lines = text.split_inclusive("\r\n");
    lines.map(|line| if line.starts_with("INFO {") { "INFO\r\n" } else { line }).collect()
}

fn count(text: &[u8], wanted: &[u8]) -> usize {
    text.windows(wanted.len()).filter(|window| window == &wanted).count()
}

const QUIET: &str =
    "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true}\r\n";
const VERBOSE: &str = "CONNECT {\"verbose\":true,\"pedantic\":false}\r\n";
const PEDANTIC: &str = "CONNECT {\"verbose\":true,\"pedantic\":true}\r\n";

#[tokio::test]
async fn every_line_is_answered_as_nats_server_answers_it() {
    let nats = NatsServer::start(&[]);
    let server = start(options()).await;
    let long = "a".repeat(5000);
    let just = "a".repeat(4088);
    let mut scripts: Vec<String> = Vec::new();
    for (connect, lines) in [
        (
            "",
            &[
                "CONNECT {}\r\n",
                "CONNECT null\r\n",
                "CONNECT []\r\n",
                "CONNECT {x\r\n",
                "CONNECT\r\n",
                "CONNECT 1\r\n",
                "connect\t{\"verbose\":false}\r\n",
                "CONNECT {\"verbose\":\"yes\"}\r\n",
                "CONNECT {\"user\":null,\"pass\":null,\"jwt\":null,\"verbose\":null,\"protocol\":null}\r\n",
                "CONNECT {\"no_responders\":true,\"headers\":false}\r\n",
                "CONNECT {\"protocol\":2}\r\n",
                "CONNECT {\"protocol\":-1}\r\n",
                "CONNECT {\"verbose\":false,\"protocol\":1}\r\nPING\r\nPING\r\n",
                "CONNECT {\"verbose\":true,\"protocol\":1}\r\nSUB a 1\r\nPING\r\n",
                "CONNECT {\"echo\":false}\r\nSUB a 1\r\nPUB a 1\r\nx\r\n",
                "PUB a 1\r\nx\r\n",
                "PUB a.* 1\r\nx\r\n",
                "SUB a 1\r\nPUB a 1\r\nx\r\n",
                "PING\r\n",
                "GET / HTTP/1.1\r\n\r\n",
                "\r\n",
                "\u{0}\r\n",
            ][..],
        ),
        (
            VERBOSE,
            &[
                VERBOSE,
                "SUB a 1\r\nPUB a 2\r\nhi\r\nUNSUB 1\r\nPUB a 2\r\nhi\r\n",
                "SUB > 1\r\nPUB a..b 2\r\nhi\r\nPUB a.* 2\r\nhi\r\nPUB .a 2\r\nhi\r\nPUB a. 2\r\nhi\r\n",
                "SUB a..b 1\r\n",
                "SUB .a 1\r\n",
                "SUB a. 1\r\n",
                "SUB a.>.b 1\r\n",
                "SUB a.b> 1\r\nPUB a.b> 1\r\nx\r\n",
                "SUB a.*b 1\r\nPUB a.*b 1\r\nx\r\n",
                "FOO\r\n",
                "PUX a\r\n",
                "MSG a 1 2\r\nhi\r\n",
                "RS+ a\r\n",
                "+OK\r\n",
                "-ERR 'foo'\r\n",
                "INFO {}\r\n",
                "PONG\r\n",
                "PING foo\r\n",
                "PING\r\r\n",
                "PUB\r\n",
                "PUB a\r\n",
                "PUB a b c 2\r\nhi\r\n",
                "PUB a -1\r\n",
                "PUB a +1\r\nx\r\n",
                "PUB a x\r\n",
                "PUB a 1048577\r\n",
                "PUB a 999999999\r\n",
                "PUB a 2147483648\r\n",
                "PUB a 99999999999999999999\r\n",
                "PUB a 2\r\nhiXX\r\n",
                "PUB a 2\r\nhi\n",
                "PUB a 2\nhi\r\n",
                "PUB a 2\r\r\nhi\r\n",
                "SUB\r\n",
                "SUB a\r\n",
                "SUB a b c d\r\n",
                "SUB a\rb 1\r\nPUB a 1\r\nx\r\n",
                "UNSUB\r\n",
                "UNSUB a b c\r\n",
                "UNSUB 99\r\n",
                "SUB a 1\r\nUNSUB 1 x\r\nPUB a 1\r\nx\r\n",
                "SUB a 1\r\nUNSUB 1 0\r\nPUB a 1\r\nx\r\n",
                "SUB a 1\r\nUNSUB 1 2\r\nPUB a 1\r\n1\r\nPUB a 1\r\n2\r\nPUB a 1\r\n3\r\n",
                "SUB a 1\r\nPUB a 1\r\n1\r\nPUB a 1\r\n2\r\nUNSUB 1 1\r\nPUB a 1\r\n3\r\n",
                "SUB a 1\r\nUNSUB 1 1\r\nPUB a 1\r\n1\r\nSUB b 1\r\nPUB b 1\r\n2\r\n",
                "SUB a 1\r\nSUB b 1\r\nPUB b 1\r\nx\r\nPUB a 1\r\ny\r\n",
                "SUB a 0\r\nSUB b x-y_z\r\nPUB b 1\r\nx\r\nPUB a 1\r\ny\r\n",
                "SUB a.* 1\r\nSUB a.b 2\r\nUNSUB 2\r\nPUB a.b 1\r\nx\r\n",
                "SUB a q 1\r\nPUB a 1\r\nx\r\n",
                "SUB  a   1 \r\nPUB  a  2 \r\nhi\r\n",
                "SUB\ta\t1\r\nPUB\ta\t2\r\nhi\r\n",
                "sub a 1\r\npub a 2\r\nhi\r\nping\r\nunsub 1\r\n",
                "SUB a\u{0}b 1\r\nPUB a\u{0}b 1\r\nx\r\n",
                "SUB ä.ö 1\r\nPUB ä.ö 1\r\nx\r\n",
                "PUB a  0\r\n\r\n",
                "PUB $SYS.foo 1\r\nx\r\nSUB $SYS.> 1\r\n",
                "HPUB a 12 14\r\nNATS/1.0\r\n\r\nhi\r\n",
            ],
        ),
        (
            PEDANTIC,
            &[
                "PUB a.* 2\r\nhi\r\n",
                "PUB a..b 2\r\nhi\r\n",
                "PUB a b.* 1\r\nx\r\n",
                "SUB a..b 1\r\n",
                "PUB a 1\r\nx\r\n",
            ],
        ),
        (
            QUIET,
            &[
                "SUB a 1\r\nHPUB a 12 14\r\nNATS/1.0\r\n\r\nhi\r\n",
                "SUB a 1\r\nHPUB a r 12 12\r\nNATS/1.0\r\n\r\n\r\n",
                "SUB a 1\r\nhpub a 0 2\r\nhi\r\n",
                "SUB a 1\r\nHPUB a 12 14\r\nXATS/1.0\r\n\r\nhi\r\n",
                "HPUB\r\n",
                "HPUB a 12\r\n",
                "HPUB a 14 12\r\n",
                "HPUB a -1 12\r\n",
                "HPUB a b c 1 2\r\n",
                "HPUB a 12 1048577\r\n",
                "SUB i.* 1\r\nPUB nobody i.1 0\r\n\r\n",
                "SUB i.* 1\r\nPUB nobody j.1 0\r\n\r\n",
                "SUB i.* q 1\r\nPUB nobody i.1 0\r\n\r\n",
                "SUB i 1\r\nPUB $SYS.REQ.SERVER.PING i 0\r\n\r\n",
                "SUB i 1\r\nPUB $JS.API.INFO i 0\r\n\r\n",
            ],
        ),
    ] {
        scripts.extend(lines.iter().map(|line| format!("{connect}{line}")));
    }
    scripts.extend([
        format!("{VERBOSE}SUB {long} 1\r\n"),
        format!("{VERBOSE}SUB {long}"),
        format!("{VERBOSE}PUB {long} 1\r\nx\r\n"),
        format!("{VERBOSE}SUB {just} 12345\r\n"),
        format!("{VERBOSE}SUB {just} 1234567\r\n"),
        format!("{VERBOSE}SUB {just} 12345678\r\n"),
        format!("CONNECT {{\"name\":\"{long}\"}}\r\n"),
    ]);
    let mut different = Vec::new();
    for script in &scripts {
        let theirs = answers(nats.address, script.as_bytes()).await;
        let ours = answers(server.local_addr(), script.as_bytes()).await;
        if theirs != ours {
            let script: String = script.chars().take(200).collect();
            different.push(format!("{script:?}\n  nats-server: {theirs:?}\n  ours:        {ours:?}"));
        }
    }
    assert!(different.is_empty(), "{} of {}:\n{}", different.len(), scripts.len(), different.join("\n"));
}

#[tokio::test]
async fn who_may_not_come_in_is_told_what_nats_server_tells_them() {
    let nats = NatsServer::start(&["--user", "alice", "--pass", "secret"]);
    let auth = beamlog_nats::Auth::Users(vec![("alice".into(), "secret".into())]);
    let server = start(beamlog_nats::ServerOptions { auth, ..options() }).await;
    for script in [
        "CONNECT {\"user\":\"alice\",\"pass\":\"secret\"}\r\nPING\r\n",
        "CONNECT {\"user\":\"alice\",\"pass\":\"x\"}\r\n",
        "CONNECT {\"user\":\"alice\",\"pass\":\"secret\",\"protocol\":7}\r\n",
        "CONNECT {\"user\":\"alice\",\"pass\":\"secret\"}\r\nCONNECT {\"user\":\"alice\",\"pass\":\"x\"}\r\n",
        "CONNECT {}\r\n",
        "CONNECT {x\r\n",
        "CO\r\n",
        "PING\r\n",
        "PUB a 1\r\nx\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "\r\n",
    ] {
        let theirs = answers(nats.address, script.as_bytes()).await;
        let ours = answers(server.local_addr(), script.as_bytes()).await;
        assert_eq!(ours, theirs, "{script:?}");
    }
}
