//! The parser of client lines.
//!
//! It holds no state: given everything that was read and not yet consumed, it answers with the first
//! command in it, asks for more, or names the violation as early as nats-server does. Nothing is ever
//! allocated, so a declared size costs nothing. What it accepts was recorded from nats-server 2.15.1:
//! verbs in any case, arguments between blanks and tabs, a bare LF for a control line.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::Violation;

/// What a connection allows now.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest arguments of a verb. nats-server: 4096.
    pub control_line_max: usize,
    /// Longest headers + payload. nats-server: 1 MiB.
    pub payload_max: usize,
    /// The client said in CONNECT that it knows headers: `HPUB` is allowed.
    pub headers: bool,
}

/// One thing a client said.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Command<'a> {
    /// The JSON, not looked at.
    Connect(&'a [u8]),
    Publish(Publish<'a>),
    Subscribe {
        filter: &'a [u8],
        queue: Option<&'a [u8]>,
        sid: &'a [u8],
    },
    /// After `max` deliveries in all, or at once.
    Unsubscribe {
        sid: &'a [u8],
        max: Option<usize>,
    },
    Ping,
    Pong,
    /// `INFO` and `+OK`, which mean nothing from a client.
    Ignored,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Publish<'a> {
    pub subject: &'a [u8],
    /// Empty is none.
    pub reply: &'a [u8],
    /// The raw header block, or empty.
    pub headers: &'a [u8],
    pub payload: &'a [u8],
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Parsed<'a> {
    /// The first command, and the bytes behind it.
    Command(Command<'a>, &'a [u8]),
    /// No whole command yet; at least this many bytes are missing.
    Incomplete { missing: usize },
}

use Parsed::Incomplete;

const ONE_MORE: Parsed<'static> = Incomplete { missing: 1 };

/// Reads the first command of `input`.
///
/// # Errors
/// The connection has to be closed, after the violation's words.
pub fn parse<'a>(input: &'a [u8], limits: &Limits) -> Result<Parsed<'a>, Violation> {
    match input {
        [b'P' | b'p', b'U' | b'u', b'B' | b'b', rest @ ..] => publish(rest, limits, false),
        [b'H' | b'h', b'P' | b'p', b'U' | b'u', b'B' | b'b', rest @ ..] => publish(rest, limits, true),
        [b'P' | b'p', b'I' | b'i', b'N' | b'n', b'G' | b'g', rest @ ..] => {
            ignoring(rest, limits, Command::Ping)
        }
        [b'P' | b'p', b'O' | b'o', b'N' | b'n', b'G' | b'g', rest @ ..] => {
            ignoring(rest, limits, Command::Pong)
        }
        [b'S' | b's', b'U' | b'u', b'B' | b'b', rest @ ..] => subscribe(rest, limits),
        [b'U' | b'u', b'N' | b'n', b'S' | b's', b'U' | b'u', b'B' | b'b', rest @ ..] => {
            unsubscribe(rest, limits)
        }
        [
            b'C' | b'c',
            b'O' | b'o',
            b'N' | b'n',
            b'N' | b'n',
            b'E' | b'e',
            b'C' | b'c',
            b'T' | b't',
            rest @ ..,
        ] => Ok(match line(skip_blanks(rest), limits)? {
            Some((json, rest)) => Parsed::Command(Command::Connect(json), rest),
            None => ONE_MORE,
        }),
        [b'I' | b'i', b'N' | b'n', b'F' | b'f', b'O' | b'o', rest @ ..] => {
            ignoring(rest, limits, Command::Ignored)
        }
        [b'+', b'O' | b'o', b'K' | b'k', rest @ ..] => ignoring(rest, limits, Command::Ignored),
        [b'-', b'E' | b'e', b'R' | b'r', b'R' | b'r', rest @ ..] => match line(rest, limits)? {
            Some(_) => Err(Violation::ClientError),
            None => Ok(ONE_MORE),
        },
        partial => {
            let begins = |verb: &&[u8]| {
                verb.get(..partial.len()).is_some_and(|start| start.eq_ignore_ascii_case(partial))
            };
            if VERBS.iter().any(begins) { Ok(ONE_MORE) } else { Err(Violation::UnknownOperation) }
        }
    }
}

const VERBS: &[&[u8]] =
    &[b"PUB", b"HPUB", b"PING", b"PONG", b"SUB", b"UNSUB", b"CONNECT", b"INFO", b"+OK", b"-ERR"];

fn ignoring<'a>(rest: &'a [u8], limits: &Limits, command: Command<'a>) -> Result<Parsed<'a>, Violation> {
    Ok(match line(rest, limits)? {
        Some((_, rest)) => Parsed::Command(command, rest),
        None => ONE_MORE,
    })
}

fn publish<'a>(rest: &'a [u8], limits: &Limits, with_headers: bool) -> Result<Parsed<'a>, Violation> {
    let Some(arguments) = arguments(rest)? else { return Ok(ONE_MORE) };
    let Some((arguments, rest)) = line(arguments, limits)? else { return Ok(ONE_MORE) };
    if with_headers && !limits.headers {
        return Err(Violation::Malformed);
    }
    let (words, count) = split(arguments, is_blank);
    let (subject, reply, headers, total) = match (words, count, with_headers) {
        ([subject, total, ..], 2, false) => (subject, &b""[..], None, total),
        ([subject, reply, total, _], 3, false) => (subject, reply, None, total),
        ([subject, headers, total, _], 3, true) => (subject, &b""[..], Some(headers), total),
        ([subject, reply, headers, total], 4, true) => (subject, reply, Some(headers), total),
        _ => return Err(Violation::Malformed),
    };
    let total = size(total).ok_or(Violation::Malformed)?;
    let headers = match headers {
        Some(digits) => size(digits).filter(|&headers| headers <= total).ok_or(Violation::Malformed)?,
        None => 0,
    };
    if total > limits.payload_max {
        return Err(Violation::PayloadTooLarge);
    }
    let Some((body, end)) = rest.split_at_checked(total) else {
        return Ok(Incomplete { missing: total.saturating_sub(rest.len()).saturating_add(2) });
    };
    let rest = match end {
        [b'\r', b'\n', rest @ ..] => rest,
        [] => return Ok(Incomplete { missing: 2 }),
        [b'\r'] => return Ok(ONE_MORE),
        [_, ..] => return Err(Violation::UnknownOperation),
    };
    let (headers, payload) = body.split_at_checked(headers).ok_or(Violation::Malformed)?;
    Ok(Parsed::Command(Command::Publish(Publish { subject, reply, headers, payload }), rest))
}

fn subscribe<'a>(rest: &'a [u8], limits: &Limits) -> Result<Parsed<'a>, Violation> {
    let Some(arguments) = arguments(rest)? else { return Ok(ONE_MORE) };
    let Some((arguments, rest)) = line(arguments, limits)? else { return Ok(ONE_MORE) };
    let command = match split(arguments, is_blank_or_end) {
        ([filter, sid, ..], 2) => Command::Subscribe { filter, queue: None, sid },
        ([filter, queue, sid, _], 3) => Command::Subscribe { filter, queue: Some(queue), sid },
        _ => return Err(Violation::Malformed),
    };
    Ok(Parsed::Command(command, rest))
}

fn unsubscribe<'a>(rest: &'a [u8], limits: &Limits) -> Result<Parsed<'a>, Violation> {
    let Some(arguments) = arguments(rest)? else { return Ok(ONE_MORE) };
    let Some((arguments, rest)) = line(arguments, limits)? else { return Ok(ONE_MORE) };
    let command = match split(arguments, is_blank_or_end) {
        ([sid, ..], 1) => Command::Unsubscribe { sid, max: None },
        // A maximum that is no number means "at once", as does 0.
        ([sid, max, ..], 2) => Command::Unsubscribe { sid, max: size(max).filter(|&max| max > 0) },
        _ => return Err(Violation::Malformed),
    };
    Ok(Parsed::Command(command, rest))
}

/// What stands behind a verb that wants arguments: a blank, then them.
fn arguments(rest: &[u8]) -> Result<Option<&[u8]>, Violation> {
    match rest {
        [] => Ok(None),
        [first, ..] if is_blank(*first) => Ok(Some(skip_blanks(rest))),
        [_, ..] => Err(Violation::UnknownOperation),
    }
}

fn skip_blanks(input: &[u8]) -> &[u8] {
    let blanks = input.iter().take_while(|&&byte| is_blank(byte)).count();
    input.get(blanks..).unwrap_or_default()
}

/// A line without its CRLF or LF, and what follows it.
type Split<'a> = (&'a [u8], &'a [u8]);

/// Splits off a line. `None` when it has not ended yet.
fn line<'a>(input: &'a [u8], limits: &Limits) -> Result<Option<Split<'a>>, Violation> {
    let Some(end) = memchr::memchr(b'\n', input) else {
        // A CR may be the last byte: it is no part of the line.
        let so_far = input.strip_suffix(b"\r").unwrap_or(input).len();
        return if so_far > limits.control_line_max { Err(Violation::ControlLineTooLong) } else { Ok(None) };
    };
    let (line, rest) = input.split_at_checked(end).unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.len() > limits.control_line_max {
        return Err(Violation::ControlLineTooLong);
    }
    Ok(Some((line, rest.get(1..).unwrap_or_default())))
}

fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

fn is_blank_or_end(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// The first four words, and how many there are (5 for "more").
fn split(line: &[u8], is_separator: impl Fn(u8) -> bool) -> ([&[u8]; 4], usize) {
    let mut words: [&[u8]; 4] = [b""; 4];
    let mut count = 0_usize;
    let mut rest = line;
    loop {
        let blanks = rest.iter().take_while(|&&byte| is_separator(byte)).count();
        rest = rest.get(blanks..).unwrap_or_default();
        if rest.is_empty() {
            return (words, count);
        }
        let end = rest.iter().position(|&byte| is_separator(byte)).unwrap_or(rest.len());
        let (word, after) = rest.split_at_checked(end).unwrap_or_default();
        match words.get_mut(count) {
            Some(place) => *place = word,
            None => return (words, 5),
        }
        count = count.saturating_add(1);
        rest = after;
    }
}

/// Digits only, at most nine of them.
fn size(digits: &[u8]) -> Option<usize> {
    if digits.is_empty() || digits.len() > 9 {
        return None;
    }
    digits.iter().try_fold(0_usize, |value, &digit| {
        let digit = digit.is_ascii_digit().then(|| usize::from(digit & 0x0f))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { control_line_max: 64, payload_max: 100, headers: true };

    fn all(mut input: &[u8]) -> Result<Vec<Command<'_>>, Violation> {
        let mut commands = Vec::new();
        while let Parsed::Command(command, rest) = parse(input, &LIMITS)? {
            commands.push(command);
            input = rest;
        }
        Ok(commands)
    }

    #[track_caller]
    fn check(input: &str, expected: Result<&[Command<'_>], Violation>) {
        assert_eq!(all(input.as_bytes()).as_deref(), expected.as_ref().copied(), "{input:?}");
        // However the bytes arrive, no shorter input may be taken for a whole command or refused.
        if expected.is_ok() {
            for cut in 0..input.len() {
                let shorter = input.as_bytes().get(..cut).unwrap();
                assert!(all(shorter).is_ok(), "{input:?} cut at {cut}");
            }
        }
    }

    fn published<'a>(subject: &'a str, reply: &'a str, headers: &'a str, payload: &'a str) -> Command<'a> {
        Command::Publish(Publish {
            subject: subject.as_bytes(),
            reply: reply.as_bytes(),
            headers: headers.as_bytes(),
            payload: payload.as_bytes(),
        })
    }

    #[test]
    fn publishes_in_all_their_forms() {
        check("PUB a 2\r\nhi\r\n", Ok(&[published("a", "", "", "hi")]));
        check("pub a b 2\r\nhi\r\n", Ok(&[published("a", "b", "", "hi")]));
        check("PUB\ta\t0\r\n\r\n", Ok(&[published("a", "", "", "")]));
        check("PUB  a   2 \nhi\r\n", Ok(&[published("a", "", "", "hi")]));
        check("PUB a 002\r\n\r\n\r\n", Ok(&[published("a", "", "", "\r\n")]));
        check("HPUB a 12 14\r\nNATS/1.0\r\n\r\nhi\r\n", Ok(&[published("a", "", "NATS/1.0\r\n\r\n", "hi")]));
        check("HPUB a r 0 2\r\nhi\r\n", Ok(&[published("a", "r", "", "hi")]));
    }

    #[test]
    fn malformed_publishes() {
        for input in [
            "PUB a\r\n",
            "PUB a b c 2\r\n",
            "PUB a b c d e 2\r\n",
            "PUB a -1\r\n",
            "PUB a +1\r\n",
            "PUB a x\r\n",
            "PUB a 2147483648\r\n",
            "PUB a 99999999999999999999\r\n",
            "PUB a 2\r\r\nhi\r\n",
            "HPUB a 12\r\n",
            "HPUB a 14 12\r\n",
            "HPUB a -1 12\r\n",
            "HPUB a b c 1 2\r\n",
        ] {
            check(input, Err(Violation::Malformed));
        }
        check("PUB\r\n", Err(Violation::UnknownOperation));
        check("PUBLISH a 1\r\n", Err(Violation::UnknownOperation));
        check("PUB a 2\r\nhiXX\r\n", Err(Violation::UnknownOperation));
        check("PUB a 2\r\nhi\n", Err(Violation::UnknownOperation));
        let no_headers = Limits { headers: false, ..LIMITS };
        assert_eq!(parse(b"HPUB a 12 14\r\n", &no_headers), Err(Violation::Malformed));
    }

    #[test]
    fn a_payload_is_refused_before_it_is_read() {
        check("PUB a 101\r\n", Err(Violation::PayloadTooLarge));
        check("HPUB a 12 999999999\r\n", Err(Violation::PayloadTooLarge));
        assert_eq!(parse(b"PUB a 100\r\n", &LIMITS), Ok(Incomplete { missing: 102 }));
    }

    #[test]
    fn subscriptions() {
        let plain = Command::Subscribe { filter: b"a.*", queue: None, sid: b"1" };
        let queue = Command::Subscribe { filter: b"a", queue: Some(b"q"), sid: b"0" };
        check("SUB a.* 1\r\n", Ok(&[plain]));
        check("SUB a.*  1\r\n", Ok(&[plain]));
        check("sub\ta q\t0\n", Ok(&[queue]));
        check("SUB a\rq 0\r\n", Ok(&[queue]));
        check("UNSUB 1\r\n", Ok(&[Command::Unsubscribe { sid: b"1", max: None }]));
        check("UNSUB x 5\r\n", Ok(&[Command::Unsubscribe { sid: b"x", max: Some(5) }]));
        check("UNSUB x 0\r\n", Ok(&[Command::Unsubscribe { sid: b"x", max: None }]));
        check("UNSUB x y\r\n", Ok(&[Command::Unsubscribe { sid: b"x", max: None }]));
        for input in ["SUB a\r\n", "SUB a b c d\r\n", "SUB a b c d e f\r\n", "UNSUB a b c\r\n", "UNSUB \r\n"]
        {
            check(input, Err(Violation::Malformed));
        }
        check("SUB\r\n", Err(Violation::UnknownOperation));
        check("UNSUB\r\n", Err(Violation::UnknownOperation));
    }

    #[test]
    fn the_other_verbs() {
        check("CONNECT {}\r\n", Ok(&[Command::Connect(b"{}")]));
        check("connect{}\r\n", Ok(&[Command::Connect(b"{}")]));
        check("CONNECT\r\n", Ok(&[Command::Connect(b"")]));
        check("PING\r\nping\nPING foo\r\n", Ok(&[Command::Ping, Command::Ping, Command::Ping]));
        check("PONG\r\nINFO {}\r\n+OK\r\n", Ok(&[Command::Pong, Command::Ignored, Command::Ignored]));
        check("-ERR 'x'\r\n", Err(Violation::ClientError));
        for input in
            ["FOO\r\n", "GET / HTTP/1.1\r\n", "\r\n", "MSG a 1 0\r\n", "PUX", "RS+ a\r\n", "\0", "CO\r\n"]
        {
            check(input, Err(Violation::UnknownOperation));
        }
    }

    #[test]
    fn a_control_line_is_bounded_before_it_ends() {
        let long = "a".repeat(62);
        check(
            &format!("SUB {long} 1\r\n"),
            Ok(&[Command::Subscribe { filter: long.as_bytes(), queue: None, sid: b"1" }]),
        );
        check(&format!("SUB {long}b 1\r\n"), Err(Violation::ControlLineTooLong));
        check(&format!("SUB {long}bcd"), Err(Violation::ControlLineTooLong));
        check(&format!("CONNECT {long}bcd"), Err(Violation::ControlLineTooLong));
        check(&format!("PING {long}bcd"), Err(Violation::ControlLineTooLong));
    }
}
