//! Reads what `strace -f -y` prints. The order of lines is the order of events: a call that another
//! thread's event came between is printed in two parts, so a whole line is a begin and an end with
//! nothing between.

use std::collections::HashMap;

#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum TraceError {
    #[error("line {line} is not understood: {text}")]
    Line { line: usize, text: String },
    #[error("line {line} has a string that was cut: strace needs a larger -s")]
    Cut { line: usize },
}

/// One system call.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Call {
    pub name: String,
    /// What the descriptor is, as `-y` prints it: a path, or `socket:[…]`.
    pub target: String,
    /// All strings among the arguments, in order: the bytes that were handed over.
    pub data: Vec<u8>,
    pub begun: usize,
    /// When it ended, and with what; nothing when the trace ends before.
    pub ended: Option<(usize, i64)>,
}

/// Parses a trace. Lines that are no calls (signals, exits) only count for the order.
pub fn parse(trace: &[u8]) -> Result<Vec<Call>, TraceError> {
    let mut calls: Vec<Call> = Vec::new();
    let mut unfinished: HashMap<Vec<u8>, usize> = HashMap::new();
    for (at, line) in trace.split(|byte| *byte == b'\n').enumerate() {
        let wrong = || TraceError::Line {
            line: at + 1,
            text: String::from_utf8_lossy(&line[..line.len().min(200)]).into_owned(),
        };
        if line.is_empty() {
            continue;
        }
        let space = memchr::memchr(b' ', line).ok_or_else(wrong)?;
        let (thread, event) = (&line[..space], line[space..].trim_ascii_start());
        if event.starts_with(b"---") || event.starts_with(b"+++") {
            continue;
        }
        if event.starts_with(b"<... ") {
            let result = memchr::memmem::rfind(event, b" = ").ok_or_else(wrong)?;
            let call = unfinished.remove(thread).ok_or_else(wrong)?;
            calls[call].ended = Some((at, result_of(&event[result + 3..]).ok_or_else(wrong)?));
            continue;
        }
        let open = memchr::memchr(b'(', event).ok_or_else(wrong)?;
        let arguments = Arguments::scan(&event[open + 1..]).ok_or_else(wrong)?;
        if arguments.cut {
            return Err(TraceError::Cut { line: at + 1 });
        }
        let ended = match arguments.rest {
            Some(rest) => {
                let result = rest.trim_ascii_start().strip_prefix(b"= ").ok_or_else(wrong)?;
                Some((at, result_of(result).ok_or_else(wrong)?))
            }
            None => {
                unfinished.insert(thread.to_vec(), calls.len());
                None
            }
        };
        calls.push(Call {
            name: String::from_utf8_lossy(&event[..open]).into_owned(),
            target: arguments.target,
            data: arguments.data,
            begun: at,
            ended,
        });
    }
    Ok(calls)
}

/// The number a call returned; one that never returned (`?`) counts as failed.
fn result_of(text: &[u8]) -> Option<i64> {
    let end = memchr::memchr(b' ', text).unwrap_or(text.len());
    let word = std::str::from_utf8(&text[..end]).ok()?;
    if word == "?" { Some(-1) } else { word.parse().ok() }
}

struct Arguments<'a> {
    target: String,
    data: Vec<u8>,
    cut: bool,
    /// What comes after the closing parenthesis; nothing when the call is unfinished.
    rest: Option<&'a [u8]>,
}

impl<'a> Arguments<'a> {
    fn scan(text: &'a [u8]) -> Option<Self> {
        let mut found = Self { target: String::new(), data: Vec::new(), cut: false, rest: None };
        let mut at = 0;
        let mut depth = 0_u32;
        while at < text.len() {
            match text[at] {
                b'"' => {
                    at = unescape(text, at + 1, &mut found.data)?;
                    found.cut |= text[at..].starts_with(b"...");
                    continue;
                }
                b'<' if text[at..].starts_with(b"<unfinished ...>") => return Some(found),
                b'<' => {
                    let end = at + memchr::memchr(b'>', &text[at..])?;
                    if found.target.is_empty() {
                        found.target = String::from_utf8_lossy(&text[at + 1..end]).into_owned();
                    }
                    at = end;
                }
                b'(' | b'[' | b'{' => depth += 1,
                b')' if depth == 0 => {
                    found.rest = Some(&text[at + 1..]);
                    return Some(found);
                }
                b')' | b']' | b'}' => depth = depth.checked_sub(1)?,
                _ => {}
            }
            at += 1;
        }
        None
    }
}

/// Appends the bytes of a quoted string; gives the position after its closing quote.
fn unescape(text: &[u8], mut at: usize, out: &mut Vec<u8>) -> Option<usize> {
    loop {
        match *text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => {
                at += 1;
                let escape = *text.get(at)?;
                at += 1;
                out.push(match escape {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'v' => 0x0b,
                    b'f' => 0x0c,
                    b'x' => {
                        let digits = std::str::from_utf8(text.get(at..at + 2)?).ok()?;
                        at += 2;
                        u8::from_str_radix(digits, 16).ok()?
                    }
                    b'0'..=b'7' => {
                        let mut value = u32::from(escape - b'0');
                        for _ in 0..2 {
                            match text.get(at) {
                                Some(digit @ b'0'..=b'7') => {
                                    value = value * 8 + u32::from(digit - b'0');
                                    at += 1;
                                }
                                _ => break,
                            }
                        }
                        u8::try_from(value).ok()?
                    }
                    other => other,
                });
            }
            byte => {
                out.push(byte);
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(name: &str, target: &str, data: &[u8], begun: usize, ended: Option<(usize, i64)>) -> Call {
        Call { name: name.into(), target: target.into(), data: data.into(), begun, ended }
    }

    #[test]
    fn whole_and_parted_calls_come_in_order() {
        let trace = br#"12 pwrite64(7</d/1.log>, "a\0\"b\n\377\1c) = 3", 8, 4096) = 8
13 sendto(9<socket:[1]>, "MSG x", 5, MSG_NOSIGNAL, NULL, 0 <unfinished ...>
12 fdatasync(7</d/1.log> <unfinished ...>
13 <... sendto resumed>) = 5
12 <... fdatasync resumed>)            = -1 EIO (Input/output error)
12 writev(9<socket:[1]>, [{iov_base="ab", iov_len=2}, {iov_base="cd", iov_len=2}], 2) = 4
12 --- SIGTERM {si_signo=SIGTERM} ---
12 +++ exited with 0 +++
"#;
        assert_eq!(
            parse(trace).unwrap(),
            [
                call("pwrite64", "/d/1.log", b"a\0\"b\n\xff\x01c) = 3", 0, Some((0, 8))),
                call("sendto", "socket:[1]", b"MSG x", 1, Some((3, 5))),
                call("fdatasync", "/d/1.log", b"", 2, Some((4, -1))),
                call("writev", "socket:[1]", b"abcd", 5, Some((5, 4))),
            ]
        );
    }

    #[test]
    fn a_cut_string_is_refused() {
        let trace = b"1 write(3</d/x>, \"abc\"..., 9) = 9\n";
        assert_eq!(parse(trace), Err(TraceError::Cut { line: 1 }));
    }

    #[test]
    fn other_text_is_refused() {
        assert!(matches!(parse(b"1 strace: detached\n"), Err(TraceError::Line { line: 1, .. })));
    }
}
