//! Protocol buffers as far as the contract needs them: fields in, fields out. The messages are in
//! [`crate::intake`], [`crate::results`] and [`crate::replies`].

use std::collections::BTreeMap;

/// Groups and anything truncated are refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a protocol buffer of this kind")]
pub struct Malformed;

/// One field of a message.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Field<'a> {
    Varint(u64),
    Fixed64([u8; 8]),
    Bytes(&'a [u8]),
    Fixed32,
}

/// The fields in order.
pub fn fields(mut rest: &[u8]) -> impl Iterator<Item = Result<(u64, Field<'_>), Malformed>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let field = next(&mut rest);
        if field.is_err() {
            rest = &[];
        }
        Some(field)
    })
}

fn next<'a>(rest: &mut &'a [u8]) -> Result<(u64, Field<'a>), Malformed> {
    let tag = varint(rest)?;
    let number = tag >> 3;
    if number == 0 {
        return Err(Malformed);
    }
    let field = match tag & 7 {
        0 => Field::Varint(varint(rest)?),
        1 => Field::Fixed64(take(rest, 8)?.try_into().map_err(|_unreachable| Malformed)?),
        2 => {
            let length = usize::try_from(varint(rest)?).map_err(|_too_long| Malformed)?;
            Field::Bytes(take(rest, length)?)
        }
        5 => {
            take(rest, 4)?;
            Field::Fixed32
        }
        _ => return Err(Malformed),
    };
    Ok((number, field))
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], Malformed> {
    let (taken, after) = rest.split_at_checked(length).ok_or(Malformed)?;
    *rest = after;
    Ok(taken)
}

fn varint(rest: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value: u64 = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, after) = rest.split_first().ok_or(Malformed)?;
        *rest = after;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return Err(Malformed);
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Malformed)
}

impl<'a> Field<'a> {
    /// # Errors
    /// It is of another type, or not UTF-8.
    pub fn text(self) -> Result<String, Malformed> {
        std::str::from_utf8(self.bytes()?).map(str::to_owned).map_err(|_not_text| Malformed)
    }

    /// # Errors
    /// It is of another type.
    pub fn bytes(self) -> Result<&'a [u8], Malformed> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Varint(_) | Self::Fixed64(_) | Self::Fixed32 => Err(Malformed),
        }
    }

    /// An int64, whose bits are a varint.
    ///
    /// # Errors
    /// It is of another type.
    pub fn int64(self) -> Result<i64, Malformed> {
        match self {
            Self::Varint(value) => Ok(i64::from_le_bytes(value.to_le_bytes())),
            Self::Bytes(_) | Self::Fixed64(_) | Self::Fixed32 => Err(Malformed),
        }
    }

    /// # Errors
    /// It is of another type.
    pub fn double(self) -> Result<f64, Malformed> {
        match self {
            Self::Fixed64(bytes) => Ok(f64::from_le_bytes(bytes)),
            Self::Bytes(_) | Self::Varint(_) | Self::Fixed32 => Err(Malformed),
        }
    }

    /// An entry of a `map<string, string>`.
    ///
    /// # Errors
    /// It is of another type.
    pub fn map_entry(self, into: &mut BTreeMap<String, String>) -> Result<(), Malformed> {
        let (mut key, mut value) = (String::new(), String::new());
        for field in fields(self.bytes()?) {
            match field? {
                (1, field) => key = field.text()?,
                (2, field) => value = field.text()?,
                _ => {}
            }
        }
        into.insert(key, value);
        Ok(())
    }
}

/// Writes a message. Defaults (0, empty) are left out, as proto3 does.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    #[must_use]
    pub fn text(self, number: u32, text: &str) -> Self {
        self.bytes(number, text.as_bytes())
    }

    #[must_use]
    pub fn bytes(self, number: u32, bytes: &[u8]) -> Self {
        if bytes.is_empty() { self } else { self.bytes_even_empty(number, bytes) }
    }

    #[must_use]
    pub fn bytes_even_empty(mut self, number: u32, bytes: &[u8]) -> Self {
        self.varint(u64::from(number) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    #[must_use]
    pub fn int64(mut self, number: u32, value: i64) -> Self {
        if value != 0 {
            self.varint(u64::from(number) << 3);
            self.varint(u64::from_le_bytes(value.to_le_bytes()));
        }
        self
    }

    #[must_use]
    pub fn double(mut self, number: u32, value: f64) -> Self {
        if value != 0.0 {
            self.varint(u64::from(number) << 3 | 1);
            self.0.extend_from_slice(&value.to_le_bytes());
        }
        self
    }

    #[must_use]
    pub fn fixed64(mut self, number: u32, value: u64) -> Self {
        self.varint(u64::from(number) << 3 | 1);
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    #[must_use]
    pub fn map_entry(self, number: u32, key: &str, value: &str) -> Self {
        let entry = Self::default().text(1, key).text(2, value).finish();
        self.bytes_even_empty(number, &entry)
    }

    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.0
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.0.push(value.to_le_bytes()[0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let raw = Writer::default()
            .text(1, "one")
            .int64(2, -5)
            .double(3, 0.25)
            .map_entry(4, "k", "v")
            .int64(5, i64::MAX)
            .text(6, "")
            .finish();
        let all: Vec<_> = fields(&raw).collect::<Result<_, _>>().unwrap();
        assert_eq!(all.len(), 5, "a default is left out");
        assert_eq!(all[0].1.text(), Ok("one".to_owned()));
        assert_eq!(all[1].1.int64(), Ok(-5));
        assert_eq!(all[2].1.double(), Ok(0.25));
        let mut map = BTreeMap::new();
        all[3].1.map_entry(&mut map).unwrap();
        assert_eq!(map["k"], "v");
        assert_eq!(all[4].1.int64(), Ok(i64::MAX));
    }

    #[test]
    fn cut_or_impossible_messages_are_refused() {
        let whole = Writer::default().text(1, "some text").finish();
        for length in 1..whole.len() {
            assert!(fields(&whole[..length]).any(|field| field.is_err()), "{length}");
        }
        // Field 0, a group, a varint of more than 64 bits, a length of more than there is.
        for broken in [&[0x00][..], &[0x0b], &[0x08; 12], &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]] {
            let broken: Vec<u8> = match broken {
                [0x08, 0x08, ..] => [&[0x08][..], &[0xff; 9], &[0x7f]].concat(),
                other => other.to_vec(),
            };
            assert!(fields(&broken).any(|field| field.is_err()), "{broken:?}");
        }
    }
}
