//! A caller that does as the trait says.

use perdure_types::{ChainKey, Epoch, Position, Seq, SessionId, ShardId};

use crate::{
    Cas, HistoryRow, LogRow, NamespaceRow, Result, SessionRow, ShardRow, StampedWrite, Store, StoreError, TableWrite,
};

/// More than any store under test needs.
const ATTEMPTS: usize = 10_000;

/// A store, with retries.
#[derive(Debug)]
pub struct Patient<S>(pub S);

/// Repeats an idempotent operation until it is known to have succeeded.
pub(super) async fn until_done<T>(mut operation: impl AsyncFnMut() -> Result<T>) -> T {
    for _ in 0..ATTEMPTS {
        match operation().await {
            Ok(value) => return value,
            Err(StoreError::Unavailable(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    panic!("unavailable for {ATTEMPTS} attempts");
}

impl<S: Store> Patient<S> {
    pub async fn append(&self, session: SessionId, row: &LogRow) {
        until_done(async || self.0.append(session, row.clone()).await).await
    }

    pub async fn read_log(&self, session: SessionId, segment: u32, from: Seq, max_bytes: usize) -> Vec<LogRow> {
        until_done(async || self.0.read_log(session, segment, from, max_bytes).await).await
    }

    pub async fn write(&self, stamp: (u64, u64), write: TableWrite) {
        let stamp = Position { epoch: Epoch(stamp.0), seq: Seq(stamp.1) };
        self.write_all(vec![StampedWrite { stamp, write }]).await
    }

    pub async fn write_all(&self, writes: Vec<StampedWrite>) {
        until_done(async || self.0.write(writes.clone()).await).await
    }

    pub async fn history(
        &self,
        chain: &ChainKey,
        run_id: &str,
        (from, until): (i64, i64),
        max_bytes: usize,
        reverse: bool,
    ) -> Vec<HistoryRow> {
        until_done(async || self.0.read_history(chain, run_id, from, until, max_bytes, reverse).await).await
    }

    /// Settles an unknown outcome as rule G3 says. Right as long as nobody else writes an equal row.
    pub async fn cas_session(&self, id: SessionId, expected: Option<SessionRow>, new: SessionRow) -> Cas<SessionRow> {
        for _ in 0..ATTEMPTS {
            match self.0.cas_session(id, expected.clone(), new.clone()).await {
                Ok(Cas::Rejected(Some(row))) if row == new => return Cas::Applied,
                Ok(outcome) => return outcome,
                Err(StoreError::Unavailable(_)) => {}
                Err(StoreError::Indeterminate(_)) => {
                    if until_done(async || self.0.read_session_serial(id).await).await.as_ref() == Some(&new) {
                        return Cas::Applied;
                    }
                }
                Err(error) => panic!("{error}"),
            }
        }
        panic!("unavailable for {ATTEMPTS} attempts");
    }

    /// As [`Patient::cas_session`].
    pub async fn cas_shard(&self, id: ShardId, expected: Option<ShardRow>, new: ShardRow) -> Cas<ShardRow> {
        for _ in 0..ATTEMPTS {
            match self.0.cas_shard(id, expected.clone(), new.clone()).await {
                Ok(Cas::Rejected(Some(row))) if row == new => return Cas::Applied,
                Ok(outcome) => return outcome,
                Err(StoreError::Unavailable(_)) => {}
                Err(StoreError::Indeterminate(_)) => {
                    if until_done(async || self.0.read_shard_serial(id).await).await.as_ref() == Some(&new) {
                        return Cas::Applied;
                    }
                }
                Err(error) => panic!("{error}"),
            }
        }
        panic!("unavailable for {ATTEMPTS} attempts");
    }

    /// There is no serial read of namespaces: the same intent again settles it, since its version is then taken.
    pub async fn cas_namespace(&self, expected: Option<u64>, row: &NamespaceRow) -> Cas<NamespaceRow> {
        for _ in 0..ATTEMPTS {
            match self.0.cas_namespace(expected, row.clone()).await {
                Ok(Cas::Rejected(Some(stored))) if stored == *row => return Cas::Applied,
                Ok(outcome) => return outcome,
                Err(StoreError::Unavailable(_) | StoreError::Indeterminate(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        panic!("unavailable for {ATTEMPTS} attempts");
    }
}
