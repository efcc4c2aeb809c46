//! What a consumer may see of its stream while it works.

use beamlog_log::{Journal, Sequence, StreamId};
use roaring::RoaringTreemap;

/// The living messages of one subject.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SubjectFigures {
    pub messages: u64,
    /// At or before the first living message of the subject; exact when `messages` is 1.
    pub first_bound: Sequence,
    pub last: Sequence,
}

/// The subjects of a stream that have living messages.
pub trait LastBySubject {
    /// The figures of one subject; `None` when it has no living message.
    fn figures(&self, subject: &[u8]) -> Option<SubjectFigures>;

    /// Calls `each` for every subject, in no order.
    fn for_each(&self, each: &mut dyn FnMut(&[u8], SubjectFigures));

    /// How many subjects there are.
    fn len(&self) -> usize;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A stream, as its consumers see it. Living messages are those from `first` to `last` that are not in
/// `deleted`; `first` is `last + 1` when there are none.
pub struct StreamView<'a> {
    pub id: StreamId,
    pub first: Sequence,
    pub last: Sequence,
    pub messages: u64,
    /// Interior deletes: sequences after `first` that have no message.
    pub deleted: &'a RoaringTreemap,
    pub journal: &'a mut dyn Journal,
    pub last_by_subject: &'a dyn LastBySubject,
    /// Whether anybody listens on a subject now: a pull request that nobody listens for is dropped before
    /// a message is spent on it.
    pub has_interest: &'a dyn Fn(&[u8]) -> bool,
}
