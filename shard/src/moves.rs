//! How single shards change their owner: claims of those that have none (C1), and hand-over between live owners (C3).
//! Each is a function that runs beside the period's loop, and tells it what came of it; [`crate::owner`] decides which.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{
    future::BoxFuture,
    stream::{self, StreamExt, TryStreamExt},
};
use perdure_persistence::{Cas, SessionRow, ShardRow, Source, Store, StoreError};
use perdure_proto::{
    Error,
    perdure::node::v1::{HandOver, HandedOver, ShardCall, shard_call, shard_reply},
};
use perdure_types::{Epoch, NodeId, Position, Seq, SessionId, ShardId, SlotCount};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use crate::{
    claim::{self, Claim, Claimed, Sealed, to_replay},
    driver::ShardHandle,
    fence::fence_keeping,
    flush::{FlushRequest, Lent, Loan},
    log::{
        Log,
        session::{cas_shard, persist},
    },
    period::GONE,
    ports::Peers,
    recover::{ReadAhead, RecoverError, Replay, read_sources},
    split::bear,
    telemetry,
};

/// Claims and fences made at once.
const CONCURRENT: usize = 64;

/// A flush that took longer than this left so much behind that another one makes the pause shorter.
const LONG_FLUSH: Duration = Duration::from_millis(200);

/// A shard that is ours now, and what it has to replay.
pub(crate) type Taken = (Claim, Result<Replay, RecoverError>);

/// What moves need of the period.
#[derive(Clone)]
pub(crate) struct Ground {
    pub store: Arc<dyn Store>,
    pub log: Log,
    pub session_row: Arc<Mutex<SessionRow>>,
    pub flushes: mpsc::Sender<FlushRequest>,
    pub lent: Lent,
    pub peers: Arc<dyn Peers>,
    pub me: NodeId,
    /// How many shards the cluster began with.
    pub first: SlotCount,
}

impl Ground {
    pub(crate) fn own_row(&self) -> SessionRow {
        self.session_row.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads what these claims have to replay: each log once. Halves that may be missing are made first (S2).
    pub(crate) async fn replays(
        &self,
        taken: Vec<Claim>,
        sealed: Sealed,
        ahead: &ReadAhead,
    ) -> Result<Vec<Taken>, StoreError> {
        let mut claims = Vec::new();
        for Claim { shard, row } in taken {
            if let Some(born) = bear(self, shard, row).await? {
                claims.push(Claim { shard, row: born.lower });
            }
        }
        let mut sessions = sealed;
        sessions.insert(self.log.session(), self.own_row());
        let named: BTreeSet<SessionId> =
            claims.iter().flat_map(|claim| claim.row.sources.values().map(|source| source.session)).collect();
        for id in named {
            if let btree_map::Entry::Vacant(place) = sessions.entry(id)
                && let Some(row) = persist("read session", || self.store.read_session(id)).await?
            {
                place.insert(row);
            }
        }
        let mut replays = read_sources(&*self.store, &claims, &sessions, ahead).await?;
        let with_replay = |claim: Claim| {
            let replay = replays.remove(&claim.shard).unwrap_or_else(|| Ok(Replay::new()));
            (claim, replay)
        };
        Ok(claims.into_iter().map(with_replay).collect())
    }

    /// The shard's row names this session. Under an epoch that it has not served yet, that is a claim whose answer was
    /// lost: it is taken up (C1, C3). Else the epoch goes up first, from what was logged under the old one (C3).
    async fn take_up(&self, shard: ShardId, row: ShardRow, served: Option<Epoch>) -> Result<Option<Claim>, StoreError> {
        if served.is_none_or(|epoch| row.epoch > epoch) {
            return Ok(Some(Claim { shard, row }));
        }
        let Ok(end) = self.log.end_covered().await else { return Ok(None) };
        let (session, next) = (self.log.session(), self.log.next_seq());
        match claim::claim(&*self.store, shard, session, next, &Sealed::new(), Some(end)).await? {
            Claimed::Ours(claim) => Ok(Some(claim)),
            Claimed::Unknown(_) => Ok(None),
        }
    }
}

/// A shard to take over, and the latest epoch under which this session has served it.
pub(crate) type Orphan = (ShardId, Option<Epoch>);

/// Ends sessions (F1 to F3) and takes over shards that belong to none, to a sealed session, or to this one (C1). What turns
/// out to belong to somebody else is left out.
pub(crate) async fn take_over(
    ground: Ground,
    orphans: Vec<Orphan>,
    ending: BTreeSet<SessionId>,
) -> Result<Vec<Taken>, StoreError> {
    let started = Instant::now();
    let (sealed, ahead) = end_sessions(&ground, ending).await?;
    let mut claims: Vec<BoxFuture<'_, Result<Option<Claim>, StoreError>>> = Vec::new();
    for orphan in orphans {
        claims.push(Box::pin(take_one(&ground, orphan, &sealed)));
    }
    let claimed: Vec<Option<Claim>> = stream::iter(claims).buffered(CONCURRENT).try_collect().await?;
    let claims: Vec<Claim> = claimed.into_iter().flatten().collect();
    telemetry::claimed(claims.len());
    let taken = ground.replays(claims, sealed, &ahead).await?;
    telemetry::taken_over(started.elapsed());
    Ok(taken)
}

async fn end_sessions(ground: &Ground, ending: BTreeSet<SessionId>) -> Result<(Sealed, ReadAhead), StoreError> {
    let store = &*ground.store;
    let mut fences: Vec<BoxFuture<'_, Result<_, StoreError>>> = Vec::new();
    for id in ending.into_iter().filter(|id| *id != ground.log.session()) {
        fences.push(Box::pin(async move {
            let mut kept = Vec::new();
            let row = fence_keeping(store, id, &mut kept).await?.unwrap_or(GONE);
            Ok((id, row, kept))
        }));
    }
    let (mut sealed, mut ahead) = (Sealed::new(), ReadAhead::new());
    let mut ended = stream::iter(fences).buffered(CONCURRENT);
    while let Some((id, row, kept)) = ended.try_next().await? {
        sealed.insert(id, row);
        ahead.insert(id, kept);
    }
    Ok((sealed, ahead))
}

async fn take_one(ground: &Ground, orphan: Orphan, sealed: &Sealed) -> Result<Option<Claim>, StoreError> {
    let (shard, served) = orphan;
    let store = &*ground.store;
    let seen = persist("read shard", || store.read_shard_serial(shard)).await?;
    // S2: it is born from its parent's row, and in no other way.
    if seen.is_none() && shard.0 >= ground.first.get() {
        return Ok(None);
    }
    if let Some(row) = seen.filter(|row| row.owner == Some(ground.log.session())) {
        return ground.take_up(shard, row, served).await;
    }
    match claim::claim(store, shard, ground.log.session(), ground.log.next_seq(), sealed, None).await? {
        Claimed::Ours(claim) => Ok(Some(claim)),
        Claimed::Unknown(_) => Ok(None),
    }
}

/// C3, the new owner's side: asks the owner for the shard, and reads what it left in its log. Whatever the answer was, the
/// shard's row says what has happened.
pub(crate) async fn pull(
    ground: Ground,
    shard: ShardId,
    from: NodeId,
    served: Option<Epoch>,
) -> Result<Option<Taken>, StoreError> {
    let session = ground.log.session();
    let call = ShardCall {
        shard: shard.0,
        node: ground.me.as_str().to_owned(),
        session: session.to_string(),
        command: Some(shard_call::Command::HandOver(HandOver { next_seq: ground.log.next_seq().0 })),
    };
    let reply = ground.peers.shard(&from, call).await;
    let started = Instant::now();
    match reply.map(|reply| reply.reply) {
        Ok(Some(shard_reply::Reply::HandedOver(_))) => {}
        Ok(_) => return Ok(None),
        // Nothing was done.
        Err(error) if error.as_not_owner().is_some() => return Ok(None),
        Err(error) => tracing::info!(shard_id = shard.0, node = %from, %error, "no answer to a hand-over"),
    }
    let row = persist("read shard", || ground.store.read_shard_serial(shard)).await?;
    let Some(row) = row.filter(|row| row.owner == Some(session)) else { return Ok(None) };
    let Some(claim) = ground.take_up(shard, row, served).await? else { return Ok(None) };
    let taken = ground.replays(vec![claim], Sealed::new(), &ReadAhead::new()).await?.pop();
    telemetry::pulled(started.elapsed());
    Ok(taken)
}

/// What came of giving a shard away.
pub(crate) enum Given {
    To(HandedOver),
    /// It is not ours (any more).
    Lost,
    /// Still ours, and stopped: it is to be taken up again.
    Kept(Error),
}

/// C3, the old owner's side. `handle`: none if the shard names this session without being served.
pub(crate) async fn give(
    ground: Ground,
    shard: ShardId,
    handle: Option<ShardHandle>,
    to: SessionId,
    next: Seq,
) -> Given {
    let Some(handle) = handle else {
        return give_stopped(&ground, shard, None, to, next).await;
    };
    let flushed = flush_before(&ground, shard).await;
    let stopped = Instant::now();
    handle.release().await;
    let given = give_stopped(&ground, shard, flushed, to, next).await;
    telemetry::handed_over(stopped.elapsed());
    given
}

/// M2: up to where the shard is in the tables, so that its new owner has little to replay.
pub(crate) async fn flush_before(ground: &Ground, shard: ShardId) -> Option<Seq> {
    let mut latest = None;
    for _ in 0..2 {
        let started = Instant::now();
        let (done, written) = oneshot::channel();
        ground.flushes.send(FlushRequest { shard: Some(shard), done }).await.ok()?;
        let flushed = written.await.ok()?;
        if flushed.shards.contains(&shard) {
            latest = Some(flushed.materialized);
        }
        if started.elapsed() < LONG_FLUSH {
            break;
        }
    }
    latest
}

async fn give_stopped(ground: &Ground, shard: ShardId, flushed: Option<Seq>, to: SessionId, next: Seq) -> Given {
    let session = ground.log.session();
    // Everything that was decided under this epoch is covered, and nothing more will be appended for it.
    let Ok(end) = ground.log.end_covered().await else { return Given::Lost };
    loop {
        let seen = match persist("read shard", || ground.store.read_shard_serial(shard)).await {
            Ok(seen) => seen,
            Err(error) => return Given::Kept(Error::unavailable(error.to_string())),
        };
        let Some(old) = seen.clone().filter(|row| row.owner == Some(session)) else { return Given::Lost };
        let row = handed_over(&ground.own_row(), &old, flushed, end, (to, next));
        let key = (shard, old.epoch);
        // M3: from before it can be decided.
        if row.sources.contains_key(&old.epoch) {
            let from = lent_from(&ground.own_row(), &row, old.epoch);
            lock(&ground.lent).insert(key, Loan { from, decided: false });
        }
        match cas_shard(&*ground.store, shard, seen, row.clone()).await {
            Ok(Cas::Applied) => {
                if let Some(loan) = lock(&ground.lent).get_mut(&key) {
                    loan.decided = true;
                }
                return Given::To(HandedOver { epoch: row.epoch.0, until_seq: end.0 });
            }
            // Our own checkpoint came first: that row's condition is false for ever. Look again.
            Ok(Cas::Rejected(Some(now))) if now.owner == Some(session) && now.epoch == old.epoch => {
                lock(&ground.lent).remove(&key);
            }
            // Somebody else's by now. Perhaps it was handed over, and then went on before we heard of it: the row says
            // whether the loan is still needed (M3).
            Ok(Cas::Rejected(_)) => {
                if let Some(loan) = lock(&ground.lent).get_mut(&key) {
                    loan.decided = true;
                }
            }
            // Not known: the loan stays.
            Err(error) => return Given::Kept(Error::unavailable(error.to_string())),
        }
    }
}

pub(crate) fn lock(lent: &Lent) -> MutexGuard<'_, BTreeMap<(ShardId, Epoch), Loan>> {
    lent.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The row of a shard that goes from the session with the row `own` to another, whose next row is given.
fn handed_over(own: &SessionRow, old: &ShardRow, flushed: Option<Seq>, end: Seq, to: (SessionId, Seq)) -> ShardRow {
    let mut row = closed(own, old, flushed, end);
    let (session, from) = to;
    row.owner = Some(session);
    row.epoch = Epoch(old.epoch.0 + 1);
    row.sources.insert(row.epoch, Source { session, from, until: None });
    row
}

/// The row of a shard that was stopped: the source of its epoch is closed at its end, as far as it is needed still.
pub(crate) fn closed(own: &SessionRow, old: &ShardRow, flushed: Option<Seq>, end: Seq) -> ShardRow {
    let mut row = old.clone();
    if let Some(source) = row.sources.get_mut(&old.epoch) {
        source.until = Some(end);
    }
    let checkpoint = Position { epoch: old.epoch, seq: flushed.unwrap_or_default() };
    if flushed.is_some() && checkpoint > row.checkpoint {
        row.checkpoint = checkpoint;
        row.sources.retain(|epoch, _| *epoch >= old.epoch);
    }
    let checkpoint = row.checkpoint;
    row.sources.retain(|epoch, source| *epoch != old.epoch || to_replay(*epoch, source, checkpoint, own).is_some());
    row
}

/// The first row of the own log that the new owner may have to replay.
pub(crate) fn lent_from(own: &SessionRow, row: &ShardRow, epoch: Epoch) -> Seq {
    let replay = row.sources.get(&epoch).and_then(|source| to_replay(epoch, source, row.checkpoint, own));
    replay.map_or(own.base, |(from, _)| from)
}
