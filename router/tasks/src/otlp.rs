//! Spans as OTLP writes them: an `ExportTraceServiceRequest` in protocol buffers.

use crate::proto::Writer;
use crate::trace::Span;

/// Done in a process, for nobody outside: INTERNAL.
const INTERNAL: i64 = 1;
const STATUS_OK: i64 = 1;
const STATUS_ERROR: i64 = 2;
const NANOS: u64 = 1_000_000;

fn attribute(key: &str, value: &str) -> Vec<u8> {
    let value = Writer::default().bytes_even_empty(1, value.as_bytes()).finish();
    Writer::default().text(1, key).bytes_even_empty(2, &value).finish()
}

fn span(span: &Span) -> Vec<u8> {
    let writer = Writer::default()
        .bytes(1, &span.trace)
        .bytes(2, &span.id)
        .bytes(4, span.parent.as_ref().map_or(&[][..], |parent| parent))
        .text(5, span.name)
        .int64(6, INTERNAL)
        .fixed64(7, span.start_millis.saturating_mul(NANOS))
        .fixed64(8, span.end_millis.saturating_mul(NANOS));
    let writer = span
        .attributes
        .iter()
        .fold(writer, |writer, (key, value)| writer.bytes_even_empty(9, &attribute(key, value)));
    let status = match &span.error {
        None => Writer::default().int64(3, STATUS_OK),
        Some(why) => Writer::default().text(2, why).int64(3, STATUS_ERROR),
    };
    writer.bytes_even_empty(15, &status.finish()).finish()
}

/// All of them, as of one service at one node.
#[must_use]
pub fn request(spans: &[Span], resource: &[(&str, &str)]) -> Vec<u8> {
    let resource = resource
        .iter()
        .fold(Writer::default(), |writer, (key, value)| writer.bytes_even_empty(1, &attribute(key, value)))
        .finish();
    let scope = Writer::default().text(1, "beamlog-tasks").finish();
    let scoped = Writer::default().bytes_even_empty(1, &scope);
    let scoped = spans.iter().fold(scoped, |writer, made| writer.bytes_even_empty(2, &span(made))).finish();
    let of_resource = Writer::default().bytes_even_empty(1, &resource).bytes_even_empty(2, &scoped).finish();
    Writer::default().bytes_even_empty(1, &of_resource).finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{Field, fields};

    /// The fields with this number.
    fn all(raw: &[u8], number: u64) -> Vec<Field<'_>> {
        fields(raw)
            .map(Result::unwrap)
            .filter(|(found, _)| *found == number)
            .map(|(_, field)| field)
            .collect()
    }

    fn one(raw: &[u8], number: u64) -> &[u8] {
        all(raw, number)[0].bytes().unwrap()
    }

    #[test]
    fn the_bytes_are_those_of_the_protocol() {
        let made = Span {
            trace: [7; 16],
            id: [1; 8],
            parent: Some([2; 8]),
            name: "n",
            start_millis: 3,
            end_millis: 4,
            attributes: vec![("k", "v".into())],
            error: Some("late".into()),
        };
        let raw = request(&[made.clone(), made], &[("service.name", "beamlog")]);
        let of_resource = one(&raw, 1);
        assert_eq!(one(one(one(one(of_resource, 1), 1), 2), 1), b"beamlog");
        let spans = all(one(of_resource, 2), 2);
        assert_eq!(spans.len(), 2);
        let span = spans[0].bytes().unwrap();
        assert_eq!((one(span, 1), one(span, 2), one(span, 4)), (&[7; 16][..], &[1; 8][..], &[2; 8][..]));
        assert_eq!(all(span, 7), [Field::Fixed64(3_000_000_u64.to_le_bytes())]);
        assert_eq!(all(one(span, 15), 3), [Field::Varint(2)]);
        assert_eq!(one(one(span, 9), 1), b"k");
    }
}
