//! Which stream a subject of the API is about: who routes requests to it need not read them.

/// The stream that a subject of the API, an ack or a flow-control answer names. `None`: it names none.
#[must_use]
pub fn stream_named(subject: &[u8]) -> Option<&str> {
    let mut tokens = std::str::from_utf8(subject).ok()?.split('.');
    if tokens.next()? != "$JS" {
        return None;
    }
    match tokens.next()? {
        "API" => of_api(tokens),
        "ACK" => behind_account(&tokens.collect::<Vec<_>>(), 7),
        "FC" => behind_account(&tokens.collect::<Vec<_>>(), 3),
        _ => None,
    }
}

fn of_api<'a>(mut tokens: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    match (tokens.next()?, tokens.next()?) {
        ("STREAM", "NAMES" | "LIST") => None,
        ("STREAM", "MSG" | "LEADER") => tokens.nth(1),
        ("STREAM", "PEER") => tokens.nth(1),
        ("STREAM", _) => tokens.next(),
        ("CONSUMER", "DURABLE" | "MSG" | "LEADER") => tokens.nth(1),
        ("CONSUMER", _) => tokens.next(),
        ("DIRECT", "GET") => tokens.next(),
        (_, _) => None,
    }
}

/// The first of `bare` tokens, or the one behind a domain and an account.
fn behind_account<'a>(tokens: &[&'a str], bare: usize) -> Option<&'a str> {
    if tokens.len() > bare { tokens.get(2) } else { tokens.first().filter(|_| tokens.len() == bare) }.copied()
}

#[cfg(test)]
mod tests {
    use super::stream_named;

    #[test]
    fn the_stream_of_a_request_is_found_where_the_request_has_it() {
        for subject in [
            "$JS.API.STREAM.CREATE.s",
            "$JS.API.STREAM.UPDATE.s",
            "$JS.API.STREAM.INFO.s",
            "$JS.API.STREAM.DELETE.s",
            "$JS.API.STREAM.PURGE.s",
            "$JS.API.STREAM.MSG.GET.s",
            "$JS.API.STREAM.MSG.DELETE.s",
            "$JS.API.STREAM.LEADER.STEPDOWN.s",
            "$JS.API.STREAM.PEER.REMOVE.s",
            "$JS.API.CONSUMER.CREATE.s",
            "$JS.API.CONSUMER.CREATE.s.c.a.b",
            "$JS.API.CONSUMER.DURABLE.CREATE.s.c",
            "$JS.API.CONSUMER.NAMES.s",
            "$JS.API.CONSUMER.LIST.s",
            "$JS.API.CONSUMER.INFO.s.c",
            "$JS.API.CONSUMER.DELETE.s.c",
            "$JS.API.CONSUMER.PAUSE.s.c",
            "$JS.API.CONSUMER.MSG.NEXT.s.c",
            "$JS.API.CONSUMER.LEADER.STEPDOWN.s.c",
            "$JS.API.DIRECT.GET.s",
            "$JS.API.DIRECT.GET.s.a.b",
            "$JS.ACK.s.c.2.33.4.1700000000000000000.5",
            "$JS.ACK._.hash.s.c.2.33.4.1700000000000000000.5",
            "$JS.ACK.domain.hash.s.c.2.33.4.1700000000000000000.5.random",
            "$JS.FC.s.c.7",
            "$JS.FC.domain.hash.s.c.7",
        ] {
            assert_eq!(stream_named(subject.as_bytes()), Some("s"), "{subject}");
        }
        for subject in [
            "$JS.API.INFO",
            "$JS.API.STREAM.NAMES",
            "$JS.API.STREAM.LIST",
            "$JS.API.STREAM.INFO",
            "$JS.API.META.LEADER.STEPDOWN",
            "$JS.ACK.s.c",
            "$JS.FC.s",
            "$JS.EVENT.ADVISORY.s",
            "s.a.b",
            "",
        ] {
            assert_eq!(stream_named(subject.as_bytes()), None, "{subject}");
        }
        assert_eq!(stream_named(b"$JS.API.STREAM.INFO.\xff"), None);
    }
}
