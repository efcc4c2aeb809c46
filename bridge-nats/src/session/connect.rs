//! The JSON of CONNECT. Clients send nulls and fields of later versions; both mean nothing.

use serde::{Deserialize, Deserializer};

/// What a client says of itself. Before CONNECT nats-server assumes these defaults, verbose and pedantic.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub(crate) struct ConnectOptions {
    #[serde(deserialize_with = "or_true")]
    pub(crate) verbose: bool,
    #[serde(deserialize_with = "or_true")]
    pub(crate) pedantic: bool,
    #[serde(deserialize_with = "or_true")]
    pub(crate) echo: bool,
    #[serde(deserialize_with = "or_default")]
    pub(crate) headers: bool,
    #[serde(deserialize_with = "or_default")]
    pub(crate) no_responders: bool,
    #[serde(deserialize_with = "or_default")]
    pub(crate) protocol: i64,
    #[serde(deserialize_with = "or_default")]
    pub(crate) user: Secret,
    #[serde(deserialize_with = "or_default", alias = "password")]
    pub(crate) pass: Secret,
    #[serde(deserialize_with = "or_default")]
    pub(crate) auth_token: Secret,
    #[serde(deserialize_with = "or_default")]
    pub(crate) name: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) lang: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) version: String,
}

/// Text that must not be printed.
#[derive(Clone, Default, Deserialize)]
#[serde(transparent)]
pub(crate) struct Secret(pub(crate) String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            verbose: true,
            pedantic: true,
            echo: true,
            headers: false,
            no_responders: false,
            protocol: 0,
            user: Secret::default(),
            pass: Secret::default(),
            auth_token: Secret::default(),
            name: String::new(),
            lang: String::new(),
            version: String::new(),
        }
    }
}

impl ConnectOptions {
    /// Reads the argument of CONNECT; `null` is an empty object, as in Go.
    pub(crate) fn parse(json: &[u8]) -> Option<Self> {
        // serde would take a list for a struct's fields in order.
        if json.trim_ascii_start().starts_with(b"[") {
            return None;
        }
        serde_json::from_slice::<Option<Self>>(json).ok().map(Option::unwrap_or_default)
    }

    /// Drops what only the check at the door needs.
    pub(crate) fn forget_secrets(&mut self) {
        self.pass = Secret::default();
        self.auth_token = Secret::default();
    }
}

fn or_true<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(true))
}

fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::ConnectOptions;

    #[test]
    fn nulls_and_unknown_fields_mean_nothing() {
        let options = ConnectOptions::parse(
            br#"{"user":null,"pass":null,"jwt":null,"nkey":null,"name":null,"verbose":null,"protocol":null,
                "echo":null,"headers":null,"tls_required":false,"x":{"y":[1]}}"#,
        )
        .unwrap();
        assert!(options.verbose && options.pedantic && options.echo && !options.headers);
        assert!(ConnectOptions::parse(b"null").is_some());
        assert!(!ConnectOptions::parse(br#"{"verbose":false}"#).unwrap().verbose);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for json in [&b""[..], b"{x", b"[]", b"1", br#"{"verbose":"yes"}"#, br#"{"name":1}"#] {
            assert!(ConnectOptions::parse(json).is_none(), "{}", String::from_utf8_lossy(json));
        }
    }

    #[test]
    fn a_secret_is_not_printed() {
        let options = ConnectOptions::parse(br#"{"pass":"hunter2","auth_token":"hunter2"}"#).unwrap();
        assert!(!format!("{options:?}").contains("hunter2"));
    }
}
