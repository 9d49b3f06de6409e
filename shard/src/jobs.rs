//! Work outside a shard's loop: reads from the store, offers and calls. Each is a task that brings its result back as
//! an [`Event`]; all end with the shard.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use perdure_persistence::{Store, StoreError, Wakeup};
use perdure_proto::{
    Code, Error,
    perdure::node::v1::{Offer, RunHistory, WorkflowCall, WorkflowReply, workflow_call::Command},
};
use perdure_types::{ChainKey, PollName, QueueFilter};
use perdure_workflow::CallId;
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task::JoinSet,
};

use crate::{
    core::{FlushNote, ListNote, LoadJob, Loaded, Output, Slice},
    lanes::Lanes,
    log::session::persist,
    ports::{EntityCaller, TaskSink},
};

/// What comes back to a shard's loop, and what the node asks of it.
pub(crate) enum Event {
    Loaded(LoadJob, Result<Loaded, StoreError>),
    HistoriesRead(ChainKey, Result<Vec<RunHistory>, Error>),
    WakeupsRead(Option<Vec<Wakeup>>),
    CallResult {
        chain: ChainKey,
        id: CallId,
        result: Box<Result<WorkflowReply, Error>>,
    },
    OfferRefused(Box<Offer>),
    Gather {
        begin: bool,
        max_bytes: usize,
        slice: oneshot::Sender<Slice>,
    },
    /// Rows for the list of runs only.
    GatherListings {
        max_bytes: usize,
        slice: oneshot::Sender<Slice>,
    },
    Flushed(Vec<FlushNote>),
    Listed(Vec<ListNote>),
    /// C3: refuse what was not begun, answer the rest, append nothing more.
    Release(oneshot::Sender<()>),
    /// The shard has a new owner.
    End,
    /// These task queues have a new home.
    OfferAgain(QueueFilter),
    /// Nobody gets the tasks that were started for these.
    PollsLost(Arc<BTreeSet<PollName>>),
    /// Take nothing new; answer when nothing is held back any more.
    Quiesce(oneshot::Sender<()>),
}

/// Ports and store, as all shards of a node have them.
#[derive(Clone)]
pub(crate) struct Outside {
    pub store: Arc<dyn Store>,
    pub tasks: Arc<dyn TaskSink>,
    pub entities: Arc<dyn EntityCaller>,
}

pub(crate) struct Jobs {
    lanes: Lanes,
    outside: Outside,
    events: mpsc::Sender<Event>,
    reads: JoinSet<()>,
    effects: JoinSet<()>,
    slots: Arc<Semaphore>,
    /// Of calls that wait for somebody outside.
    outbound_slots: Arc<Semaphore>,
    /// A graceful stop: effects are derived again by the next owner.
    effects_stopped: bool,
}

/// Jobs above which a shard does not read ahead for more work.
const MANY: usize = 512;

impl Jobs {
    pub(crate) fn new(lanes: Lanes, outside: Outside, events: mpsc::Sender<Event>, calls_in_flight: usize) -> Self {
        Self {
            lanes,
            outside,
            events,
            reads: JoinSet::new(),
            effects: JoinSet::new(),
            slots: Arc::new(Semaphore::new(calls_in_flight.max(1))),
            outbound_slots: Arc::new(Semaphore::new(calls_in_flight.max(1))),
            effects_stopped: false,
        }
    }

    pub(crate) fn are_many(&self) -> bool {
        self.reads.len() + self.effects.len() >= MANY
    }

    pub(crate) fn stop_effects(&mut self) {
        self.effects_stopped = true;
        self.effects.abort_all();
    }

    pub(crate) fn reads_are_done(&self) -> bool {
        self.reads.is_empty()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.reads.is_empty() && self.effects.is_empty()
    }

    /// Waits for one job to end.
    pub(crate) async fn reap(&mut self) {
        let (reads, effects) = (!self.reads.is_empty(), !self.effects.is_empty());
        tokio::select! {
            biased;
            _ = self.reads.join_next(), if reads => {}
            _ = self.effects.join_next(), if effects => {}
            else => {}
        }
    }

    pub(crate) fn start(&mut self, output: Output) {
        let events = self.events.clone();
        let Outside { store, tasks, entities } = self.outside.clone();
        let slots = match &output {
            // A handler may take its time. Others do not wait for that.
            Output::Call { call, .. } if matches!(call.command, Some(Command::Nexus(_))) => &self.outbound_slots,
            _ => &self.slots,
        };
        let slots = slots.clone();
        match output {
            Output::Load(job) => {
                self.reads.spawn(async move {
                    let result = job.run(&*store).await;
                    let _ = events.send(Event::Loaded(job, result)).await;
                });
            }
            Output::ReadHistories(job) => {
                self.reads.spawn(async move {
                    let key = job.key.clone();
                    let result = job.run(&*store).await;
                    let _ = events.send(Event::HistoriesRead(key, result)).await;
                });
            }
            Output::ReadHistory { chain, job, reply } => {
                self.reads.spawn(async move {
                    let _ = reply.send(job.finish(&*store, &chain).await);
                });
            }
            Output::ReadWakeups { after, limit } => {
                let lanes = self.lanes.clone();
                self.reads.spawn(async move {
                    let rows = persist("read wake-ups", || lanes.read(&*store, after.as_ref(), limit)).await;
                    let rows = rows.inspect_err(|error| tracing::error!(?lanes, %error, "wake-ups")).ok();
                    let _ = events.send(Event::WakeupsRead(rows)).await;
                });
            }
            Output::Offer(_) | Output::Call { .. } if self.effects_stopped => {}
            Output::Offer(offer) => {
                self.effects.spawn(async move {
                    let Ok(_slot) = slots.acquire_owned().await else { return };
                    if !make_offer(&*tasks, &offer).await && offer.sticky {
                        let _ = events.send(Event::OfferRefused(Box::new(offer))).await;
                    }
                });
            }
            Output::Call { chain, id, call } => {
                self.effects.spawn(async move {
                    let Ok(_slot) = slots.acquire_owned().await else { return };
                    let result = Box::new(make_call(&*entities, *call).await);
                    let _ = events.send(Event::CallResult { chain, id, result }).await;
                });
            }
        }
    }
}

/// Whether an error says nothing about the request itself.
fn is_transient(error: &Error) -> bool {
    matches!(
        error.grpc_code(),
        Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted
    )
}

/// Between attempts at most: whoever is called may be back the next moment, and a workflow waits for it.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

async fn pause(delay: &mut Duration) {
    tokio::time::sleep(*delay).await;
    *delay = (*delay * 2).min(LONGEST_PAUSE);
}

/// Whether the offer was accepted. Offers are made until somebody answers.
async fn make_offer(tasks: &dyn TaskSink, offer: &Offer) -> bool {
    let mut delay = Duration::from_millis(20);
    loop {
        match tasks.offer(offer.clone()).await {
            Ok(reply) => return reply.accepted,
            Err(error) => {
                tracing::debug!(%error, task_queue = offer.task_queue, "offer failed, trying again");
                pause(&mut delay).await;
            }
        }
    }
}

async fn make_call(entities: &dyn EntityCaller, call: WorkflowCall) -> Result<WorkflowReply, Error> {
    let mut delay = Duration::from_millis(20);
    loop {
        match entities.call(call.clone()).await {
            Err(error) if is_transient(&error) => {
                tracing::debug!(%error, workflow_id = call.workflow_id, "call failed, trying again");
                pause(&mut delay).await;
            }
            settled => return settled,
        }
    }
}
