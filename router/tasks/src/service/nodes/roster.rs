//! The leader's list of workers at other nodes. Their subscriptions and connections get numbers here that no
//! subscription and no connection of this node has, so that the engine need not know of nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::engine::pool::Member;

/// Numbers from here on are of other nodes: the index counts subscriptions from 0, one at a time.
const FAR: u64 = 1 << 48;
/// Nodes of a cluster.
const NODES_MAX: usize = 64;
/// A node that says nothing for this long has no workers any more.
const SILENT_MILLIS: u64 = 5_000;
/// Numbers given out since a connection without subscriptions was seen, until it is forgotten.
const CONNECTIONS_REMEMBERED: u64 = 1_000;

#[derive(Debug, Default)]
struct Post {
    heard_at: u64,
    /// There, and here.
    connections: BTreeMap<u64, u64>,
    subjects: BTreeMap<Arc<str>, BTreeMap<u64, Member>>,
}

#[derive(Debug)]
pub(super) struct Roster {
    next: u64,
    posts: BTreeMap<String, Post>,
    /// Where an entry is, and its number there.
    places: BTreeMap<u64, (String, u64)>,
}

impl Default for Roster {
    fn default() -> Self {
        Self { next: FAR, posts: BTreeMap::new(), places: BTreeMap::new() }
    }
}

impl Roster {
    fn number(next: &mut u64) -> u64 {
        *next += 1;
        *next
    }

    /// A node says who is subscribed there. Whether that is news.
    pub(super) fn report(
        &mut self,
        now: u64,
        node: &str,
        subject: &Arc<str>,
        members: &[(u64, u64, bool)],
    ) -> bool {
        if !self.posts.contains_key(node) && self.posts.len() >= NODES_MAX {
            return false;
        }
        let post = self.posts.entry(node.to_owned()).or_default();
        post.heard_at = now;
        let known = post.subjects.entry(Arc::clone(subject)).or_default();
        let there: BTreeMap<u64, (u64, bool)> =
            members.iter().map(|(entry, connection, group)| (*entry, (*connection, *group))).collect();
        let ended: Vec<u64> = known.keys().filter(|entry| !there.contains_key(entry)).copied().collect();
        let mut changed = !ended.is_empty();
        for entry in ended {
            if let Some(member) = known.remove(&entry) {
                self.places.remove(&member.entry);
            }
        }
        // In the order of their numbers there: of one connection the newest counts.
        for (entry, (connection, in_group)) in there {
            if known.contains_key(&entry) {
                continue;
            }
            changed = true;
            let next = &mut self.next;
            let connection = *post.connections.entry(connection).or_insert_with(|| Self::number(next));
            let member = Member { entry: Self::number(next), connection, in_group };
            self.places.insert(member.entry, (node.to_owned(), entry));
            known.insert(entry, member);
        }
        if changed {
            let members = post.subjects.values().flat_map(BTreeMap::values);
            let used: BTreeSet<u64> = members.map(|member| member.connection).collect();
            // One that drains is still heard, but a list must not grow for ever.
            let next = self.next;
            post.connections
                .retain(|_, number| used.contains(number) || *number + CONNECTIONS_REMEMBERED > next);
        }
        changed
    }

    pub(super) fn members(&self, subject: &str) -> impl Iterator<Item = Member> + use<'_> {
        let subject: Arc<str> = subject.into();
        self.posts
            .values()
            .filter_map(move |post| post.subjects.get(&subject))
            .flat_map(|members| members.values().copied())
    }

    /// Where an entry is, and what it is there. `None`: it is of this node, or has ended.
    pub(super) fn place(&self, entry: u64) -> Option<(&str, u64)> {
        self.places.get(&entry).map(|(node, there)| (node.as_str(), *there))
    }

    pub(super) const fn is_far(entry: u64) -> bool {
        entry >= FAR
    }

    /// A connection of another node as it is known here.
    pub(super) fn connection(&self, node: &str, connection: u64) -> Option<u64> {
        self.posts.get(node)?.connections.get(&connection).copied()
    }

    /// Forgets nodes that have gone. The subjects whose members changed.
    pub(super) fn forget_silent(&mut self, now: u64) -> Vec<Arc<str>> {
        let silent: Vec<String> = self
            .posts
            .iter()
            .filter(|(_, post)| now.saturating_sub(post.heard_at) > SILENT_MILLIS)
            .map(|(node, _)| node.clone())
            .collect();
        let mut changed = Vec::new();
        for node in silent {
            if let Some(post) = self.posts.remove(&node) {
                for (subject, members) in post.subjects {
                    members.values().for_each(|member| drop(self.places.remove(&member.entry)));
                    changed.push(subject);
                }
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(roster: &Roster) -> Vec<(u64, u64)> {
        roster.members("jobs").map(|member| (member.entry - FAR, member.connection - FAR)).collect()
    }

    #[test]
    fn subscriptions_elsewhere_get_numbers_of_their_own_and_keep_them() {
        let mut roster = Roster::default();
        let jobs: Arc<str> = "jobs".into();
        assert!(roster.report(0, "a", &jobs, &[(5, 1, false)]));
        assert!(roster.report(0, "b", &jobs, &[(5, 1, false)]));
        assert_eq!(entries(&roster), [(2, 1), (4, 3)]);
        assert!(!roster.report(0, "a", &jobs, &[(5, 1, false)]), "nothing new");
        // It subscribes anew before the old one ends: the same connection, a higher entry.
        assert!(roster.report(0, "a", &jobs, &[(9, 1, false), (5, 1, false)]));
        assert_eq!(entries(&roster), [(2, 1), (5, 1), (4, 3)]);
        assert_eq!(roster.place(FAR + 5), Some(("a", 9)));
        assert!(roster.report(0, "a", &jobs, &[(9, 1, false)]));
        assert_eq!((roster.place(FAR + 2), entries(&roster)), (None, vec![(5, 1), (4, 3)]));
        assert_eq!(roster.connection("b", 1), Some(FAR + 3));
        assert!(Roster::is_far(FAR + 5) && !Roster::is_far(7));
    }

    #[test]
    fn a_node_that_says_nothing_has_no_workers() {
        let mut roster = Roster::default();
        let jobs: Arc<str> = "jobs".into();
        roster.report(0, "a", &jobs, &[(5, 1, false)]);
        roster.report(4_000, "b", &jobs, &[(5, 1, false)]);
        assert_eq!(roster.forget_silent(SILENT_MILLIS), Vec::<Arc<str>>::new());
        assert_eq!(roster.forget_silent(SILENT_MILLIS + 1), [Arc::clone(&jobs)]);
        assert_eq!(entries(&roster), [(4, 3)]);
    }

    #[test]
    fn connections_that_left_are_forgotten_at_last() {
        let mut roster = Roster::default();
        let jobs: Arc<str> = "jobs".into();
        for n in 0..5_000 {
            roster.report(0, "a", &jobs, &[(n, n, false)]);
        }
        assert!(roster.posts["a"].connections.len() < 1_010);
        assert_eq!((roster.places.len(), roster.members("jobs").count()), (1, 1));
    }
}
