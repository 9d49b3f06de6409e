//! Wake-ups: what has something to do, by time.
//!
//! **Buckets.** A partition holds ten minutes of one shard: at a thousand workflows a second over 64 shards, 10,000 rows. A
//! *directory* lists the buckets that ever had a row, so that a timer of ten years costs one more row and no walk over empty
//! years. The directory only grows, and a bucket is listed, durably, before anything is put into it.
//!
//! **Floor.** Rows are deleted one by one, when their time has come or has changed. So that no read passes over them again
//! and again, each shard has a floor: all that lies in buckets below it is dead and is never read. It only rises, to the
//! first bucket that still has a row, and stays behind the clock (which only decides how far it is worth to go). A row that is
//! due earlier than the floor is put into the floor's own bucket, where it is still first. A live row therefore lies in the
//! bucket `max(bucket of its time, floor)`, for every floor since it was put: the floor does not pass a live row. That is
//! where a deletion finds it. Buckets that the floor passes are deleted whole. What a running shard reads starts behind
//! what it read before; what a new owner reads starts at the floor: neither meets more tombstones than ten or twenty
//! minutes of its own shard left.
//!
//! **Owners.** A former owner that does not know it yet must not raise the floor over a row of its successor. So the floor is
//! a row under LWT that names the epoch: an owner writes its epoch there before its first wake-up of that epoch, and raises
//! the floor only if its epoch still stands. What the former owner's own writes put below the floor is lost and not
//! missed: rows that it wrote late reflect records that the successor replays, and writes again.
//!
//! **Splits.** When shards are doubled no row moves: a child reads its parent's wake-ups as well, and takes those whose
//! entities hash to it; they run dry by themselves.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use futures::stream::{self, StreamExt, TryStreamExt};
use perdure_types::{ChainKey, EntityKind, Epoch, ShardId, Timestamp};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use super::{CassandraStore, IN_FLIGHT, cql::Decision, errors, telemetry::Request};
use crate::{Result, StoreError, Wakeup};

const BUCKET_NANOS: i64 = 600 * 1_000_000_000;

/// Parts of a bucket in which a search for live rows looks one after the other, so that none meets many tombstones.
const PARTS: i64 = 20;

/// Buckets that the floor passes in one go.
const STRIDE: usize = 32;

/// Rows of one mutation.
const BATCH_ROWS: usize = 128;

/// Rows of one read.
const PAGE_ROWS: usize = 4096;

/// Entries of the directory in one read.
const PAGE_BUCKETS: i32 = 256;

/// Buckets read at once, after the first.
const BUCKETS_AT_ONCE: usize = 8;

fn bucket_of(at: Timestamp) -> i64 {
    at.0.div_euclid(BUCKET_NANOS)
}

fn lowest() -> i64 {
    bucket_of(Timestamp(i64::MIN))
}

/// Where a row with this time lies.
fn place(at: Timestamp, floor: i64) -> i64 {
    bucket_of(at).max(floor)
}

/// What this process knows of a shard's floor.
#[derive(Debug)]
struct Floor {
    /// For which epoch of the shard it was looked up; `None`: not yet, or it is not certain any more.
    epoch: Option<Epoch>,
    /// Our epoch stands in the row, so we may raise it.
    owned: bool,
    bucket: i64,
    /// Buckets that are certainly in the directory.
    listed: Mutex<BTreeSet<i64>>,
    /// The last bucket of the clock at which the floor was as high as it could be.
    raised_at: i64,
}

/// Listed buckets to remember; forgetting costs a write.
const LISTED: usize = 8192;

#[derive(Debug, Default)]
pub(super) struct Floors(Mutex<HashMap<ShardId, Arc<RwLock<Floor>>>>);

impl Floors {
    fn of(&self, shard: ShardId) -> Arc<RwLock<Floor>> {
        let mut floors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            let (listed, raised_at) = (Mutex::default(), i64::MIN);
            Arc::new(RwLock::new(Floor { epoch: None, owned: false, bucket: lowest(), listed, raised_at }))
        };
        floors.entry(shard).or_insert_with(new).clone()
    }
}

/// A wake-up to put or to delete, with its write timestamp.
pub(super) type StampedWakeup = (Wakeup, i64);

type WakeupTuple = (i64, i8, String, String, String);

fn wakeup((at, kind, namespace_id, entity_id, run_id): WakeupTuple) -> Result<Wakeup> {
    let kind = EntityKind::from_number(kind.into())
        .ok_or_else(|| StoreError::Corrupt(format!("a wake-up is of the unknown kind {kind}")))?;
    Ok(Wakeup { at: Timestamp(at), chain: ChainKey::of(kind, namespace_id, entity_id), run_id: run_id.into() })
}

impl CassandraStore {
    /// The floor as it holds for this epoch. While the guard lives, it does not rise.
    async fn floor(&self, shard: ShardId, epoch: Epoch) -> Result<OwnedRwLockReadGuard<Floor>> {
        let floor = self.floors.of(shard);
        let guard = floor.clone().read_owned().await;
        if guard.epoch.is_some_and(|known| known >= epoch) {
            return Ok(guard);
        }
        drop(guard);
        let mut guard = floor.write_owned().await;
        if guard.epoch.is_none_or(|known| known < epoch) {
            let (owned, bucket) = self.claim_floor(shard, epoch).await?;
            (guard.epoch, guard.owned, guard.bucket) = (Some(epoch), owned, bucket);
            guard.raised_at = i64::MIN;
        }
        Ok(OwnedRwLockWriteGuard::downgrade(guard))
    }

    /// Writes our epoch next to the floor. Whether it stands there, and the floor.
    async fn claim_floor(&self, shard: ShardId, epoch: Epoch) -> Result<(bool, i64)> {
        let (id, ours) = (shard.0 as i32, epoch.0 as i64);
        for _ in 0..8 {
            let rows = self.cql.read(Request::SerialRead, &self.statements.read_floor_serial, (id,)).await?;
            let row = rows.maybe_first_row::<(i64, i64)>().map_err(|e| errors::corrupt("floor of wake-ups", e))?;
            let decision = match row {
                // A later one: our writes are those of a former owner, and won't be missed. Ours: claimed before.
                Some((theirs, bucket)) if theirs >= ours => return Ok((theirs == ours, bucket)),
                Some((theirs, bucket)) => {
                    let values = (ours, bucket, id, theirs, bucket);
                    (self.cql.decide(&self.statements.move_floor, values).await, bucket)
                }
                None => (self.cql.decide(&self.statements.create_floor, (id, ours, lowest())).await, lowest()),
            };
            match decision {
                (Ok(Decision::Applied), bucket) => return Ok((true, bucket)),
                // G3: read what was decided, and try again.
                (Ok(Decision::Rejected(_)) | Err(StoreError::Indeterminate(_)), _) => {}
                (Err(error), _) => return Err(error),
            }
        }
        Err(StoreError::Unavailable(format!("the floor of the wake-ups of shard {shard} cannot be settled")))
    }

    pub(super) async fn put_wakeups(&self, shard: ShardId, epoch: Epoch, wakeups: Vec<StampedWakeup>) -> Result<()> {
        let floor = self.floor(shard, epoch).await?;
        let mut buckets: BTreeMap<i64, Vec<_>> = BTreeMap::new();
        for (w, stamp) in wakeups {
            let bucket = place(w.at, floor.bucket);
            let (kind, chain) = (w.chain.kind as i8, w.chain);
            let row = (shard.0 as i32, bucket, w.at.0, kind, chain.namespace_id, chain.workflow_id, w.run_id, stamp);
            buckets.entry(bucket).or_default().push(row);
        }
        let is_listed = |bucket: &i64| floor.listed.lock().unwrap_or_else(PoisonError::into_inner).contains(bucket);
        let unlisted: Vec<i64> = buckets.keys().copied().filter(|bucket| !is_listed(bucket)).collect();
        stream::iter(unlisted)
            .map(|bucket| async move {
                self.cql.write(Request::WriteWakeups, &self.statements.put_bucket, (shard.0 as i32, bucket)).await?;
                Ok::<_, StoreError>(bucket)
            })
            .buffer_unordered(IN_FLIGHT)
            .try_for_each(|bucket| {
                let mut listed = floor.listed.lock().unwrap_or_else(PoisonError::into_inner);
                if listed.len() >= LISTED {
                    listed.clear();
                }
                listed.insert(bucket);
                std::future::ready(Ok(()))
            })
            .await?;
        let statement = &self.statements.put_wakeup;
        let batches: Vec<Vec<_>> = buckets
            .into_values()
            .flat_map(|rows| rows.chunks(BATCH_ROWS).map(<[_]>::to_vec).collect::<Vec<_>>())
            .collect();
        stream::iter(batches)
            .map(|rows| self.cql.write_partition(Request::WriteWakeups, statement, rows))
            .buffer_unordered(IN_FLIGHT)
            .try_collect::<()>()
            .await
    }

    pub(super) async fn delete_wakeups(&self, shard: ShardId, epoch: Epoch, wakeups: Vec<StampedWakeup>) -> Result<()> {
        let floor = self.floor(shard, epoch).await?;
        let mut buckets: BTreeMap<i64, Vec<_>> = BTreeMap::new();
        for (w, stamp) in wakeups {
            let bucket = place(w.at, floor.bucket);
            let (kind, chain) = (w.chain.kind as i8, w.chain);
            let row = (stamp, shard.0 as i32, bucket, w.at.0, kind, chain.namespace_id, chain.workflow_id, w.run_id);
            buckets.entry(bucket).or_default().push(row);
        }
        let statement = &self.statements.delete_wakeup;
        let batches: Vec<Vec<_>> = buckets
            .into_values()
            .flat_map(|rows| rows.chunks(BATCH_ROWS).map(<[_]>::to_vec).collect::<Vec<_>>())
            .collect();
        stream::iter(batches)
            .map(|rows| self.cql.write_partition(Request::WriteWakeups, statement, rows))
            .buffer_unordered(IN_FLIGHT)
            .try_collect::<()>()
            .await
    }

    /// Raises the floor if the clock has moved on since it was last raised. What fails here is done again later.
    pub(super) async fn raise_floor(&self, shard: ShardId, epoch: Epoch, now: Timestamp) {
        let lock = self.floors.of(shard);
        let target = bucket_of(now) - 1;
        {
            let floor = lock.read().await;
            if floor.epoch != Some(epoch) || !floor.owned || floor.bucket >= target || floor.raised_at >= target {
                return;
            }
        }
        // Nobody puts a row while we look and decide.
        let mut floor = lock.write_owned().await;
        if floor.epoch != Some(epoch) || !floor.owned {
            return;
        }
        if let Err(error) = self.try_raise_floor(shard, epoch, &mut floor, target).await {
            tracing::debug!(shard_id = shard.0, %error, "the floor of wake-ups stays for now");
        }
    }

    async fn try_raise_floor(&self, shard: ShardId, epoch: Epoch, floor: &mut Floor, target: i64) -> Result<()> {
        let id = shard.0 as i32;
        let listed = self.read_directory(shard, floor.bucket, target - 1, STRIDE as i32).await?;
        let mut drained = Vec::new();
        let mut reached = if listed.len() < STRIDE { target } else { listed.last().map_or(target, |last| last + 1) };
        for bucket in &listed {
            if self.has_rows(shard, *bucket).await? {
                reached = *bucket;
                break;
            }
            drained.push(*bucket);
        }
        let is_final = reached == target || drained.len() < listed.len();
        if reached > floor.bucket {
            let values = (epoch.0 as i64, reached, id, epoch.0 as i64, floor.bucket);
            match self.cql.decide(&self.statements.move_floor, values).await {
                Ok(Decision::Applied) => floor.bucket = reached,
                Ok(Decision::Rejected(_)) => {
                    floor.owned = false;
                    return Ok(());
                }
                Err(error) => {
                    // Perhaps it was raised: look before the next use.
                    floor.epoch = None;
                    return Err(error);
                }
            }
            let mut known = floor.listed.lock().unwrap_or_else(PoisonError::into_inner);
            *known = known.split_off(&reached);
        }
        if is_final {
            floor.raised_at = target;
        }
        // Only to save space and time: nothing below the floor is read.
        for bucket in drained {
            self.cql.write(Request::Delete, &self.statements.drop_bucket, (id, bucket)).await?;
        }
        self.cql.write(Request::Delete, &self.statements.cut_buckets, (id, floor.bucket)).await
    }

    async fn has_rows(&self, shard: ShardId, bucket: i64) -> Result<bool> {
        let start = bucket.saturating_mul(BUCKET_NANOS);
        let part = BUCKET_NANOS / PARTS;
        for i in 0..PARTS {
            // The floor's bucket has earlier rows, too; an end that is a start of the next is looked at twice.
            let from = if i == 0 { i64::MIN } else { start.saturating_add(i * part) };
            let until = start.saturating_add((i + 1) * part);
            let values = (shard.0 as i32, bucket, from, until, 1_i32);
            let rows = self.cql.read(Request::ReadWakeups, &self.statements.read_wakeups, values).await?;
            if rows.rows_num() > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn read_directory(&self, shard: ShardId, from: i64, until: i64, limit: i32) -> Result<Vec<i64>> {
        let values = (shard.0 as i32, from, until, limit);
        let rows = self.cql.read(Request::ReadWakeups, &self.statements.read_buckets, values).await?;
        let rows = rows.rows::<(i64,)>().map_err(|e| errors::corrupt("directory of wake-ups", e))?;
        rows.map(|row| row.map(|(bucket,)| bucket).map_err(|e| errors::corrupt("directory of wake-ups", e))).collect()
    }

    pub(super) async fn wakeups(
        &self,
        shard: ShardId,
        after: Option<&Wakeup>,
        until: Timestamp,
        limit: usize,
    ) -> Result<Vec<Wakeup>> {
        let rows = self.cql.read(Request::ReadWakeups, &self.statements.read_floor, (shard.0 as i32,)).await?;
        let row = rows.maybe_first_row::<(i64, i64)>().map_err(|e| errors::corrupt("floor of wake-ups", e))?;
        let floor = row.map_or(lowest(), |(_, bucket)| bucket);
        let first = after.map_or(floor, |after| place(after.at, floor));
        let last = place(until, floor);
        let (mut found, mut next, mut at_once) = (Vec::new(), first, 1);
        while next <= last && found.len() < limit {
            let listed = self.read_directory(shard, next, last, PAGE_BUCKETS).await?;
            let is_end = listed.len() < PAGE_BUCKETS as usize;
            next = listed.last().map_or(i64::MAX, |last| last + 1);
            let mut listed = listed.into_iter().peekable();
            while listed.peek().is_some() && found.len() < limit {
                let buckets: Vec<i64> = listed.by_ref().take(at_once).collect();
                let reads = buckets.into_iter().map(|bucket| {
                    // Behind it all others lie in later buckets.
                    let after = after.filter(|_| bucket == first);
                    self.bucket_rows(shard, bucket, after, until, limit - found.len())
                });
                let read: Vec<Vec<Wakeup>> = stream::iter(reads).buffered(BUCKETS_AT_ONCE).try_collect().await?;
                found.extend(read.into_iter().flatten());
                at_once = BUCKETS_AT_ONCE;
            }
            if is_end {
                break;
            }
        }
        found.truncate(limit);
        Ok(found)
    }

    async fn bucket_rows(
        &self,
        shard: ShardId,
        bucket: i64,
        after: Option<&Wakeup>,
        until: Timestamp,
        limit: usize,
    ) -> Result<Vec<Wakeup>> {
        let id = shard.0 as i32;
        let mut found: Vec<Wakeup> = Vec::new();
        loop {
            let wanted = (limit - found.len()).min(PAGE_ROWS);
            let page = match found.last().or(after) {
                None => {
                    let values = (id, bucket, i64::MIN, until.0, wanted as i32);
                    self.cql.read(Request::ReadWakeups, &self.statements.read_wakeups, values).await?
                }
                Some(w) => {
                    let (kind, chain) = (w.chain.kind as i8, &w.chain);
                    let after = (w.at.0, kind, &chain.namespace_id, &chain.workflow_id, &w.run_id);
                    let values = (id, bucket, after.0, after.1, after.2, after.3, after.4, until.0, wanted as i32);
                    self.cql.read(Request::ReadWakeups, &self.statements.read_wakeups_after, values).await?
                }
            };
            let count = page.rows_num();
            for row in page.rows::<WakeupTuple>().map_err(|e| errors::corrupt("wake-ups", e))? {
                found.push(wakeup(row.map_err(|e| errors::corrupt("wake-up", e))?)?);
            }
            if count < wanted || found.len() >= limit {
                return Ok(found);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_their_order_in_buckets() {
        let times = [i64::MIN, -BUCKET_NANOS - 1, -BUCKET_NANOS, -1, 0, BUCKET_NANOS - 1, BUCKET_NANOS, i64::MAX];
        let buckets: Vec<i64> = times.iter().map(|at| bucket_of(Timestamp(*at))).collect();
        assert_eq!(buckets[1..7], [-2, -1, -1, 0, 0, 1]);
        assert!(buckets.is_sorted());
        assert_eq!(place(Timestamp(0), 5), 5);
        assert_eq!(place(Timestamp(i64::MAX), 5), *buckets.last().unwrap());
    }
}
