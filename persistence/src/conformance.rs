//! What every store must do: one suite, run over each of them by its tests.
//!
//! Checks go through [`Patient`], which does what the trait tells callers to do: repeats what was unavailable, settles
//! what is indeterminate. So a store that fails now and then passes too, if it fails honestly. A check that does not hold
//! panics.

mod log;
mod patient;
mod rows;
mod tables;
mod visibility;

pub use patient::Patient;

use crate::Store;

/// Runs every check, each on a store of its own.
pub async fn run<S: Store>(make: impl AsyncFn() -> S) {
    run_under_faults(&make).await;
    rows::a_sealed_session_is_deleted(&Patient(make().await)).await;
}

/// All checks but those that hold only where no conditional write of unknown outcome can still be decided.
pub async fn run_under_faults<S: Store>(make: impl AsyncFn() -> S) {
    rows::settings_are_written_once(&Patient(make().await)).await;
    rows::namespaces_are_written_by_version(&Patient(make().await)).await;
    rows::sessions_are_written_by_condition(&Patient(make().await)).await;
    rows::one_of_many_creates_the_session(&Patient(make().await)).await;
    rows::shards_are_written_by_condition(&Patient(make().await)).await;
    rows::halves_of_shards_are_written_by_condition(&Patient(make().await)).await;
    rows::the_goal_is_written_by_condition(&Patient(make().await)).await;
    rows::racing_claims_raise_the_epoch_one_by_one(&Patient(make().await)).await;

    log::rows_are_read_back_in_order(&Patient(make().await)).await;
    log::rows_come_in_pages(&Patient(make().await)).await;
    log::repeats_and_disorder_are_harmless(&Patient(make().await)).await;
    log::segments_and_sessions_are_apart(&Patient(make().await)).await;
    log::many_appends_at_once(&Patient(make().await)).await;
    log::a_deleted_segment_stays_deleted(&Patient(make().await)).await;

    tables::rows_are_read_back(&Patient(make().await)).await;
    tables::an_older_stamp_never_replaces_a_newer_row(&Patient(make().await)).await;
    tables::an_older_deletion_removes_nothing(&Patient(make().await)).await;
    tables::a_deleted_run_takes_its_history_along(&Patient(make().await)).await;
    tables::history_is_read_both_ways(&Patient(make().await)).await;
    tables::names_do_not_run_into_each_other(&Patient(make().await)).await;
    tables::wakeups_are_read_by_time(&Patient(make().await)).await;

    visibility::reads_agree_with_plain_rows(&Patient(make().await)).await;
    visibility::an_older_stamp_changes_no_row(&Patient(make().await)).await;
    visibility::pages_go_on_where_they_ended(&Patient(make().await)).await;
}
