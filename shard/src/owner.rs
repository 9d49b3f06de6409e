//! Which shards this node owns, in a cluster: takes what the placement names it for, gives what others are named for.
//!
//! The placement is a hint, and may be wrong or old; the rows of shards and sessions are the truth. So everything here
//! begins with a look at them, and what it finds in the way it leaves for the next look. A shard that nobody asks for is
//! kept, wherever the placement puts it: its owner-to-be asks when it is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use perdure_persistence::{SessionRow, SessionState, ShardRow, Store, StoreError};
use perdure_proto::{
    Error,
    perdure::node::v1::{ShardReply, shard_reply},
};
use perdure_types::{
    Epoch, Member, NodeId, Placement, Seq, SessionId, ShardId, ShardMap, SlotCount, UNNAMED_SESSION_GRACE,
};
use tokio::{
    sync::{oneshot, watch},
    task::JoinSet,
    time::Instant,
};

use crate::{
    claim,
    driver::ShardHandle,
    log::session::persist,
    moves::{Given, Ground, Orphan, Taken, give, pull, take_over},
    ports::Peers,
    split::map_of,
};

/// Shards that are asked of others at once, and given to others at once.
const PULLS_AT_ONCE: usize = 8;
const GIFTS_AT_ONCE: usize = 16;
/// Between looks while something is missing, and while nothing is (C1: shards may name us without our knowing).
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
const IDLE_PAUSE: Duration = Duration::from_secs(5);
/// A member whose store is silent keeps its shards for so long after this node has first seen them in the store: if it was
/// silent for all, it answers the others again by then.
const SILENT_KEEPS: Duration = Duration::from_secs(2);
/// A session that no member names for so long is ended, though it owns nothing: its log is to be deleted.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// How a node takes part in a cluster.
#[derive(Clone)]
pub struct Joining {
    pub placement: watch::Receiver<Arc<Placement>>,
    pub peers: Arc<dyn Peers>,
}

/// Who has got the shards that were given away.
pub(crate) type Hints = Arc<Mutex<BTreeMap<ShardId, NodeId>>>;

/// The rows of shards, and then of sessions: in this order, a session that a shard names and that has no row is gone.
pub(crate) struct Look {
    shards: BTreeMap<ShardId, ShardRow>,
    sessions: BTreeMap<SessionId, SessionRow>,
    pub goal: Option<SlotCount>,
}

impl Look {
    pub(crate) fn map(&self, first: SlotCount) -> ShardMap {
        map_of(&self.shards, first)
    }
}

pub(crate) type Reply = oneshot::Sender<Result<ShardReply, Error>>;

/// What came of a job.
pub(crate) enum Done {
    Looked(Result<Look, StoreError>),
    TakenOver(Vec<ShardId>, Result<Vec<Taken>, StoreError>),
    Pulled(ShardId, Result<Option<Taken>, StoreError>),
    Given(ShardId, NodeId, Given, Reply),
    Settled(ShardId, bool),
    Tidied,
}

/// What is to be done next.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    orphans: Vec<Orphan>,
    ending: BTreeSet<SessionId>,
    pulls: Vec<(ShardId, NodeId)>,
    /// Shards that are wanted, and that nothing can be done about now.
    waiting: usize,
}

pub(crate) struct Owner {
    pub ground: Ground,
    placement: watch::Receiver<Arc<Placement>>,
    jobs: JoinSet<Done>,
    /// Shards on their way.
    busy: BTreeSet<ShardId>,
    /// The latest epoch under which this session has had a shard.
    served: BTreeMap<ShardId, Epoch>,
    /// Shards of ours that ended without being given away.
    lost: BTreeSet<ShardId>,
    looking: bool,
    taking_over: bool,
    pulls: usize,
    gifts: usize,
    /// Sessions that no live member names, and since when.
    unnamed: BTreeMap<SessionId, Instant>,
    /// Sessions of members whose store is silent, and since when this node sees the store though.
    silent: BTreeMap<SessionId, Instant>,
    /// Nobody tells of changes any more: what is owned stays.
    orphaned: bool,
    next_look: Instant,
    pause: Duration,
    tidied: Instant,
    pub hints: Hints,
}

impl Owner {
    pub(crate) fn new(ground: Ground, placement: watch::Receiver<Arc<Placement>>, hints: Hints) -> Self {
        let now = Instant::now();
        Self {
            ground,
            placement,
            jobs: JoinSet::new(),
            busy: BTreeSet::new(),
            served: BTreeMap::new(),
            lost: BTreeSet::new(),
            looking: false,
            taking_over: false,
            pulls: 0,
            gifts: 0,
            unnamed: BTreeMap::new(),
            silent: BTreeMap::new(),
            orphaned: false,
            next_look: now,
            pause: FIRST_PAUSE,
            tidied: now,
            hints,
        }
    }

    /// Waits for a job to end; begins a look when one is due.
    pub(crate) async fn next(&mut self) -> Done {
        loop {
            let has_jobs = !self.jobs.is_empty();
            tokio::select! {
                biased;
                Some(done) = self.jobs.join_next(), if has_jobs => {
                    match done {
                        Ok(done) => return done,
                        Err(error) => tracing::error!(%error, "a move of shards has failed"),
                    }
                }
                changed = self.placement.changed(), if !self.orphaned => match changed {
                    Ok(()) => self.look_soon(),
                    Err(_) => self.orphaned = true,
                },
                () = tokio::time::sleep_until(self.next_look), if !self.looking => self.look(),
            }
        }
    }

    pub(crate) fn look_soon(&mut self) {
        self.pause = FIRST_PAUSE;
        self.next_look = Instant::now();
    }

    fn look(&mut self) {
        self.looking = true;
        self.next_look = Instant::now() + IDLE_PAUSE;
        let store = self.ground.store.clone();
        self.jobs.spawn(async move { Done::Looked(look(&*store).await) });
    }

    /// Acts on what was seen. `here`: shards that this session serves or recovers.
    pub(crate) fn looked(&mut self, looked: Result<Look, StoreError>, here: &BTreeSet<ShardId>) {
        self.looking = false;
        let look = match looked {
            Ok(look) => look,
            Err(error) => {
                tracing::error!(%error, "the shards' rows cannot be read");
                return;
            }
        };
        let own = look.sessions.get(&self.ground.log.session());
        if own.is_none_or(|row| row.state != SessionState::Live) {
            // A node that has nothing to do would not notice by itself (C4).
            self.ground.log.look_at_fence();
            self.next_look = self.next_look.min(Instant::now() + LONGEST_PAUSE);
            return;
        }
        let placement = self.placement.borrow_and_update().clone();
        self.note_unnamed(&look, &placement);
        self.note_silent(&placement);
        let plan = self.plan(&look, &placement, here);
        let missing = plan.waiting + plan.orphans.len() + plan.pulls.len();
        if missing > 0 {
            self.next_look = self.next_look.min(Instant::now() + self.pause);
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        } else {
            self.pause = FIRST_PAUSE;
        }
        if !plan.orphans.is_empty() && !self.taking_over {
            self.take_over(plan.orphans, plan.ending);
        }
        for (shard, node) in plan.pulls {
            if self.pulls < PULLS_AT_ONCE {
                self.pull(shard, node);
            }
        }
        if self.tidied.elapsed() >= FORGOTTEN {
            self.tidy();
        }
    }

    fn note_unnamed(&mut self, look: &Look, placement: &Placement) {
        let now = Instant::now();
        let own = self.ground.log.session();
        let is_unnamed = |id: &SessionId, row: &SessionRow| {
            *id != own && !matches!(row.state, SessionState::Sealed(_)) && placement.member_of(*id).is_none()
        };
        let unnamed: BTreeSet<SessionId> =
            look.sessions.iter().filter(|(id, row)| is_unnamed(id, row)).map(|(id, _)| *id).collect();
        self.unnamed.retain(|id, _| unnamed.contains(id));
        // While the members are not known, nobody can be named.
        if !placement.owners.is_empty() {
            for id in unnamed {
                self.unnamed.entry(id).or_insert(now);
            }
        }
    }

    fn note_silent(&mut self, placement: &Placement) {
        let now = Instant::now();
        let silent = placement.members.values().filter(|member| member.silent).filter_map(|member| member.session);
        let silent: BTreeSet<SessionId> = silent.collect();
        self.silent.retain(|id, _| silent.contains(id));
        for id in silent {
            self.silent.entry(id).or_insert(now);
        }
    }

    /// Whether a member of that session cannot serve, though it is alive.
    fn is_away(&self, id: SessionId, node: &NodeId, placement: &Placement) -> bool {
        let Some(member) = placement.members.get(node) else { return false };
        let silent_for = self.silent.get(&id).map_or(Duration::ZERO, Instant::elapsed);
        member.unreachable || (member.silent && silent_for >= SILENT_KEEPS)
    }

    fn plan(&self, look: &Look, placement: &Placement, here: &BTreeSet<ShardId>) -> Plan {
        let mut plan = Plan::default();
        // Halves of shards that have one slot still are there when they have a row (S2).
        let slots = placement.owners.len();
        let is_ours = |shard: &ShardId| shard.0 as usize >= slots && placement.owner(*shard) == Some(&placement.me);
        let halves = look.shards.keys().copied().filter(is_ours);
        for shard in placement.wanted().chain(halves) {
            if self.busy.contains(&shard) || (here.contains(&shard) && !self.lost.contains(&shard)) {
                continue;
            }
            let row = look.shards.get(&shard).cloned().unwrap_or_default();
            self.plan_shard(&mut plan, look, placement, shard, &row);
        }
        plan
    }

    fn plan_shard(&self, plan: &mut Plan, look: &Look, placement: &Placement, shard: ShardId, row: &ShardRow) {
        let own = self.ground.log.session();
        let open = row.sources.values().filter(|source| source.until.is_none()).map(|source| source.session);
        let involved: BTreeSet<SessionId> = row.owner.into_iter().chain(open).filter(|id| *id != own).collect();
        if row.owner == Some(own) || involved.iter().all(|id| self.may_end(*id, look, placement)) {
            plan.orphans.push((shard, self.served.get(&shard).copied()));
            if row.owner != Some(own) {
                plan.ending.extend(involved);
            }
            return;
        }
        match row.owner.and_then(|owner| placement.member_of(owner)) {
            Some(node) if placement.members.get(node).is_some_and(Member::is_away) => plan.waiting += 1,
            Some(node) if *node != placement.me => plan.pulls.push((shard, node.clone())),
            _ => plan.waiting += 1,
        }
    }

    /// Whether a session has ended, or is to be ended: it cannot serve any more as far as we can know.
    fn may_end(&self, id: SessionId, look: &Look, placement: &Placement) -> bool {
        match look.sessions.get(&id).map(|row| row.state) {
            None | Some(SessionState::Sealed(_) | SessionState::Fenced) => true,
            Some(SessionState::Live) => match placement.member_of(id) {
                // A session of our own of before.
                Some(node) => *node == placement.me || self.is_away(id, node, placement),
                None => {
                    let since = self.unnamed.get(&id);
                    placement.dead.contains(&id) || since.is_some_and(|since| since.elapsed() >= UNNAMED_SESSION_GRACE)
                }
            },
        }
    }

    fn take_over(&mut self, orphans: Vec<Orphan>, ending: BTreeSet<SessionId>) {
        let shards: Vec<ShardId> = orphans.iter().map(|(shard, _)| *shard).collect();
        tracing::info!(shards = shards.len(), sessions = ending.len(), "taking shards over");
        self.busy.extend(shards.iter().copied());
        self.taking_over = true;
        let ground = self.ground.clone();
        self.jobs.spawn(async move { Done::TakenOver(shards, take_over(ground, orphans, ending).await) });
    }

    fn pull(&mut self, shard: ShardId, node: NodeId) {
        self.busy.insert(shard);
        self.pulls += 1;
        let (ground, served) = (self.ground.clone(), self.served.get(&shard).copied());
        self.jobs.spawn(async move { Done::Pulled(shard, pull(ground, shard, node, served).await) });
    }

    /// Another node asks for a shard (C3). Refused while our own view says that it should be here: else two nodes that see
    /// the cluster differently would pass it to and fro.
    pub(crate) fn asked(
        &mut self,
        shard: ShardId,
        handle: Option<ShardHandle>,
        node: NodeId,
        (to, next): (SessionId, Seq),
        reply: Reply,
    ) {
        let is_ours = {
            let placement = self.placement.borrow();
            placement.owner(shard) == Some(&placement.me)
        };
        if is_ours || self.busy.contains(&shard) || self.gifts >= GIFTS_AT_ONCE {
            let _ = reply.send(Err(Error::not_owner(None)));
            return;
        }
        self.busy.insert(shard);
        self.gifts += 1;
        let ground = self.ground.clone();
        self.jobs.spawn(async move {
            let given = give(ground, shard, handle, to, next).await;
            Done::Given(shard, node, given, reply)
        });
    }

    /// A shard was given away, or could not be. True: it is not ours any more.
    pub(crate) fn given(&mut self, shard: ShardId, node: NodeId, given: Given, reply: Reply) -> bool {
        self.gifts -= 1;
        self.busy.remove(&shard);
        let (answer, is_gone) = match given {
            Given::To(handed_over) => {
                tracing::info!(shard_id = shard.0, %node, epoch = handed_over.epoch, "handed over");
                self.lock_hints().insert(shard, node);
                (Ok(ShardReply { reply: Some(shard_reply::Reply::HandedOver(handed_over)) }), true)
            }
            Given::Lost => (Err(Error::not_owner(None)), true),
            Given::Kept(error) => {
                tracing::warn!(shard_id = shard.0, %error, "not handed over");
                self.lost.insert(shard);
                self.look_soon();
                (Err(error), false)
            }
        };
        if is_gone {
            self.lost.remove(&shard);
        }
        let _ = reply.send(answer);
        is_gone
    }

    /// A take-over has ended: those that did not become ours are looked at again.
    pub(crate) fn taken_over(&mut self, shards: Vec<ShardId>) {
        self.taking_over = false;
        for shard in shards {
            self.busy.remove(&shard);
        }
        self.next_look = self.next_look.min(Instant::now() + self.pause);
    }

    /// A hand-over to us has ended. The next one waits for a look only.
    pub(crate) fn pulled(&mut self, shard: ShardId, has_come: bool) {
        self.pulls -= 1;
        self.busy.remove(&shard);
        let pause = if has_come { Duration::ZERO } else { self.pause };
        self.next_look = self.next_look.min(Instant::now() + pause);
    }

    /// A shard is ours, and is being recovered.
    pub(crate) fn recovering(&mut self, shard: ShardId, epoch: Epoch, handle: ShardHandle) {
        self.busy.insert(shard);
        self.lost.remove(&shard);
        self.served.insert(shard, epoch);
        self.lock_hints().remove(&shard);
        self.jobs.spawn(async move { Done::Settled(shard, handle.serving().await) });
    }

    pub(crate) fn settled(&mut self, shard: ShardId) {
        self.busy.remove(&shard);
    }

    pub(crate) fn is_busy(&self, shard: ShardId) -> bool {
        self.busy.contains(&shard)
    }

    /// A shard is being split.
    pub(crate) fn halving(&mut self, shard: ShardId) {
        self.busy.insert(shard);
    }

    /// It was not begun, or is over. Both halves, if they are ours, are being recovered.
    pub(crate) fn halved(&mut self, shard: ShardId, is_lost: bool) {
        self.busy.remove(&shard);
        if is_lost {
            self.lost.insert(shard);
        }
        self.look_soon();
    }

    /// The shard's task has ended by a bug.
    pub(crate) fn lose(&mut self, shard: ShardId) {
        self.lost.insert(shard);
        self.next_look = self.next_look.min(Instant::now() + LONGEST_PAUSE);
    }

    fn lock_hints(&self) -> std::sync::MutexGuard<'_, BTreeMap<ShardId, NodeId>> {
        self.hints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends sessions that everybody has forgotten, and deletes logs that nobody needs. Every node does: it costs little, all
    /// of it is safe to do twice, and it does not depend on a node that is there.
    fn tidy(&mut self) {
        self.tidied = Instant::now();
        let forgotten: BTreeSet<SessionId> =
            self.unnamed.iter().filter(|(_, since)| since.elapsed() >= FORGOTTEN).map(|(id, _)| *id).collect();
        let ground = self.ground.clone();
        self.jobs.spawn(async move {
            let own = ground.log.session();
            let store = ground.store.clone();
            let ended = take_over(ground, Vec::new(), forgotten).await;
            if let Err(error) = ended {
                tracing::warn!(%error, "forgotten sessions are not ended");
            } else if let Err(error) = claim::delete_unneeded(&*store, own).await {
                tracing::warn!(%error, "old sessions are not cleaned up");
            }
            Done::Tidied
        });
    }
}

async fn look(store: &dyn Store) -> Result<Look, StoreError> {
    let shards = persist("list shards", || store.list_shards()).await?.into_iter().collect();
    let sessions = persist("list sessions", || store.list_sessions()).await?.into_iter().collect();
    let goal = persist("read goal", || store.read_goal()).await?;
    Ok(Look { shards, sessions, goal })
}
