//! Session logs.

use bytes::Bytes;
use futures::future::join_all;
use perdure_types::{Seq, SessionId};
use uuid::Uuid;

use super::patient::{Patient, until_done};
use crate::{LogRow, Store};

const ALL: usize = usize::MAX;

fn session(n: u128) -> SessionId {
    SessionId(Uuid::from_u128(n))
}

/// A row whose batch is `bytes` long and differs from that of every other row.
fn row(segment: u32, seq: u64, bytes: usize) -> LogRow {
    let batch = (0..bytes as u64).map(|i| (seq.wrapping_mul(31) ^ i) as u8).collect::<Vec<_>>();
    LogRow { segment, seq: Seq(seq), acknowledged: Seq(seq.saturating_sub(2)), batch: Bytes::from(batch) }
}

pub(super) async fn rows_are_read_back_in_order<S: Store>(store: &Patient<S>) {
    let rows: Vec<_> = (1..=20).map(|seq| row(0, seq, 10 * seq as usize)).collect();
    for row in &rows {
        store.append(session(1), row).await;
    }
    assert_eq!(store.read_log(session(1), 0, Seq(0), ALL).await, rows);
    assert_eq!(store.read_log(session(1), 0, Seq(8), ALL).await, rows[7..]);
    assert_eq!(store.read_log(session(1), 0, Seq(21), ALL).await, []);
    // It goes on after it was read, and a batch may be empty.
    let more = [row(0, 21, 0), row(0, 22, 300_000)];
    for row in &more {
        store.append(session(1), row).await;
    }
    assert_eq!(store.read_log(session(1), 0, Seq(21), ALL).await, more);
}

pub(super) async fn rows_come_in_pages<S: Store>(store: &Patient<S>) {
    let rows: Vec<_> = (1..=30).map(|seq| row(3, seq, 100)).collect();
    for row in &rows {
        store.append(session(1), row).await;
    }
    let (mut read, mut from) = (Vec::new(), Seq(1));
    loop {
        let page = store.read_log(session(1), 3, from, 1_000).await;
        let Some(last) = page.last() else { break };
        assert!(page.len() <= 11, "{} rows of 100 bytes are about 1000", page.len());
        from = last.seq.next();
        read.extend(page);
    }
    assert_eq!(read, rows);
    assert_eq!(store.read_log(session(1), 3, Seq(4), 1).await, rows[3..4], "one row however small the page");
}

pub(super) async fn repeats_and_disorder_are_harmless<S: Store>(store: &Patient<S>) {
    for seq in [2, 1, 4, 2, 3, 1, 4, 5] {
        store.append(session(1), &row(0, seq, 50)).await;
    }
    let rows: Vec<_> = (1..=5).map(|seq| row(0, seq, 50)).collect();
    assert_eq!(store.read_log(session(1), 0, Seq(0), ALL).await, rows);
}

pub(super) async fn segments_and_sessions_are_apart<S: Store>(store: &Patient<S>) {
    for (session_number, segment, seq) in [(1, 0, 1), (1, 1, 2), (2, 0, 1), (2, 1, 1), (1, 1, 3)] {
        store.append(session(session_number), &row(segment, seq, 9)).await;
    }
    assert_eq!(store.read_log(session(1), 0, Seq(0), ALL).await, [row(0, 1, 9)]);
    assert_eq!(store.read_log(session(1), 1, Seq(0), ALL).await, [row(1, 2, 9), row(1, 3, 9)]);
    assert_eq!(store.read_log(session(2), 1, Seq(0), ALL).await, [row(1, 1, 9)]);
    assert_eq!(store.read_log(session(1), 2, Seq(0), ALL).await, []);
    assert_eq!(store.read_log(session(3), 0, Seq(0), ALL).await, []);
}

pub(super) async fn many_appends_at_once<S: Store>(store: &Patient<S>) {
    let rows: Vec<_> = (1..=200).map(|seq| LogRow { acknowledged: Seq(0), ..row(seq as u32 / 90, seq, 64) }).collect();
    join_all(rows.iter().map(|row| store.append(session(1), row))).await;
    let mut read = Vec::new();
    for segment in 0..=2 {
        read.extend(store.read_log(session(1), segment, Seq(0), ALL).await);
    }
    assert_eq!(read, rows);
}

pub(super) async fn a_deleted_segment_stays_deleted<S: Store>(store: &Patient<S>) {
    for (segment, seq) in [(0, 1), (0, 2), (1, 3)] {
        store.append(session(1), &row(segment, seq, 20)).await;
    }
    until_done(async || store.0.delete_segment(session(1), 0).await).await;
    assert_eq!(store.read_log(session(1), 0, Seq(0), ALL).await, []);
    store.append(session(1), &row(0, 2, 20)).await;
    assert_eq!(store.read_log(session(1), 0, Seq(0), ALL).await, [], "a late repeat does not bring it back");
    assert_eq!(store.read_log(session(1), 1, Seq(0), ALL).await, [row(1, 3, 20)]);
    until_done(async || store.0.delete_segment(session(1), 0).await).await;
    until_done(async || store.0.delete_segment(session(9), 9).await).await;
}
