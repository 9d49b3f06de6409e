//! Materialized rows: heads, runs, histories, wake-ups.

use std::sync::Arc;

use bytes::Bytes;
use perdure_types::{ChainKey, Epoch, Position, Seq, ShardId, Timestamp};

use super::patient::{Patient, until_done};
use crate::{HeadRow, HistoryRow, RunRow, StampedWrite, Store, TableWrite, Wakeup};

const ALL: usize = usize::MAX;
const EVER: (i64, i64) = (1, i64::MAX);

fn position(epoch: u64, seq: u64) -> Position {
    Position { epoch: Epoch(epoch), seq: Seq(seq) }
}

fn chain(workflow_id: &str) -> ChainKey {
    ChainKey::new("namespace", workflow_id)
}

fn head(text: &'static str) -> HeadRow {
    HeadRow { head: Bytes::from_static(text.as_bytes()), applied: position(3, 4) }
}

fn run(text: &'static str) -> RunRow {
    RunRow { snapshot: Bytes::from_static(text.as_bytes()), applied: position(5, 6), wake_at: Some(Timestamp(-7)) }
}

fn history(first_event_id: i64, last_event_id: i64) -> HistoryRow {
    let events = Bytes::from(format!("{first_event_id:05}-{last_event_id:05}").repeat(10));
    HistoryRow { first_event_id, last_event_id, events }
}

fn put_run(chain: &ChainKey, run_id: &str, row: RunRow) -> TableWrite {
    TableWrite::PutRun { chain: chain.clone(), run_id: run_id.into(), row }
}

fn put_history(chain: &ChainKey, run_id: &str, row: HistoryRow) -> TableWrite {
    TableWrite::PutHistory { chain: chain.clone(), run_id: run_id.into(), row }
}

impl<S: Store> Patient<S> {
    async fn head(&self, chain: &ChainKey) -> Option<HeadRow> {
        until_done(async || self.0.read_head(chain).await).await
    }

    async fn run(&self, chain: &ChainKey, run_id: &str) -> Option<RunRow> {
        until_done(async || self.0.read_run(chain, run_id).await).await
    }

    async fn wakeups(&self, shard: u32, after: Option<&Wakeup>, until: i64, limit: usize) -> Vec<Wakeup> {
        until_done(async || self.0.read_wakeups(ShardId(shard), after, Timestamp(until), limit).await).await
    }
}

pub(super) async fn rows_are_read_back<S: Store>(store: &Patient<S>) {
    let chain = chain("w");
    assert_eq!(store.head(&chain).await, None);
    assert_eq!(store.run(&chain, "r").await, None);
    assert_eq!(store.history(&chain, "r", EVER, ALL, false).await, []);
    let asleep = RunRow { wake_at: None, ..run("asleep") };
    let writes = [
        TableWrite::PutHead { chain: chain.clone(), row: head("head") },
        put_run(&chain, "r", run("run")),
        put_run(&chain, "s", asleep.clone()),
        put_history(&chain, "r", history(1, 3)),
    ];
    let stamped = |write: &TableWrite| StampedWrite { stamp: position(1, 1), write: write.clone() };
    // Once more is harmless.
    for _ in 0..2 {
        store.write_all(writes.iter().map(stamped).collect()).await;
        assert_eq!(store.head(&chain).await, Some(head("head")));
        assert_eq!(store.run(&chain, "r").await, Some(run("run")));
        assert_eq!(store.run(&chain, "s").await, Some(asleep.clone()));
        assert_eq!(store.history(&chain, "r", EVER, ALL, false).await, [history(1, 3)]);
    }
    store.write_all(Vec::new()).await;
}

pub(super) async fn an_older_stamp_never_replaces_a_newer_row<S: Store>(store: &Patient<S>) {
    let chain = chain("w");
    let longer = HistoryRow { first_event_id: 1, ..history(1, 9) };
    // An older epoch is older, whatever its seq.
    for (stamp, is_newest) in [((2, 5), false), ((3, 1), true), ((2, 900), false), ((1, 6), false)] {
        let text = if is_newest { "newest" } else { "older" };
        let events = if is_newest { longer.clone() } else { history(1, 2) };
        store.write(stamp, TableWrite::PutHead { chain: chain.clone(), row: head(text) }).await;
        store.write(stamp, put_run(&chain, "r", run(text))).await;
        store.write(stamp, put_history(&chain, "r", events)).await;
    }
    assert_eq!(store.head(&chain).await, Some(head("newest")));
    assert_eq!(store.run(&chain, "r").await, Some(run("newest")));
    assert_eq!(store.history(&chain, "r", EVER, ALL, false).await, [longer]);
}

pub(super) async fn an_older_deletion_removes_nothing<S: Store>(store: &Patient<S>) {
    let chain = chain("w");
    let wakeup = Wakeup { at: Timestamp(10), chain: chain.clone(), run_id: "r".into() };
    let put_head = TableWrite::PutHead { chain: chain.clone(), row: head("head") };
    let put_wakeup = TableWrite::PutWakeup { shard: ShardId(1), wakeup: wakeup.clone() };
    for write in [put_head, put_run(&chain, "r", run("run")), put_history(&chain, "r", history(1, 2)), put_wakeup] {
        store.write((2, 10), write).await;
    }
    let deletions = [
        TableWrite::DeleteHead { chain: chain.clone() },
        TableWrite::DeleteRun { chain: chain.clone(), run_id: "r".into() },
        TableWrite::DeleteWakeup { shard: ShardId(1), wakeup: wakeup.clone() },
    ];
    for write in deletions.clone() {
        store.write((2, 9), write).await;
    }
    assert_eq!(store.head(&chain).await, Some(head("head")));
    assert_eq!(store.run(&chain, "r").await, Some(run("run")));
    assert_eq!(store.history(&chain, "r", EVER, ALL, false).await, [history(1, 2)]);
    assert_eq!(store.wakeups(1, None, 10, ALL).await, [wakeup]);
    for write in deletions {
        store.write((2, 11), write).await;
    }
    assert_eq!(store.head(&chain).await, None);
    assert_eq!(store.run(&chain, "r").await, None);
    assert_eq!(store.history(&chain, "r", EVER, ALL, false).await, []);
    assert_eq!(store.wakeups(1, None, 10, ALL).await, []);
    // A newer row comes after all.
    store.write((2, 12), TableWrite::PutHead { chain: chain.clone(), row: head("reborn") }).await;
    assert_eq!(store.head(&chain).await, Some(head("reborn")));
}

pub(super) async fn a_deleted_run_takes_its_history_along<S: Store>(store: &Patient<S>) {
    let chain = chain("w");
    for run_id in ["r", "r2"] {
        store.write((1, 1), put_run(&chain, run_id, run("run"))).await;
        for first in [1, 5, 9] {
            store.write((1, first as u64), put_history(&chain, run_id, history(first, first + 3))).await;
        }
    }
    store.write((1, 20), TableWrite::DeleteRun { chain: chain.clone(), run_id: "r".into() }).await;
    assert_eq!(store.run(&chain, "r").await, None);
    assert_eq!(store.history(&chain, "r", EVER, ALL, false).await, []);
    assert_eq!(store.run(&chain, "r2").await, Some(run("run")));
    assert_eq!(store.history(&chain, "r2", EVER, ALL, false).await.len(), 3);
}

pub(super) async fn history_is_read_both_ways<S: Store>(store: &Patient<S>) {
    let chain = chain("w");
    // Rows of 1 to 4 events: 1-1, 2-3, 4-6, 7-10, 11-11, …
    let (mut rows, mut next) = (Vec::new(), 1);
    for i in 0..40 {
        rows.push(history(next, next + i % 4));
        next += i % 4 + 1;
    }
    for row in &rows {
        store.write((1, row.first_event_id as u64), put_history(&chain, "r", row.clone())).await;
    }
    let reversed: Vec<_> = rows.iter().rev().cloned().collect();
    assert_eq!(store.history(&chain, "r", EVER, ALL, false).await, rows);
    assert_eq!(store.history(&chain, "r", EVER, ALL, true).await, reversed);
    // Rows that only touch the range are in it.
    assert_eq!(store.history(&chain, "r", (5, 8), ALL, false).await, rows[2..4]);
    assert_eq!(store.history(&chain, "r", (6, 7), ALL, true).await, [rows[3].clone(), rows[2].clone()]);
    assert_eq!(store.history(&chain, "r", (8, 9), ALL, false).await, rows[3..4]);
    assert_eq!(store.history(&chain, "r", (next, i64::MAX), ALL, false).await, []);
    assert_eq!(store.history(&chain, "r", (next - 1, i64::MAX), ALL, true).await, rows[39..]);

    let (mut read, mut from) = (Vec::new(), 1);
    while let page @ [_, ..] = &store.history(&chain, "r", (from, i64::MAX), 350, false).await[..] {
        assert!(page.len() <= 4, "{} rows of 110 bytes are about 350", page.len());
        from = page[page.len() - 1].last_event_id + 1;
        read.extend_from_slice(page);
    }
    assert_eq!(read, rows);
    let (mut read, mut until) = (Vec::new(), i64::MAX);
    while let page @ [_, ..] = &store.history(&chain, "r", (1, until), 1, true).await[..] {
        assert_eq!(page.len(), 1, "one row however small the page");
        until = page[0].first_event_id - 1;
        read.extend_from_slice(page);
    }
    assert_eq!(read, reversed);
}

pub(super) async fn names_do_not_run_into_each_other<S: Store>(store: &Patient<S>) {
    let names =
        [("a", "bc", "d"), ("ab", "c", "d"), ("a", "b", "cd"), ("a\0", "b", "c"), ("a", "\0b", "c"), ("é/ü", "", "😀")];
    for (i, (namespace_id, workflow_id, run_id)) in names.into_iter().enumerate() {
        let chain = ChainKey::new(namespace_id, workflow_id);
        store.write((1, 1), put_history(&chain, run_id, history(i as i64 + 1, i as i64 + 1))).await;
        let mut row = run("run");
        row.wake_at = Some(Timestamp(i as i64));
        store.write((1, 1), put_run(&chain, run_id, row)).await;
    }
    for (i, (namespace_id, workflow_id, run_id)) in names.into_iter().enumerate() {
        let chain = ChainKey::new(namespace_id, workflow_id);
        let row = history(i as i64 + 1, i as i64 + 1);
        assert_eq!(store.history(&chain, run_id, EVER, ALL, false).await, [row]);
        let run = store.run(&chain, run_id).await.expect("written");
        assert_eq!(run.wake_at, Some(Timestamp(i as i64)));
    }
}

pub(super) async fn wakeups_are_read_by_time<S: Store>(store: &Patient<S>) {
    let mut wakeups = Vec::new();
    for at in [i64::MIN, -5, 0, 10, 10, 11, 300, i64::MAX] {
        for (namespace_id, workflow_id, run_id) in
            [("a", "bc", "d"), ("ab", "c", "d"), ("a", "b", "cd"), ("a", "b\0", "c")]
        {
            let chain = ChainKey::new(namespace_id, workflow_id);
            wakeups.push(Wakeup { at: Timestamp(at), chain, run_id: Arc::from(run_id) });
        }
    }
    // Last first, in two shards, next to shards that must not be seen.
    for (shard, stamp) in [(7, 1), (6, 1), (8, 1)] {
        for wakeup in wakeups.iter().rev().filter(|wakeup| shard == 7 || wakeup.at.0 == 10) {
            let wakeup = wakeup.clone();
            store.write((1, stamp), TableWrite::PutWakeup { shard: ShardId(shard), wakeup }).await;
        }
    }
    wakeups.sort();
    wakeups.dedup();
    assert_eq!(store.wakeups(7, None, i64::MAX, ALL).await, wakeups);
    assert_eq!(store.wakeups(6, None, i64::MAX, ALL).await.len(), 4);
    assert_eq!(store.wakeups(5, None, i64::MAX, ALL).await, []);
    let due: Vec<_> = wakeups.iter().filter(|wakeup| wakeup.at.0 <= 10).cloned().collect();
    assert_eq!(store.wakeups(7, None, 10, ALL).await, due, "the bound itself is due");
    assert_eq!(store.wakeups(7, None, 9, ALL).await, due[..12]);
    assert_eq!(store.wakeups(7, None, i64::MAX, 3).await, wakeups[..3]);
    assert_eq!(store.wakeups(7, Some(&wakeups[4]), 10, ALL).await, due[5..]);

    let (mut read, mut after) = (Vec::new(), None);
    loop {
        let page = store.wakeups(7, after.as_ref(), i64::MAX, 5).await;
        let Some(last) = page.last() else { break };
        after = Some(last.clone());
        read.extend(page);
    }
    assert_eq!(read, wakeups);

    let gone = wakeups.remove(13);
    store.write((1, 2), TableWrite::DeleteWakeup { shard: ShardId(7), wakeup: gone.clone() }).await;
    assert_eq!(store.wakeups(7, None, i64::MAX, ALL).await, wakeups);
    // Deleted between two pages, it still says where to go on.
    assert_eq!(store.wakeups(7, Some(&gone), i64::MAX, 2).await, wakeups[13..15]);
}
