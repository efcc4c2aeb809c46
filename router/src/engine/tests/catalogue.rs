//! Streams are created, changed, listed and deleted as nats-server does.

use super::*;
use crate::stream::{Discard, Republish, Retention, Storage, SubjectMapping};
use crate::wire::Advisory;

fn refusal(config: StreamConfig) -> String {
    Shard::new().create(config).unwrap_err().to_string()
}

#[test]
fn a_stream_gets_the_defaults_of_jetstream() {
    let mut shard = Shard::with(stream("S"));
    let config = shard.info().config;
    assert_eq!(config.subjects, ["S"]);
    assert_eq!(config.replicas, 1);
    assert_eq!(config.duplicate_window_nanos, Some(120 * SECOND));
    let aged = StreamConfig { max_age_nanos: Some(5 * SECOND), max_messages: Some(0), ..stream("S") };
    let config = Shard::with(aged).info().config;
    assert_eq!((config.duplicate_window_nanos, config.max_messages), (Some(5 * SECOND), None));
}

#[test]
fn the_same_stream_may_be_created_twice_and_another_of_its_name_not() {
    let mut shard = Shard::with(s());
    assert_eq!(shard.create(s()), Ok(false));
    let other = StreamConfig { max_messages: Some(5), ..s() };
    assert_eq!(shard.create(other), Err(ApiError::StreamNameInUse));
}

#[test]
fn streams_do_not_share_subjects() {
    let mut shard = Shard::with(s());
    let other = StreamConfig { subjects: vec!["s.eu.*".into()], ..stream("OTHER") };
    assert_eq!(shard.create(other.clone()), Err(ApiError::SubjectOverlap));
    shard.request(Request::DeleteStream { stream: "S".into() }).unwrap();
    assert_eq!(shard.create(other), Ok(true));
}

#[test]
fn bad_configurations_are_refused_in_the_words_of_nats_server() {
    let name = "stream name is required and can not contain '.', '*', '>', '\\', '/'";
    for bad in ["", "a.b", "a*", ">", "a b", "a/b", "a\\b", "a\tb"] {
        assert_eq!(refusal(stream(bad)), name, "{bad:?}");
    }
    assert_eq!(refusal(stream(&"x".repeat(256))), "stream name is too long, maximum allowed is 255");
    let with = |change: fn(&mut StreamConfig)| {
        let mut config = s();
        change(&mut config);
        refusal(config)
    };
    assert_eq!(with(|c| c.subjects = vec!["a..b".into()]), "invalid subject");
    assert_eq!(with(|c| c.subjects = vec!["a".into(), "a".into()]), "subject \"a\" overlaps with \"a\"");
    assert_eq!(
        with(|c| c.subjects = vec!["a.*".into(), "a.b".into()]),
        "subject \"a.*\" overlaps with \"a.b\""
    );
    assert_eq!(with(|c| c.subjects = vec![">".into()]), "capturing all subjects requires no-ack to be true");
    assert_eq!(
        with(|c| c.subjects = vec!["$JS.API.>".into()]),
        "subjects that overlap with jetstream api require no-ack to be true"
    );
    assert_eq!(with(|c| c.max_age_nanos = Some(1)), "max age needs to be >= 100ms");
    assert_eq!(with(|c| c.duplicate_window_nanos = Some(1)), "duplicates window needs to be >= 100ms");
    assert_eq!(
        with(|c| c.discard_new_per_subject = true),
        "discard new per subject requires discard new policy to be set"
    );
    assert_eq!(
        with(|c| (c.discard, c.discard_new_per_subject) = (Discard::New, true)),
        "discard new per subject requires max msgs per subject > 0"
    );
    assert_eq!(
        with(|c| (c.deny_purge, c.allow_rollup_headers) = (true, true)),
        "roll-ups require the purge permission"
    );
    assert_eq!(with(|c| c.sealed = true), "stream configuration for create can not be sealed");
    assert_eq!(with(|c| c.replicas = 3), "replicas > 1 not supported in non-clustered mode");
    assert_eq!(
        with(|c| {
            let destination = "s.copy".into();
            c.republish = Some(Republish { source: "s.>".into(), destination, headers_only: false });
        }),
        "stream configuration for republish destination forms a cycle"
    );
}

#[test]
fn an_update_changes_what_may_be_changed() {
    let mut shard = Shard::with(StreamConfig { deny_delete: true, ..s() });
    let mut update = |change: fn(&mut StreamConfig)| {
        let mut config = StreamConfig { deny_delete: true, ..s() };
        change(&mut config);
        shard.request(Request::UpdateStream(Box::new(config))).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(update(|c| c.max_messages = Some(7)), Ok(()));
    assert_eq!(update(|c| c.subjects = vec!["t".into()]), Ok(()));
    let refused = |text: &str| Err(text.to_owned());
    assert_eq!(
        update(|c| c.storage = Storage::Memory),
        refused("stream configuration update can not change storage type")
    );
    assert_eq!(
        update(|c| c.retention = Retention::WorkQueue),
        refused("stream configuration update can not change retention policy to/from workqueue")
    );
    assert_eq!(
        update(|c| c.deny_delete = false),
        refused("stream configuration update can not cancel deny message deletes")
    );
    assert_eq!(update(|c| c.sealed = true), Ok(()));
    assert_eq!(
        update(|c| c.sealed = false),
        refused("stream configuration update can not unseal a sealed stream")
    );
    assert_eq!(shard.publish("t", "late"), Err(PublishRefusal::Sealed));
    let missing = shard.request(Request::UpdateStream(Box::new(stream("NONE"))));
    assert_eq!(missing, Err(ApiError::StreamNotFound));
}

#[test]
fn captures_follow_the_configuration() {
    let mut shard = Shard::with(StreamConfig { subjects: vec!["a".into(), "b".into()], ..stream("S") });
    shard
        .request(Request::UpdateStream(Box::new(StreamConfig {
            subjects: vec!["b".into(), "c".into()],
            ..stream("S")
        })))
        .unwrap();
    shard.request(Request::DeleteStream { stream: "S".into() }).unwrap();
    let said: Vec<String> = shard
        .outputs
        .iter()
        .filter_map(|output| match output {
            Output::Capture { filter, .. } => Some(format!("+{}", String::from_utf8_lossy(filter))),
            Output::Release { filter, .. } => Some(format!("-{}", String::from_utf8_lossy(filter))),
            _ => None,
        })
        .collect();
    assert_eq!(said, ["+a", "+b", "-a", "+c", "-b", "-c"]);
    let told = |wanted: &Advisory| {
        shard.outputs.iter().any(|output| matches!(output, Output::Advisory(told) if told == wanted))
    };
    assert!(told(&Advisory::StreamCreated { stream: "S".into() }));
    assert!(told(&Advisory::StreamUpdated { stream: "S".into() }));
    assert!(told(&Advisory::StreamDeleted { stream: "S".into() }));
}

#[test]
fn streams_are_listed_in_pages_and_by_subject() {
    let mut shard = Shard::new();
    for name in ["B", "A", "C"] {
        shard.create(stream(name)).unwrap();
    }
    let mut names = |subject: Option<&str>, offset| match shard
        .request(Request::StreamNames { subject: subject.map(Into::into), offset })
        .unwrap()
    {
        Response::Names(page) => (page.total, page.limit, page.items.join(" ")),
        other => panic!("{other:?}"),
    };
    assert_eq!(names(None, 0), (3, 1024, "A B C".into()));
    assert_eq!(names(None, 2), (3, 1024, "C".into()));
    assert_eq!(names(Some("B"), 0), (1, 1024, "B".into()));
    assert_eq!(names(Some(">"), 9), (3, 1024, String::new()));
}

#[test]
fn a_deleted_stream_is_gone_and_its_name_is_free() {
    let mut shard = Shard::with(s());
    shard.publish("s.a", "1").unwrap();
    shard.request(Request::DeleteStream { stream: "S".into() }).unwrap();
    assert_eq!(shard.publish("s.a", "2"), Err(PublishRefusal::StreamNotFound));
    let again = shard.request(Request::DeleteStream { stream: "S".into() });
    assert_eq!(again, Err(ApiError::StreamNotFound));
    shard.create(s()).unwrap();
    assert_eq!(shard.info().state.messages, 0);
    assert_eq!(shard.publish("s.a", "3"), stored(1));
    shard.check_recovery();
}

#[test]
fn a_stream_may_begin_at_another_sequence() {
    let mut shard = Shard::with(StreamConfig { first_sequence: Some(Sequence(100)), ..s() });
    assert_eq!(shard.info().state.last_sequence, Sequence(99));
    assert_eq!(shard.publish("s.a", "1"), stored(100));
    shard.check_recovery();
}

#[test]
fn subjects_are_rewritten_on_the_way_in() {
    let transform = SubjectMapping { source: "s.*.in".into(), destination: "kept.$1".into() };
    let mut shard = Shard::with(StreamConfig { subject_transform: Some(transform), ..s() });
    shard.publish("s.eu.in", "1").unwrap();
    shard.publish("s.other", "2").unwrap();
    assert_eq!(shard.get(MessageSelector::At(Sequence(1))).unwrap().subject, "kept.eu");
    assert_eq!(shard.get(MessageSelector::At(Sequence(2))).unwrap().subject, "s.other");
}

#[test]
fn a_stored_message_is_copied_to_another_subject() {
    let republish = Republish { source: "s.>".into(), destination: "copy.>".into(), headers_only: true };
    let mut shard = Shard::with(StreamConfig { republish: Some(republish), ..s() });
    shard.publish("s.a", "one").unwrap();
    shard.publish("s.a", "three").unwrap();
    let copies: Vec<_> = shard
        .outputs
        .iter()
        .filter_map(|output| match output {
            Output::Republish { subject, headers, payload } => Some((subject, headers, payload)),
            _ => None,
        })
        .collect();
    let (subject, headers, payload) = copies[1];
    let header = |name: &str| {
        String::from_utf8_lossy(crate::headers::find(headers, name.as_bytes()).unwrap()).into_owned()
    };
    assert_eq!((&subject[..], &payload[..]), (&b"copy.a"[..], &b""[..]));
    assert_eq!(header("Nats-Stream"), "S");
    assert_eq!(header("Nats-Subject"), "s.a");
    assert_eq!(header("Nats-Sequence"), "2");
    assert_eq!(header("Nats-Last-Sequence"), "1");
    assert_eq!(header("Nats-Msg-Size"), "5");
}

#[test]
fn the_number_of_streams_is_limited() {
    let mut shard = Shard::new();
    for at in 0..100 {
        shard.create(stream(&format!("S{at}"))).unwrap();
    }
    assert_eq!(shard.create(stream("MORE")), Err(ApiError::MaxStreams));
}
