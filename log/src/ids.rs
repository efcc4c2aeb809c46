//! Positions and identities. Three different things are never one integer type: an [`Index`] is a
//! place in the log, a [`Sequence`] a place in a stream, an offset a place in a file.

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, wincode::SchemaRead, wincode::SchemaWrite,
        )]
        pub struct $name(pub $inner);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// The unit of ordering and replication. A node has one, number 0, until it joins a cluster.
    ShardId(u32)
}
id! {
    /// A stream inside its shard. Assigned once, never reused, not shown to users.
    StreamId(u32)
}
id! {
    /// Position of a frame in the log of its shard, from 1. 0 means "before the first".
    Index(u64)
}
id! {
    /// Leadership epoch (Raft's word). A node alone writes term 1.
    Term(u64)
}
id! {
    /// Position of a message in its stream, from 1, never reused. 0 means "before the first".
    Sequence(u64)
}
id! {
    /// A segment, named by the index of its first frame.
    SegmentId(u64)
}
id! {
    /// Leader's clock: nanoseconds since the Unix epoch, never going back within a shard.
    Timestamp(u64)
}

impl Index {
    /// The index after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Sequence {
    /// The sequence after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}
