//! The entity: its state, and how inputs reach it.

use bytes::Bytes;
use perdure_proto::{
    Error,
    perdure::{
        node::v1::{
            ScheduleCommand, ScheduleReply, WorkflowReply, schedule_command, schedule_reply, workflow_call::Command,
            workflow_reply,
        },
        state::v1::{ScheduleDefinition, ScheduleState},
    },
    temporal::api::{
        enums::v1::ScheduleOverlapPolicy,
        schedule::v1::{Schedule as ScheduleMessage, SchedulePolicies},
        workflow::v1::{NewWorkflowExecutionInfo, WorkflowExecutionInfo},
    },
};
use perdure_types::{ChainKey, Duration, Timestamp};
use perdure_workflow::{Answer, CallId, Change, Effect, Env, Release, Reply, Single};
use prost::Message;

use crate::{overlap, spec::Spec};

const DEFAULT_CATCHUP_WINDOW: Duration = Duration::from_secs(365 * 24 * 3600);
const SHORTEST_CATCHUP_WINDOW: Duration = Duration::from_secs(10);

/// One schedule. Without a definition it does not exist.
#[derive(Debug)]
pub struct Schedule {
    pub(crate) key: ChainKey,
    pub(crate) state: ScheduleState,
    /// Compiled from the definition.
    pub(crate) spec: Option<Spec>,
    /// When [`Single::on_timer`] has something to do. Follows from the state.
    pub(crate) timer: Option<Timestamp>,
    /// Backfills go on after this: a pause that need not survive a crash.
    pub(crate) backfill_due: Timestamp,
    /// The same for times that have passed.
    pub(crate) busy_until: Timestamp,
    /// What of the state the next record has to carry.
    pub(crate) changed: Changed,
}

#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Changed {
    pub any: bool,
    pub definition: bool,
    pub last_result: bool,
}

/// What a handler gives back: an answer, and what is to be done besides.
pub(crate) type Answered = Result<(schedule_reply::Reply, Vec<Effect>), Error>;

impl Schedule {
    pub(crate) fn id(&self) -> &str {
        &self.key.workflow_id
    }

    pub(crate) fn exists(&self) -> bool {
        self.state.definition.is_some()
    }

    pub(crate) fn message(&self) -> &ScheduleMessage {
        static NONE: std::sync::LazyLock<ScheduleMessage> = std::sync::LazyLock::new(ScheduleMessage::default);
        self.state.definition.as_ref().and_then(|definition| definition.schedule.as_ref()).unwrap_or(&NONE)
    }

    pub(crate) fn action(&self) -> Option<&NewWorkflowExecutionInfo> {
        use perdure_proto::temporal::api::schedule::v1::schedule_action::Action;
        match self.message().action.as_ref()?.action.as_ref()? {
            Action::StartWorkflow(start) => Some(start),
        }
    }

    pub(crate) fn policies(&self) -> &SchedulePolicies {
        static NONE: std::sync::LazyLock<SchedulePolicies> = std::sync::LazyLock::new(SchedulePolicies::default);
        self.message().policies.as_ref().unwrap_or(&NONE)
    }

    pub(crate) fn overlap_policy(&self) -> ScheduleOverlapPolicy {
        overlap::resolve(self.policies().overlap_policy(), ScheduleOverlapPolicy::Skip)
    }

    pub(crate) fn catchup_window(&self) -> Duration {
        match &self.policies().catchup_window {
            None => DEFAULT_CATCHUP_WINDOW,
            Some(window) => Duration::from_proto(Some(window)).max(SHORTEST_CATCHUP_WINDOW),
        }
    }

    pub(crate) fn has_limited_actions(&self) -> bool {
        self.message().state.as_ref().is_some_and(|state| state.limited_actions)
    }

    /// Takes a definition that has been checked.
    pub(crate) fn define(&mut self, definition: ScheduleDefinition) {
        self.state.definition = Some(definition);
        self.changed.any = true;
        self.changed.definition = true;
        self.compile();
    }

    fn compile(&mut self) {
        let seed = format!("{}-{}", self.key.namespace_id, self.key.workflow_id);
        let spec = self.message().spec.clone().unwrap_or_default();
        self.spec = Spec::compile(&spec, &seed).inspect_err(|reason| self.state.last_problem.clone_from(reason)).ok();
    }

    /// Ends a transition.
    fn commit(&mut self, answer: Answer, effects: Vec<Effect>) -> Change {
        self.retime();
        let Changed { any, definition, last_result } = std::mem::take(&mut self.changed);
        let record = any.then(|| {
            let mut record = self.state.clone();
            if !definition {
                record.definition = None;
            }
            if !last_result {
                record.last_completion_result = None;
            }
            record.encode_to_vec().into()
        });
        Change { record, deleted: false, effects, answer, release: Release::Durable }
    }

    fn dispatch(&mut self, command: schedule_command::Command, incarnation: &str, env: &mut Env) -> Answered {
        use schedule_command::Command as C;
        match command {
            C::Create(request) => self.create(request, incarnation, env),
            C::Describe(_) => Ok((schedule_reply::Reply::Describe(self.describe()), Vec::new())),
            C::Update(request) => self.update(request, incarnation, env),
            C::Patch(request) => self.patch(request, incarnation, env),
            C::MatchingTimes(request) => self.matching_times(&request).map(|reply| (reply, Vec::new())),
            C::WorkflowClosed(closed) => Ok(self.workflow_closed(closed, incarnation, env)),
            C::Delete(_) => Ok((schedule_reply::Reply::Delete(Default::default()), Vec::new())),
        }
    }
}

impl Single for Schedule {
    fn new(key: ChainKey) -> Self {
        Self {
            key,
            state: ScheduleState::default(),
            spec: None,
            timer: None,
            backfill_due: Timestamp::ZERO,
            busy_until: Timestamp::ZERO,
            changed: Changed::default(),
        }
    }

    fn restore(&mut self, snapshot: Bytes) -> Result<(), prost::DecodeError> {
        self.state = ScheduleState::decode(snapshot)?;
        self.compile();
        self.retime();
        Ok(())
    }

    fn snapshot(&self) -> Bytes {
        self.state.encode_to_vec().into()
    }

    fn apply(&mut self, change: Bytes) -> Result<(), prost::DecodeError> {
        let mut state = ScheduleState::decode(change)?;
        let redefined = state.definition.is_some();
        if !redefined {
            state.definition = self.state.definition.take();
        }
        if state.last_completion_result.is_none() {
            state.last_completion_result = self.state.last_completion_result.take();
        }
        self.state = state;
        if redefined {
            self.compile();
        }
        self.retime();
        Ok(())
    }

    fn handle(&mut self, command: Command, incarnation: &str, env: &mut Env) -> Result<Change, Error> {
        let Command::Schedule(command) = command else {
            return Err(perdure_workflow::foreign_command());
        };
        let ScheduleCommand { command: Some(command) } = *command else {
            return Err(Error::invalid_argument("the call has no command"));
        };
        if !self.exists() && !matches!(command, schedule_command::Command::Create(_)) {
            return Err(Error::not_found(format!("schedule not found: {}", self.id())));
        }
        let deleted = matches!(command, schedule_command::Command::Delete(_));
        let (reply, effects) = self.dispatch(command, incarnation, env)?;
        let reply = Box::new(ScheduleReply { reply: Some(reply) });
        let answer = Answer::Reply(Box::new(Reply::new(workflow_reply::Reply::Schedule(reply))));
        if deleted {
            return Ok(Change { deleted, answer, ..Change::default() });
        }
        Ok(self.commit(answer, effects))
    }

    fn on_timer(&mut self, incarnation: &str, env: &mut Env) -> Change {
        if self.is_over(env.now) {
            tracing::info!(namespace_id = %self.key.namespace_id, schedule_id = %self.id(), "schedule is done and goes");
            return Change { deleted: true, ..Change::default() };
        }
        let effects = self.advance(incarnation, env);
        self.commit(Answer::default(), effects)
    }

    fn on_call_result(&mut self, id: &CallId, result: Result<WorkflowReply, Error>, env: &mut Env) -> Change {
        let effects = self.call_result(id, result, env);
        self.commit(Answer::default(), effects)
    }

    fn next_timer(&self) -> Option<Timestamp> {
        self.timer
    }

    fn wake_at(&self) -> Option<Timestamp> {
        let calls = !self.state.starting.is_empty()
            || self.state.running.iter().any(|run| run.cancel_pending || run.terminate_pending);
        if calls { Some(Timestamp(self.state.create_time_ns)) } else { self.timer }
    }

    fn resume(&self, incarnation: &str) -> Vec<Effect> {
        self.outstanding(incarnation)
    }

    fn listing(&self, incarnation: &str) -> Option<WorkflowExecutionInfo> {
        self.list_row(incarnation)
    }

    fn weight_bytes(&self) -> usize {
        1024 + 2 * self.state.encoded_len()
    }
}
