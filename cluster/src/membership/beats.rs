//! The heartbeat of this node in the table of members, and what it tells of the store: one that answers none of the beats
//! for some time is silent, and this node had better own nothing.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, timeout},
};

use super::{
    Inner,
    actor::Command,
    table::{MemberRow, MemberTable, Rows, STALE_INTERVALS, TTL},
};

/// A beat that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(3);
/// So many have failed at least before the store is silent: a process that stood still has heard nothing for long, too.
const FAILED: u32 = 2;
/// A beat does not wait for the one before: a store that is back answers the next one.
const UNDER_WAY: usize = 4;

/// One write of the own row and one look at all rows. `None`: neither was answered.
async fn beat(table: Arc<dyn MemberTable>, row: MemberRow) -> (u64, Option<Vec<MemberRow>>, bool) {
    let number = row.beat;
    let (written, read) = tokio::join!(timeout(PATIENCE, table.put(row, TTL)), timeout(PATIENCE, table.list()));
    let is_written = match written {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::warn!(%error, "this node cannot be entered in the table of members");
            false
        }
        Err(_) => false,
    };
    let rows = match read {
        Ok(Ok(rows)) => Some(rows),
        Ok(Err(error)) => {
            tracing::warn!(%error, "the table of members cannot be read");
            None
        }
        Err(_) => None,
    };
    (number, rows, is_written)
}

/// Keeps this node's row in the table of members, and tells the thread what the table says.
pub(crate) async fn watch_table(membership: Weak<Inner>, table: Arc<dyn MemberTable>, name: Arc<str>, generation: u64) {
    let Some(inner) = membership.upgrade() else { return };
    let (me, config, commands) = (inner.me.to_string(), inner.config.clone(), inner.commands.clone());
    drop(inner);
    let mut tick = tokio::time::interval(config.table_interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut beats = JoinSet::new();
    let (mut rows, mut number, mut latest) = (Rows::default(), 0, 0);
    let (mut heard, mut failed, mut silent) = (Instant::now(), 0, false);
    loop {
        tokio::select! {
            _ = tick.tick() => {
                let Some(inner) = membership.upgrade() else { return };
                if beats.len() < UNDER_WAY {
                    number += 1;
                    let session = inner.own_session();
                    let address = config.advertise.to_string();
                    let row = MemberRow { node: me.clone(), name: name.to_string(), address, generation, beat: number, session };
                    beats.spawn(beat(table.clone(), row));
                }
            }
            Some(Ok((beat, read, is_written))) = beats.join_next() => {
                if is_written || read.is_some() {
                    (heard, failed) = (Instant::now(), 0);
                } else {
                    failed += 1;
                }
                // One that was overtaken would make old rows look new.
                if let Some(read) = read.filter(|_| beat > latest) {
                    latest = beat;
                    let listed = rows.read(Instant::now(), read, &me, config.table_interval * STALE_INTERVALS);
                    let _ = commands.send(Command::Listed(listed)).await;
                }
            }
            () = commands.closed() => {
                // It has left. No beat comes after this.
                beats.shutdown().await;
                if let Err(error) = table.delete(&me).await {
                    tracing::debug!(%error, "row of members not deleted: it goes away by itself");
                }
                return;
            }
        }
        let is_silent = heard.elapsed() >= config.store_silence && failed >= FAILED;
        if is_silent != silent {
            silent = is_silent;
            tracing::warn!(silent, "the table of members {}", if silent { "does not answer" } else { "answers again" });
            let _ = commands.send(Command::StoreSilent(silent)).await;
        }
    }
}
