//! Random lives of a cluster: who leads, who hears whom, who loses power, all at any moment, against a model of
//! what was promised. That all nodes have the same state at the same index is asserted at each step
//! ([`Cluster::step`]).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use beamlog_log::sim_disk::Crash;
use beamlog_log::{SeededRandom, Sequence};
use beamlog_router::api::error::{ApiError, PublishRefusal};
use beamlog_router::api::request::{
    AckKind, AckTarget, Answer, ConsumerAction, MessageSelector, PublishOutcome, Published, PullRequest,
    Purge, Request, Response,
};
use beamlog_router::consumer::{AckPolicy, ConsumerConfig};

use super::{Cluster, Pending};
use crate::world::s;

/// Messages that the stream holds at most.
const LIMIT: u64 = 60;

/// A publish whose outcome is not known yet.
struct UnderWay {
    ticket: Pending<PublishOutcome>,
    id: String,
    payload: String,
}

struct Removal {
    answer: Pending<Answer>,
    meant: BTreeSet<u64>,
}

#[derive(Default)]
struct Model {
    /// Promised messages: sequence to payload.
    stored: BTreeMap<u64, String>,
    /// The sequence of each id that was promised.
    ids: BTreeMap<String, u64>,
    published: BTreeSet<String>,
    maybe_removed: BTreeSet<u64>,
    under_way: Vec<UnderWay>,
    removals: Vec<Removal>,
    count: u64,
}

impl Model {
    fn publish(&mut self, cluster: &Cluster, random: &mut SeededRandom) {
        // Now and then again what was published before, as a client does that got no answer.
        let (id, payload) = if self.count > 0 && random.one_in(5) {
            let again = 1 + random.below(self.count);
            (format!("id-{again}"), format!("{again}-{}", "d".repeat(usize::try_from(again % 900).unwrap())))
        } else {
            self.count += 1;
            let size = usize::try_from(self.count % 900).unwrap();
            (format!("id-{}", self.count), format!("{}-{}", self.count, "d".repeat(size)))
        };
        // The same id, the same content.
        let subject = if id.len().is_multiple_of(2) { "s.even" } else { "s.odd" };
        if let Some(ticket) = cluster.try_publish(subject, &id, &payload) {
            self.published.insert(payload.clone());
            self.under_way.push(UnderWay { ticket, id, payload });
        }
    }

    fn remove(&mut self, cluster: &Cluster, random: &mut SeededRandom) {
        let last = self.stored.last_key_value().map_or(1, |(last, _)| *last);
        let (request, meant) = if random.one_in(6) {
            let before = 1 + random.below(last);
            let purge = Purge { filter: String::new(), before: Some(Sequence(before)), keep: None };
            (Request::PurgeStream { stream: "S".into(), purge }, (1..before).collect())
        } else {
            let sequence = 1 + random.below(last);
            let request =
                Request::DeleteMessage { stream: "S".into(), sequence: Sequence(sequence), erase: false };
            (request, BTreeSet::from([sequence]))
        };
        // It may happen from now on, whatever is answered.
        self.maybe_removed.extend(&meant);
        self.removals.push(Removal { answer: cluster.ask(cluster.leader(), request), meant });
    }

    /// Takes in what became known.
    fn look(&mut self, what: &str) {
        let under_way = std::mem::take(&mut self.under_way);
        for mut one in under_way {
            match one.ticket.take() {
                None => self.under_way.push(one),
                Some(outcome) => match outcome.result {
                    Ok(Published::Stored(Sequence(at)) | Published::Duplicate(Sequence(at))) => {
                        let before = self.ids.insert(one.id.clone(), at);
                        // Of a message that is gone by now the id may have gone too.
                        let gone = |before: &u64| self.maybe_removed.contains(before) || before + LIMIT <= at;
                        let is_new = before.is_none_or(|before| before != at);
                        assert!(
                            !is_new || before.as_ref().is_none_or(gone),
                            "{what}: {} was {before:?} and is {at}",
                            one.id
                        );
                        if is_new {
                            let other = self.stored.insert(at, one.payload);
                            assert!(other.is_none(), "sequence {at} was given twice");
                        }
                    }
                    Ok(Published::Waiting | Published::Batch { .. }) => panic!("no batches are published"),
                    Err(PublishRefusal::NotLeader | PublishRefusal::LogFailed) => {}
                    Err(other) => panic!("{other}"),
                },
            }
        }
        let removals = std::mem::take(&mut self.removals);
        for mut one in removals {
            match one.answer.take() {
                None => self.removals.push(one),
                Some(Ok(_)) => {
                    for sequence in &one.meant {
                        // Confirmed: for ever.
                        self.stored.remove(sequence);
                    }
                }
                // There was none, or nobody knows.
                Some(Err(
                    ApiError::NotLeader
                    | ApiError::LogFailed
                    | ApiError::SequenceNotFound(_)
                    | ApiError::MessageDeleteFailed(_),
                )) => {}
                Some(Err(other)) => panic!("{other}"),
            }
        }
    }

    /// Everything that was promised is there, and nothing that was never published.
    fn check(&self, cluster: &mut Cluster, what: &str) {
        let content = content(cluster);
        let last = content.last_key_value().map_or(0, |(last, _)| *last);
        for (sequence, payload) in &self.stored {
            match content.get(sequence) {
                Some(found) => assert_eq!(found, payload, "{what}: {sequence}"),
                None => {
                    // The limit lets the oldest go, with that many behind it.
                    let is_old = sequence + LIMIT <= last;
                    assert!(
                        is_old || self.maybe_removed.contains(sequence),
                        "{what}: {sequence} was promised"
                    );
                }
            }
        }
        for (sequence, payload) in &content {
            assert!(self.published.contains(payload), "{what}: {sequence} was never published");
        }
        let mut seen = BTreeSet::new();
        for payload in content.values() {
            assert!(seen.insert(payload), "{what}: {payload} is stored twice");
        }
    }
}

fn content(cluster: &mut Cluster) -> BTreeMap<u64, String> {
    let request =
        Request::StreamInfo { stream: "S".into(), subjects_filter: None, offset: 0, deleted_details: false };
    let Response::Stream { info, .. } = cluster.request(request).unwrap() else { panic!("not an info") };
    let mut content = BTreeMap::new();
    for sequence in info.state.first_sequence.0..=info.state.last_sequence.0 {
        let selector = MessageSelector::At(Sequence(sequence));
        match cluster.request(Request::GetMessage { stream: "S".into(), selector }) {
            Ok(Response::Message(message)) => {
                content.insert(sequence, String::from_utf8(message.payload.to_vec()).unwrap());
            }
            Err(ApiError::NoMessage) => {}
            other => panic!("{sequence}: {other:?}"),
        }
    }
    assert_eq!(content.len() as u64, info.state.messages);
    content
}

/// Pulls and acks, so that consumers' records are among the others.
fn consume(cluster: &Cluster, random: &mut SeededRandom) {
    let router = cluster.router(cluster.leader());
    let request = PullRequest { batch: 3, no_wait: true, ..PullRequest::default() };
    drop(router.pull("S".into(), "C".into(), request, "nobody".into()));
    let sequence = 1 + random.below(40);
    let target = AckTarget {
        stream: "S".into(),
        consumer: "C".into(),
        delivery_count: 1,
        stream_sequence: Sequence(sequence),
        consumer_sequence: sequence,
    };
    drop(router.ack(target, AckKind::Ack, None));
}

fn create(cluster: &mut Cluster) {
    let mut config = s();
    config.max_messages = Some(LIMIT);
    config.duplicate_window_nanos = Some(3_600_000_000_000);
    cluster.request(Request::CreateStream(Box::new(config))).unwrap();
    let config = ConsumerConfig {
        name: "C".into(),
        durable: true,
        ack_policy: AckPolicy::Explicit,
        ..ConsumerConfig::default()
    };
    let (stream, action) = ("S".into(), ConsumerAction::CreateOrUpdate);
    cluster.request(Request::CreateConsumer { stream, config: Box::new(config), action }).unwrap();
}

/// Somebody who may is elected.
fn elect_somebody(cluster: &mut Cluster, random: &mut SeededRandom) {
    let mut nodes: Vec<usize> = (0..cluster.len()).collect();
    random.shuffle(&mut nodes);
    if let Some(at) = nodes.into_iter().find(|at| cluster.may_stand(*at)) {
        cluster.elect(at);
    }
}

fn trouble(cluster: &mut Cluster, random: &mut SeededRandom) {
    let at = random.index(cluster.len());
    match random.below(8) {
        0 => elect_somebody(cluster, random),
        1 => cluster.hears(at, false),
        2 | 3 => cluster.hears(at, true),
        4 if cluster.is_up(at) => {
            let crashes = Crash::sample(random.next());
            cluster.crash(at, crashes[random.index(crashes.len())]);
        }
        5 | 6 if !cluster.is_up(at) => cluster.start(at),
        7 => cluster.late_commits = random.one_in(2),
        _ => {
            let time = Duration::from_millis(random.below(400));
            cluster.let_pass(time);
        }
    }
}

fn heal(cluster: &mut Cluster) {
    cluster.late_commits = false;
    for at in 0..cluster.len() {
        if !cluster.is_up(at) {
            cluster.start(at);
        }
        cluster.hears(at, true);
    }
    for at in 0..cluster.len() {
        cluster.calm(at);
    }
    let leader = (0..cluster.len()).find(|at| cluster.may_stand(*at)).expect("with everybody there is one");
    cluster.elect(leader);
    cluster.settle();
    // An append may wait a moment for its segment to end.
    for _ in 0..4 {
        cluster.pass(Duration::from_millis(25));
    }
}

fn live(seed: u64, nodes: usize) -> (usize, usize) {
    // Of a test that fails the last line says which.
    println!("seed {seed}");
    let mut random = SeededRandom::new(seed);
    let mut cluster = Cluster::led(nodes);
    create(&mut cluster);
    let mut model = Model::default();
    let mut elections = 0;
    for act in 0..4 {
        for _ in 0..random.below(120) {
            for _ in 0..random.below(6) {
                if cluster.is_up(cluster.leader()) {
                    match random.below(12) {
                        0 => model.remove(&cluster, &mut random),
                        1 => consume(&cluster, &mut random),
                        _ => model.publish(&cluster, &mut random),
                    }
                }
            }
            for _ in 0..random.below(4) {
                cluster.some_of_a_round(&mut random);
            }
            model.look(&format!("seed {seed} act {act}"));
            if random.one_in(6) {
                trouble(&mut cluster, &mut random);
            }
        }
        heal(&mut cluster);
        elections += 1;
        model.look(&format!("seed {seed} act {act}"));
        model.check(&mut cluster, &format!("seed {seed} act {act}"));
    }
    assert!(cluster.compared() > 0);
    (model.stored.len() + model.maybe_removed.len(), elections)
}

#[test]
fn promises_hold_and_states_agree_through_random_lives() {
    let mut promised = 0;
    for seed in 0..seeds(12) {
        promised += live(seed, 3).0;
    }
    assert!(promised > 200, "{promised}: the lives are too quiet");
}

#[test]
fn two_nodes_agree_too() {
    for seed in 1000..1000 + seeds(4) {
        live(seed, 2);
    }
}

/// More where somebody has the time.
fn seeds(few: u64) -> u64 {
    std::env::var("BEAMLOG_TEST_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(few)
}
