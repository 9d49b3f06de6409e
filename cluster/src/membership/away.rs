//! Members that are alive and of no use: their store does not answer them, or others cannot reach them. They keep no place,
//! and their sessions may be ended, until they say, or are found, otherwise.
//!
//! A failure detector alone does not see either. A node that is cut off from the store gossips on. And gossip goes over
//! datagrams, which may get through one way only, while calls need both: so each node tells by gossip whom it cannot call,
//! and all nodes draw the same conclusion from the same words. A pair that is apart says nothing of which of the two is to
//! blame; whoever is apart from most others goes, until all that stay can call each other.

use std::collections::BTreeSet;

use perdure_types::NodeId;

use super::MemberState;

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Away {
    pub silent: BTreeSet<NodeId>,
    pub unreachable: BTreeSet<NodeId>,
}

impl Away {
    /// Of live members. Those that drain have no place to lose, and break links on their way.
    pub(crate) fn among<'a>(live: impl Iterator<Item = &'a MemberState> + Clone) -> Self {
        let staying: Vec<&MemberState> = live.filter(|member| !member.draining).collect();
        let unreachable = unreachable(&staying);
        let rest = || staying.iter().filter(|member| !unreachable.contains(&member.node));
        // If the store answers nobody, nobody else is better off with the shards.
        let silent = if rest().all(|member| member.silent) {
            BTreeSet::new()
        } else {
            rest().filter(|member| member.silent).map(|member| member.node.clone()).collect()
        };
        Self { silent, unreachable }
    }
}

fn unreachable(members: &[&MemberState]) -> BTreeSet<NodeId> {
    let apart = |a: &MemberState, b: &MemberState| a.unreached.contains(&b.node) || b.unreached.contains(&a.node);
    let mut staying: Vec<&MemberState> = members.to_vec();
    let mut gone = BTreeSet::new();
    loop {
        let missed = |member: &MemberState| {
            staying.iter().filter(|other| other.node != member.node && apart(member, other)).count()
        };
        // Of several that are apart from as many, the last one by name.
        let worst = staying.iter().map(|member| (missed(member), member.node.clone())).max();
        match worst {
            Some((missed, node)) if missed > 0 => {
                staying.retain(|member| member.node != node);
                gone.insert(node);
            }
            _ => return gone,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use super::*;
    use crate::membership::view::tests::state;

    fn nodes(numbers: &[usize]) -> BTreeSet<NodeId> {
        numbers.iter().map(|number| state(*number, 1).node).collect()
    }

    /// `unreached`: who says of whom that it cannot be called. Gives who is unreachable.
    fn check(members: usize, unreached: &[(usize, usize)], expected: &[usize]) {
        let mut said: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (by, whom) in unreached {
            said.entry(*by).or_default().push(*whom);
        }
        let member = |number| {
            let unreached = Arc::new(nodes(said.get(&number).map_or(&[], Vec::as_slice)));
            MemberState { unreached, ..state(number, 1) }
        };
        let live: Vec<MemberState> = (1..=members).map(member).collect();
        let away = Away::among(live.iter());
        assert_eq!(away.unreachable, nodes(expected), "{members}: {unreached:?}");
        assert!(away.silent.is_empty());
    }

    #[test]
    fn who_is_apart_from_most_goes() {
        check(3, &[], &[]);
        // Cut off in one direction or in both: the others say so, or it says so itself, or all do.
        check(3, &[(1, 3), (2, 3)], &[3]);
        check(3, &[(1, 2), (1, 3)], &[1]);
        check(3, &[(2, 1), (3, 1), (1, 2), (1, 3)], &[1]);
        // Two of five.
        check(5, &[(1, 2), (1, 3), (4, 1), (5, 2), (3, 2), (4, 2)], &[1, 2]);
    }

    #[test]
    fn of_a_pair_one_stays() {
        check(2, &[(1, 2)], &[2]);
        check(2, &[(2, 1)], &[2]);
        check(4, &[(3, 2), (2, 3)], &[3]);
        // What is said of members that are not there counts for nothing.
        check(2, &[(1, 7)], &[]);
    }

    #[test]
    fn silent_ones_go_unless_all_are() {
        let member = |number, silent| MemberState { silent, ..state(number, 1) };
        let away = |members: &[MemberState]| Away::among(members.iter()).silent;
        assert_eq!(away(&[member(1, false), member(2, true)]), nodes(&[2]));
        assert_eq!(away(&[member(1, true), member(2, true)]), nodes(&[]));
        // One that leaves takes nothing.
        let leaving = MemberState { draining: true, ..member(1, false) };
        assert_eq!(away(&[leaving, member(2, true), member(3, true)]), nodes(&[]));
        // Nor does one that nobody can reach.
        let lost = MemberState { unreached: Arc::new(nodes(&[1, 2])), ..member(3, false) };
        assert_eq!(away(&[member(1, true), member(2, true), lost]), nodes(&[]));
    }
}
