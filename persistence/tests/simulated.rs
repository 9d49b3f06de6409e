//! The simulated store is as weak as it says: each weakness that callers must live with does turn up, and each promise
//! holds all the same.

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use perdure_persistence::{
    Cas, HeadRow, LogRow, SessionRow, SessionState, StampedWrite, Store, StoreError, TableWrite,
    simulated::{Failure, Faults, Op, Simulated},
};
use perdure_types::{ChainKey, Epoch, Position, Seq, SessionId};
use uuid::Uuid;

const SESSION: SessionId = SessionId(Uuid::from_u128(1));
const LIVE: SessionRow = SessionRow { state: SessionState::Live, base: Seq(1), base_segment: 0 };
const FENCED: SessionRow = SessionRow { state: SessionState::Fenced, base: Seq(1), base_segment: 0 };

fn row(seq: u64) -> LogRow {
    LogRow { segment: 0, seq: Seq(seq), acknowledged: Seq(0), batch: Bytes::from(seq.to_string()) }
}

async fn seqs(store: &Simulated) -> Vec<u64> {
    let rows = store.read_log(SESSION, 0, Seq(0), usize::MAX).await.expect("available");
    rows.into_iter().map(|row| row.seq.0).collect()
}

/// What happened for this seed, in words.
async fn trace(seed: u64) -> String {
    let store = Simulated::new(seed, Faults::many());
    let mut trace = String::new();
    for seq in 1..200 {
        let append = store.append(SESSION, row(seq)).await;
        let read = store.read_log(SESSION, 0, Seq(0), usize::MAX).await;
        let cas = store.cas_session(SESSION, None, LIVE).await;
        trace += &format!("{append:?} {read:?} {cas:?}\n");
    }
    trace
}

#[tokio::test]
async fn one_seed_gives_one_trace() {
    assert_eq!(trace(7).await, trace(7).await);
    assert_ne!(trace(7).await, trace(8).await);
}

#[tokio::test]
async fn an_append_that_timed_out_may_surface_later() {
    let all_late = Faults { replica_write_late: 1.0, late_ops: 1_000_000, ..Faults::none() };
    let store = Simulated::new(1, all_late);
    assert!(matches!(store.append(SESSION, row(1)).await, Err(StoreError::Unavailable(_))));
    store.set_faults(Faults::none());
    assert_eq!(seqs(&store).await, [0; 0], "not there yet");
    store.deliver_all();
    assert_eq!(seqs(&store).await, [1]);
}

#[tokio::test]
async fn an_append_that_timed_out_may_be_lost() {
    let store = Simulated::new(1, Faults { replica_write_lost: 1.0, ..Faults::none() });
    assert!(matches!(store.append(SESSION, row(1)).await, Err(StoreError::Unavailable(_))));
    store.deliver_all();
    assert_eq!(seqs(&store).await, [0; 0]);
}

/// A row on one replica of three is seen by some reads and not by others, until one that sees it repairs it.
#[tokio::test]
async fn a_minority_write_is_seen_by_chance_and_then_for_good() {
    let (mut first_seen, mut first_missed) = (0, 0);
    for seed in 0..200 {
        let store = Simulated::new(seed, Faults { replica_write_lost: 0.6, ..Faults::none() });
        if store.append(SESSION, row(1)).await.is_ok() {
            continue;
        }
        store.set_faults(Faults::none());
        let reads = [seqs(&store).await, seqs(&store).await, seqs(&store).await, seqs(&store).await];
        let seen = reads.iter().position(|read| !read.is_empty());
        match seen {
            Some(0) => first_seen += 1,
            Some(_) => first_missed += 1,
            None => continue,
        }
        assert!(reads.iter().skip(seen.unwrap_or(0)).all(|read| *read == [1]), "seen and then gone: {reads:?}");
    }
    assert!(first_seen > 10 && first_missed > 10, "{first_seen} and {first_missed}");
}

/// What was acknowledged is read, whatever goes wrong.
#[tokio::test]
async fn acknowledged_rows_are_always_read() {
    for seed in 0..50 {
        let store = Simulated::new(seed, Faults::many());
        let mut acknowledged = Vec::new();
        for seq in 1..=60 {
            if store.append(SESSION, row(seq)).await.is_ok() {
                acknowledged.push(seq);
            }
            if seq % 20 == 0 {
                store.drop_in_flight();
            }
            if let Ok(rows) = store.read_log(SESSION, 0, Seq(0), usize::MAX).await {
                let found = |seq: &u64| rows.iter().any(|row| row.seq.0 == *seq);
                assert!(acknowledged.iter().all(found), "seed {seed}: {acknowledged:?} of {rows:?}");
            }
        }
        assert!(acknowledged.len() > 5, "seed {seed}: nothing ever works");
    }
}

/// G3: a serial read that does not show a change proves nothing.
#[tokio::test]
async fn a_proposal_may_be_decided_after_a_serial_read() {
    let store = Simulated::new(1, Faults { lwt_late: 1.0, late_ops: 1, ..Faults::none() });
    assert!(matches!(store.cas_session(SESSION, None, LIVE).await, Err(StoreError::Indeterminate(_))));
    store.set_faults(Faults { late_ops: 1, ..Faults::none() });
    // Much later is 32 operations.
    let mut seen = Vec::new();
    for _ in 0..40 {
        seen.push(store.read_session_serial(SESSION).await.expect("available"));
    }
    assert_eq!(seen.last(), Some(&Some(LIVE)));

    // ...but not if its condition has become false.
    let store = Simulated::new(1, Faults { lwt_late: 1.0, late_ops: 1_000_000, ..Faults::none() });
    assert!(store.cas_session(SESSION, None, LIVE).await.is_err());
    store.set_faults(Faults::none());
    assert_eq!(store.cas_session(SESSION, None, FENCED).await.expect("known"), Cas::Applied);
    store.deliver_all();
    assert_eq!(store.read_session_serial(SESSION).await.expect("available"), Some(FENCED));
}

/// The fence read of a session may miss a fence whose outcome nobody knows yet; a serial read settles it for all.
#[tokio::test]
async fn a_plain_read_may_be_behind_until_a_serial_read_settles() {
    let mut behind = 0;
    for seed in 0..100 {
        let store = Simulated::new(seed, Faults::none());
        store.cas_session(SESSION, None, LIVE).await.expect("known");
        store.set_faults(Faults { replica_write_lost: 0.8, ..Faults::none() });
        let outcome = store.cas_session(SESSION, Some(LIVE), FENCED).await;
        store.set_faults(Faults::none());
        let plain = store.read_session(SESSION).await.expect("available");
        match outcome {
            Ok(Cas::Applied) => assert_eq!(plain, Some(FENCED), "an outcome that is known is seen"),
            Ok(Cas::Rejected(row)) => panic!("{row:?}"),
            Err(_) => behind += usize::from(plain == Some(LIVE)),
        }
        assert_eq!(store.read_session_serial(SESSION).await.expect("available"), Some(FENCED));
        assert_eq!(store.read_session(SESSION).await.expect("available"), Some(FENCED));
    }
    assert!(behind > 20, "only {behind}");
}

/// M1: a late write of an older owner does not undo a newer deletion either.
#[tokio::test]
async fn a_late_older_write_does_not_come_back() {
    let store = Simulated::new(1, Faults { replica_write_late: 1.0, late_ops: 9, ..Faults::none() });
    let chain = ChainKey::new("n", "w");
    let head = HeadRow { head: Bytes::from_static(b"old"), applied: Position::ZERO };
    let at = |epoch, write| vec![StampedWrite { stamp: Position { epoch: Epoch(epoch), seq: Seq(1) }, write }];
    assert!(store.write(at(1, TableWrite::PutHead { chain: chain.clone(), row: head })).await.is_err());
    store.set_faults(Faults::none());
    store.write(at(2, TableWrite::DeleteHead { chain: chain.clone() })).await.expect("available");
    store.deliver_all();
    assert_eq!(store.read_head(&chain).await.expect("available"), None);
}

#[tokio::test]
async fn faults_can_be_asked_for() {
    let store = Simulated::reliable();
    store.inject(Op::Append, Failure::Refused, 1);
    assert!(matches!(store.append(SESSION, row(1)).await, Err(StoreError::Unavailable(_))));
    assert_eq!(seqs(&store).await, [0; 0]);
    store.inject(Op::Append, Failure::ReplyLost, 1);
    assert!(matches!(store.append(SESSION, row(1)).await, Err(StoreError::Unavailable(_))));
    assert_eq!(seqs(&store).await, [1]);
    store.inject(Op::Append, Failure::DiskFull, 2);
    for _ in 0..2 {
        assert!(matches!(store.append(SESSION, row(2)).await, Err(StoreError::ReadOnly(_))));
    }
    store.append(SESSION, row(2)).await.expect("all that was asked for has happened");
    store.inject(Op::Cas, Failure::ReplyLost, 1);
    assert!(matches!(store.cas_session(SESSION, None, LIVE).await, Err(StoreError::Indeterminate(_))));
    assert_eq!(store.read_session(SESSION).await.expect("available"), Some(LIVE));
    assert_eq!((store.count(Op::Append), store.count(Op::Cas)), (5, 1));
}

#[tokio::test]
async fn one_row_with_two_contents_is_found() {
    let store = Simulated::reliable();
    store.append(SESSION, row(1)).await.expect("available");
    let other = LogRow { batch: Bytes::from_static(b"other"), ..row(1) };
    assert!(matches!(store.append(SESSION, other).await, Err(StoreError::Corrupt(_))));
}

#[tokio::test]
async fn a_paused_store_answers_when_it_is_resumed() {
    let store = Simulated::reliable();
    store.pause();
    let mut append = Box::pin(store.append(SESSION, row(1)));
    assert!(append.as_mut().now_or_never().is_none());
    assert_eq!(store.count(Op::Append), 0, "it has not taken effect");
    store.resume();
    append.await.expect("available");
    assert_eq!(seqs(&store).await, [1]);
}

#[tokio::test(start_paused = true)]
async fn operations_take_their_time() {
    let latency = (Duration::from_millis(4), Duration::from_millis(8));
    let store = Simulated::new(1, Faults { latency, ..Faults::none() });
    let began = tokio::time::Instant::now();
    for seq in 1..=100 {
        store.append(SESSION, row(seq)).await.expect("available");
    }
    let took = began.elapsed();
    assert!((400..=900).contains(&took.as_millis()), "{took:?}");
}
