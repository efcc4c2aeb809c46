//! A link as JSON, as the admin server takes it from whoever may change links.

use beamlog::config::links::{LinkTable, check};

pub const WORDS: &[&[u8]] = &[
    b"\"name\":",
    b"\"urls\":[\"nats://h:1\"]",
    b"\"import\":[{",
    b"\"export\":[{",
    b"\"requests\":[{",
    b"\"subject\":\"a.*.>\"",
    b"\"to\":\"$1.{{wildcard(1)}}.>\"",
    b"\"stream\":\"S\"",
    b"\"bucket\":\"b\"",
    b"\"start_time\":\"2026-01-31T12:00:00Z\"",
    b"\"start_sequence\":18446744073709551615",
    b"\"timeout\":\"1ms\"",
    b"\"direction\":\"in\"",
    b"}]",
    b",",
    b"null",
];

pub fn run(body: &[u8]) {
    let Ok(table) = serde_json::from_slice::<toml::Table>(body) else { return };
    match LinkTable::read(table) {
        Ok(link) => {
            let again = LinkTable::read(link.to_table());
            assert_eq!(again.as_ref(), Ok(&link), "what is kept is read back");
            let errors = check(std::slice::from_ref(&link));
            assert!(errors.iter().all(|error| !error.to_string().is_empty()));
            // Beside itself under another name: whatever it carries clashes, and nothing else happens.
            let other = LinkTable { name: format!("{}x", link.name), ..link.clone() };
            assert!(check(&[link, other]).len() >= errors.len());
        }
        Err(errors) => assert!(!errors.is_empty()),
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    [
        "{\"name\":\"core\",\"urls\":[\"nats://127.0.0.1:4222\"],\"import\":[{\"stream\":\"ORDERS\"}]}",
        "{\"name\":\"a\",\"urls\":[\"tls://h:1\",\"wss://h:2\"],\"export\":[{\"subject\":\"a.*\",\"to\":\"b.$1\"}]}",
        "{\"name\":\"a\",\"urls\":[\"nats://u:p@h\"],\"import\":[{\"bucket\":\"b\"}],\"export\":[{\"bucket\":\"b\"}]}",
        "{\"name\":\"a\",\"requests\":[{\"subject\":\"r.>\",\"direction\":\"out\",\"timeout\":\"3s\"}]}",
        "{\"name\":\"a\",\"import\":[{\"stream\":\"S\",\"start_time\":\"2026-01-31T12:00:00Z\",\"as\":\"T\"}],\"x\":1}",
        "{\"name\":1,\"urls\":{},\"import\":[1,\"a\",[]],\"bytes_per_second\":\"1MiB\",\"paused\":true}",
        "{}",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
