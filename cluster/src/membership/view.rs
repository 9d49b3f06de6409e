//! From what gossip says to who should own what. Pure: the time is passed in.
//!
//! A member that fails loses its place at once; one that joins gets its place when it has been there for the settle delay, so
//! that many nodes that start together, or one that flaps, move shards once and not each time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use perdure_types::{Member, NodeId, Placement, SessionId, SlotCount};
use tokio::time::Instant;

use super::{MemberState, away::Away};
use crate::ring::Ring;

/// For how long the sessions of members that are gone are named.
const DEAD_KEPT: Duration = Duration::from_secs(120);

/// When members get and lose their places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settle {
    /// How long a new member is watched before it gets its place.
    pub join: Duration,
    /// How long a node looks for others before it takes its own place.
    pub start: Duration,
}

impl Default for Settle {
    fn default() -> Self {
        Self { join: Duration::from_millis(1000), start: Duration::from_millis(2500) }
    }
}

struct Known {
    state: MemberState,
    /// It has its place from here on.
    placed_at: Instant,
    silent: bool,
    unreachable: bool,
    /// All sessions that it has named.
    sessions: BTreeSet<SessionId>,
}

/// What one node believes of the cluster.
pub(crate) struct View {
    me: NodeId,
    slots: SlotCount,
    settle: Settle,
    started: Instant,
    known: BTreeMap<NodeId, Known>,
    dead: BTreeMap<SessionId, Instant>,
    /// This node has had a look around; its own placement counts from here on.
    ready: bool,
    cut_off: bool,
    placement: Arc<Placement>,
    ring: Arc<Ring>,
}

impl View {
    pub(crate) fn new(me: NodeId, slots: SlotCount, settle: Settle, now: Instant) -> Self {
        let placement = Placement {
            version: 0,
            me: me.clone(),
            owners: Arc::new([]),
            members: BTreeMap::new(),
            dead: BTreeSet::new(),
        };
        Self {
            me,
            slots,
            settle,
            started: now,
            known: BTreeMap::new(),
            dead: BTreeMap::new(),
            ready: false,
            cut_off: false,
            placement: Arc::new(placement),
            ring: Arc::default(),
        }
    }

    pub(crate) fn placement(&self) -> &Arc<Placement> {
        &self.placement
    }

    pub(crate) fn ring(&self) -> &Arc<Ring> {
        &self.ring
    }

    /// Takes in who is alive now, this node among them. `complete`: all that are known to be there have been heard, so
    /// there is nothing to wait for at the start. `cut_off`: most of the others live, and cannot be heard.
    pub(crate) fn observe(&mut self, now: Instant, live: Vec<MemberState>, complete: bool, cut_off: bool) {
        let live = newest_of_each_name(live);
        let gone: Vec<NodeId> = self.known.keys().filter(|node| !live.contains_key(*node)).cloned().collect();
        for known in gone.iter().filter_map(|node| self.known.remove(node)) {
            tracing::info!(node = %known.state.node, "member gone");
            self.dead.extend(known.sessions.into_iter().map(|session| (session, now)));
        }
        let start_over = complete || now >= self.started + self.settle.start;
        let first_look = !self.ready && start_over;
        for (node, state) in live {
            let place_now = first_look || !self.ready || node == self.me;
            let placed_at = if place_now { now } else { now + self.settle.join };
            let known = self.known.entry(node).or_insert_with(|| {
                tracing::info!(node = %state.node, "member found");
                let sessions = BTreeSet::new();
                Known { state: state.clone(), placed_at, silent: false, unreachable: false, sessions }
            });
            known.sessions.extend(state.session);
            known.state = state;
        }
        self.note_away(now);
        self.ready |= start_over;
        if self.cut_off != cut_off {
            self.cut_off = cut_off;
            tracing::warn!(
                cut_off,
                "most members are alive and {}",
                if cut_off { "cannot be heard" } else { "are heard again" }
            );
        }
        self.dead.retain(|_, since| now < *since + DEAD_KEPT);
        self.publish(now);
    }

    /// Who can be called again is watched as a newcomer is. Who was silent has its place back at once: it may have been
    /// the first of all to notice that the store answers nobody.
    fn note_away(&mut self, now: Instant) {
        let away = Away::among(self.known.values().map(|known| &known.state));
        for known in self.known.values_mut() {
            let node = &known.state.node;
            let (silent, unreachable) = (away.silent.contains(node), away.unreachable.contains(node));
            if (silent, unreachable) == (known.silent, known.unreachable) {
                continue;
            }
            tracing::warn!(node = %known.state.node, silent, unreachable, "whether a member is of use");
            if known.unreachable && !unreachable {
                known.placed_at = now + self.settle.join;
            }
            (known.silent, known.unreachable) = (silent, unreachable);
        }
    }

    /// These were sessions of incarnations that are gone.
    pub(crate) fn replaced(&mut self, now: Instant, sessions: impl IntoIterator<Item = SessionId>) {
        for session in sessions {
            self.dead.entry(session).or_insert(now);
        }
    }

    /// When the placement changes though nothing is heard.
    pub(crate) fn next_change(&self, now: Instant) -> Option<Instant> {
        let start = (!self.ready).then_some(self.started + self.settle.start);
        let places = self.known.values().map(|known| known.placed_at).filter(|at| *at > now);
        places.chain(start).min()
    }

    /// So many shards are placed: while they are being split, halves stay together. Whoever sees in the store that all are
    /// there tells the others.
    fn take_slots(&mut self) {
        let told = self.known.values().filter_map(|known| known.state.served.map.slots);
        self.slots = told.fold(self.slots, SlotCount::max);
    }

    fn publish(&mut self, now: Instant) {
        self.take_slots();
        let holds_place =
            |known: &&Known| known.placed_at <= now && !known.state.draining && !known.silent && !known.unreachable;
        if self.ready && !self.cut_off {
            let members = self.known.values().filter(holds_place);
            let ring = Ring::new(members.map(|known| (known.state.name.clone(), known.state.node.clone())));
            if ring != *self.ring {
                self.ring = Arc::new(ring);
            }
        } else if self.cut_off && !self.ring.members().is_empty() {
            self.ring = Arc::default();
        }
        let named: BTreeSet<SessionId> = self.known.values().filter_map(|known| known.state.session).collect();
        let member = |known: &Known| Member {
            address: known.state.address.to_string(),
            generation: known.state.generation,
            session: known.state.session,
            draining: known.state.draining,
            silent: known.silent,
            unreachable: known.unreachable,
        };
        let next = Placement {
            version: self.placement.version,
            me: self.me.clone(),
            owners: self.ring.owners(self.slots),
            members: self.known.iter().map(|(node, known)| (node.clone(), member(known))).collect(),
            dead: self.dead.keys().filter(|session| !named.contains(session)).copied().collect(),
        };
        if next != *self.placement {
            self.placement = Arc::new(Placement { version: self.placement.version + 1, ..next });
        }
    }
}

/// Of incarnations of the same name all but the newest are gone, whatever gossip says.
fn newest_of_each_name(live: Vec<MemberState>) -> BTreeMap<NodeId, MemberState> {
    let mut newest: BTreeMap<Arc<str>, MemberState> = BTreeMap::new();
    for state in live.into_iter().filter(|state| !state.left) {
        let is_newer = newest.get(&state.name).is_none_or(|other| other.generation < state.generation);
        if is_newer {
            newest.insert(state.name.clone(), state);
        }
    }
    newest.into_values().map(|state| (state.node.clone(), state)).collect()
}

#[cfg(test)]
#[path = "view_tests.rs"]
pub(crate) mod tests;
