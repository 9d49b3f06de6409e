//! The commit protocol's models: as it is, each must hold; with one rule broken, a counterexample must be found.
//!
//! A test's name begins with the rule that it breaks. Those that are ignored have larger bounds, and take minutes:
//! `cargo xtask model` runs them, too.

use std::{fmt::Debug, hash::Hash, time::Instant};

use perdure_sim::model::{
    append::{Append, Broken as A},
    shards::{Broken as S, Shards},
};
use stateright::{Checker, Expectation, HasDiscoveries, Model, Path};

/// More states than any of these models has; a guard against a slip in its bounds.
const MOST_STATES: usize = 1_000_000_000;

/// Visits every state: no property is hurt, and each thing that should be possible is.
fn holds<M>(model: M)
where
    M: Model + Debug + Send + Sync + 'static,
    M::State: Debug + Clone + PartialEq + Hash + Send + Sync,
    M::Action: Debug + Clone + PartialEq + Send + Sync,
{
    let (name, began) = (format!("{model:?}"), Instant::now());
    let properties = model.properties();
    // Of things that are possible one example is enough: the search goes on for what must never be.
    let checker = model.checker().threads(2).target_state_count(MOST_STATES).spawn_bfs().join();
    println!(
        "{name}: {} states, {} steps deep, {:?}",
        checker.unique_state_count(),
        checker.max_depth(),
        began.elapsed()
    );
    assert!(checker.state_count() < MOST_STATES, "{name}: not all states were visited");
    let found = checker.discoveries();
    for property in properties {
        match (property.expectation, found.get(property.name)) {
            (Expectation::Always | Expectation::Eventually, Some(path)) => {
                panic!("{name}: not so: {}: {:#?}", property.name, steps(path))
            }
            (Expectation::Sometimes, None) => panic!("{name}: never happens: {}", property.name),
            (Expectation::Always | Expectation::Eventually, None) | (Expectation::Sometimes, Some(_)) => {}
        }
    }
}

/// Finds a counterexample.
fn breaks<M>(model: M)
where
    M: Model + Debug + Send + Sync + 'static,
    M::State: Debug + Clone + PartialEq + Hash + Send + Sync,
    M::Action: Debug + Clone + PartialEq + Send + Sync,
{
    let name = format!("{model:?}");
    let properties = model.properties();
    let checker = model.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let found = checker.discoveries();
    let hurt = properties.iter().find(|p| p.expectation != Expectation::Sometimes && found.contains_key(p.name));
    let hurt = hurt.unwrap_or_else(|| panic!("{name}: the broken rule was not noticed"));
    println!("{name}: not so: {}: {:?}", hurt.name, steps(&found[hurt.name]));
}

fn steps<State, Action>(path: &Path<State, Action>) -> Vec<Action>
where
    State: Clone + PartialEq,
    Action: Clone + PartialEq,
{
    path.clone().into_actions()
}

const LOG: Append = Append { rows: 2, window: 1, fencers: 1, broken: None };
const LOG_AND_TWO_FENCERS: Append = Append { rows: 1, window: 1, fencers: 2, broken: None };

fn log(broken: A) -> Append {
    Append { broken: Some(broken), ..LOG }
}

fn two_fencers(broken: A) -> Append {
    Append { broken: Some(broken), ..LOG_AND_TWO_FENCERS }
}

fn chain() -> Shards {
    Shards { sessions: 3, records: 2, epochs: 3, ..Shards::default() }
}

fn reads() -> Shards {
    Shards { sessions: 2, epochs: 2, reads: true, ..Shards::default() }
}

fn flushes() -> Shards {
    Shards { flushes: 2, ..chain() }
}

fn two_shards() -> Shards {
    Shards { sessions: 2, shards: 2, flushes: 2, epochs: 2, truncate: true, ..Shards::default() }
}

fn hand_over() -> Shards {
    Shards { sessions: 2, hand_over: true, ..chain() }
}

fn hand_over_of_dirty_shards() -> Shards {
    Shards { flushes: 1, truncate: true, ..hand_over() }
}

fn split() -> Shards {
    Shards { sessions: 2, shards: 2, epochs: 3, split: true, ..Shards::default() }
}

fn split_of_dirty_shards() -> Shards {
    Shards { flushes: 1, truncate: true, ..split() }
}

fn cleaner() -> Shards {
    Shards { records: 1, clean: true, ..flushes() }
}

fn rotten_row() -> Shards {
    Shards { sessions: 2, epochs: 2, rot: true, ..Shards::default() }
}

fn broken(broken: S, model: Shards) -> Shards {
    Shards { broken: Some(broken), ..model }
}

macro_rules! tests {
    ($( $(#[$attribute:meta])* $name:ident: $check:ident($model:expr); )*) => {
        $( #[test] $(#[$attribute])* fn $name() { $check($model) } )*
    };
}

tests! {
    the_log_of_one_session_holds: holds(Append { window: 2, ..LOG });
    two_fencers_agree: holds(LOG_AND_TWO_FENCERS);
    chains_of_dead_owners_hold: holds(chain());
    reads_hold: holds(reads());
    flushes_and_checkpoints_hold: holds(flushes());
    one_base_for_two_shards_holds: holds(two_shards());
    hand_over_holds: holds(Shards { sessions: 3, ..hand_over() });
    hand_over_under_reads_holds: holds(Shards { reads: true, ..hand_over() });
    hand_over_of_dirty_shards_holds: holds(hand_over_of_dirty_shards());
    split_holds: holds(split());
    sessions_without_a_row_count_as_sealed_at_nothing: holds(cleaner());
    a_rotten_row_stops_its_shard: holds(rotten_row());

    g1_fence_read_at_one: breaks(log(A::G1FenceReadAtOne));
    g1_append_at_one: breaks(log(A::G1AppendAtOne));
    g1_no_read_repair: breaks(log(A::G1NoReadRepair));
    g2_retry_sends_something_else: breaks(log(A::G2RetryDiffers));
    g3_unknown_fence_is_taken_for_done: breaks(log(A::G3UnknownTakenForDone));
    g3_unknown_hand_over_is_taken_for_failed: breaks(broken(S::G3UnknownTakenForFailed, hand_over()));
    g4_missing_session_passes_as_live: breaks(log(A::G4MissingIsLive));
    g4_session_is_proposed_twice: breaks(log(A::G4CreatedTwice));
    g4_session_is_deleted_while_it_is_named: breaks(broken(S::G4DeletedWhileNamed, cleaner()));
    a1_restart_keeps_its_session: breaks(log(A::A1RestartKeepsSession));
    a2_number_is_skipped: breaks(log(A::A2NumberSkipped));
    a2_more_in_flight_than_is_written_again: breaks(log(A::A2TooManyInFlight));
    a3_late_acks_are_covered: breaks(log(A::A3CoversLateAcks));
    a3_fenced_writer_goes_on: breaks(log(A::A3FencedGoesOn));
    a4_rows_behind_a_gap_are_acknowledged: breaks(Append { window: 2, ..log(A::A4GapAcknowledged) });
    a4_uncovered_rows_are_acknowledged: breaks(log(A::A4Uncovered));
    a5_read_without_a_fence_read: breaks(broken(S::A5NoFenceRead, reads()));
    a5_read_after_an_old_fence_read: breaks(broken(S::A5OldFenceRead, reads()));
    a5_read_outside_the_serving_period: breaks(broken(S::A5OutsideServingPeriod, Shards { reads: true, ..hand_over() }));
    f1_scan_before_the_fence_is_seen: breaks(two_fencers(A::F1ScanBeforeSeen));
    f2_rows_are_not_written_again: breaks(log(A::F2NotWrittenAgain));
    f2_scan_at_one: breaks(log(A::F2ScanAtOne));
    f3_a_fencer_keeps_its_own_end: breaks(two_fencers(A::F3OwnEnd));
    f3_the_last_seal_wins: breaks(two_fencers(A::F3LastSealWins));
    c1_owner_is_not_sealed: breaks(broken(S::C1OwnerNotSealed, chain()));
    c1_epoch_stays: breaks(broken(S::C1SameEpoch, chain()));
    c1_claim_without_condition: breaks(broken(S::C1Unconditional, chain()));
    c2_only_the_last_source_is_replayed: breaks(broken(S::C2LastSourceOnly, chain()));
    c2_records_of_other_shards_are_replayed: breaks(broken(S::C2AnyTag, two_shards()));
    c2_missing_row_is_taken_for_the_end: breaks(broken(S::C2MissingIsEnd, rotten_row()));
    c3_handed_over_before_it_is_covered: breaks(broken(S::C3NotCovered, hand_over()));
    c3_handed_over_while_it_is_served: breaks(broken(S::C3NotStopped, hand_over()));
    c4_first_answers_of_a_claim_are_unfenced: breaks(broken(S::C4FirstAnswersUnfenced, chain()));
    m1_default_timestamps: breaks(broken(S::M1DefaultTimestamp, flushes()));
    m1_uncovered_rows_are_flushed: breaks(broken(S::M1Uncovered, flushes()));
    m1_replay_does_not_skip: breaks(broken(S::M1NoSkip, flushes()));
    m2_checkpoint_before_the_flush: breaks(broken(S::M2BeforeFlush, flushes()));
    m2_checkpoint_after_a_flush_of_the_epoch_before: breaks(broken(S::M2FlushOfOldEpoch, hand_over_of_dirty_shards()));
    m2_checkpoint_without_condition: breaks(broken(S::M2Unconditional, hand_over_of_dirty_shards()));
    m3_base_is_not_known: breaks(broken(S::M3BaseNotKnown, two_shards()));
    m3_base_counts_one_shard: breaks(broken(S::M3OneShardCounted, two_shards()));
    m3_base_does_not_count_handed_over_shards: breaks(broken(S::M3HandedOverNotCounted, hand_over_of_dirty_shards()));
    m3_recovery_ignores_the_base: breaks(broken(S::M3BaseIgnored, two_shards()));
    m3_cleaner_lists_shards_first: breaks(broken(S::M3ShardsListedFirst, cleaner()));
    s1_upper_half_is_written_first: breaks(broken(S::S1UpperHalfFirst, split()));
    s1_split_before_all_is_covered: breaks(broken(S::C3NotCovered, split()));
    s1_split_while_it_is_served: breaks(broken(S::C3NotStopped, split()));
    s2_missing_half_is_claimed: breaks(broken(S::S2MissingIsClaimed, split()));
    s3_half_takes_all_of_its_parent: breaks(broken(S::S3AnyHash, split()));
    s3_half_takes_nothing_of_its_parent: breaks(broken(S::S3OwnNumberOnly, split()));

    #[ignore = "large"]
    large_two_rows_and_two_fencers: holds(Append { fencers: 2, ..LOG });
    #[ignore = "large"]
    large_three_rows: holds(Append { rows: 3, window: 2, ..LOG });
    #[ignore = "large"]
    large_cleaner_truncation_and_hand_over: holds(Shards { flushes: 2, clean: true, ..hand_over_of_dirty_shards() });
    #[ignore = "large"]
    large_cleaner: holds(Shards { records: 2, ..cleaner() });
    #[ignore = "large"]
    large_hand_over_of_dirty_shards: holds(Shards { sessions: 3, ..hand_over_of_dirty_shards() });
    #[ignore = "large"]
    large_split_of_dirty_shards: holds(split_of_dirty_shards());
    #[ignore = "large"]
    large_split_after_many_owners: holds(Shards { sessions: 3, ..split() });
    #[ignore = "large"]
    large_reads_and_hand_over: holds(Shards { sessions: 3, epochs: 4, reads: true, ..hand_over() });
}
