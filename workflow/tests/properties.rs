//! Random lives of a run. The harness checks the core's promises at every step (WF-1, WF-2, WF-3); here, that nothing
//! outstanding is lost when the owner dies, and that nothing that clients send makes the core panic.

mod common;

use std::collections::BTreeSet;

use common::{nexus, operations, updates, *};
use perdure_proto::{
    perdure::{
        nexus::v1::{CallbackToken, nexus_completion},
        node::v1::{
            ActivityRef, Offer, SignalWorkflow, TaskKind, TaskToken, TaskUndelivered,
            activity_operation::{Activity, Operation, Pause, Reset, Unpause, UpdateOptions},
            respond_activity_task, workflow_call,
        },
    },
    temporal::api::{
        activity::v1::ActivityOptions,
        command::v1::Command,
        common::v1::{RetryPolicy, WorkflowExecution},
        enums::v1::{EventType as E, WorkflowExecutionStatus, WorkflowTaskFailedCause},
        workflowservice::v1::{
            PollActivityTaskQueueResponse, ResetWorkflowExecutionRequest, RespondWorkflowTaskCompletedRequest,
            RespondWorkflowTaskFailedRequest, SignalWorkflowExecutionRequest,
        },
    },
};
use perdure_types::Duration;
use perdure_workflow::{CallId, CallKind, Chain};
use proptest::{collection::vec, prelude::*};
use prost::Message;

#[derive(Debug, Clone)]
enum Step {
    PollWorkflowTask,
    Complete { commands: Vec<RandomCommand>, sticky: bool, force: bool, bring: bool, answer: AnswerUpdates },
    FailWorkflowTask,
    Update { id: u8 },
    LoseWorkflowTask,
    PollActivity,
    Activity { which: usize, does: ActivityDoes },
    Signal,
    Wait { millis: i64 },
    Crash,
    Operator(OperatorDoes),
    Nexus { which: usize, does: HandlerDoes },
}

#[derive(Debug, Clone)]
enum HandlerDoes {
    Take,
    Finish,
    Refuse { retryable: bool },
    Complete,
}

#[derive(Debug, Clone)]
enum OperatorDoes {
    Reset { finish_event_id: i64 },
    Pause,
    Unpause,
    PauseActivity { id: u8 },
    UnpauseActivity { id: u8, reset: bool },
    ResetActivity { id: u8, keep_paused: bool, jitter_secs: i64 },
    ChangeActivity { id: u8, close_secs: i64, restore: bool },
}

/// What a completion says about the updates that came with its task.
#[derive(Debug, Clone)]
enum AnswerUpdates {
    Nothing,
    Reject,
    Accept,
}

#[derive(Debug, Clone)]
enum RandomCommand {
    Activity { id: u8, eager: bool, attempts: i32, close_secs: i64, heartbeat_secs: i64 },
    CancelActivity { event_id: i64 },
    Timer { id: u8, secs: i64 },
    CancelTimer { id: u8 },
    Marker,
    Memo { id: u8, null: bool },
    Nexus { close_secs: i64 },
    CancelNexus { event_id: i64 },
    Empty(i32),
    Complete,
}

#[derive(Debug, Clone)]
enum ActivityDoes {
    Complete,
    CompleteById,
    Fail { retryable: bool },
    Cancel,
    Heartbeat,
    Lose,
}

fn random_command() -> impl Strategy<Value = RandomCommand> {
    prop_oneof![
        5 => (0..4u8, any::<bool>(), 0..3i32, 0..20i64, 0..3i64).prop_map(|(id, eager, attempts, close_secs, heartbeat_secs)| {
            RandomCommand::Activity { id, eager, attempts, close_secs, heartbeat_secs }
        }),
        2 => (1..40i64).prop_map(|event_id| RandomCommand::CancelActivity { event_id }),
        3 => (0..3u8, 0..20i64).prop_map(|(id, secs)| RandomCommand::Timer { id, secs }),
        2 => (0..3u8).prop_map(|id| RandomCommand::CancelTimer { id }),
        1 => Just(RandomCommand::Marker),
        1 => (0..2u8, any::<bool>()).prop_map(|(id, null)| RandomCommand::Memo { id, null }),
        2 => (0..20i64).prop_map(|close_secs| RandomCommand::Nexus { close_secs }),
        2 => (1..40i64).prop_map(|event_id| RandomCommand::CancelNexus { event_id }),
        1 => (-2..20i32).prop_map(RandomCommand::Empty),
        1 => Just(RandomCommand::Complete),
    ]
}

fn operator_does() -> impl Strategy<Value = OperatorDoes> {
    prop_oneof![
        2 => (2..30i64).prop_map(|finish_event_id| OperatorDoes::Reset { finish_event_id }),
        2 => Just(OperatorDoes::Pause),
        3 => Just(OperatorDoes::Unpause),
        2 => (0..4u8).prop_map(|id| OperatorDoes::PauseActivity { id }),
        3 => (0..4u8, any::<bool>()).prop_map(|(id, reset)| OperatorDoes::UnpauseActivity { id, reset }),
        2 => (0..4u8, any::<bool>(), 0..5i64)
            .prop_map(|(id, keep_paused, jitter_secs)| OperatorDoes::ResetActivity { id, keep_paused, jitter_secs }),
        2 => (0..4u8, 1..20i64, any::<bool>())
            .prop_map(|(id, close_secs, restore)| OperatorDoes::ChangeActivity { id, close_secs, restore }),
    ]
}

fn handler_does() -> impl Strategy<Value = HandlerDoes> {
    prop_oneof![
        3 => Just(HandlerDoes::Take),
        2 => Just(HandlerDoes::Finish),
        2 => any::<bool>().prop_map(|retryable| HandlerDoes::Refuse { retryable }),
        2 => Just(HandlerDoes::Complete),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let answer = prop_oneof![
        1 => Just(AnswerUpdates::Nothing),
        3 => Just(AnswerUpdates::Reject),
        3 => Just(AnswerUpdates::Accept),
    ];
    let completion = (vec(random_command(), 0..4), any::<bool>(), prop::bool::weighted(0.2), any::<bool>(), answer)
        .prop_map(|(commands, sticky, force, bring, answer)| Step::Complete { commands, sticky, force, bring, answer });
    let does = prop_oneof![
        3 => Just(ActivityDoes::Complete),
        1 => Just(ActivityDoes::CompleteById),
        3 => any::<bool>().prop_map(|retryable| ActivityDoes::Fail { retryable }),
        1 => Just(ActivityDoes::Cancel),
        2 => Just(ActivityDoes::Heartbeat),
        1 => Just(ActivityDoes::Lose),
    ];
    prop_oneof![
        6 => Just(Step::PollWorkflowTask),
        6 => completion,
        1 => Just(Step::FailWorkflowTask),
        2 => (0..6u8).prop_map(|id| Step::Update { id }),
        1 => Just(Step::LoseWorkflowTask),
        4 => Just(Step::PollActivity),
        4 => (0..4usize, does).prop_map(|(which, does)| Step::Activity { which, does }),
        2 => Just(Step::Signal),
        4 => (0..12_000i64).prop_map(|millis| Step::Wait { millis }),
        1 => Just(Step::Crash),
        3 => operator_does().prop_map(Step::Operator),
        4 => (0..3usize, handler_does()).prop_map(|(which, does)| Step::Nexus { which, does }),
    ]
}

fn command_of(random: &RandomCommand) -> Command {
    match random {
        RandomCommand::Activity { id, eager, attempts, close_secs, heartbeat_secs } => {
            commands::activity_with(&id.to_string(), |a| {
                a.request_eager_execution = *eager;
                a.retry_policy = Some(RetryPolicy { maximum_attempts: *attempts, ..RetryPolicy::default() });
                a.schedule_to_close_timeout = Some(Duration::from_secs(*close_secs).to_proto());
                a.heartbeat_timeout = Some(Duration::from_secs(*heartbeat_secs).to_proto());
            })
        }
        RandomCommand::CancelActivity { event_id } => commands::cancel_activity(*event_id),
        RandomCommand::Timer { id, secs } => commands::timer(&id.to_string(), *secs),
        RandomCommand::CancelTimer { id } => commands::cancel_timer(&id.to_string()),
        RandomCommand::Marker => commands::marker("m"),
        RandomCommand::Memo { id, null } => commands::memo(&id.to_string(), if *null { "null" } else { "1" }),
        RandomCommand::Nexus { close_secs } => {
            nexus::schedule_with(|a| a.schedule_to_close_timeout = nexus::seconds(*close_secs))
        }
        RandomCommand::CancelNexus { event_id } => nexus::cancel(*event_id),
        RandomCommand::Empty(kind) => Command { command_type: *kind, ..Command::default() },
        RandomCommand::Complete => commands::complete("done"),
    }
}

/// A run, and what its workers hold.
struct Life {
    chain: TestChain,
    task: Option<WorkflowTask>,
    activities: Vec<PollActivityTaskQueueResponse>,
    /// Of Nexus operations that handlers have heard of.
    operations: Vec<CallbackToken>,
}

impl Life {
    fn take(&mut self, step: &Step) {
        match step {
            Step::PollWorkflowTask => {
                if let Some(offer) = self.chain.take_offer(TaskKind::Workflow)
                    && let Ok(task) = self.chain.try_poll_workflow_task(&offer)
                {
                    self.task = Some(task);
                }
            }
            Step::Complete { commands, sticky, force, bring, answer } => {
                let Some(task) = self.task.clone() else { return };
                let request = RespondWorkflowTaskCompletedRequest {
                    sticky_attributes: sticky.then(sticky_attributes),
                    force_create_new_workflow_task: *force,
                    return_new_workflow_task: *bring,
                    ..self.completion(&task, commands, answer)
                };
                self.complete(request);
            }
            Step::Update { id } => {
                updates::try_update(&mut self.chain, &id.to_string()).ok();
            }
            Step::FailWorkflowTask => {
                if let Some(task) = &self.task {
                    let request = RespondWorkflowTaskFailedRequest {
                        task_token: task.response.task_token.clone(),
                        cause: WorkflowTaskFailedCause::NonDeterministicError as i32,
                        ..RespondWorkflowTaskFailedRequest::default()
                    };
                    self.chain.try_call(workflow_call::Command::RespondWorkflowTaskFailed(request)).ok();
                }
            }
            Step::LoseWorkflowTask => {
                if let Some(task) = self.task.clone() {
                    self.lose(&task.response.task_token);
                }
            }
            Step::PollActivity => {
                if let Some(offer) = self.chain.take_offer(TaskKind::Activity)
                    && let Ok(activity) = self.chain.try_poll_activity(&offer)
                {
                    self.activities.push(activity);
                }
            }
            Step::Activity { which, does } => self.activity(*which, does),
            Step::Signal => {
                let request = SignalWorkflowExecutionRequest {
                    namespace: NAMESPACE.to_owned(),
                    workflow_execution: Some(WorkflowExecution {
                        workflow_id: WORKFLOW_ID.to_owned(),
                        ..WorkflowExecution::default()
                    }),
                    signal_name: "s".to_owned(),
                    ..SignalWorkflowExecutionRequest::default()
                };
                let command = SignalWorkflow { request: Some(request), ..SignalWorkflow::default() };
                self.chain.try_call(workflow_call::Command::Signal(command)).ok();
            }
            Step::Wait { millis } => self.chain.advance(Duration::from_millis(*millis)),
            Step::Crash => self.chain.crash(),
            Step::Operator(does) => self.operate(does),
            Step::Nexus { which, does } => self.handle_nexus(*which, does),
        }
    }

    fn handle_nexus(&mut self, which: usize, does: &HandlerDoes) {
        if matches!(does, HandlerDoes::Complete) {
            if let Some(token) = self.operations.iter().rev().nth(which).cloned() {
                let outcome = nexus_completion::Outcome::Result(nexus::payload("x"));
                self.chain.try_nexus_completion(nexus::ended(token, outcome)).ok();
            }
            return;
        }
        if which >= self.chain.calls.len() {
            return;
        }
        let (id, call) = self.chain.calls.remove(which);
        let Some(workflow_call::Command::Nexus(call)) = call.command else {
            return;
        };
        let is_start = id.kind == CallKind::StartNexusOperation;
        if is_start {
            self.operations.push(nexus::token_of(&call));
        }
        let outcome = match does {
            HandlerDoes::Refuse { retryable: true } => nexus::handler_error("UNAVAILABLE"),
            HandlerDoes::Refuse { retryable: false } => nexus::handler_error("NOT_FOUND"),
            _ if !is_start => nexus::cancel_taken(),
            HandlerDoes::Finish => nexus::sync("x"),
            HandlerDoes::Take | HandlerDoes::Complete => nexus::asynchronous("token"),
        };
        self.chain.on_call_result(&id, Ok(nexus::reply(outcome)));
    }

    fn operate(&mut self, does: &OperatorDoes) {
        let chain = &mut self.chain;
        let mut on = |id: u8, operation| {
            operations::try_operate(chain, Activity::Id(id.to_string()), operation).ok();
        };
        match *does {
            OperatorDoes::PauseActivity { id } => on(id, Operation::Pause(Pause::default())),
            OperatorDoes::UnpauseActivity { id, reset } => {
                on(id, Operation::Unpause(Unpause { reset_attempts: reset, reset_heartbeat: reset, jitter_ns: 0 }));
            }
            OperatorDoes::ResetActivity { id, keep_paused, jitter_secs } => {
                let jitter_ns = Duration::from_secs(jitter_secs).0;
                on(id, Operation::Reset(Reset { keep_paused, jitter_ns, ..Reset::default() }));
            }
            OperatorDoes::ChangeActivity { id, close_secs, restore } => {
                let options = ActivityOptions {
                    start_to_close_timeout: Some(Duration::from_secs(close_secs).to_proto()),
                    ..ActivityOptions::default()
                };
                let mask = prost_types::FieldMask { paths: vec!["start_to_close_timeout".to_owned()] };
                on(
                    id,
                    Operation::UpdateOptions(UpdateOptions {
                        options: Some(options),
                        update_mask: (!restore).then_some(mask),
                        restore_original: restore,
                    }),
                );
            }
            OperatorDoes::Reset { finish_event_id } => {
                let request_id = self.chain.records.len().to_string();
                let request =
                    ResetWorkflowExecutionRequest { request_id, ..operations::reset_request(finish_event_id) };
                operations::try_reset(&mut self.chain, request).ok();
            }
            OperatorDoes::Pause => drop(operations::try_pause(&mut self.chain, "")),
            OperatorDoes::Unpause => drop(operations::try_unpause(&mut self.chain)),
        }
    }

    fn completion(
        &self,
        task: &WorkflowTask,
        commands: &[RandomCommand],
        answer: &AnswerUpdates,
    ) -> RespondWorkflowTaskCompletedRequest {
        let mut commands: Vec<Command> = commands.iter().map(command_of).collect();
        let mut messages = Vec::new();
        for sent in &task.response.messages {
            match answer {
                AnswerUpdates::Nothing => {}
                AnswerUpdates::Reject => messages.push(updates::rejection(sent)),
                AnswerUpdates::Accept => {
                    let (message, command) = updates::acceptance(task, sent);
                    messages.push(message);
                    commands.insert(0, command);
                }
            }
        }
        RespondWorkflowTaskCompletedRequest { messages, ..completion(task, commands) }
    }

    fn complete(&mut self, request: RespondWorkflowTaskCompletedRequest) {
        if let Ok(response) = self.chain.try_complete_with(request) {
            self.task = response.workflow_task.map(|response| WorkflowTask { response, history: None });
            self.activities.extend(response.activity_tasks);
        }
    }

    fn activity(&mut self, which: usize, does: &ActivityDoes) {
        use respond_activity_task::{Canceled, Failed, Heartbeat, Outcome};
        let Some(activity) = self.activities.iter().rev().nth(which).cloned() else {
            return;
        };
        let mut named = activity_ref(&activity.task_token);
        let outcome = match does {
            ActivityDoes::Complete => completed_with("x"),
            ActivityDoes::CompleteById => {
                named = ActivityRef { activity_id: activity.activity_id, ..ActivityRef::default() };
                completed_with("x")
            }
            ActivityDoes::Fail { retryable } => {
                let failure = retryable.then(|| application_failure("x"));
                let failure = failure.or_else(|| Some(fatal()));
                Outcome::Failed(Failed { failure, last_heartbeat_details: Some(payloads("progress")) })
            }
            ActivityDoes::Cancel => Outcome::Canceled(Canceled { details: None }),
            ActivityDoes::Heartbeat => Outcome::Heartbeat(Heartbeat { details: Some(payloads("beat")) }),
            ActivityDoes::Lose => return self.lose(&activity.task_token),
        };
        self.chain.try_respond_activity(named, outcome).ok();
    }

    fn lose(&mut self, token: &[u8]) {
        let token = TaskToken::decode(token).ok();
        self.chain.try_call(workflow_call::Command::TaskUndelivered(TaskUndelivered { token })).ok();
    }

    /// Whatever happened is looked at by a workflow task, sooner or later.
    fn check_progress(&self) {
        let snapshot = self.chain.snapshot();
        let info = snapshot.info.expect("info");
        if info.status() != WorkflowExecutionStatus::Running || info.workflow_task.is_some() {
            return;
        }
        assert!(snapshot.buffered_events.is_empty(), "buffered without a started workflow task");
        let types = self.chain.types();
        let seen = types.iter().rposition(|kind| *kind == E::WorkflowTaskCompleted).expect("a first task");
        let unseen = types[seen..].iter().find(|kind| {
            matches!(
                kind,
                E::WorkflowExecutionSignaled
                    | E::TimerFired
                    | E::ActivityTaskCompleted
                    | E::ActivityTaskFailed
                    | E::ActivityTaskTimedOut
                    | E::ActivityTaskCanceled
                    | E::NexusOperationStarted
                    | E::NexusOperationCompleted
                    | E::NexusOperationFailed
                    | E::NexusOperationTimedOut
                    | E::NexusOperationCancelRequestCompleted
                    | E::NexusOperationCancelRequestFailed
            )
        });
        assert_eq!(unseen, None, "nobody looks at it: {types:?}");
    }

    /// Every offer that a worker could still take must come again from the one who takes over.
    fn check_takeover(&self) {
        let mut heir = self.heir();
        let mut again: Vec<Offer> = heir.offers.drain(..).collect();
        again.sort_by_key(|offer| (offer.kind, offer.scheduled_event_id, offer.attempt));
        for offer in &self.chain.offers {
            let mut trial = self.heir();
            let valid = match offer.kind() {
                TaskKind::Workflow => trial.try_poll_workflow_task(offer).is_ok(),
                TaskKind::Activity | TaskKind::Unspecified => trial.try_poll_activity(offer).is_ok(),
            };
            let key = |o: &Offer| (o.kind, o.attempt, o.stamp, o.normal_task_queue.clone());
            assert!(!valid || again.iter().any(|o| key(o) == key(offer)), "lost: {offer:?}, offered again: {again:?}");
        }
    }

    /// So must every request to a handler.
    fn check_requests(&self) {
        let is_request = |kind| matches!(kind, CallKind::StartNexusOperation | CallKind::CancelNexusOperation);
        let requests = |chain: &TestChain| -> BTreeSet<CallId> {
            chain.calls.iter().map(|(id, _)| id.clone()).filter(|id| is_request(id.kind)).collect()
        };
        let run_id = self.chain.run_id();
        let mut outstanding = requests(&self.chain);
        let pending = self.chain.snapshot().nexus_operations;
        outstanding.retain(|id| {
            let operation = pending.iter().find(|operation| operation.scheduled_event_id == id.event_id);
            id.run_id == run_id
                && operation.is_some_and(|operation| match id.kind {
                    CallKind::StartNexusOperation => operation.started_time_ns == 0 && operation.next_attempt_ns == 0,
                    _ => true,
                })
        });
        let again = requests(&self.heir());
        assert!(outstanding.is_subset(&again), "lost: {outstanding:?}, made again: {again:?}");
    }

    /// A new owner of what is durable.
    fn heir(&self) -> TestChain {
        let mut heir = TestChain::new();
        heir.now = self.chain.now;
        for record in &self.chain.records {
            heir.replica.apply(record).expect("applies");
        }
        heir.histories = self.chain.histories.clone();
        heir.crash();
        heir
    }
}

fn fatal() -> perdure_proto::temporal::api::failure::v1::Failure {
    let mut failure = application_failure("x");
    if let Some(perdure_proto::temporal::api::failure::v1::failure::FailureInfo::ApplicationFailureInfo(info)) =
        &mut failure.failure_info
    {
        info.non_retryable = true;
    }
    failure
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_life_keeps_the_promises(steps in vec(step(), 1..60)) {
        let mut life = Life { chain: TestChain::started(), task: None, activities: Vec::new(), operations: Vec::new() };
        for step in &steps {
            life.take(step);
            life.check_progress();
        }
        life.check_takeover();
        life.check_requests();
    }

    #[test]
    fn arbitrary_tokens_change_nothing(bytes in vec(any::<u8>(), 0..80), kind in 0..5i32, ids in (any::<i64>(), any::<i64>(), any::<i32>())) {
        let mut chain = TestChain::started();
        let task = chain.poll();
        let token = TaskToken {
            kind,
            run_id: chain.run_id(),
            scheduled_event_id: ids.0,
            started_event_id: ids.1,
            attempt: ids.2,
            ..TaskToken::default()
        };
        for bytes in [bytes.clone(), token.encode_to_vec()] {
            let request = RespondWorkflowTaskCompletedRequest { task_token: bytes.clone().into(), ..completion(&task, vec![]) };
            prop_assert!(chain.try_complete_with(request).is_err());
            let request = RespondWorkflowTaskFailedRequest { task_token: bytes.clone().into(), ..Default::default() };
            prop_assert!(chain.try_call(workflow_call::Command::RespondWorkflowTaskFailed(request)).is_err());
        }
        let named = ActivityRef { scheduled_event_id: ids.0, started_event_id: ids.1, attempt: ids.2, ..ActivityRef::default() };
        prop_assert!(chain.try_respond_activity(named, completed_with("")).is_err());
        chain.try_call(workflow_call::Command::TaskUndelivered(TaskUndelivered { token: Some(token) })).ok();
        chain.complete(&task, vec![commands::complete("")]);
    }

    /// Whatever a worker's bytes decode to is carried out or refused.
    #[test]
    fn arbitrary_commands_do_not_panic(bytes in vec(any::<u8>(), 0..200), kind in 0..20i32) {
        let mut chain = TestChain::started();
        let task = chain.poll();
        let mut command = Command::decode(&*bytes).unwrap_or_default();
        if command.command_type == 0 {
            command.command_type = kind;
        }
        chain.try_complete(&task, vec![command]).ok();
        let _ = Chain::run_ref(&workflow_call::Command::RespondWorkflowTaskCompleted(completion(&task, vec![])));
    }
}
