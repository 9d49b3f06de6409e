//! The synchronous heart of a serving shard: inputs come in, the entities ("chains" after the main kind) decide, records
//! go to the log, and what may be seen goes out when the log covers it. No IO and no waiting here: what has to be fetched
//! or sent is an [`Output`].
//!
//! Invariants: (SH-2) an answer or effect leaves only when all that it depends on is covered (A4), a read only after a
//! fence read that was sent after it came (A5). (SH-3) The inputs of one chain are handled in the order in which they
//! came, waiting for loads. (SH-4) What is not in the tables is in memory: dirty chains are never evicted.

mod cache;
mod closes;
mod gather;
mod histories;
mod load;
mod release;
mod timers;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize},
    },
};

pub(crate) use gather::{FlushNote, ListNote, PendingWrite, Slice};
pub(crate) use histories::HistoriesJob;
pub(crate) use load::{LoadJob, Loaded, restore};
use perdure_persistence::Wakeup;
use perdure_proto::{
    Error,
    perdure::{
        log::v1::{Record, record::Entity},
        node::v1::{Offer, StickyQueueUnavailable, WorkflowCall, WorkflowReply, workflow_call::Command},
    },
};
use perdure_types::{ChainKey, QueueFilter, ShardId, SlotCount, Timestamp};
use perdure_workflow::{Answer, CallId, Effect, Env, Handled, IdSource, NamespaceView, Release, RunRef, Watch};

use crate::{
    claim::Claim,
    config::ShardConfig,
    driver::Call,
    entry::{Applied, Entry, Pending, ReplyTo, Waiting, Watcher},
    history::{self, HistoryQuery, PageJob},
    lanes::Lanes,
    log::{ShardLog, frame},
    lookahead::Lookahead,
    trace::Caller,
};

/// What all shards of a node share.
pub(crate) struct NodeContext {
    /// How many shards the cluster began with.
    pub first: SlotCount,
    pub config: ShardConfig,
    pub namespaces: Arc<dyn NamespaceView>,
    /// Weight of all chains in memory.
    pub cache_bytes: AtomicUsize,
    /// How many shards share the cache.
    pub shard_count: AtomicUsize,
}

/// Work that the driver does outside the loop.
#[derive(Debug)]
pub(crate) enum Output {
    Load(LoadJob),
    ReadHistories(HistoriesJob),
    ReadHistory { chain: ChainKey, job: PageJob, reply: ReplyTo },
    ReadWakeups { after: Option<Wakeup>, limit: usize },
    Offer(Offer),
    Call { chain: ChainKey, id: CallId, call: Box<WorkflowCall> },
}

pub(crate) struct Core {
    claim: Claim,
    lanes: Lanes,
    log: ShardLog,
    node: Arc<NodeContext>,
    ids: IdSource,
    now: Timestamp,
    /// Boxed: a node of the map has room for eleven, and moves them about.
    chains: BTreeMap<ChainKey, Box<Entry>>,
    /// Changed since the last flush took them.
    dirty: VecDeque<ChainKey>,
    /// What the flush under way has still to take.
    gathering: VecDeque<ChainKey>,
    /// Changed since the list of runs was brought up to date.
    unlisted: VecDeque<ChainKey>,
    /// The flusher reads it to know whom to ask.
    dirty_flag: Arc<AtomicBool>,
    /// Wake-up rows that belong to nothing.
    orphans: Vec<Wakeup>,
    held: release::HeldBack,
    timers: timers::Timers,
    lookahead: Lookahead,
    lru: VecDeque<(ChainKey, u64)>,
    uses: u64,
    weight_bytes: usize,
    watcher_ids: u64,
    out: Vec<Output>,
    /// The log takes nothing any more: the shard is about to be dropped.
    ended: bool,
}

enum Next {
    /// Nothing can be done now.
    Wait,
    Idle,
    Take(Pending),
}

impl Core {
    pub(crate) fn new(
        claim: Claim,
        log: ShardLog,
        node: Arc<NodeContext>,
        ids: IdSource,
        dirty_flag: Arc<AtomicBool>,
        now: Timestamp,
    ) -> Self {
        let lookahead = Lookahead::new(node.config.wakeups_ahead);
        let lanes = Lanes::of(claim.shard, &claim.row, node.first);
        Self {
            claim,
            lanes,
            log,
            node,
            ids,
            now,
            chains: BTreeMap::new(),
            dirty: VecDeque::new(),
            gathering: VecDeque::new(),
            unlisted: VecDeque::new(),
            dirty_flag,
            orphans: Vec::new(),
            held: release::HeldBack::default(),
            timers: timers::Timers::default(),
            lookahead,
            lru: VecDeque::new(),
            uses: 0,
            weight_bytes: 0,
            watcher_ids: 0,
            out: Vec::new(),
            ended: false,
        }
    }

    pub(crate) fn shard(&self) -> ShardId {
        self.claim.shard
    }

    /// Entities in memory.
    pub(crate) fn loaded_count(&self) -> usize {
        self.chains.len()
    }

    pub(crate) fn uncommitted_count(&self) -> usize {
        self.held.len()
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// So much waits for the log that no new calls should be taken.
    pub(crate) fn is_congested(&self) -> bool {
        self.log.is_congested()
    }

    /// What the driver has to do. `may_look_ahead`: it has room for more work than that.
    pub(crate) fn take_outputs(&mut self, may_look_ahead: bool) -> Vec<Output> {
        if may_look_ahead && let Some((after, limit)) = self.lookahead.start_read() {
            self.out.push(Output::ReadWakeups { after, limit });
        }
        std::mem::take(&mut self.out)
    }

    /// A call from outside.
    pub(crate) fn call(&mut self, call: Call, now: Timestamp) {
        self.now = self.now.max(now);
        let Call { chain, command, reply, caller } = call;
        self.enqueue(chain, Pending::Call { command, reply: Some(reply), caller });
    }

    /// The result of a call to another entity.
    pub(crate) fn call_result(
        &mut self,
        key: &ChainKey,
        id: &CallId,
        result: Result<WorkflowReply, Error>,
        now: Timestamp,
    ) {
        self.now = self.now.max(now);
        let Some(entry) = self.chains.get_mut(key) else { return };
        entry.calls.remove(id);
        let Some(chain) = entry.chain.as_mut() else { return };
        let mut env = Env {
            now: self.now,
            limits: &self.node.config.limits,
            ids: &mut self.ids,
            namespaces: &*self.node.namespaces,
        };
        let handled = chain.on_call_result(id, result, &mut env);
        self.transition(key, handled, None);
        self.drain(key);
    }

    /// Nobody polls the sticky queue that a workflow task was offered to.
    pub(crate) fn offer_refused(&mut self, offer: Offer, now: Timestamp) {
        self.now = self.now.max(now);
        // Only workflows have sticky queues.
        let key = ChainKey::new(offer.namespace_id, offer.workflow_id);
        let command = Command::StickyQueueUnavailable(StickyQueueUnavailable {
            run_id: offer.run_id,
            scheduled_event_id: offer.scheduled_event_id,
            attempt: offer.attempt,
        });
        self.enqueue(key, Pending::Call { command: Box::new(command), reply: None, caller: Caller::default() });
    }

    fn enqueue(&mut self, key: ChainKey, pending: Pending) {
        self.chains.entry(key.clone()).or_default().queue.push_back(pending);
        self.drain(&key);
    }

    /// Handles what waits for a chain, as far as what it needs is loaded (SH-3).
    fn drain(&mut self, key: &ChainKey) {
        loop {
            match self.next_step(key) {
                Next::Wait => return,
                Next::Idle => break,
                Next::Take(input) => {
                    // Before the input: what it brings about, it emits itself.
                    self.resume(key);
                    match input {
                        Pending::Call { command, reply, caller } => {
                            caller.within(|| self.handle(key, *command, reply));
                        }
                        Pending::Wake { run_id, at } => self.woken(key, &run_id, at),
                    }
                }
            }
        }
        self.settle(key);
    }

    fn next_step(&mut self, key: &ChainKey) -> Next {
        let Some(entry) = self.chains.get_mut(key) else {
            return Next::Wait;
        };
        if entry.loading {
            return Next::Wait;
        }
        let wanted = match entry.queue.front() {
            None if entry.chain.is_some() => return Next::Idle,
            None => return Next::Wait,
            Some(Pending::Call { command, .. }) => history::run_ref(command),
            Some(Pending::Wake { run_id, .. }) if run_id.is_empty() => RunRef::Current,
            Some(Pending::Wake { run_id, .. }) => RunRef::Run(run_id.to_string()),
        };
        let run = match wanted {
            RunRef::Current => None,
            RunRef::Run(run_id) => Some(run_id),
        };
        if let Some(chain) = &entry.chain {
            let known = run
                .as_deref()
                .is_none_or(|run| chain.has_run(run) || entry.absent.contains(run) || entry.is_deleted(run));
            if known && let Some(job) = HistoriesJob::of(key, entry) {
                entry.loading = true;
                self.out.push(Output::ReadHistories(job));
                return Next::Wait;
            }
            if known {
                return entry.queue.pop_front().map_or(Next::Idle, Next::Take);
            }
        }
        entry.loading = true;
        self.out.push(Output::Load(LoadJob { key: key.clone(), head: entry.chain.is_none(), run }));
        Next::Wait
    }

    fn handle(&mut self, key: &ChainKey, command: Command, reply: Option<ReplyTo>) {
        // A task must not be started for a poll that nobody waits for.
        let starts_task =
            matches!(command, Command::RecordWorkflowTaskStarted(_) | Command::RecordActivityTaskStarted(_));
        if starts_task && reply.as_ref().is_some_and(ReplyTo::is_closed) {
            return;
        }
        let query = match &command {
            Command::GetHistory(request) => Some(HistoryQuery::forward(request, &self.node.config.limits)),
            Command::GetHistoryReverse(request) => Some(HistoryQuery::reverse(request, &self.node.config.limits)),
            _ => None,
        };
        if let (Some(query), true) = (query, reply.is_some()) {
            if let Some(reply) = reply {
                self.read_history(key, query, reply);
            }
            return;
        }
        let Some(chain) = self.chains.get_mut(key).and_then(|entry| entry.chain.as_mut()) else {
            return;
        };
        let mut env = Env {
            now: self.now,
            limits: &self.node.config.limits,
            ids: &mut self.ids,
            namespaces: &*self.node.namespaces,
        };
        match chain.handle(command, &mut env) {
            Ok(handled) => self.transition(key, handled, reply),
            // A refusal may rest on uncovered state: it waits as a read does (A4, A5).
            Err(error) => {
                if let Some(reply) = reply {
                    let (after, fence) = self.read_barrier(key);
                    self.hold_reply(key, after, fence, reply, Err(error));
                }
            }
        }
    }

    /// Does everything that is due in a chain.
    fn fire_timers(&mut self, key: &ChainKey) {
        let Some(chain) = self.chains.get_mut(key).and_then(|entry| entry.chain.as_mut()) else {
            return;
        };
        let mut env = Env {
            now: self.now,
            limits: &self.node.config.limits,
            ids: &mut self.ids,
            namespaces: &*self.node.namespaces,
        };
        let handled = chain.on_timer(&mut env);
        self.transition(key, handled, None);
    }

    /// Carries out what an input did: the record goes to the log, everything else waits as long as it has to.
    fn transition(&mut self, key: &ChainKey, handled: Handled, reply: Option<ReplyTo>) {
        let Handled { record, effects, answer, release } = handled;
        let prior = self.chains.get(key).map_or(0, |entry| entry.after);
        let recorded = record.is_some();
        if let Some(record) = record {
            let record = Record {
                shard_id: self.claim.shard.0,
                epoch: self.claim.epoch().0,
                entity: Some(Entity::Chain(record)),
            };
            let framed = frame(&record);
            let Some(Entity::Chain(record)) = record.entity else { return };
            self.dirty_flag.store(true, std::sync::atomic::Ordering::SeqCst);
            let Ok(ticket) = self.log.submit(framed) else {
                self.ended = true;
                return;
            };
            if let Some(entry) = self.chains.get_mut(key) {
                closes::count(entry, &record, self.now, &*self.node.namespaces);
                entry.note(&record, Applied::Ticket(ticket));
                entry.after = ticket.count();
                if !std::mem::replace(&mut entry.listed_dirty, true) {
                    self.dirty.push_back(key.clone());
                }
                if entry.is_unlisted() {
                    // Also if it is queued already: a flush of everything may have taken it from under the mark.
                    self.log.mark_unlisted();
                    if !std::mem::replace(&mut entry.queued_unlisted, true) {
                        self.unlisted.push_back(key.clone());
                    }
                }
            }
        }
        let after_all = self.chains.get(key).map_or(0, |entry| entry.after);
        if !effects.is_empty() {
            self.hold_effects(key, after_all, effects);
        }
        let mut limited = None;
        if let Some(reply) = reply {
            let (after, fence) = match release {
                Release::Now => (0, 0),
                Release::Prior if recorded => (prior, 0),
                Release::Durable if recorded => (after_all, 0),
                // Nothing was recorded: the answer is a read (A5).
                Release::Durable | Release::Prior => (after_all, self.log.fence_read()),
            };
            match answer {
                Answer::Reply(answer) => self.hold_reply(key, after, fence, reply, Ok(answer)),
                Answer::Reject(error) => self.hold_reply(key, after, fence, reply, Err(error)),
                Answer::Watch(watch) => {
                    let is_limited =
                        matches!(watch, Watch::Update { .. } | Watch::Execution { .. } | Watch::Revision { .. });
                    let id = self.watch(key, Waiting::Core(watch), reply);
                    limited = is_limited.then_some(id);
                }
            }
        }
        self.check_watchers(key);
        // Most wait no more.
        if let Some(id) = limited
            && let Some(entry) = self.chains.get(key)
            && entry.watchers.iter().any(|watcher| watcher.id == id)
        {
            let deadline = self.now + self.node.config.limits.long_poll;
            self.timers.add_watch(deadline, key.clone(), id);
        }
    }

    /// What a read has to wait for.
    fn read_barrier(&self, key: &ChainKey) -> (u64, u64) {
        (self.chains.get(key).map_or(0, |entry| entry.after), self.log.fence_read())
    }

    fn watch(&mut self, key: &ChainKey, watch: Waiting, reply: ReplyTo) -> u64 {
        self.watcher_ids += 1;
        let id = self.watcher_ids;
        if let Some(entry) = self.chains.get_mut(key) {
            entry.watchers.retain(|watcher| !watcher.reply.is_closed());
            entry.watchers.push(Watcher { id, reply, watch });
        }
        id
    }

    fn read_history(&mut self, key: &ChainKey, query: Result<HistoryQuery, Error>, reply: ReplyTo) {
        let chain = self.chains.get(key).and_then(|entry| entry.chain.as_ref());
        let found = query.and_then(|mut query| {
            if query.run_id.is_empty() {
                query.run_id = chain.map(|chain| chain.head().current_run_id.clone()).unwrap_or_default();
            }
            let view = chain.and_then(|chain| chain.run_view(&query.run_id));
            view.map(|view| (query.clone(), view)).ok_or_else(|| unknown_run(key, &query.run_id))
        });
        match found {
            Err(error) => {
                let (after, fence) = self.read_barrier(key);
                self.hold_reply(key, after, fence, reply, Err(error));
            }
            Ok((query, view)) => {
                let step = query.step(&view, &self.node.config.limits);
                self.history_step(key, step, reply);
            }
        }
    }

    fn history_step(&mut self, key: &ChainKey, step: history::Step, reply: ReplyTo) {
        match step {
            history::Step::Page(job) => {
                let (after, fence) = self.read_barrier(key);
                self.hold_page(key, after, fence, reply, *job);
            }
            history::Step::Answer(message) => {
                let (after, fence) = self.read_barrier(key);
                let answer = perdure_workflow::Reply { message: *message, history: None };
                self.hold_reply(key, after, fence, reply, Ok(Box::new(answer)));
            }
            history::Step::Wait(watch) => {
                let id = self.watch(key, Waiting::History(watch), reply);
                let deadline = self.now + self.node.config.limits.long_poll;
                self.timers.add_watch(deadline, key.clone(), id);
            }
        }
    }

    /// Answers those whose condition has become true; their answers wait for this transition to be covered.
    fn check_watchers(&mut self, key: &ChainKey) {
        let Some(entry) = self.chains.get_mut(key) else { return };
        if entry.watchers.is_empty() {
            return;
        }
        let Some(chain) = entry.chain.as_mut() else { return };
        let mut outcomes = Vec::new();
        let mut pages = Vec::new();
        for watcher in std::mem::take(&mut entry.watchers) {
            if watcher.reply.is_closed() {
                continue;
            }
            match watcher.watch {
                Waiting::Core(watch) => match chain.check(&watch) {
                    Some(outcome) => outcomes.push((watcher.reply, outcome)),
                    None => entry.watchers.push(Watcher { watch: Waiting::Core(watch), ..watcher }),
                },
                Waiting::History(watch) => match chain.run_view(&watch.0.run_id) {
                    Some(view) if !watch.is_ready(&view) => {
                        entry.watchers.push(Watcher { watch: Waiting::History(watch), ..watcher });
                    }
                    view => pages.push((watcher.reply, watch, view)),
                },
            }
        }
        for (reply, outcome) in outcomes {
            let (after, fence) = self.read_barrier(key);
            self.hold_reply(key, after, fence, reply, outcome.map(Box::new));
        }
        for (reply, watch, view) in pages {
            match view {
                Some(view) => {
                    let step = watch.0.step(&view, &self.node.config.limits);
                    self.history_step(key, step, reply);
                }
                None => {
                    let (after, fence) = self.read_barrier(key);
                    let error = unknown_run(key, &watch.0.run_id);
                    self.hold_reply(key, after, fence, reply, Err(error));
                }
            }
        }
    }

    /// All inputs of a chain are handled: bring its timers, its effects and its place in the cache up to date.
    fn settle(&mut self, key: &ChainKey) {
        let Some(entry) = self.chains.get_mut(key) else { return };
        entry.absent.clear();
        if entry.chain.is_none() {
            return;
        }
        self.resume(key);
        self.retime(key);
        self.touch(key);
    }

    /// Emits what a chain had outstanding when it was loaded, once.
    fn resume(&mut self, key: &ChainKey) {
        let Some(entry) = self.chains.get_mut(key) else { return };
        let Some(chain) = entry.chain.as_ref() else { return };
        if std::mem::replace(&mut entry.resumed, true) {
            return;
        }
        let (effects, after) = (chain.resume(), entry.after);
        if !effects.is_empty() {
            self.hold_effects(key, after, effects);
        }
    }

    /// Task queues have a new home, which knows nothing of what waits in them: it is told. Duplicates are harmless. What is
    /// not in memory is found by its wake-up row, as after a start.
    pub(crate) fn offer_again(&mut self, moved: &QueueFilter) {
        let keys: Vec<ChainKey> = self.chains.keys().cloned().collect();
        for key in keys {
            let Some(entry) = self.chains.get(&key).filter(|entry| entry.resumed) else { continue };
            let Some(chain) = entry.chain.as_ref() else { continue };
            let (mut effects, after) = (chain.resume(), entry.after);
            effects.retain(|effect| match effect {
                Effect::Offer(offer) => moved(&offer.namespace_id, &offer.task_queue),
                Effect::Call { .. } => false,
            });
            if !effects.is_empty() {
                self.hold_effects(&key, after, effects);
            }
        }
        self.lookahead.restart();
    }

    /// Serving ends: everybody who waits is told to try elsewhere.
    pub(crate) fn fail_all(&mut self, error: &Error) {
        for (_, entry) in std::mem::take(&mut self.chains) {
            let queued = entry.queue.into_iter().filter_map(|pending| match pending {
                Pending::Call { reply, .. } => reply,
                Pending::Wake { .. } => None,
            });
            for reply in queued.chain(entry.watchers.into_iter().map(|watcher| watcher.reply)) {
                let _ = reply.send(Err(error.clone()));
            }
        }
        self.held.fail_all(error);
        self.node.cache_bytes.fetch_sub(self.weight_bytes, std::sync::atomic::Ordering::Relaxed);
        self.weight_bytes = 0;
    }

    /// A graceful stop begins: nobody waits for what may still happen. An SDK asks again after a long poll that has ended, but
    /// gives up after an error when the wait has lasted longer than its retries may; so the error is for those only that know
    /// no other end.
    pub(crate) fn dismiss_watchers(&mut self, error: &Error) {
        let watched = self.chains.iter().filter(|(_, entry)| !entry.watchers.is_empty());
        let watched: Vec<ChainKey> = watched.map(|(key, _)| key.clone()).collect();
        for key in watched {
            while let Some(watcher) = self.chains.get_mut(&key).and_then(|entry| entry.watchers.pop()) {
                if let Some(reply) = self.end_watch(&key, watcher) {
                    let _ = reply.send(Err(error.clone()));
                }
            }
        }
    }

    /// Nothing waits for coverage or a load: what was asked has been answered.
    pub(crate) fn is_quiet(&self) -> bool {
        self.held.is_empty() && self.chains.values().all(|entry| !entry.loading && entry.queue.is_empty())
    }
}

fn unknown_run(key: &ChainKey, run_id: &str) -> Error {
    let workflow_id = &key.workflow_id;
    if run_id.is_empty() {
        return Error::not_found(format!("workflow not found for ID: {workflow_id}"));
    }
    Error::not_found(format!("workflow execution not found for workflow ID \"{workflow_id}\" and run ID \"{run_id}\""))
}
