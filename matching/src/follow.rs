//! What is durable of a task queue, as its home follows it: the deployments whose workers poll it, and what operators have
//! set. A queue matches nothing before that is known for the first time; later changes arrive within moments of being made.
//!
//! Sticky queues follow the normal queue behind them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use perdure_proto::{
    Error,
    perdure::{
        node::v1::{
            DeploymentCommand, RegisterWorker, TaskQueueCommand, WorkflowCall, deployment_command, task_queue_command,
            workflow_call, workflow_reply,
        },
        state::v1::TaskQueueState,
    },
    temporal::api::{
        deployment::v1::WorkerDeploymentVersion as Version, enums::v1::TaskQueueType, taskqueue::v1::TaskQueueConfig,
    },
};
use perdure_types::EntityKind;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout_at},
};

use crate::{
    TaskStarter,
    dispatch::is_transient,
    queue::QueueSettings,
    registry::{QueueCell, QueueKind},
    routing::Routing,
    shell::Shell,
};

const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What is known of one type.
#[derive(Default)]
pub(crate) struct Known {
    pub revision: i64,
    pub routing: Arc<Routing>,
    pub settings: Arc<QueueSettings>,
    pub config: Option<TaskQueueConfig>,
}

struct Loaded {
    workflow: Arc<Known>,
    activity: Arc<Known>,
    nexus: Arc<Known>,
}

impl Loaded {
    fn of(state: &TaskQueueState) -> Self {
        let known = |kind: TaskQueueType| {
            let config = state.types.iter().find(|t| t.r#type == kind as i32).and_then(|t| t.config.clone());
            let settings = config.as_ref().map(settings).unwrap_or_default();
            let routing = Arc::new(Routing::of(state, kind));
            Arc::new(Known { revision: state.revision, routing, settings: Arc::new(settings), config })
        };
        Self {
            workflow: known(TaskQueueType::Workflow),
            activity: known(TaskQueueType::Activity),
            nexus: known(TaskQueueType::Nexus),
        }
    }
}

fn settings(config: &TaskQueueConfig) -> QueueSettings {
    let rate = |limit: &Option<perdure_proto::temporal::api::taskqueue::v1::RateLimitConfig>| {
        limit.as_ref().and_then(|limit| limit.rate_limit).map(|limit| f64::from(limit.requests_per_second))
    };
    QueueSettings {
        per_second: rate(&config.queue_rate_limit),
        per_second_of_key: rate(&config.fairness_keys_rate_limit_default),
        weights: config.fairness_weight_overrides.clone(),
    }
}

/// The queues of one name.
pub(crate) struct Family {
    namespace_id: Arc<str>,
    name: Arc<str>,
    /// `None` until it is known.
    loaded: Mutex<Option<Loaded>>,
    changed: Notify,
}

impl Family {
    fn lock(&self) -> MutexGuard<'_, Option<Loaded>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn known(&self, kind: TaskQueueType) -> Option<Arc<Known>> {
        let loaded = self.lock();
        let loaded = loaded.as_ref()?;
        Some(Arc::clone(match kind {
            TaskQueueType::Activity => &loaded.activity,
            TaskQueueType::Nexus => &loaded.nexus,
            TaskQueueType::Workflow | TaskQueueType::Unspecified => &loaded.workflow,
        }))
    }

    /// What is known of the type as soon as `enough` of it is, but not after `deadline`.
    pub async fn wait(
        &self,
        kind: TaskQueueType,
        deadline: Instant,
        enough: impl Fn(&Known) -> bool,
    ) -> Option<Arc<Known>> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on a change is not missed.
            changed.as_mut().enable();
            if let Some(known) = self.known(kind).filter(|known| enough(known)) {
                return Some(known);
            }
            timeout_at(deadline, changed).await.ok()?;
        }
    }

    fn follow_call(&self, known: i64) -> WorkflowCall {
        let command = TaskQueueCommand { command: Some(task_queue_command::Command::Follow(known)) };
        WorkflowCall {
            namespace_id: self.namespace_id.to_string(),
            workflow_id: self.name.to_string(),
            kind: EntityKind::TaskQueue.number(),
            command: Some(workflow_call::Command::TaskQueue(Box::new(command))),
        }
    }

    fn register_call(&self, namespace: &str, version: &Version, kind: TaskQueueType, identity: &str) -> WorkflowCall {
        let register = RegisterWorker {
            build_id: version.build_id.clone(),
            task_queue: self.name.to_string(),
            task_queue_type: kind as i32,
            identity: identity.to_owned(),
        };
        let command = DeploymentCommand {
            namespace: namespace.to_owned(),
            command: Some(deployment_command::Command::Register(register)),
            ..DeploymentCommand::default()
        };
        WorkflowCall {
            namespace_id: self.namespace_id.to_string(),
            workflow_id: version.deployment_name.clone(),
            kind: EntityKind::Deployment.number(),
            command: Some(workflow_call::Command::Deployment(Box::new(command))),
        }
    }
}

type Key = (Arc<str>, Arc<str>);

/// The families that this node follows.
#[derive(Default)]
pub(crate) struct Families {
    by_name: Mutex<HashMap<Key, Arc<Family>>>,
}

impl Families {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<Family>>> {
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody uses them any more.
    pub fn sweep(&self) {
        self.lock().retain(|_, family| Arc::strong_count(family) > 1);
    }
}

impl Shell {
    /// The family of this name. It is followed from now on, as long as somebody holds it.
    pub fn family(self: &Arc<Self>, namespace_id: &str, name: &str) -> Arc<Family> {
        let key: Key = (namespace_id.into(), name.into());
        let mut families = self.families.lock();
        if let Some(family) = families.get(&key) {
            return Arc::clone(family);
        }
        let family = Arc::new(Family {
            namespace_id: Arc::clone(&key.0),
            name: Arc::clone(&key.1),
            loaded: Mutex::new(None),
            changed: Notify::new(),
        });
        families.insert(key, Arc::clone(&family));
        drop(families);
        let starter = Arc::clone(&self.starter);
        self.spawn(follow(Arc::downgrade(self), Arc::downgrade(&family), starter));
        family
    }

    /// The queue of this name, following its family. A new one is held until that is known.
    pub fn queue(self: &Arc<Self>, namespace_id: &str, kind: QueueKind, name: &str) -> Arc<QueueCell> {
        let cell = self.cell(namespace_id, kind, name);
        if kind != QueueKind::Sticky && cell.family().is_none() {
            let family = cell.follow(|| self.family(namespace_id, name));
            // The cell was there before this looks: if news come now, they find it.
            if let Some(known) = family.known(kind.task_type()) {
                self.apply(&cell, &known);
            }
        }
        cell
    }

    fn apply(self: &Arc<Self>, cell: &Arc<QueueCell>, known: &Known) {
        let (routing, settings) = (Arc::clone(&known.routing), Arc::clone(&known.settings));
        self.step(cell, |queue, now| queue.set_routing(now, routing, settings));
        while let Some(matched) = self.step(cell, |queue, now| queue.next(now)) {
            self.dispatch_in_background(cell, matched);
        }
    }

    fn learn(self: &Arc<Self>, family: &Family, state: &TaskQueueState) {
        *family.lock() = Some(Loaded::of(state));
        family.changed.notify_waiters();
        for kind in [QueueKind::Workflow, QueueKind::Activity, QueueKind::Nexus] {
            let cell = self.registry.get(&family.namespace_id, kind, &family.name);
            if let (Some(cell), Some(known)) = (cell, family.known(kind.task_type())) {
                self.apply(&cell, &known);
            }
        }
    }

    /// Who has just changed what is durable of a queue waits here, so that what it does next finds that done.
    pub async fn await_revision(self: &Arc<Self>, namespace_id: &str, name: &str, revision: i64) {
        let family = self.family(namespace_id, name);
        let soon = Instant::now() + LONGEST_PAUSE;
        family.wait(TaskQueueType::Workflow, soon, |known| known.revision >= revision).await;
    }

    /// Makes sure that the deployment and the queue know that workers of this version poll. False: not in time.
    pub async fn register(
        self: &Arc<Self>,
        family: &Family,
        (namespace, identity): (&str, &str),
        version: &Version,
        kind: TaskQueueType,
        deadline: Instant,
    ) -> Result<bool, Error> {
        let is_member = |known: &Known| known.routing.has(version);
        let mut pause = FIRST_PAUSE;
        while !family.known(kind).is_some_and(|known| is_member(&known)) {
            let call = family.register_call(namespace, version, kind, identity);
            let Ok(registered) = timeout_at(deadline, self.starter.start(call)).await else {
                return Ok(false);
            };
            match registered {
                // The news are on their way, unless the node that brings them has just failed.
                Ok(_) => {
                    let soon = deadline.min(Instant::now() + LONGEST_PAUSE);
                    family.wait(kind, soon, is_member).await;
                }
                Err(error) if is_transient(&error) && !is_refusal(&error) => sleep(pause).await,
                Err(error) => return Err(error),
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
            if Instant::now() >= deadline {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The deployment has as many versions or queues as it may have.
fn is_refusal(error: &Error) -> bool {
    error.grpc_code() == perdure_proto::Code::ResourceExhausted
}

async fn follow(shell: Weak<Shell>, family: Weak<Family>, starter: Arc<dyn TaskStarter>) {
    let mut known = -1;
    let mut pause = FIRST_PAUSE;
    loop {
        let Some(call) = family.upgrade().map(|family| family.follow_call(known)) else { return };
        let answer = starter.start(call).await;
        let (Some(shell), Some(family)) = (shell.upgrade(), family.upgrade()) else { return };
        match answer.map(|reply| reply.reply) {
            Ok(Some(workflow_reply::Reply::TaskQueue(state))) => {
                if state.revision != known {
                    shell.learn(&family, &state);
                }
                known = state.revision;
                pause = FIRST_PAUSE;
                continue;
            }
            Ok(_) => {}
            Err(error) if is_transient(&error) => {}
            Err(error) => tracing::warn!(queue = &*family.name, %error, "what is durable of a task queue is not known"),
        }
        drop((shell, family));
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
