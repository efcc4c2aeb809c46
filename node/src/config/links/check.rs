//! Whether links as written can be carried out: names, URLs, subjects, mappings, and what rules do to each
//! other. Pure; files and variables are [`super::secrets`]'s.

use std::collections::BTreeSet;

use async_nats::ServerAddr;
use beamlog_nats::link::hub;
use beamlog_nats::link::mapping;
use beamlog_nats::link::rules::{Direction, LinkKind};
use beamlog_router::subject;

use crate::config::links::error::{LinkError, LinkProblem, Place};
use crate::config::links::table::{LinkTable, NAMELESS, RequestTable, RuleTable};

/// Links of one node.
const LINKS_MAX: usize = 64;
/// Servers of one link.
const URLS_MAX: usize = 16;
/// Rules in one list of one link.
const RULES_MAX: usize = 256;
/// Less, and a message of the usual largest size takes more than a quarter of an hour.
const BYTES_PER_SECOND_MIN: u64 = 1 << 10;
const NAME_BYTES_MAX: usize = 64;
const TIMEOUT_MILLIS_MAX: u128 = 300_000;

/// Everything that is wrong with these links, alone and together.
#[must_use]
pub fn check(links: &[LinkTable]) -> Vec<LinkError> {
    let mut errors = Vec::new();
    let mut names = BTreeSet::new();
    if links.len() > LINKS_MAX {
        let problem = LinkProblem::TooMany { what: "links", max: LINKS_MAX };
        errors.push(refusal(&links[LINKS_MAX], Place::Link, problem));
    }
    for link in links {
        if !names.insert(&link.name) {
            errors.push(refusal(link, Place::Link, LinkProblem::NameTaken));
        }
        alone(link, &mut errors);
    }
    // Every rule is laid beside every other: only as many as there may be.
    if errors.iter().any(|error| matches!(error.problem, LinkProblem::TooMany { .. })) {
        return errors;
    }
    let clusters: Vec<BTreeSet<String>> = links.iter().map(servers).collect();
    for (at, (link, here)) in links.iter().zip(&clusters).enumerate() {
        for (other, there) in links.iter().zip(&clusters).take(at + 1) {
            // What cannot be seen from here (one cluster under two names) is held at run time by provenance.
            if std::ptr::eq(link, other) || !here.is_disjoint(there) {
                together(link, other, &mut errors);
            }
        }
    }
    errors
}

fn refusal(link: &LinkTable, place: Place, problem: LinkProblem) -> LinkError {
    let link = if link.name.is_empty() { NAMELESS.to_owned() } else { link.name.clone() };
    LinkError { link, place, problem }
}

/// Host and port of each server.
fn servers(link: &LinkTable) -> BTreeSet<String> {
    let address = |url: &String| match hub::address_of(url) {
        // Not the endpoint of the same host: one may be reached by both.
        Some(address) => Some(format!("quic {}", address.to_ascii_lowercase())),
        None => url
            .parse::<ServerAddr>()
            .ok()
            .map(|address| format!("{}:{}", address.host().to_ascii_lowercase(), address.port())),
    };
    link.urls.iter().filter_map(address).collect()
}

fn alone(link: &LinkTable, errors: &mut Vec<LinkError>) {
    let mut refuse = |problem| errors.push(refusal(link, Place::Link, problem));
    if link.name.is_empty() {
        refuse(LinkProblem::Missing { key: "name" });
    } else if !is_name(&link.name) {
        refuse(LinkProblem::Name);
    }
    if link.urls.is_empty() {
        refuse(LinkProblem::Missing { key: "urls" });
    }
    if link.urls.len() > URLS_MAX {
        refuse(LinkProblem::TooMany { what: "urls", max: URLS_MAX });
    }
    for url in &link.urls {
        if let Err(problem) = check_url(url) {
            refuse(problem);
        }
    }
    transport(link, &mut refuse);
    if link.domain.is_some() && link.api_prefix.is_some() {
        refuse(LinkProblem::DomainAndPrefix);
    }
    if let Some(domain) = link.domain.as_ref().filter(|domain| !is_name(domain)) {
        refuse(LinkProblem::Illegal { what: "JetStream domain", value: domain.clone() });
    }
    if let Some(prefix) = link.api_prefix.as_ref().filter(|prefix| !is_subject(prefix)) {
        refuse(LinkProblem::Illegal { what: "API prefix", value: prefix.clone() });
    }
    if link.bytes_per_second.is_some_and(|limit| limit.0 < BYTES_PER_SECOND_MIN) {
        refuse(LinkProblem::Bandwidth);
    }
    if link.import.is_empty() && link.export.is_empty() && link.requests.is_empty() {
        refuse(LinkProblem::Empty);
    }
    for (what, count) in
        [("import", link.import.len()), ("export", link.export.len()), ("requests", link.requests.len())]
    {
        if count > RULES_MAX {
            refuse(LinkProblem::TooMany { what, max: RULES_MAX });
        }
    }
    for (list, rules) in [("import", &link.import), ("export", &link.export)] {
        for (at, rule) in rules.iter().enumerate() {
            let place = place(list, at, rule);
            rule_alone(rule, list == "import", &mut |problem| {
                errors.push(refusal(link, place.clone(), problem))
            });
        }
    }
    for (at, rule) in link.requests.iter().enumerate() {
        let place = place("requests", at, rule);
        request_alone(rule, &mut |problem| errors.push(refusal(link, place.clone(), problem)));
    }
}

/// What a link to a hub needs, and what it has no use for.
fn transport(link: &LinkTable, refuse: &mut impl FnMut(LinkProblem)) {
    let of = |kind| link.urls.iter().find(move |url| LinkKind::of_url(url) == Some(kind));
    match (of(LinkKind::Beamlog), of(LinkKind::Nats)) {
        (Some(_), Some(_)) => refuse(LinkProblem::TwoKinds),
        (Some(url), None) => {
            // Of a URL that cannot be used something else is told.
            let token = match (&link.token_file, &link.token_env) {
                (Some(_), _) => Some("token_file"),
                (None, Some(_)) => Some("token_env"),
                (None, None) => None,
            };
            match (&link.certificates, token) {
                (None, None) if hub::address_of(url).is_some() => {
                    refuse(LinkProblem::NoCertificates { url: url.clone() });
                }
                (Some(_), Some(token)) => {
                    refuse(LinkProblem::Conflict { first: "certificates", second: token });
                }
                (None, Some(token)) if link.tls_ca_file.is_none() => {
                    refuse(LinkProblem::Incomplete { key: token, missing: "tls_ca_file" });
                }
                (None, None | Some(_)) | (Some(_), None) => {}
            }
            let others = [
                ("user", link.user.is_some()),
                ("password_file", link.password_file.is_some()),
                ("password_env", link.password_env.is_some()),
                ("nkey_file", link.nkey_file.is_some()),
                ("nkey_env", link.nkey_env.is_some()),
                ("creds_file", link.creds_file.is_some()),
                ("creds_env", link.creds_env.is_some()),
                // A folder of certificates has its authorities; without any, that is what is told.
                ("tls_ca_file", link.tls_ca_file.is_some() && link.certificates.is_some()),
                ("tls_cert_file", link.tls_cert_file.is_some()),
                ("tls_key_file", link.tls_key_file.is_some()),
                ("tls_first", link.tls_first),
            ];
            for (key, _) in others.into_iter().filter(|(_, is_said)| *is_said) {
                refuse(LinkProblem::KeyOfOtherTransport { key, scheme: "quic://" });
            }
        }
        (None, Some(_)) if link.certificates.is_some() => {
            refuse(LinkProblem::KeyOfOtherTransport { key: "certificates", scheme: "nats://" });
        }
        (None, _) => {}
    }
}

fn place(list: &'static str, at: usize, rule: &impl serde::Serialize) -> Place {
    let text = toml::Value::try_from(rule).map(|value| value.to_string()).unwrap_or_default();
    Place::Rule { list, number: at + 1, text }
}

fn check_url(url: &str) -> Result<(), LinkProblem> {
    let illegal = || LinkProblem::Url { url: without_secret(url) };
    if LinkKind::of_url(url) == Some(LinkKind::Beamlog) {
        return hub::address_of(url).map(|_| ()).ok_or_else(illegal);
    }
    if !url.contains("://") {
        return Err(illegal());
    }
    let address: ServerAddr = url.parse().map_err(|_unparsed| illegal())?;
    if address.has_user_pass() || address.username().is_some() {
        return Err(LinkProblem::UrlWithSecret { url: without_secret(url) });
    }
    match address.scheme() {
        "nats" | "tls" | "ws" | "wss" if !address.host().is_empty() => Ok(()),
        _ => Err(illegal()),
    }
}

/// A URL as errors show it.
pub(super) fn without_secret(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => format!("{}{}", &url[..scheme + 3], &url[at + 1..]),
        (None, Some(at)) => url[at + 1..].to_owned(),
        (Some(_), Some(_)) | (_, None) => url.to_owned(),
    }
}

/// Link names are labels and path segments; stream and bucket names are tokens of API subjects.
fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= NAME_BYTES_MAX
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

/// What may name a stream on either side.
fn is_stream_name(text: &str) -> bool {
    let is_bad = |c: char| c.is_whitespace() || c.is_control() || ".*>/\\".contains(c);
    !text.is_empty() && text.len() <= 255 && !text.contains(is_bad)
}

fn is_subject(text: &str) -> bool {
    subject::check_subject(text.as_bytes()).is_ok()
}

/// A subject that is the system's on every server: never carried, whatever a wildcard says.
fn is_of_system(filter: &str) -> bool {
    filter.starts_with('$') || filter == "_INBOX" || filter.starts_with("_INBOX.")
}

fn check_filter(filter: &str, refuse: &mut impl FnMut(LinkProblem)) {
    if subject::check_filter(filter.as_bytes()).is_err() {
        refuse(LinkProblem::Illegal { what: "subject filter", value: filter.to_owned() });
    } else if is_of_system(filter) {
        refuse(LinkProblem::SystemSubject { subject: filter.to_owned() });
    }
}

fn check_mapping(from: &str, to: &Option<String>, refuse: &mut impl FnMut(LinkProblem)) {
    let Some(to) = to else { return };
    if let Err(problem) = mapping::check(from, to) {
        refuse(LinkProblem::Mapping { from: from.to_owned(), to: to.clone(), problem });
    } else if is_of_system(&mapping::image(to)) {
        // `$1.x` is fine: its first token is a wildcard in the image.
        refuse(LinkProblem::SystemSubject { subject: to.clone() });
    }
}

fn check_queue(queue: &Option<String>, refuse: &mut impl FnMut(LinkProblem)) {
    if let Some(queue) = queue
        && (queue.is_empty()
            || queue.len() > 255
            || queue.contains(|c: char| c.is_whitespace() || c.is_control()))
    {
        refuse(LinkProblem::Illegal { what: "queue group", value: queue.clone() });
    }
}

fn rule_alone(rule: &RuleTable, is_import: bool, refuse: &mut impl FnMut(LinkProblem)) {
    let kind = match (&rule.stream, &rule.subject, &rule.bucket) {
        (Some(_), None, None) => "stream",
        (None, Some(_), None) => "subject",
        (None, None, Some(_)) => "bucket",
        (None, None, None) | (Some(_), Some(_), _) | (Some(_), _, Some(_)) | (_, Some(_), Some(_)) => {
            refuse(LinkProblem::Kind);
            return;
        }
    };
    let stream_targets: &[&str] = if is_import { &["stream", "bucket"] } else { &["bucket"] };
    let sequences: &[&str] = if is_import { &["stream"] } else { &[] };
    let fits: [(&'static str, bool, &[&str]); 9] = [
        ("as", rule.target.is_some(), stream_targets),
        ("keep_sequence", rule.keep_sequence, sequences),
        ("conflict", rule.conflict.is_some(), &["bucket"]),
        ("filter", rule.filter.is_some(), &["stream"]),
        ("to", rule.to.is_some(), &["stream", "subject"]),
        ("queue", rule.queue.is_some(), &["subject"]),
        ("start", rule.start.is_some(), &["stream"]),
        ("start_sequence", rule.start_sequence.is_some(), &["stream"]),
        ("start_time", rule.start_time.is_some(), &["stream"]),
    ];
    for (key, _, _) in fits.iter().filter(|(_, is_said, kinds)| *is_said && !kinds.contains(&kind)) {
        refuse(LinkProblem::KeyOfOtherKind { key, kind });
    }
    if let Some(stream) = rule.stream.as_ref().filter(|name| !is_stream_name(name)) {
        refuse(LinkProblem::Illegal { what: "stream name", value: stream.clone() });
    }
    if let Some(bucket) = rule.bucket.as_ref().filter(|name| !is_name(name)) {
        refuse(LinkProblem::Illegal { what: "bucket name", value: bucket.clone() });
    }
    if let Some(target) = &rule.target {
        let (is_legal, what) = match kind {
            "bucket" => (is_name(target), "bucket name"),
            _ => (is_stream_name(target), "stream name"),
        };
        if !is_legal {
            refuse(LinkProblem::Illegal { what, value: target.clone() });
        }
    }
    if let Some(subject) = &rule.subject {
        check_filter(subject, refuse);
        check_mapping(subject, &rule.to, refuse);
    }
    if rule.stream.is_some() {
        if let Some(filter) = &rule.filter
            && subject::check_filter(filter.as_bytes()).is_err()
        {
            refuse(LinkProblem::Illegal { what: "subject filter", value: filter.clone() });
        }
        check_mapping(rule.filter.as_deref().unwrap_or(">"), &rule.to, refuse);
    }
    check_queue(&rule.queue, refuse);
    let starts = [rule.start.is_some(), rule.start_sequence.is_some(), rule.start_time.is_some()];
    if starts.iter().filter(|is_said| **is_said).count() > 1 {
        refuse(LinkProblem::StartTwice);
    }
    if let Some(time) = &rule.start_time
        && super::start_time(time).is_none()
    {
        refuse(LinkProblem::StartTime { value: time.clone() });
    }
    if rule.start_sequence == Some(0) {
        refuse(LinkProblem::Illegal { what: "sequence", value: "0".to_owned() });
    }
}

fn request_alone(rule: &RequestTable, refuse: &mut impl FnMut(LinkProblem)) {
    match &rule.subject {
        None => refuse(LinkProblem::Missing { key: "subject" }),
        Some(subject) => {
            check_filter(subject, refuse);
            check_mapping(subject, &rule.to, refuse);
        }
    }
    match rule.direction {
        None => refuse(LinkProblem::Missing { key: "direction" }),
        Some(Direction::Out) if rule.queue.is_some() => {
            refuse(LinkProblem::KeyOfOtherKind { key: "queue", kind: "direction = \"out\"" });
        }
        Some(Direction::In | Direction::Out) => {}
    }
    check_queue(&rule.queue, refuse);
    if let Some(timeout) = rule.timeout
        && !(1..=TIMEOUT_MILLIS_MAX).contains(&timeout.0.as_millis())
    {
        refuse(LinkProblem::Illegal { what: "timeout (1ms to 5m)", value: timeout.to_string() });
    }
}

/// Something that messages flow through: from a filter on one side to its image on the other.
struct Flow<'a> {
    place: Place,
    what: What<'a>,
    /// From there to here, or from here to there.
    inward: bool,
}

enum What<'a> {
    Subject { from: &'a str, image: String },
    Request { from: &'a str, image: String },
    Stream { from: &'a str, target: &'a str, filter: &'a str },
    Bucket { target: &'a str },
}

fn flows(link: &LinkTable) -> Vec<Flow<'_>> {
    let mut flows = Vec::new();
    let image = |from: &str, to: &Option<String>| {
        to.as_ref().map_or_else(|| from.to_owned(), |to| mapping::image(to))
    };
    for (list, rules, inward) in [("import", &link.import, true), ("export", &link.export, false)] {
        for (at, rule) in rules.iter().enumerate() {
            let what = match (&rule.stream, &rule.subject, &rule.bucket) {
                (Some(stream), None, None) => What::Stream {
                    from: stream,
                    target: rule.target.as_deref().unwrap_or(stream),
                    filter: rule.filter.as_deref().unwrap_or(">"),
                },
                (None, Some(subject), None) => {
                    What::Subject { from: subject, image: image(subject, &rule.to) }
                }
                (None, None, Some(bucket)) => {
                    What::Bucket { target: rule.target.as_deref().unwrap_or(bucket) }
                }
                // Refused by itself.
                (..) => continue,
            };
            flows.push(Flow { place: place(list, at, rule), what, inward });
        }
    }
    for (at, rule) in link.requests.iter().enumerate() {
        let (Some(from), Some(direction)) = (&rule.subject, rule.direction) else { continue };
        let what = What::Request { from, image: image(from, &rule.to) };
        let inward = direction == Direction::In;
        flows.push(Flow { place: place("requests", at, rule), what, inward });
    }
    flows
}

/// What the rules of two links to the same servers (or of one link) do to each other. `link` is the later.
fn together(link: &LinkTable, other: &LinkTable, errors: &mut Vec<LinkError>) {
    let is_same = std::ptr::eq(link, other);
    let (ours, theirs) = (flows(link), flows(other));
    for (at, flow) in ours.iter().enumerate() {
        let earlier = if is_same { &theirs[..at] } else { &theirs[..] };
        for before in earlier {
            if let Some(problem) = clash(flow, before, other, is_same) {
                errors.push(refusal(link, flow.place.clone(), problem));
            }
        }
    }
}

fn overlap(left: &str, right: &str) -> bool {
    let is_legal = |filter: &str| subject::check_filter(filter.as_bytes()).is_ok();
    is_legal(left) && is_legal(right) && subject::overlaps(left.as_bytes(), right.as_bytes())
}

fn clash(flow: &Flow<'_>, before: &Flow<'_>, of: &LinkTable, is_same: bool) -> Option<LinkProblem> {
    let other = || {
        let place = before.place.to_string();
        let place = place.trim_start_matches(", ");
        if is_same { place.to_owned() } else { format!("link {:?}, {place}", of.name) }
    };
    let same_way = flow.inward == before.inward;
    match (&flow.what, &before.what) {
        (
            What::Subject { from, image } | What::Request { from, image },
            What::Subject { from: from_before, image: image_before }
            | What::Request { from: from_before, image: image_before },
        ) => {
            let is_request = |what: &What<'_>| matches!(what, What::Request { .. });
            if same_way && overlap(from, from_before) {
                return Some(LinkProblem::Overlap { subject: (*from).to_owned(), other: other() });
            }
            let returns = !same_way
                && is_request(&flow.what) == is_request(&before.what)
                && overlap(image, from_before)
                && overlap(image_before, from);
            returns.then(|| LinkProblem::Loop { other: other() })
        }
        (
            What::Stream { from, target, filter },
            What::Stream { from: from_before, target: target_before, filter: filter_before },
        ) => {
            if same_way && from == from_before && target == target_before && overlap(filter, filter_before) {
                return Some(LinkProblem::SameTarget {
                    what: "stream",
                    name: (*target).to_owned(),
                    other: other(),
                });
            }
            let returns = !same_way && from == target_before && target == from_before;
            returns.then(|| LinkProblem::Loop { other: other() })
        }
        // Both ways between the same two buckets is a synchronised pair, not a loop.
        (What::Bucket { target }, What::Bucket { target: target_before }) if same_way => (target
            == target_before)
            .then(|| LinkProblem::SameTarget { what: "bucket", name: (*target).to_owned(), other: other() }),
        (What::Bucket { .. } | What::Stream { .. } | What::Subject { .. } | What::Request { .. }, _) => None,
    }
}
