use std::net::SocketAddr;

use perdure_types::Served;

use super::*;

fn session(number: u32) -> SessionId {
    SessionId::parse(&format!("00000000-0000-4000-8000-{number:012}")).expect("a UUID")
}

pub(crate) fn state(name: usize, generation: u64) -> MemberState {
    let address: SocketAddr = format!("10.0.0.{name}:7234").parse().expect("an address");
    MemberState {
        node: NodeId::new(format!("{address}@{generation:x}")),
        name: address.to_string().into(),
        generation,
        address,
        session: Some(session(name as u32 * 1000 + generation as u32)),
        served: Arc::new(Served::default()),
        draining: false,
        left: false,
        silent: false,
        unreached: Arc::default(),
        registry: 0,
        frontend_address: String::new(),
        version: String::new(),
        started_ns: 0,
    }
}

fn slots() -> SlotCount {
    SlotCount::new(64).expect("a power of two")
}

fn view(now: Instant) -> View {
    View::new(state(1, 1).node, slots(), Settle::default(), now)
}

fn owners(view: &View) -> BTreeSet<NodeId> {
    view.placement().owners.iter().cloned().collect()
}

#[test]
fn a_node_that_knows_of_no_other_takes_its_place_at_once() {
    let now = Instant::now();
    let mut view = view(now);
    view.observe(now, vec![state(1, 1)], true, false);
    assert_eq!(owners(&view), BTreeSet::from([state(1, 1).node]));
}

#[test]
fn a_node_that_knows_of_others_looks_for_them_first() {
    let now = Instant::now();
    let mut view = view(now);
    view.observe(now, vec![state(1, 1)], false, false);
    assert!(owners(&view).is_empty());
    view.observe(now + Duration::from_secs(1), vec![state(1, 1), state(2, 1)], true, false);
    assert_eq!(owners(&view).len(), 2, "all are there: nobody to wait for");
}

#[test]
fn others_that_stay_silent_are_not_waited_for_for_ever() {
    let now = Instant::now();
    let mut view = view(now);
    view.observe(now, vec![state(1, 1)], false, false);
    let at = view.next_change(now).expect("the start settles");
    view.observe(at, vec![state(1, 1)], false, false);
    assert_eq!(owners(&view).len(), 1);
}

fn settled(now: Instant, members: &[MemberState]) -> View {
    let mut view = view(now);
    view.observe(now, members.to_vec(), true, false);
    view
}

#[test]
fn a_newcomer_gets_its_place_after_the_settle_delay() {
    let now = Instant::now();
    let mut view = settled(now, &[state(1, 1)]);
    let both = [state(1, 1), state(2, 1)];
    view.observe(now, both.to_vec(), true, false);
    assert_eq!((owners(&view).len(), view.placement().members.len()), (1, 2));
    let at = view.next_change(now).expect("a newcomer waits");
    view.observe(at, both.to_vec(), true, false);
    assert_eq!(owners(&view).len(), 2);
}

#[test]
fn a_member_that_fails_loses_its_place_at_once_and_its_sessions_are_dead() {
    let now = Instant::now();
    let mut view = settled(now, &[state(1, 1), state(2, 1)]);
    view.observe(now, vec![state(1, 1)], true, false);
    assert_eq!(owners(&view).len(), 1);
    assert_eq!(view.placement().dead, BTreeSet::from([session(2001)]));
    view.observe(now, vec![state(1, 1), state(2, 1)], true, false);
    assert!(view.placement().dead.is_empty(), "it was a false alarm: the session is named again");
}

#[test]
fn a_new_incarnation_replaces_the_old_one_at_once() {
    let now = Instant::now();
    let mut view = settled(now, &[state(1, 1), state(2, 1)]);
    view.observe(now, vec![state(1, 1), state(2, 1), state(2, 5)], true, false);
    assert_eq!(view.placement().dead, BTreeSet::from([session(2001)]));
    assert!(!view.placement().members.contains_key(&state(2, 1).node));
}

#[test]
fn a_session_of_an_incarnation_before_is_dead() {
    let now = Instant::now();
    let mut view = view(now);
    view.replaced(now, [session(1), session(1005)]);
    view.observe(now, vec![state(1, 5)], true, false);
    assert_eq!(view.placement().dead, BTreeSet::from([session(1)]), "its own one lives");
}

#[test]
fn a_draining_member_owns_nothing_and_is_alive() {
    let now = Instant::now();
    let mut view = settled(now, &[state(1, 1), state(2, 1)]);
    view.observe(now, vec![state(1, 1), MemberState { draining: true, ..state(2, 1) }], true, false);
    assert_eq!(owners(&view), BTreeSet::from([state(1, 1).node]));
    assert!(view.placement().dead.is_empty());
    assert!(view.placement().members[&state(2, 1).node].draining);
}

/// In both ways: it says so of its store, and others say so of their calls.
#[test]
fn a_member_that_is_of_no_use_loses_its_place_until_it_is() {
    let silent = MemberState { silent: true, ..state(2, 1) };
    let unreached = Arc::new(BTreeSet::from([state(2, 1).node]));
    let apart = [1, 3].map(|name| MemberState { unreached: unreached.clone(), ..state(name, 1) });
    let [one, three] = apart;
    for (away, is_watched) in [(vec![state(1, 1), silent, state(3, 1)], false), (vec![one, state(2, 1), three], true)] {
        let now = Instant::now();
        let all = [state(1, 1), state(2, 1), state(3, 1)];
        let mut view = settled(now, &all);
        view.observe(now, away, true, false);
        assert_eq!(owners(&view), BTreeSet::from([state(1, 1).node, state(3, 1).node]));
        assert!(view.placement().members[&state(2, 1).node].is_away());
        assert!(view.placement().dead.is_empty(), "it may go on at any moment");
        view.observe(now, all.to_vec(), true, false);
        assert!(!view.placement().members[&state(2, 1).node].is_away());
        let at = view.next_change(now).unwrap_or(now);
        assert_eq!((owners(&view).len() == 2, at > now), (is_watched, is_watched));
        view.observe(at, all.to_vec(), true, false);
        assert_eq!(owners(&view).len(), 3);
    }
}

#[test]
fn a_node_that_is_cut_off_wants_nothing() {
    let now = Instant::now();
    let mut view = settled(now, &[state(1, 1), state(2, 1), state(3, 1)]);
    view.observe(now, vec![state(1, 1)], false, true);
    assert!(owners(&view).is_empty());
    view.observe(now, vec![state(1, 1), state(2, 1), state(3, 1)], true, false);
    assert!(!owners(&view).is_empty());
}

#[test]
fn versions_rise_with_changes_only() {
    let now = Instant::now();
    let mut view = settled(now, &[state(1, 1), state(2, 1)]);
    let version = view.placement().version;
    view.observe(now, vec![state(1, 1), state(2, 1)], true, false);
    assert_eq!(view.placement().version, version);
    view.observe(now, vec![state(1, 1)], true, false);
    assert_eq!(view.placement().version, version + 1);
}

/// SplitMix64.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}

/// Members join, leave, restart and flap; each view hears of each change a little later than it happens, or never of a
/// change that was undone. In the end all agree, and what moved is bounded.
#[test]
fn a_hundred_changes_in_a_row_leave_all_views_the_same() {
    for seed in 0..20 {
        let mut chance = Chance(seed);
        let mut now = Instant::now();
        let mut truth: BTreeMap<usize, u64> = (1..=5).map(|name| (name, 1)).collect();
        let states = |truth: &BTreeMap<usize, u64>| truth.iter().map(|(name, g)| state(*name, *g)).collect::<Vec<_>>();
        let mut views: Vec<View> = (0..3).map(|_| settled(now, &states(&truth))).collect();
        for _ in 0..100 {
            now += Duration::from_millis(chance.below(700) as u64);
            let name = chance.below(8) + 1;
            match chance.below(3) {
                // The first three are the ones who look.
                0 if name > 3 => drop(truth.remove(&name)),
                1 if name > 3 => *truth.entry(name).or_insert(0) += 1,
                _ => drop(truth.entry(name).or_insert(1)),
            }
            for view in &mut views {
                if chance.below(4) != 0 {
                    view.observe(now, states(&truth), true, false);
                }
            }
        }
        let last = now + Duration::from_secs(5);
        while now < last {
            now += Duration::from_millis(200);
            for view in &mut views {
                view.observe(now, states(&truth), true, false);
            }
        }
        let expected: BTreeSet<NodeId> = states(&truth).into_iter().map(|state| state.node).collect();
        for view in &views {
            assert_eq!(view.placement().owners, views[0].placement().owners, "seed {seed}");
            assert_eq!(owners(view), expected, "seed {seed}");
        }
    }
}

#[test]
fn flapping_moves_nothing_but_the_flapping_members_share() {
    let mut now = Instant::now();
    let (stable, all) = ([state(1, 1), state(2, 1)], [state(1, 1), state(2, 1), state(3, 1)]);
    let mut view = settled(now, &stable);
    let version = view.placement().owners.clone();
    for _ in 0..50 {
        view.observe(now, all.to_vec(), true, false);
        now += Duration::from_millis(300);
        view.observe(now, stable.to_vec(), true, false);
        now += Duration::from_millis(300);
        assert_eq!(view.placement().owners, version, "no place before it has stayed for a while");
    }
}
