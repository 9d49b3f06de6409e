//! One serving period: from the start of a session to its end. A fenced node begins another one with nothing left of
//! the one before.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{
    future::BoxFuture,
    stream::{self, StreamExt, TryStreamExt},
};
use perdure_persistence::{SessionRow, SessionState, Store, StoreError};
use perdure_proto::{
    Error,
    perdure::node::v1::{HandOver, ShardCall, shard_call},
};
use perdure_types::{NodeId, Seq, Served, SessionId, ShardId, ShardMap, SlotCount};
use perdure_workflow::IdSource;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::{Id, JoinError, JoinHandle, JoinSet},
    time::Instant,
};

use crate::{
    claim::{self, Claim, Claimed, Sealed},
    core::NodeContext,
    driver::{Ownership, ShardHandle, ShardTask},
    fence::fence,
    flush::{FlushRequest, Flusher, Lent, Registry},
    jobs::Outside,
    log::{
        Log,
        session::{open, persist, seal_own},
        writer::Writer,
    },
    moves::{Ground, Taken},
    node::Setup,
    owner::{Done, Hints, Joining, Owner, Reply},
    ports::{NoPeers, Peers},
    recover::{ReadAhead, RecoverError, Replay, read_sources},
    split::{self, Halved, Pace},
    telemetry,
};

/// Claims and fences made at once.
const CONCURRENT: usize = 64;

/// A session that is named and has no row: deleted once no shard named it. So the claim that names it was decided after
/// that, which is after its fence, and it never served (C4): its log holds nothing of that shard.
pub(crate) const GONE: SessionRow =
    SessionRow { state: SessionState::Sealed(Seq::ZERO), base: Seq(1), base_segment: 0 };

/// A task that ends with its owner.
struct Owned<T>(JoinHandle<T>);

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(crate) struct Period {
    setup: Arc<Setup>,
    pub log: Log,
    pub registry: Registry,
    node: Arc<NodeContext>,
    outside: Outside,
    ids: IdSource,
    session_row: Arc<Mutex<SessionRow>>,
    writer: Owned<Option<Seq>>,
    flusher: Owned<()>,
    flushes: mpsc::Sender<FlushRequest>,
    tasks: JoinSet<()>,
    shard_of_task: HashMap<Id, ShardId>,
    /// In a cluster: decides which shards this node owns. Else it owns all.
    owner: Option<Owner>,
    ground: Ground,
    goal: watch::Sender<Option<SlotCount>>,
    new_goal: watch::Receiver<Option<SlotCount>>,
    pace: Pace,
    halving: JoinSet<Halfway>,
    map: ShardMap,
}

/// What has come of a split so far.
enum Halfway {
    Halved(ShardId, Halved),
    /// Both halves serve, or will not.
    Serving,
}

/// What a period's loop has to deal with.
pub(crate) enum Event {
    Panicked(ShardId),
    Moved(Done),
    /// A shard was split.
    Halved,
}

impl Period {
    /// Opens a session (A1), ends all others (F1 to F3), claims the shards (C1), recovers them (C2), and serves.
    /// In a cluster the last three come later, shard by shard.
    pub(crate) async fn start(
        setup: Arc<Setup>,
        mut ids: IdSource,
        joining: Option<(Joining, Hints)>,
        goal: watch::Sender<Option<SlotCount>>,
    ) -> Result<Self, StoreError> {
        let store = &*setup.store;
        let (session, row) = open_session(store, &mut ids).await?;
        let log = Log::new(session, setup.config.flush_log_bytes, setup.config.log_queue_bytes);
        let writer = Writer::new(&log, setup.store.clone(), setup.config.clone());
        let writer = Owned(tokio::spawn(writer.run()));
        let session_row = Arc::new(Mutex::new(row));
        let (flushes, requests) = mpsc::channel(64);
        let lent = Lent::default();
        let (peers, me): (Arc<dyn Peers>, _) = match &joining {
            Some((joining, _)) => (joining.peers.clone(), joining.placement.borrow().me.clone()),
            None => (Arc::new(NoPeers), NodeId::new("")),
        };
        let ground = Ground {
            store: setup.store.clone(),
            log: log.clone(),
            session_row: session_row.clone(),
            flushes: flushes.clone(),
            lent: lent.clone(),
            peers,
            me,
            first: setup.slots,
        };
        let (claims, mut replays) = match &joining {
            Some(_) => (Vec::new(), BTreeMap::new()),
            None => {
                let stored = persist("read goal", || store.read_goal()).await?;
                goal.send_if_modified(|goal| std::mem::replace(goal, stored) != stored);
                claim_all(&ground).await?
            }
        };
        let replayed: usize = replays.values().flatten().map(Vec::len).sum();
        let node = NodeContext {
            first: setup.slots,
            config: setup.config.clone(),
            namespaces: setup.namespaces.clone(),
            cache_bytes: AtomicUsize::new(0),
            shard_count: AtomicUsize::new(claims.len()),
        };
        let registry: Registry = Arc::new(RwLock::default());
        let flusher = Flusher::new(
            setup.store.clone(),
            log.clone(),
            registry.clone(),
            setup.config.clone(),
            session_row.clone(),
            requests,
            lent,
        );
        let outside =
            Outside { store: setup.store.clone(), tasks: setup.tasks.clone(), entities: setup.entities.clone() };
        let owner = joining.map(|(joining, hints)| Owner::new(ground.clone(), joining.placement, hints));
        let mut period = Self {
            setup: setup.clone(),
            log,
            registry,
            node: Arc::new(node),
            outside,
            ids,
            session_row,
            writer,
            flusher: Owned(tokio::spawn(flusher.run())),
            flushes,
            tasks: JoinSet::new(),
            shard_of_task: HashMap::new(),
            owner,
            ground,
            new_goal: goal.subscribe(),
            goal,
            pace: Pace::new(),
            halving: JoinSet::new(),
            map: ShardMap::default(),
        };
        let mut handles = Vec::new();
        for claim in claims {
            let replay = replays.remove(&claim.shard).unwrap_or_else(|| Ok(Replay::new()));
            handles.push(period.spawn_shard(claim, replay));
        }
        let serving = futures::future::join_all(handles.iter().map(ShardHandle::serving)).await;
        let serving = serving.into_iter().filter(|serving| *serving).count();
        period.learn_own();
        tracing::info!(%session, shards = handles.len(), serving, replayed, "serving");
        Ok(period)
    }

    fn spawn_shard(&mut self, claim: Claim, replay: Result<Replay, RecoverError>) -> ShardHandle {
        let shard = claim.shard;
        let ids = IdSource::new(seed(&mut self.ids));
        let clock = self.setup.clock.clone();
        let (task, handle) = ShardTask::new(claim, &self.log, self.node.clone(), self.outside.clone(), clock, ids);
        let id = self.tasks.spawn(task.run(replay)).id();
        self.shard_of_task.insert(id, shard);
        // In one step: a flush that met neither would take the shard for one that needs no log of ours (M3).
        let before = self.registry.write().unwrap_or_else(PoisonError::into_inner).insert(shard, handle.clone());
        end_task(before);
        handle
    }

    /// Waits until a shard's task ends by a panic, or something has come of a move.
    pub(crate) async fn next(&mut self) -> Event {
        loop {
            let (has_tasks, owner) = (!self.tasks.is_empty(), self.owner.as_mut());
            let moved = async {
                match owner {
                    Some(owner) => owner.next().await,
                    None => std::future::pending().await,
                }
            };
            let has_halves = !self.halving.is_empty();
            let split_at = self.pace.next().filter(|_| self.goal.borrow().is_some());
            let ended = tokio::select! {
                biased;
                Some(ended) = self.tasks.join_next_with_id(), if has_tasks => ended,
                done = moved => return Event::Moved(done),
                Some(halfway) = self.halving.join_next(), if has_halves => match self.halfway(halfway) {
                    Some(event) => return event,
                    None => continue,
                },
                Ok(()) = self.new_goal.changed() => {
                    self.pace.hurry();
                    continue;
                }
                () = tokio::time::sleep_until(split_at.unwrap_or_else(Instant::now)), if split_at.is_some() => {
                    self.begin_split();
                    continue;
                }
            };
            let (id, error) = match ended {
                Ok((id, ())) => (id, None),
                Err(error) => (error.id(), Some(error)),
            };
            let shard = self.shard_of_task.remove(&id);
            if let (Some(shard), Some(error)) = (shard, error.filter(JoinError::is_panic)) {
                telemetry::shard_panicked();
                tracing::error!(shard_id = shard.0, %error, "a shard's task panicked; it is loaded again");
                return Event::Panicked(shard);
            }
        }
    }

    /// Loads a shard again whose task is gone, while the session goes on: under a new epoch, from what it had logged.
    pub(crate) async fn reload(&mut self, shard: ShardId) -> Result<(), StoreError> {
        if let Some(owner) = &mut self.owner {
            owner.lose(shard);
            return Ok(());
        }
        // Its last records must be covered: they are replayed.
        let Ok(own_end) = self.log.end_covered().await else { return Ok(()) };
        let store = &*self.setup.store;
        let session = self.log.session();
        let mut sessions = Sealed::new();
        for (id, row) in persist("list sessions", || store.list_sessions()).await? {
            if matches!(row.state, SessionState::Sealed(_)) || id == session {
                sessions.insert(id, row);
            }
        }
        let mut others = sessions.clone();
        others.remove(&session);
        let seen = persist("read shard", || store.read_shard_serial(shard)).await?;
        if seen.and_then(|row| row.owner) != Some(session) {
            tracing::error!(shard_id = shard.0, "the shard belongs to somebody else now");
            return Ok(());
        }
        let (claim, found) = claim_shard(store, shard, &self.log, &others, Some(own_end)).await?;
        sessions.extend(found);
        let replay =
            read_sources(store, std::slice::from_ref(&claim), &sessions, &ReadAhead::new()).await?.remove(&shard);
        self.spawn_shard(claim, replay.unwrap_or_else(|| Ok(Replay::new())));
        Ok(())
    }

    /// Splits the next shard that is to be split, if there is one.
    fn begin_split(&mut self) {
        let Some(goal) = *self.goal.borrow() else { return };
        let first = self.ground.first;
        let is_busy = |shard| self.owner.as_ref().is_some_and(|owner| owner.is_busy(shard));
        let can_be = |(shard, handle): &(ShardId, ShardHandle)| {
            let row = handle.claim().row;
            handle.ownership() == Ownership::Serving && !is_busy(*shard) && split::may_split(&row, first, goal)
        };
        // Larger ones first.
        let next = self.shards().into_iter().filter(can_be);
        let next = next.min_by_key(|(shard, handle)| (split::slots_of(&handle.claim().row, first), *shard));
        let Some((shard, handle)) = next else {
            self.pace.rest();
            return;
        };
        if let Some(owner) = &mut self.owner {
            owner.halving(shard);
        }
        self.pace.begin();
        let ground = self.ground.clone();
        self.halving.spawn(async move { Halfway::Halved(shard, split::split(ground, shard, handle, goal).await) });
    }

    fn halfway(&mut self, halfway: Result<Halfway, JoinError>) -> Option<Event> {
        let (shard, halved) = match halfway {
            Ok(Halfway::Halved(shard, halved)) => (shard, halved),
            Ok(Halfway::Serving) => {
                self.pace.done();
                return Some(Event::Halved);
            }
            Err(error) => {
                tracing::error!(%error, "a split has failed");
                self.pace.failed();
                return None;
            }
        };
        if let Some(owner) = &mut self.owner {
            owner.halved(shard, matches!(halved, Halved::Kept(_)));
        }
        match halved {
            Halved::Into(taken) => {
                let halves: Vec<ShardHandle> = taken.into_iter().map(|taken| self.take(taken)).collect();
                self.learn_own();
                self.halving.spawn(async move {
                    futures::future::join_all(halves.iter().map(ShardHandle::serving)).await;
                    Halfway::Serving
                });
                return Some(Event::Halved);
            }
            Halved::Skipped => self.pace.failed(),
            Halved::Lost => {
                self.pace.failed();
                self.forget(shard);
            }
            Halved::Kept(error) => {
                tracing::warn!(shard_id = shard.0, %error, "not split");
                self.pace.failed();
                // A node alone has nobody who looks for it.
                return self.owner.is_none().then_some(Event::Panicked(shard));
            }
        }
        Some(Event::Halved)
    }

    /// Takes in which shards there are: those that are here.
    fn learn_own(&mut self) {
        let first = self.ground.first;
        let here = self.shards().into_iter();
        let here = here.map(|(shard, handle)| (shard, split::slots_of(&handle.claim().row, first))).collect();
        self.map.merge(&ShardMap::new(first, &here));
    }

    /// Deals with what came of a move.
    pub(crate) fn moved(&mut self, done: Done) {
        if let Done::Looked(Ok(look)) = &done {
            self.map.merge(&look.map(self.ground.first));
            let found = look.goal;
            self.goal.send_if_modified(|goal| found > *goal && std::mem::replace(goal, found) != found);
        }
        let here: BTreeSet<ShardId> = self.shards().into_keys().collect();
        let Some(owner) = &mut self.owner else { return };
        match done {
            Done::Looked(look) => owner.looked(look, &here),
            Done::TakenOver(shards, taken) => {
                owner.taken_over(shards);
                match taken {
                    Ok(taken) => taken.into_iter().for_each(|taken| drop(self.take(taken))),
                    Err(error) => tracing::error!(%error, "shards cannot be taken over"),
                }
            }
            Done::Pulled(shard, taken) => {
                owner.pulled(shard, matches!(taken, Ok(Some(_))));
                match taken {
                    Ok(taken) => taken.into_iter().for_each(|taken| drop(self.take(taken))),
                    Err(error) => tracing::error!(shard_id = shard.0, %error, "the shard cannot be pulled"),
                }
            }
            Done::Given(shard, node, given, reply) => {
                if owner.given(shard, node, given, reply) {
                    self.forget(shard);
                }
            }
            Done::Settled(shard, is_serving) => {
                owner.settled(shard);
                tracing::info!(shard_id = shard.0, is_serving, "the shard is here");
            }
            Done::Tidied => {}
        }
    }

    fn take(&mut self, (claim, replay): Taken) -> ShardHandle {
        let (shard, epoch) = (claim.shard, claim.epoch());
        let handle = self.spawn_shard(claim, replay);
        if let Some(owner) = &mut self.owner {
            owner.recovering(shard, epoch, handle.clone());
        }
        self.pace.hurry();
        handle
    }

    fn forget(&mut self, shard: ShardId) {
        let handle = self.registry.write().unwrap_or_else(PoisonError::into_inner).remove(&shard);
        end_task(handle);
    }

    /// Another node asks for a shard.
    pub(crate) fn asked(&mut self, call: &ShardCall, reply: Reply) {
        let (shard, node) = (ShardId(call.shard), NodeId::new(call.node.as_str()));
        let handle = self.shards().remove(&shard);
        match (&call.command, SessionId::parse(&call.session), &mut self.owner) {
            (Some(shard_call::Command::HandOver(HandOver { next_seq })), Some(session), Some(owner)) => {
                owner.asked(shard, handle, node, (session, Seq(*next_seq)), reply);
            }
            _ => {
                let _ = reply.send(Err(Error::not_owner(None)));
            }
        }
    }

    fn shards(&self) -> BTreeMap<ShardId, ShardHandle> {
        self.registry.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What this session serves now.
    pub(crate) fn served(&self) -> Served {
        let shards = self.shards();
        self.node.shard_count.store(shards.len(), Ordering::Relaxed);
        let serving = shards.iter().filter(|(_, handle)| handle.ownership() == Ownership::Serving);
        Served {
            session: Some(self.log.session()),
            shards: serving.map(|(shard, handle)| (*shard, handle.claim().epoch())).collect(),
            map: self.map.clone(),
        }
    }

    /// Ends the period in good order: everything answered, written to the tables, and the own session sealed (F3), so
    /// that the next start has nothing to replay.
    pub(crate) async fn stop(mut self) -> Result<(), StoreError> {
        let shards: Vec<ShardHandle> =
            self.registry.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        futures::future::join_all(shards.iter().map(ShardHandle::quiesce)).await;
        let mut flushed = false;
        for _ in 0..3 {
            let (done, written) = oneshot::channel();
            if self.flushes.send(FlushRequest { shard: None, done }).await.is_err() {
                break;
            }
            flushed = written.await.is_ok_and(|flushed| flushed.complete);
            if flushed && !shards.iter().any(ShardHandle::is_dirty) {
                break;
            }
        }
        self.log.close();
        let last = (&mut self.writer.0).await.ok().flatten();
        // All tasks end with the log; the store is free when this returns.
        let _ = (&mut self.flusher.0).await;
        while self.tasks.join_next().await.is_some() {}
        let row = self.session_row.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(last) = last {
            let sealed = seal_own(&*self.setup.store, self.log.session(), row, last).await?;
            tracing::info!(session = %self.log.session(), flushed, sealed, "stopped");
        }
        Ok(())
    }
}

/// The task of a shard that was stopped and is not ours any more, or was loaded anew.
fn end_task(handle: Option<ShardHandle>) {
    if let Some(handle) = handle {
        // It waits for this alone; its queue of events has room, or it has ended.
        tokio::spawn(async move { handle.end().await });
    }
}

async fn open_session(store: &dyn Store, ids: &mut IdSource) -> Result<(SessionId, SessionRow), StoreError> {
    loop {
        let id = SessionId::parse(&ids.uuid()).expect("a stream of ids gives UUIDs");
        if let Some(row) = open(store, id).await? {
            return Ok((id, row));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Ends every other session: on one machine the holder of the data directory is alone, so all of them are dead.
async fn fence_others(store: &dyn Store, own: SessionId) -> Result<Sealed, StoreError> {
    let sessions = persist("list sessions", || store.list_sessions()).await?;
    let mut fences: Vec<BoxFuture<'_, _>> = Vec::new();
    for (id, _) in sessions.into_iter().filter(|(id, _)| *id != own) {
        fences.push(Box::pin(async move { Ok::<_, StoreError>(fence(store, id).await?.map(|row| (id, row))) }));
    }
    let sealed: Vec<Option<(SessionId, SessionRow)>> = stream::iter(fences).buffered(CONCURRENT).try_collect().await?;
    Ok(sealed.into_iter().flatten().collect())
}

/// A node alone: all other sessions are dead, and all shards are its own.
async fn claim_all(
    ground: &Ground,
) -> Result<(Vec<Claim>, BTreeMap<ShardId, Result<Replay, RecoverError>>), StoreError> {
    let (store, log) = (&*ground.store, &ground.log);
    let mut sealed = fence_others(store, log.session()).await?;
    let shards: Vec<ShardId> = split::all(store, ground.first).await?.into_iter().collect();
    let mut claims = Vec::new();
    for Claim { shard, row } in claim_shards(store, &shards, log, &mut sealed).await? {
        if let Some(born) = split::bear(ground, shard, row).await? {
            claims.push(Claim { shard, row: born.lower });
        }
    }
    let replays = read_sources(store, &claims, &sealed, &ReadAhead::new()).await?;
    Ok((claims, replays))
}

async fn claim_shards(
    store: &dyn Store,
    shards: &[ShardId],
    log: &Log,
    sealed: &mut Sealed,
) -> Result<Vec<Claim>, StoreError> {
    let mut claims: Vec<BoxFuture<'_, _>> = Vec::new();
    let known: &Sealed = sealed;
    for shard in shards.iter().copied() {
        claims.push(Box::pin(claim_shard(store, shard, log, known, None)));
    }
    let claimed: Vec<(Claim, Sealed)> = stream::iter(claims).buffered(CONCURRENT).try_collect().await?;
    let (claims, found): (Vec<Claim>, Vec<Sealed>) = claimed.into_iter().unzip();
    sealed.extend(found.into_iter().flatten());
    Ok(claims)
}

/// Claims a shard; sessions that were not there when the others were ended are ended now, and given back.
async fn claim_shard(
    store: &dyn Store,
    shard: ShardId,
    log: &Log,
    sealed: &Sealed,
    own_end: Option<Seq>,
) -> Result<(Claim, Sealed), StoreError> {
    let mut found = Sealed::new();
    loop {
        let mut known = sealed.clone();
        known.extend(found.clone());
        match claim::claim(store, shard, log.session(), log.next_seq(), &known, own_end).await? {
            Claimed::Ours(claim) => return Ok((claim, found)),
            // Our own claim of before, though we did not make one: another node of the same session id.
            Claimed::Unknown(id) if id == log.session() => {
                return Err(StoreError::Corrupt(format!("shard {shard} is owned by this very session")));
            }
            Claimed::Unknown(id) => {
                let row = fence(store, id).await?.unwrap_or(GONE);
                found.insert(id, row);
            }
        }
    }
}

/// Seeds one stream of ids from another.
pub(crate) fn seed(ids: &mut IdSource) -> u64 {
    uuid::Uuid::parse_str(&ids.uuid()).map_or(0, |id| id.as_u64_pair().1)
}
