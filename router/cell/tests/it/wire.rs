//! Bytes on the wire: what deployed cells and SDKs send and read.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use beamlog_cell::{Bus, BusError, Envelope, Handler};
use serde_json::json;

use crate::world::{PATIENCE, World};

/// A client without any library.
struct Client {
    reader: BufReader<TcpStream>,
}

impl Client {
    fn connect(address: SocketAddr, connect: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut this = Self { reader: BufReader::new(stream) };
        assert!(this.line().starts_with("INFO "));
        this.send(connect);
        this.send("PING\r\n");
        assert_eq!(this.line(), "PONG");
        this
    }

    fn send(&mut self, text: &str) {
        self.reader.get_mut().write_all(text.as_bytes()).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// The next message: its subject and its payload, headers left in.
    fn message(&mut self) -> (String, String) {
        loop {
            let line = self.line();
            let mut words = line.split(' ');
            match words.next() {
                Some("MSG" | "HMSG") => {
                    let subject = words.next().unwrap().to_owned();
                    let length: usize = words.next_back().unwrap().parse().unwrap();
                    let mut payload = vec![0; length + 2];
                    self.reader.read_exact(&mut payload).unwrap();
                    payload.truncate(length);
                    return (subject, String::from_utf8(payload).unwrap());
                }
                Some("PING") => self.send("PONG\r\n"),
                _ => panic!("{line}"),
            }
        }
    }
}

const CONNECT: &str =
    "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true}\r\n";
/// The Dart SDK: without headers, so nothing may come with any.
const DART: &str = "CONNECT {\"verbose\":false,\"pedantic\":false}\r\n";
const ID: &str = "3f2504e0-4f89-41d3-9a0c-0305e82c3301";

fn publish(subject: &str, reply: &str, payload: &str) -> String {
    format!("PUB {subject} {reply} {}\r\n{payload}\r\n", payload.len())
}

fn request(payload: &str) -> String {
    format!(r#"{{"id":"{ID}","service":"greeter","verb":"say_hello","schema":"demo/v1/Name",{payload}}}"#)
}

fn greeter() -> Handler {
    Arc::new(|envelope| match envelope.payload.unwrap_or_default()["name"].as_str() {
        Some(name) => Ok(json!({"message": format!("Hello {name}!")})),
        None => Err(BusError::BadRequest("name is missing".into())),
    })
}

fn answers_byte_for_byte(world: &World, served: &Arc<dyn Bus>) {
    served.subscribe("cbs.greeter.say_hello", greeter()).unwrap();
    for connect in [CONNECT, DART] {
        let mut client = Client::connect(world.address().unwrap(), connect);
        client.send("SUB _INBOX.1 1\r\n");
        let answer = |client: &mut Client, body: &str| {
            client.send(&publish("cbs.greeter.say_hello", "_INBOX.1", &request(body)));
            client.message()
        };
        assert_eq!(
            answer(&mut client, r#""payload":{"name":"Ada"}"#),
            ("_INBOX.1".to_owned(), request(r#""payload":{"message":"Hello Ada!"}"#))
        );
        // Keys that the envelope does not know are nobody's business here.
        assert_eq!(
            answer(&mut client, r#""extra":1,"payload":{"name":"Zoë"}"#).1,
            request(r#""payload":{"message":"Hello Zoë!"}"#)
        );
        assert_eq!(
            answer(&mut client, r#""payload":{}"#).1,
            request(r#""error":{"code":"BadRequest","message":"Bad request: name is missing"}"#)
        );
        // What is no envelope is not answered, and does no harm.
        for bad in ["", "{", "[]", "{\"id\":1}", "\u{0}"] {
            client.send(&publish("cbs.greeter.say_hello", "_INBOX.1", bad));
        }
        assert_eq!(
            answer(&mut client, r#""payload":{"name":"B"}"#).1,
            request(r#""payload":{"message":"Hello B!"}"#)
        );
    }
    // Nobody is there: a status for who can read it, silence for the others.
    let mut client = Client::connect(world.address().unwrap(), CONNECT);
    client.send("SUB _INBOX.2 1\r\n");
    client.send(&publish("cbs.nobody.there", "_INBOX.2", &request(r#""payload":{}"#)));
    let (subject, status) = client.message();
    assert_eq!(subject, "_INBOX.2");
    assert!(status.starts_with("NATS/1.0 503"), "{status}");
}

fn a_client_of_bytes_serves(world: &World, asking: &Arc<dyn Bus>) {
    let mut client = Client::connect(world.address().unwrap(), CONNECT);
    client.send("SUB cbs.bytes.serve bytes 7\r\nPING\r\n");
    assert_eq!(client.line(), "PONG");
    let serving = std::thread::spawn(move || {
        for answer in [r#""payload":{"a":1}"#, r#""error":{"code":"NotFound","message":"m"}"#, r#""more":1"#]
        {
            // The reply subject is the last but one word of the line, before the length.
            let line = client.line();
            let words: Vec<&str> = line.split(' ').collect();
            let [_, _, _, reply, length] = words[..] else { panic!("{line}") };
            let mut raw = vec![0; length.parse::<usize>().unwrap() + 2];
            client.reader.read_exact(&mut raw).unwrap();
            let envelope = Envelope::parse_strictly(&raw[..raw.len() - 2]).unwrap();
            let Envelope { id, service, verb, schema, .. } = envelope;
            let body = format!(
                r#"{{"id":"{id}","service":"{service}","verb":"{verb}","schema":"{schema}",{answer}}}"#
            );
            let reply = reply.to_owned();
            client.send(&format!("PUB {reply} {}\r\n{body}\r\n", body.len()));
        }
    });
    let ask = || asking.request(Envelope::request("bytes", "serve", "demo/v1/N", json!({"q": 1})));
    assert_eq!(ask(), Ok(json!({"a": 1})));
    assert_eq!(ask(), Err(BusError::NotFound("m".into())));
    assert_eq!(ask(), Err(BusError::Internal("Response envelope missing payload".into())));
    serving.join().unwrap();
}

#[test]
fn a_node_serves_cells_and_answers_byte_for_byte() {
    let world = World::node();
    answers_byte_for_byte(&world, &world.bus().bus());
}

#[test]
fn a_nats_server_does_the_same() {
    let world = World::nats_server();
    answers_byte_for_byte(&world, &world.bus().bus());
}

#[test]
fn a_cell_inside_of_a_node_answers_byte_for_byte() {
    let world = World::node();
    let World::Node(node) = &world else { unreachable!() };
    let router = node.node.as_ref().unwrap().router().clone();
    let inside: Arc<dyn Bus> =
        Arc::new(beamlog_cell::EmbeddedBus::new(router, beamlog_cell::EmbeddedLimits::default()));
    answers_byte_for_byte(&world, &inside);
    a_client_of_bytes_serves(&world, &inside);
}

#[test]
fn cells_of_other_makers_are_asked() {
    for world in [World::node(), World::nats_server()] {
        a_client_of_bytes_serves(&world, &world.bus().bus());
    }
}

#[test]
fn a_stream_that_looks_on_does_not_answer_for_the_cell() {
    for world in [World::node(), World::nats_server()] {
        let bus = world.bus();
        let mut client = Client::connect(world.address().unwrap(), CONNECT);
        client.send("SUB _INBOX.3 1\r\n");
        let config = r#"{"name":"AUDIT","subjects":["cbs.>"],"storage":"file"}"#;
        client.send(&publish("$JS.API.STREAM.CREATE.AUDIT", "_INBOX.3", config));
        assert!(client.message().1.contains("\"config\""));
        bus.bus().subscribe("cbs.greeter.say_hello", greeter()).unwrap();
        for _ in 0..20 {
            let asked = Envelope::request("greeter", "say_hello", "demo/v1/Name", json!({"name": "Ada"}));
            assert_eq!(bus.bus().request(asked), Ok(json!({"message": "Hello Ada!"})));
        }
    }
}
