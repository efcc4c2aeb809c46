//! Links: unstored messages and requests, both ways, against real servers.

use std::time::Duration;

use async_nats::{Client, HeaderMap, Message, Subscriber};
use beamlog_nats::link::rules::{Direction, LinkConfig, RuleConfig};
use beamlog_nats::link::status::LinkState;
use futures_util::StreamExt;

use crate::link_world::{PATIENCE, Site, Upstream, link, requests, subject, until};

pub(crate) async fn next(subscriber: &mut Subscriber) -> Message {
    tokio::time::timeout(PATIENCE, subscriber.next()).await.expect("in time").expect("a message")
}

/// A subscription that the server has.
pub(crate) async fn listen(client: &Client, filter: &str) -> Subscriber {
    let subscriber = client.subscribe(filter.to_owned()).await.unwrap();
    settle(client).await;
    subscriber
}

/// A round trip: everything before it has happened.
async fn settle(client: &Client) {
    let inbox = client.new_inbox();
    let mut echo = client.subscribe(inbox.clone()).await.unwrap();
    client.publish(inbox, "".into()).await.unwrap();
    client.flush().await.unwrap();
    next(&mut echo).await;
}

pub(crate) async fn say(client: &Client, subject: &str, payload: &str) {
    client.publish(subject.to_owned(), payload.to_owned().into()).await.unwrap();
    client.flush().await.unwrap();
}

/// What arrives up to the message `end`.
async fn until_end(subscriber: &mut Subscriber) -> Vec<String> {
    let mut got = Vec::new();
    loop {
        let text = String::from_utf8(next(subscriber).await.payload.to_vec()).unwrap();
        if text == "end" {
            return got;
        }
        got.push(text);
    }
}

#[tokio::test]
async fn messages_go_both_ways_with_their_headers_and_mapped() {
    let (upstream, site) = (Upstream::start(), Site::start().await);
    site.link(LinkConfig {
        import: vec![subject("cmd.>", Some("from.there.>"))],
        export: vec![subject("alerts.*.*", Some("site7.$2.$1"))],
        ..link("core", &upstream)
    })
    .await;
    let (there, here) = (upstream.client().await, site.client().await);
    let mut heard_there = listen(&there, "site7.>").await;
    let mut heard_here = listen(&here, "from.>").await;
    let mut headers = HeaderMap::new();
    headers.append("Colour", "red");
    headers.append("Colour", "blue");
    headers.insert("Nats-Rollup", "all");
    there.publish_with_headers("cmd.lamp.on", headers.clone(), "now".into()).await.unwrap();
    let message = next(&mut heard_here).await;
    assert_eq!((message.subject.as_str(), &message.payload[..]), ("from.there.lamp.on", &b"now"[..]));
    let got = message.headers.unwrap();
    let colours: Vec<_> = got.get_all("Colour").map(|value| value.as_str().to_owned()).collect();
    assert_eq!(colours, ["red", "blue"]);
    // What to do about storing is not for this side to be told.
    assert!(got.get("Nats-Rollup").is_none());
    here.publish_with_headers("alerts.fire.hall", headers, "hot".into()).await.unwrap();
    let message = next(&mut heard_there).await;
    assert_eq!((message.subject.as_str(), &message.payload[..]), ("site7.hall.fire", &b"hot"[..]));
    assert_eq!(message.headers.unwrap().get_all("Colour").count(), 2);
    assert_eq!((site.figures("core", 0).transferred, site.figures("core", 1).transferred), (1, 1));
}

#[tokio::test]
async fn what_came_by_a_link_does_not_go_back_by_it() {
    let (upstream, site) = (Upstream::start(), Site::start().await);
    site.link(LinkConfig {
        import: vec![subject("chat.>", None)],
        export: vec![subject("chat.>", None)],
        ..link("core", &upstream)
    })
    .await;
    let (there, here) = (upstream.client().await, site.client().await);
    let (mut heard_there, mut heard_here) = (listen(&there, "chat.>").await, listen(&here, "chat.>").await);
    for (client, text) in [(&there, "a"), (&here, "b"), (&there, "c"), (&here, "d")] {
        say(client, "chat.x", text).await;
    }
    say(&there, "chat.x", "there was all").await;
    say(&here, "chat.x", "here was all").await;
    let mut all = [Vec::new(), Vec::new()];
    for (heard, got) in [&mut heard_there, &mut heard_here].into_iter().zip(&mut all) {
        while got.len() < 6 {
            got.push(String::from_utf8(next(heard).await.payload.to_vec()).unwrap());
        }
        got.sort();
        assert_eq!(*got, ["a", "b", "c", "d", "here was all", "there was all"]);
    }
    // What we sent came back by our own import, and ended there.
    until("our own messages are refused", async || site.figures("core", 0).duplicates_refused == 3).await;
    settle(&there).await;
    settle(&here).await;
    assert!(futures_util::FutureExt::now_or_never(heard_there.next()).is_none());
    assert!(futures_util::FutureExt::now_or_never(heard_here.next()).is_none());
}

#[tokio::test]
async fn two_links_to_one_cluster_carry_each_message_once() {
    let (upstream, site) = (Upstream::start(), Site::start().await);
    for name in ["one", "two"] {
        site.link(LinkConfig {
            import: vec![subject("in.>", None)],
            export: vec![subject("out.>", None)],
            ..link(name, &upstream)
        })
        .await;
    }
    let (there, here) = (upstream.client().await, site.client().await);
    let (mut heard_there, mut heard_here) = (listen(&there, "out.>").await, listen(&here, "in.>").await);
    for number in 0..200 {
        say(&there, "in.x", &number.to_string()).await;
        say(&here, "out.x", &number.to_string()).await;
    }
    let expected: Vec<u32> = (0..200).collect();
    for heard in [&mut heard_there, &mut heard_here] {
        let mut got = Vec::new();
        while got.len() < 200 {
            got.push(String::from_utf8(next(heard).await.payload.to_vec()).unwrap().parse::<u32>().unwrap());
        }
        // Two connections: the order between them is not kept.
        got.sort_unstable();
        assert_eq!(got, expected);
    }
    let carried = |rule| site.figures("one", rule).transferred + site.figures("two", rule).transferred;
    until("both count", async || carried(0) == 200 && carried(1) == 200).await;
}

#[tokio::test]
async fn in_a_ring_of_links_each_message_lands_once() {
    let (first, second) = (Upstream::start(), Upstream::start());
    let (a, b) = (Site::start().await, Site::start().await);
    // first → a → second → b → first
    for (site, from, to) in [(&a, &first, &second), (&b, &second, &first)] {
        site.link(LinkConfig { import: vec![subject("ring.>", None)], ..link("from", from) }).await;
        site.link(LinkConfig { export: vec![subject("ring.>", None)], ..link("to", to) }).await;
    }
    let clients = [first.client().await, second.client().await, a.client().await, b.client().await];
    let mut heard = Vec::new();
    for client in &clients {
        heard.push(listen(client, "ring.>").await);
    }
    for (at, client) in clients.iter().enumerate() {
        for number in 0..20 {
            say(client, "ring.x", &format!("{at}.{number}")).await;
        }
        say(client, "ring.x", "end").await;
        for (listener, subscriber) in heard.iter_mut().enumerate() {
            let got = until_end(subscriber).await;
            let expected: Vec<String> = (0..20).map(|number| format!("{at}.{number}")).collect();
            assert_eq!(got, expected, "said at {at}, heard at {listener}");
        }
    }
    // What was said at a node came round to it, and was refused.
    for site in [&a, &b] {
        until("the ring is closed", async || site.figures("from", 0).duplicates_refused == 21).await;
    }
    for (client, subscriber) in clients.iter().zip(&mut heard) {
        settle(client).await;
        assert!(futures_util::FutureExt::now_or_never(subscriber.next()).is_none());
    }
}

#[tokio::test]
async fn of_two_nodes_in_one_queue_group_one_gets_each_message() {
    let upstream = Upstream::start();
    let sites = [Site::start().await, Site::start().await];
    let mut heard = Vec::new();
    for site in &sites {
        let import = vec![RuleConfig { queue: Some("edge".to_owned()), ..subject("cmd.>", None) }];
        site.link(LinkConfig { import, ..link("core", &upstream) }).await;
        heard.push(listen(&site.client().await, "cmd.>").await);
    }
    let there = upstream.client().await;
    for number in 0..100 {
        say(&there, "cmd.x", &number.to_string()).await;
    }
    let carried = || sites.iter().map(|site| site.figures("core", 0).transferred).collect::<Vec<_>>();
    until("all were carried", async || carried().iter().sum::<u64>() >= 100).await;
    assert_eq!(carried().iter().sum::<u64>(), 100, "{:?}", carried());
    assert!(carried().iter().all(|count| *count > 0), "{:?}", carried());
}

#[tokio::test]
async fn a_request_here_is_answered_there() {
    let (upstream, site) = (Upstream::start(), Site::start().await);
    let mut rule = requests("rpc.>", Direction::Out, Some("inventory.>"));
    rule.timeout_ms = Some(300);
    site.link(LinkConfig { requests: vec![rule], ..link("core", &upstream) }).await;
    let (there, here) = (upstream.client().await, site.client().await);
    let mut service = listen(&there, "inventory.count").await;
    let answering = async {
        let request = next(&mut service).await;
        assert_eq!(request.headers.as_ref().unwrap().get("Who").unwrap().as_str(), "me");
        let mut headers = HeaderMap::new();
        headers.insert("Unit", "apples");
        there.publish_with_headers(request.reply.unwrap(), headers, "7".into()).await.unwrap();
    };
    let mut headers = HeaderMap::new();
    headers.insert("Who", "me");
    let asking = here.request_with_headers("rpc.count", headers, "how many".into());
    let (answer, ()) = tokio::join!(asking, answering);
    let answer = answer.unwrap();
    assert_eq!(&answer.payload[..], b"7");
    assert_eq!(answer.headers.unwrap().get("Unit").unwrap().as_str(), "apples");
    // Nobody there: said at once, not after a time-out.
    let error = here.request("rpc.nothing", "".into()).await.unwrap_err();
    assert_eq!(error.kind(), async_nats::RequestErrorKind::NoResponders);
    // Somebody there who does not answer: no answer here, and room for the next.
    let request = async_nats::Request::new().timeout(Some(Duration::from_millis(900)));
    let error = here.send_request("rpc.count", request).await.unwrap_err();
    assert_eq!(error.kind(), async_nats::RequestErrorKind::TimedOut);
    let figures = site.figures("core", 0);
    assert_eq!((figures.transferred, figures.dropped), (1, 1));
}

#[tokio::test]
async fn a_request_there_is_answered_here() {
    let (upstream, site) = (Upstream::start(), Site::start().await);
    let rule = requests("site7.*", Direction::In, Some("local.$1"));
    site.link(LinkConfig { requests: vec![rule], ..link("core", &upstream) }).await;
    let (there, here) = (upstream.client().await, site.client().await);
    let mut service = listen(&here, "local.echo").await;
    let answering = tokio::spawn(async move {
        for _ in 0..200 {
            let request = next(&mut service).await;
            here.publish(request.reply.unwrap(), request.payload).await.unwrap();
        }
        settle(&here).await;
    });
    let asked = (0..200).map(|number: u32| {
        let there = there.clone();
        async move {
            let answer = there.request("site7.echo", number.to_string().into()).await.unwrap();
            assert_eq!(answer.payload, number.to_string());
        }
    });
    futures_util::future::join_all(asked).await;
    answering.await.unwrap();
    let answer = there.request("site7.nothing", "".into()).await.unwrap();
    assert_eq!(answer.headers.unwrap().get("Nats-Service-Error-Code").unwrap().as_str(), "503");
    assert_eq!(site.figures("core", 0).transferred, 200);
}

#[tokio::test]
async fn a_server_that_is_away_degrades_the_link_and_nothing_else() {
    let (mut upstream, site) = (Upstream::start(), Site::start().await);
    upstream.kill();
    site.links
        .add(LinkConfig {
            import: vec![subject("in.>", None)],
            export: vec![subject("out.>", None)],
            requests: vec![requests("rpc.>", Direction::Out, None)],
            ..link("core", &upstream)
        })
        .unwrap();
    let here = site.client().await;
    let mut heard = listen(&here, "out.>").await;
    until("it is degraded", async || {
        matches!(site.status("core").state, LinkState::Degraded { cause } if cause.contains("connecting to"))
    })
    .await;
    for round in 0..3 {
        // Local work goes on; what is not carried is counted.
        let dropped = site.figures("core", 1).dropped;
        say(&here, "out.x", "lost").await;
        assert_eq!(&next(&mut heard).await.payload[..], b"lost");
        until("it is counted", async || site.figures("core", 1).dropped == dropped + 1).await;
        let error = here.request("rpc.x", "".into()).await.unwrap_err();
        assert_eq!(error.kind(), async_nats::RequestErrorKind::NoResponders);
        upstream.begin();
        site.connected("core").await;
        let there = upstream.client().await;
        let mut heard_there = listen(&there, "out.>").await;
        until("it carries again", async || {
            say(&here, "out.x", "end").await;
            futures_util::FutureExt::now_or_never(heard_there.next()).is_some()
        })
        .await;
        drop(next(&mut heard).await);
        while futures_util::FutureExt::now_or_never(heard.next()).is_some() {}
        assert_eq!(site.status("core").reconnects, round);
        upstream.kill();
        until("it is degraded again", async || {
            matches!(site.status("core").state, LinkState::Degraded { .. })
        })
        .await;
        settle(&here).await;
        while futures_util::FutureExt::now_or_never(heard.next()).is_some() {}
    }
}

const MAY_NOTHING: &str = "authorization {\n\
     default_permissions: { publish: \"_INBOX.>\", subscribe: \"_INBOX.>\" }\n\
     users: [ { user: edge, password: secret } ]\n}";
const MAY_ALL: &str = "authorization {\nusers: [ { user: edge, password: secret } ]\n}";

#[tokio::test]
async fn a_revoked_permission_is_the_cause_and_its_return_the_cure() {
    let mut upstream = Upstream::with_configuration(MAY_NOTHING);
    let site = Site::start().await;
    let url = upstream.url().replace("nats://", "nats://edge:secret@");
    let config = LinkConfig {
        urls: vec![url.clone()],
        import: vec![subject("in.>", None)],
        export: vec![subject("out.>", None)],
        ..link("core", &upstream)
    };
    site.links.add(config).unwrap();
    let here = site.client().await;
    until("the cause is known", async || {
        say(&here, "out.x", "no").await;
        let causes: Vec<String> = (site.status("core").rules.iter())
            .filter_map(|rule| match &rule.state {
                LinkState::Degraded { cause } => Some(cause.to_lowercase()),
                LinkState::Connecting
                | LinkState::Connected
                | LinkState::Standby
                | LinkState::Paused
                | LinkState::Stopped => None,
            })
            .collect();
        causes.len() == 2
            && causes[0].contains("permissions violation for subscription to \"in.>\"")
            && causes[1].contains("permissions violation for publish to \"out.x\"")
    })
    .await;
    upstream.reload(MAY_ALL);
    site.connected("core").await;
    let login = async_nats::ConnectOptions::with_user_and_password("edge".into(), "secret".into());
    let there = login.connect(upstream.url()).await.unwrap();
    let mut heard = listen(&there, "out.>").await;
    until("it carries", async || {
        say(&here, "out.x", "yes").await;
        futures_util::FutureExt::now_or_never(heard.next()).is_some()
    })
    .await;
}

#[tokio::test]
async fn a_link_that_drains_finishes_what_was_asked() {
    let (upstream, site) = (Upstream::start(), Site::start().await);
    site.link(LinkConfig {
        export: vec![subject("out.>", None)],
        requests: vec![requests("rpc.>", Direction::Out, None)],
        ..link("core", &upstream)
    })
    .await;
    let (there, here) = (upstream.client().await, site.client().await);
    let (mut heard, mut service) = (listen(&there, "out.>").await, listen(&there, "rpc.x").await);
    let asking = {
        let here = here.clone();
        tokio::spawn(async move { here.request("rpc.x", "".into()).await })
    };
    let request = next(&mut service).await;
    for number in 0..1000 {
        here.publish("out.x", number.to_string().into()).await.unwrap();
    }
    settle(&here).await;
    let drained = site.links.drain(PATIENCE);
    let answered = async {
        there.publish(request.reply.unwrap(), "late".into()).await.unwrap();
        there.flush().await.unwrap();
    };
    tokio::join!(drained, answered);
    assert_eq!(&asking.await.unwrap().unwrap().payload[..], b"late");
    for number in 0..1000 {
        assert_eq!(next(&mut heard).await.payload, number.to_string());
    }
    assert_eq!(site.status("core").state, LinkState::Stopped);
    drop(site.stop().await);
}
