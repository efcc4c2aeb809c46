//! Which shard a stream goes to, and which nodes a new shard is on.

use beamlog_router::api::catalogue::ListedMember;
use beamlog_router::api::request::ShardList;
use beamlog_router::stream::StreamConfig;

/// A tag of a stream's placement that names a shard: `shard:2`.
const TAG: &str = "shard:";

/// The shard that a stream's placement names, if it names one.
///
/// # Errors
/// What stands there is no number.
pub(in crate::cluster) fn named(config: &StreamConfig) -> Option<Result<u8, String>> {
    let tags = config.placement.as_ref().map_or(&[][..], |placement| &placement.tags[..]);
    let number = tags.iter().find_map(|tag| tag.strip_prefix(TAG))?;
    Some(number.parse().map_err(|_no_number| format!("{number} is not the number of a shard")))
}

/// The shard for a stream with so many replicas: the one with as many nodes that has fewest streams. 0 is the first
/// one, also when there is none such.
pub(super) fn shard_for(replicas: u8, list: &ShardList, members: usize, is_led: impl Fn(u8) -> bool) -> u8 {
    let fits = |nodes: usize| nodes == usize::from(replicas);
    let others = list.shards.iter().filter(|one| fits(one.shard.nodes.len()) && is_led(one.shard.number));
    let others = others.map(|one| (one.streams, one.shard.number));
    let first = fits(members).then_some((list.common_streams, 0));
    // Of those with as few, one that was made for it.
    others
        .chain(first)
        .min_by_key(|(streams, number)| (*streams, *number == 0, *number))
        .map_or(0, |one| one.1)
}

/// So many nodes for a new shard: those that are in fewest, of those that are there.
pub(super) fn nodes_for(
    replicas: usize,
    list: &ShardList,
    members: &[ListedMember],
    is_connected: impl Fn(&ListedMember) -> bool,
) -> Result<Vec<String>, String> {
    let mut there: Vec<&ListedMember> = members.iter().filter(|member| is_connected(member)).collect();
    if there.len() < replicas {
        return Err(format!("{replicas} nodes are wanted and {} are there", there.len()));
    }
    let burden = |name: &String| list.shards.iter().filter(|one| one.shard.nodes.contains(name)).count();
    there.sort_by_key(|member| (burden(&member.name), member.name.clone()));
    let mut names: Vec<String> = there.into_iter().take(replicas).map(|member| member.name.clone()).collect();
    names.sort();
    Ok(names)
}

/// Who begins a new shard, and leads it at first: of its nodes one that is there and has begun fewest, and not who
/// leads the first shard, if there is another.
pub(super) fn founder(
    nodes: &[String],
    list: &ShardList,
    members: &[ListedMember],
    leader: Option<u64>,
    is_connected: impl Fn(&ListedMember) -> bool,
) -> Option<u64> {
    let begun = |peer: u64| list.shards.iter().filter(|one| one.shard.founder == peer).count();
    members
        .iter()
        .filter(|member| nodes.contains(&member.name) && is_connected(member))
        .min_by_key(|member| (begun(member.peer) + usize::from(leader == Some(member.peer)), member.peer))
        .map(|member| member.peer)
}

#[cfg(test)]
mod tests {
    use beamlog_router::api::request::{ClusterShard, ListedShard};
    use beamlog_router::stream::Placement;

    use super::*;

    fn list(common_streams: u64, shards: &[(&[&str], u64, u64)]) -> ShardList {
        let listed = |(at, (nodes, founder, streams)): (u8, &(&[&str], u64, u64))| ListedShard {
            shard: ClusterShard {
                number: at,
                nodes: nodes.iter().map(|name| (*name).to_owned()).collect(),
                founder: *founder,
            },
            streams: *streams,
        };
        ShardList { common_streams, shards: (1..).zip(shards).map(listed).collect() }
    }

    fn members(count: u64) -> Vec<ListedMember> {
        (1..=count)
            .map(|peer| ListedMember { peer, name: format!("n{peer}"), address: String::new() })
            .collect()
    }

    #[test]
    fn a_stream_goes_where_as_many_nodes_have_fewest_streams() {
        let three: &[&str] = &["n1", "n2", "n3"];
        let check = |replicas, list: &ShardList, members, expected| {
            assert_eq!(
                shard_for(replicas, list, members, |number| number != 4),
                expected,
                "{replicas} {list:?}"
            );
        };
        check(3, &list(0, &[]), 3, 0);
        check(3, &list(0, &[(three, 1, 0)]), 5, 1);
        check(5, &list(9, &[(three, 1, 0)]), 5, 0);
        check(2, &list(9, &[(three, 1, 0)]), 5, 0);
        check(3, &list(2, &[(three, 1, 3), (three, 1, 2)]), 5, 2);
        check(3, &list(2, &[(three, 1, 3), (three, 1, 2)]), 3, 2);
        check(3, &list(1, &[(three, 1, 3), (three, 1, 2)]), 3, 0);
        // The fourth has no leader.
        check(3, &list(9, &[(three, 1, 3), (three, 1, 2), (three, 1, 4), (three, 1, 0)]), 5, 2);
    }

    #[test]
    fn a_tag_names_a_shard() {
        let check = |tags: &[&str], expected: Option<Result<u8, ()>>| {
            let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
            let placement = Some(Placement { tags, ..Placement::default() });
            let config = StreamConfig { placement, ..StreamConfig::default() };
            assert_eq!(named(&config).map(|named| named.map_err(drop)), expected);
        };
        check(&[], None);
        check(&["n1"], None);
        check(&["shard:2"], Some(Ok(2)));
        check(&["n1", "shard:0"], Some(Ok(0)));
        check(&["shard:"], Some(Err(())));
        check(&["shard:300"], Some(Err(())));
        assert_eq!(named(&StreamConfig::default()), None);
    }

    #[test]
    fn a_new_shard_is_on_the_nodes_with_least_and_begun_by_another_than_before() {
        let before = list(0, &[(&["n1", "n2", "n3"], 2, 0)]);
        let all = |_: &ListedMember| true;
        assert_eq!(nodes_for(3, &before, &members(5), all).unwrap(), ["n1", "n4", "n5"]);
        let there = |member: &ListedMember| member.peer != 4;
        assert_eq!(nodes_for(3, &before, &members(5), there).unwrap(), ["n1", "n2", "n5"]);
        nodes_for(5, &before, &members(5), there).unwrap_err();
        let nodes: Vec<String> = ["n1", "n2", "n3"].map(str::to_owned).into();
        let by =
            |leader, there: fn(&ListedMember) -> bool| founder(&nodes, &before, &members(5), leader, there);
        assert_eq!(by(None, |_| true), Some(1));
        assert_eq!(by(Some(1), |_| true), Some(3));
        assert_eq!(by(Some(1), |member| member.peer == 2), Some(2));
        assert_eq!(by(None, |member| member.peer > 3), None);
    }
}
