//! Who holds the streams of a cluster, as `cluster` of stream and consumer info has it.

use std::time::Duration;

use super::json::Object;

/// A cluster as the node that leads it sees it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ClusterView {
    /// Of the cluster.
    pub name: String,
    /// What is replicated together.
    pub group: String,
    pub leader: Option<String>,
    /// The other members.
    pub replicas: Vec<ReplicaView>,
    /// Streams on their way to another place.
    pub moves: Vec<MoveView>,
}

/// A stream on its way, and the places, as people call them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct MoveView {
    pub stream: String,
    pub from: String,
    pub to: String,
}

/// One member that does not lead.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ReplicaView {
    pub name: String,
    pub peer: String,
    /// It has everything that was acknowledged.
    pub current: bool,
    pub offline: bool,
    /// How long ago it was heard of; `None` when it never was.
    pub active: Option<Duration>,
    /// Entries that it is behind.
    pub lag: u64,
}

/// Where an info is made.
#[derive(Clone, Copy, Debug)]
pub(super) enum Whereabouts<'a> {
    /// A node that stands alone, by its name.
    Alone(&'a str),
    Cluster(&'a ClusterView),
}

impl Whereabouts<'_> {
    /// Writes `cluster` of a stream. A node that stands alone names itself only to who asks for this one stream.
    pub(super) fn write(self, stream: &str, asked: bool, object: &mut Object<'_>) {
        match self {
            Self::Alone(name) if asked => object.object("cluster", |inner| inner.text("leader", name)),
            Self::Alone(_) => {}
            Self::Cluster(view) => object.object("cluster", |inner| {
                view.write(inner);
                view.write_move(stream, inner);
            }),
        }
    }

    /// As [`Self::write`], of a consumer: alone it has none.
    pub(super) fn write_of_consumer(self, object: &mut Object<'_>) {
        match self {
            Self::Alone(_) => {}
            Self::Cluster(view) => object.object("cluster", |inner| view.write(inner)),
        }
    }
}

impl ClusterView {
    fn write(&self, object: &mut Object<'_>) {
        object.text("name", &self.name);
        object.text("raft_group", &self.group);
        if let Some(leader) = &self.leader {
            object.text("leader", leader);
        }
        self.write_replicas(object);
    }

    /// Beside what nats-server has.
    fn write_move(&self, stream: &str, object: &mut Object<'_>) {
        let Some(moves) = self.moves.iter().find(|moves| moves.stream == stream) else { return };
        object.object("moving", |inner| {
            inner.text("from", &moves.from);
            inner.text("to", &moves.to);
        });
    }

    pub(super) fn write_replicas(&self, object: &mut Object<'_>) {
        if self.replicas.is_empty() {
            return;
        }
        object.list("replicas", &self.replicas, |replica, out| {
            Object::write(out, |inner| {
                inner.text("name", &replica.name);
                inner.boolean("current", replica.current);
                inner.boolean_if_set("offline", replica.offline);
                let nanos = replica.active.map_or(0, |active| active.as_nanos());
                inner.number("active", i128::try_from(nanos).unwrap_or(i128::MAX));
                inner.number_unless_zero("lag", replica.lag);
                inner.text("peer", &replica.peer);
            });
        });
    }
}
