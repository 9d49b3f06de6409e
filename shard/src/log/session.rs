//! A session's row: created (A1), and settled when an answer is lost (G3).

use std::time::Duration;

use perdure_persistence::{Cas, SessionRow, SessionState, ShardRow, Store, StoreError};
use perdure_types::{Seq, SessionId, ShardId};

/// Waits between attempts, growing.
#[derive(Debug)]
pub(crate) struct Backoff(Duration);

impl Backoff {
    pub(crate) fn new() -> Self {
        Self(Duration::from_millis(5))
    }

    pub(crate) async fn wait(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(Duration::from_secs(1));
    }
}

/// Repeats an idempotent operation while the store is unavailable.
pub(crate) async fn persist<T, F>(what: &'static str, mut operation: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let mut backoff = Backoff::new();
    loop {
        match operation().await {
            Err(StoreError::Unavailable(reason)) => {
                tracing::debug!(what, reason, "store unavailable, trying again");
                backoff.wait().await;
            }
            settled => return settled,
        }
    }
}

/// A row that conditional writes change, with its three operations: what settling an outcome needs (G3).
#[async_trait::async_trait]
trait Conditional: Clone + PartialEq + Send + Sync + Sized {
    type Id: Copy + Send + Sync;
    async fn cas(store: &dyn Store, id: Self::Id, expected: Option<Self>, new: Self) -> Result<Cas<Self>, StoreError>;
    async fn read_serial(store: &dyn Store, id: Self::Id) -> Result<Option<Self>, StoreError>;
}

#[async_trait::async_trait]
impl Conditional for SessionRow {
    type Id = SessionId;
    async fn cas(store: &dyn Store, id: SessionId, expected: Option<Self>, new: Self) -> Result<Cas<Self>, StoreError> {
        store.cas_session(id, expected, new).await
    }
    async fn read_serial(store: &dyn Store, id: SessionId) -> Result<Option<Self>, StoreError> {
        store.read_session_serial(id).await
    }
}

#[async_trait::async_trait]
impl Conditional for ShardRow {
    type Id = ShardId;
    async fn cas(store: &dyn Store, id: ShardId, expected: Option<Self>, new: Self) -> Result<Cas<Self>, StoreError> {
        store.cas_shard(id, expected, new).await
    }
    async fn read_serial(store: &dyn Store, id: ShardId) -> Result<Option<Self>, StoreError> {
        store.read_shard_serial(id).await
    }
}

/// A conditional write whose outcome is known when this returns. A serial read that shows the change settles an
/// unknown outcome; one that does not proves nothing, so the same intent is repeated (G3).
async fn settled<R: Conditional>(
    store: &dyn Store,
    id: R::Id,
    expected: Option<R>,
    new: R,
) -> Result<Cas<R>, StoreError> {
    let mut backoff = Backoff::new();
    loop {
        match R::cas(store, id, expected.clone(), new.clone()).await {
            // Our own earlier attempt, decided meanwhile: rows that we write name us, so nobody else's looks like it.
            Ok(Cas::Rejected(Some(row))) if row == new => return Ok(Cas::Applied),
            Ok(outcome) => return Ok(outcome),
            Err(StoreError::Unavailable(_)) => {}
            Err(StoreError::Indeterminate(_)) => match R::read_serial(store, id).await {
                Ok(row) if row.as_ref() == Some(&new) => return Ok(Cas::Applied),
                // Somebody changed the row: the proposal's condition cannot hold any more.
                Ok(row) if row != expected => return Ok(Cas::Rejected(row)),
                Ok(_) | Err(StoreError::Unavailable(_) | StoreError::Indeterminate(_)) => {}
                Err(fatal) => return Err(fatal),
            },
            Err(fatal) => return Err(fatal),
        }
        backoff.wait().await;
    }
}

pub(crate) async fn cas_session(
    store: &dyn Store,
    id: SessionId,
    expected: Option<SessionRow>,
    new: SessionRow,
) -> Result<Cas<SessionRow>, StoreError> {
    settled(store, id, expected, new).await
}

pub(crate) async fn cas_shard(
    store: &dyn Store,
    id: ShardId,
    expected: Option<ShardRow>,
    new: ShardRow,
) -> Result<Cas<ShardRow>, StoreError> {
    settled(store, id, expected, new).await
}

/// Creates the row of a new session and sees it live by a plain read before anything else is done with it (A1).
/// `None`: the id is taken, already fenced, or nobody knows; begin again with another.
///
/// The row is proposed once (G4). A second proposal could still be under way when the session is sealed and its row
/// deleted; decided then, it would bring the session back to life.
///
/// A proposal whose outcome nobody knows may be decided after this has given up, and then there is a live session that is
/// nobody's. It is harmless: nobody has its id, so it appends nothing, claims nothing, and no shard ever names it. And it goes
/// away: members of a cluster end sessions that none of them names ([`crate::owner`]), a node alone ends all others when it
/// starts, and a sealed session that no shard names is deleted ([`crate::claim::delete_unneeded`]).
pub(crate) async fn open(store: &dyn Store, id: SessionId) -> Result<Option<SessionRow>, StoreError> {
    let row = SessionRow { state: SessionState::Live, base: Seq(1), base_segment: 0 };
    let mut backoff = Backoff::new();
    loop {
        match store.cas_session(id, None, row.clone()).await {
            Ok(Cas::Applied) => break,
            Ok(Cas::Rejected(_)) | Err(StoreError::Indeterminate(_)) => return Ok(None),
            // Nothing was proposed.
            Err(StoreError::Unavailable(_)) => backoff.wait().await,
            Err(fatal) => return Err(fatal),
        }
    }
    let seen = persist("see own session live", || store.read_session(id)).await?;
    Ok((seen.as_ref() == Some(&row)).then_some(row))
}

/// Seals the own session after its last covered row: a graceful stop (F3). False: somebody fenced it meanwhile.
pub(crate) async fn seal_own(
    store: &dyn Store,
    id: SessionId,
    current: SessionRow,
    last_covered: Seq,
) -> Result<bool, StoreError> {
    let sealed = SessionRow { state: SessionState::Sealed(last_covered), ..current.clone() };
    Ok(cas_session(store, id, Some(current), sealed).await? == Cas::Applied)
}
