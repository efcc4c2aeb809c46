//! Spans of a request, as a collector gets them: one tree from the caller's span to usage.

use std::io::Read;
use std::net::TcpListener;
use std::sync::mpsc;

use beamlog_tasks::proto::{Field, fields};

use super::*;

/// A span as far as the tests look at it.
#[derive(Debug)]
struct Span {
    trace: String,
    id: String,
    parent: String,
    name: String,
    attributes: BTreeMap<String, String>,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parts(raw: &[u8], number: u64) -> Vec<&[u8]> {
    let found = fields(raw).map(Result::unwrap).filter(|(found, _)| *found == number);
    found.map(|(_, field)| Field::bytes(field).unwrap()).collect()
}

fn text(raw: &[u8], number: u64) -> String {
    String::from_utf8(parts(raw, number).concat()).unwrap()
}

fn read_span(raw: &[u8]) -> Span {
    let attributes = parts(raw, 9).into_iter().map(|pair| (text(pair, 1), text(parts(pair, 2)[0], 1)));
    Span {
        trace: hex(parts(raw, 1)[0]),
        id: hex(parts(raw, 2)[0]),
        parent: hex(&parts(raw, 4).concat()),
        name: text(raw, 5),
        attributes: attributes.collect(),
    }
}

/// A collector; the first request is refused as a busy one does.
fn collector() -> (String, mpsc::Receiver<Span>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for (count, stream) in listener.incoming().map_while(Result::ok).enumerate() {
            let mut reader = BufReader::new(stream);
            let (mut length, mut is_protobuf) = (0, false);
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                let line = line.trim().to_ascii_lowercase();
                if let Some(value) = line.strip_prefix("content-length: ") {
                    length = value.parse().unwrap();
                }
                is_protobuf |= line == "content-type: application/x-protobuf";
                if line.is_empty() {
                    break;
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            assert!(is_protobuf);
            let status = if count == 0 { "503 Service Unavailable" } else { "200 OK" };
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            std::io::Write::write_all(reader.get_mut(), answer.as_bytes()).unwrap();
            if count == 0 {
                continue;
            }
            for of_resource in parts(&body, 1) {
                let resource = parts(parts(of_resource, 1)[0], 1);
                assert_eq!(
                    (text(resource[0], 1).as_str(), text(parts(resource[0], 2)[0], 1).as_str()),
                    ("service.name", "beamlog")
                );
                for span in parts(of_resource, 2).into_iter().flat_map(|scoped| parts(scoped, 2)) {
                    if sender.send(read_span(span)).is_err() {
                        return;
                    }
                }
            }
        }
    });
    (address, receiver)
}

#[test]
fn a_collector_gets_one_tree_from_the_callers_span_to_usage() {
    let (endpoint, spans) = collector();
    let folder = TempDir::new().unwrap();
    let node = Node::start(&folder.path().join("data"), &["--otlp-endpoint", &endpoint]);
    let mut wire = Wire::open(&node.listen, &Connect::C).unwrap();
    wire.send("SUB caf.exec.assign.v1 1\r\n").unwrap();
    let (trace, caller) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let mut request = job("ann@example.org");
    request["trace_id"] = json!(trace);
    request["task"]["payload"]["password"] = json!("hunter2");
    let headers = format!("NATS/1.0\r\ntraceparent: 00-{trace}-{caller}-01\r\n\r\n");
    let body = request.to_string();
    let total = headers.len() + body.len();
    let mut asking = Wire::open(&node.listen, &Connect::C).unwrap();
    asking
        .send(&format!(
            "SUB _INBOX.me 1\r\nHPUB {DECIDE} _INBOX.me {} {total}\r\n{headers}{body}\r\n",
            headers.len()
        ))
        .unwrap();
    let decided: Value = serde_json::from_slice(&asking.next().unwrap().payload).unwrap();
    assert_eq!(decided["ok"], true, "{decided}");
    let assignment = wire.next().unwrap();
    let parent =
        assignment.headers.lines().find_map(|line| line.strip_prefix("traceparent: ")).unwrap().to_owned();
    let assignment: Value = serde_json::from_slice(&assignment.payload).unwrap();
    let result = json!({"assignment_id": assignment["assignment_id"], "status": "success", "provider_id": "w",
        "job": {"type": "echo"}, "latency_ms": 5, "cost": 0.25, "tenant_id": "acme"});
    wire.send(&publish(RESULT, "", &result.to_string())).unwrap();

    let mut found: BTreeMap<String, Span> = BTreeMap::new();
    while found.len() < 5 {
        let span = spans.recv_timeout(PATIENCE).unwrap();
        assert_eq!(span.trace, trace, "{span:?}");
        found.insert(span.name.clone(), span);
    }
    let parent_of = |name: &str| found[name].parent.as_str();
    let id_of = |name: &str| found[name].id.as_str();
    assert_eq!(parent_of("beamline.decide"), caller);
    assert_eq!(parent_of("beamline.task"), id_of("beamline.decide"));
    for child in ["beamline.queue", "beamline.run", "beamline.usage"] {
        assert_eq!(parent_of(child), id_of("beamline.task"), "{child}");
    }
    assert_eq!(parent, format!("00-{trace}-{}-01", id_of("beamline.run")), "what the worker was told");
    assert_eq!(found["beamline.task"].attributes["status"], "success");
    assert_eq!(found["beamline.usage"].attributes["cost"], "0.25");
    let all = format!("{found:?}");
    assert!(!all.contains("ann@") && !all.contains("hunter2"), "{all}");
}
