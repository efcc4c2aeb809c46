//! Payloads, headers and messages as commands read and print them.

use std::io::Read;

use async_nats::HeaderMap;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::cli::exit::Failure;
use crate::cli::output::printable;

/// The payload given, or all of stdin when it is absent or `-`.
pub(crate) fn payload(argument: Option<String>) -> Result<Bytes, Failure> {
    match argument.as_deref() {
        Some("-") | None => {
            let mut bytes = Vec::new();
            std::io::stdin()
                .lock()
                .read_to_end(&mut bytes)
                .map_err(|e| Failure::failed(format!("reading the payload from stdin: {e}")))?;
            Ok(bytes.into())
        }
        Some(text) => Ok(Bytes::from(text.to_owned())),
    }
}

/// `Name: value` arguments.
pub(crate) fn headers(arguments: &[String]) -> Result<HeaderMap, Failure> {
    let mut headers = HeaderMap::new();
    for argument in arguments {
        let wrong = || Failure::cannot_start(format!("{argument:?} is not a header: write \"Name: value\""));
        let (name, value) = argument.split_once(':').ok_or_else(wrong)?;
        let is_legal = |text: &str| !text.contains(['\r', '\n']);
        if name.trim().is_empty() || !name.trim().bytes().all(|b| b.is_ascii_graphic()) || !is_legal(value) {
            return Err(wrong());
        }
        headers.append(name.trim(), value.trim());
    }
    Ok(headers)
}

pub(crate) fn headers_value(headers: Option<&HeaderMap>) -> Value {
    let mut map = Map::new();
    for (name, values) in headers.into_iter().flat_map(HeaderMap::iter) {
        map.insert(name.to_string(), values.iter().map(|value| json!(value.as_str())).collect());
    }
    Value::Object(map)
}

/// A payload as JSON: text where it is text, base64 where it is not.
pub(crate) fn payload_value(value: &mut Value, payload: &[u8]) {
    match std::str::from_utf8(payload) {
        Ok(text) => value["payload"] = text.into(),
        Err(_) => value["payload_base64"] = STANDARD.encode(payload).into(),
    }
}

/// A message that came by a subscription.
pub(crate) fn message_value(message: &async_nats::Message) -> Value {
    let mut value = json!({ "subject": message.subject.as_str() });
    if let Some(reply) = &message.reply {
        value["reply"] = reply.as_str().into();
    }
    if message.headers.is_some() {
        value["headers"] = headers_value(message.headers.as_ref());
    }
    if let Some(status) = message.status {
        value["status"] = status.as_u16().into();
    }
    payload_value(&mut value, &message.payload);
    value
}

/// The same for people: subject, headers, payload.
pub(crate) fn message_text(value: &Value) -> String {
    let mut text = format!("[{}]", printable(value["subject"].as_str().unwrap_or_default()));
    if let Some(sequence) = value["sequence"].as_u64() {
        text = format!("#{sequence} {text}");
    }
    for (name, values) in value["headers"].as_object().into_iter().flatten() {
        for one in values.as_array().into_iter().flatten() {
            text.push_str(&format!(" {}={:?}", printable(name), one.as_str().unwrap_or_default()));
        }
    }
    text.push(' ');
    match (value["payload"].as_str(), value["payload_base64"].as_str()) {
        (Some(payload), _) => text.push_str(payload),
        (None, Some(encoded)) => text.push_str(&format!("(base64) {encoded}")),
        (None, None) => {}
    }
    text
}

/// A time as JetStream writes it, `2026-11-21T03:59:00Z`, at `now` + `after`.
pub(crate) fn time_after(after: std::time::Duration) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    rfc3339(now + after)
}

/// A time since 1970 in UTC, by the civil calendar.
pub(crate) fn rfc3339(since_1970: std::time::Duration) -> String {
    let seconds = since_1970.as_secs();
    let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
    // Years of 365.2425 days counted from 1 March of year 0, so that the leap day is the last of a year.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second_of_day / 3_600, second_of_day / 60 % 60, second_of_day % 60);
    let nanos = since_1970.subsec_nanos();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_written_by_the_calendar() {
        let check = |seconds, text| assert_eq!(rfc3339(Duration::from_secs(seconds)), text);
        check(0, "1970-01-01T00:00:00.000000000Z");
        check(951_782_400, "2000-02-29T00:00:00.000000000Z");
        check(1_795_233_600, "2026-11-21T04:00:00.000000000Z");
        check(4_107_542_399, "2100-02-28T23:59:59.000000000Z");
        check(4_107_542_400, "2100-03-01T00:00:00.000000000Z");
    }

    #[test]
    fn a_header_is_a_name_and_a_value() {
        assert!(headers(&["A: b".into(), "A: c: d".into()]).is_ok());
        for bad in ["novalue", ": x", "a b: c", "a: b\r\nc: d"] {
            assert!(headers(&[bad.into()]).is_err(), "{bad}");
        }
    }
}
