//! Envelopes of cells, from whoever may publish: parsed leniently, strictly, and answered.

use std::sync::Arc;

use beamlog_cell::answering::{self, Reply};
use beamlog_cell::{BusError, Envelope, Handler};
use serde_json::Value;

pub const WORDS: &[&[u8]] = &[
    b"\"id\":\"3f2504e0-4f89-41d3-9a0c-0305e82c3301\"",
    b"\"service\":\"greeter\"",
    b"\"verb\":\"say_hello\"",
    b"\"schema\":\"demo/v1/Name\"",
    b"\"payload\":{}",
    b"\"error\":{\"code\":\"BadRequest\",\"message\":\"m\"}",
    b"\"details\":",
    b"null",
    b"\\u0000",
    b"1e999",
];

pub fn run(input: &[u8]) {
    let lenient = Envelope::parse(input);
    let strict = Envelope::parse_strictly(input);
    if let Ok(envelope) = &strict {
        assert_eq!(Some(envelope), lenient.as_ref().ok(), "what is strictly right is read the same leniently");
        let raw = envelope.encode().expect("what was read can be written");
        assert_eq!(*envelope, Envelope::parse_strictly(&raw).expect("and read again"));
        let subject = envelope.subject();
        assert_eq!(subject.split('.').count(), 3, "{subject}");
    }
    let echo: Handler = Arc::new(|envelope| envelope.payload.ok_or(BusError::Timeout));
    match (&lenient, answering::answer("cbs.fuzz.fuzz", input, &echo)) {
        (Err(_), answer) => assert!(answer.is_none(), "what is no envelope is not answered"),
        (Ok(request), answer) => {
            let answer = Envelope::parse(&answer.expect("every envelope is answered")).expect("by an envelope");
            assert_eq!(
                (&answer.id, &answer.service, &answer.verb, &answer.schema),
                (&request.id, &request.service, &request.verb, &request.schema)
            );
            let is_null = matches!(answer.payload, Some(Value::Null));
            assert!(!is_null && answer.payload.is_some() != answer.error.is_some(), "exactly one");
        }
    }
    for status in [None, Some(503)] {
        if let Reply::Answer(Ok(envelope)) = answering::reply(status, input) {
            assert_eq!(Some(&*envelope), lenient.as_ref().ok());
        }
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let head = r#""id":"3f2504e0-4f89-41d3-9a0c-0305e82c3301","service":"greeter","verb":"say_hello","schema":"demo/v1/Name""#;
    [
        format!(r#"{{{head},"payload":{{"name":"Ada"}}}}"#),
        format!(r#"{{{head},"error":{{"code":"NotFound","message":"m","details":{{"a":[1]}},"hint":"h"}}}}"#),
        format!(r#"{{{head}}}"#),
        format!(r#"{{{head},"payload":null}}"#),
        r#"{"stream":"CBS","seq":1}"#.to_owned(),
        String::new(),
    ]
    .map(String::into_bytes)
    .to_vec()
}
