//! Which version of its workers a run is on, and how it comes to another.

mod common;

use common::*;
use perdure_proto::{
    Code,
    perdure::node::v1::{Offer, RecordActivityTaskStarted, RecordWorkflowTaskStarted, TaskKind, workflow_call},
    temporal::api::{
        command::v1::{Command, ContinueAsNewWorkflowExecutionCommandAttributes, command::Attributes},
        deployment::v1::{WorkerDeploymentOptions, WorkerDeploymentVersion},
        enums::v1::{CommandType, VersioningBehavior as Behavior, WorkerVersioningMode},
        history::v1::history_event,
        workflow::v1::{
            VersioningOverride, WorkflowExecutionOptions, WorkflowExecutionVersioningInfo,
            versioning_override::{Override, PinnedOverride, PinnedOverrideBehavior},
        },
        workflowservice::v1::{
            DescribeWorkflowExecutionRequest, PollActivityTaskQueueRequest, PollWorkflowTaskQueueRequest,
            UpdateWorkflowExecutionOptionsRequest,
        },
    },
    versions,
};
use prost_types::FieldMask;

fn v(build_id: &str) -> WorkerDeploymentVersion {
    versions::version("d", build_id)
}

fn options(build_id: &str) -> WorkerDeploymentOptions {
    WorkerDeploymentOptions {
        deployment_name: "d".into(),
        build_id: build_id.into(),
        worker_versioning_mode: WorkerVersioningMode::Versioned as i32,
    }
}

struct Versioned(TestChain);

impl Versioned {
    fn started() -> Self {
        Self(TestChain::started())
    }

    fn offer(&mut self, kind: TaskKind) -> Offer {
        self.0.take_offer(kind).expect("an offer")
    }

    /// A worker of this version starts the workflow task, as the queue's routing (of this revision) says.
    fn start_on(&mut self, offer: &Offer, build_id: &str, revision: i64) -> Result<WorkflowTask, perdure_proto::Error> {
        let poll = PollWorkflowTaskQueueRequest { deployment_options: Some(options(build_id)), ..Default::default() };
        let reply = self.0.try_call(workflow_call::Command::RecordWorkflowTaskStarted(RecordWorkflowTaskStarted {
            run_id: offer.run_id.clone(),
            scheduled_event_id: offer.scheduled_event_id,
            attempt: offer.attempt,
            stamp: offer.stamp,
            request_id: format!("poll-{build_id}"),
            poll: Some(poll),
            routing_revision: revision,
            target_version: Some(v(build_id)),
            target_revision: revision,
            build_id: String::new(),
        }))?;
        match reply.message.reply {
            Some(perdure_proto::perdure::node::v1::workflow_reply::Reply::WorkflowTask(response)) => {
                Ok(WorkflowTask { response, history: reply.history })
            }
            other => panic!("{other:?}"),
        }
    }

    fn complete_on(&mut self, task: &WorkflowTask, build_id: &str, behavior: Behavior, commands: Vec<Command>) {
        let mut request = completion(task, commands);
        request.deployment_options = Some(options(build_id));
        request.versioning_behavior = behavior as i32;
        self.0.call(workflow_call::Command::RespondWorkflowTaskCompleted(request));
    }

    /// The next workflow task, start to end.
    fn work_on(&mut self, build_id: &str, revision: i64, behavior: Behavior, commands: Vec<Command>) {
        let offer = self.offer(TaskKind::Workflow);
        let task = self.start_on(&offer, build_id, revision).expect("started");
        self.complete_on(&task, build_id, behavior, commands);
    }

    fn info(&mut self) -> WorkflowExecutionVersioningInfo {
        let reply = self.0.call(workflow_call::Command::Describe(DescribeWorkflowExecutionRequest::default()));
        match reply.message.reply {
            Some(perdure_proto::perdure::node::v1::workflow_reply::Reply::Describe(described)) => {
                described.workflow_execution_info.expect("info").versioning_info.unwrap_or_default()
            }
            other => panic!("{other:?}"),
        }
    }

    fn start_activity(&mut self, offer: &Offer, build_id: &str, target: &str) -> Result<(), perdure_proto::Error> {
        let poll = PollActivityTaskQueueRequest { deployment_options: Some(options(build_id)), ..Default::default() };
        let command = RecordActivityTaskStarted {
            run_id: offer.run_id.clone(),
            scheduled_event_id: offer.scheduled_event_id,
            attempt: offer.attempt,
            stamp: offer.stamp,
            request_id: "activity-poll".into(),
            poll: Some(poll),
            routing_revision: 2,
            workflow_target: Some(v(target)),
            workflow_target_revision: 2,
        };
        self.0.try_call(workflow_call::Command::RecordActivityTaskStarted(command)).map(drop)
    }

    fn pin(&mut self, version: Option<&str>) {
        let versioning_override = version.map(|build_id| VersioningOverride {
            r#override: Some(Override::Pinned(PinnedOverride {
                behavior: PinnedOverrideBehavior::Pinned as i32,
                version: Some(v(build_id)),
            })),
            ..Default::default()
        });
        self.0.call(workflow_call::Command::UpdateOptions(Box::new(UpdateWorkflowExecutionOptionsRequest {
            workflow_execution_options: Some(WorkflowExecutionOptions { versioning_override, ..Default::default() }),
            update_mask: Some(FieldMask { paths: vec!["versioning_override".into()] }),
            ..Default::default()
        })));
    }
}

#[test]
fn a_run_comes_to_a_version_with_its_first_task_and_moves_with_a_later_one() {
    let mut run = Versioned::started();
    let offer = run.offer(TaskKind::Workflow);
    assert_eq!(offer.directive, None);
    let task = run.start_on(&offer, "1", 3).expect("started");
    assert_eq!(run.info().version_transition.expect("moving").deployment_version, Some(v("1")));
    run.complete_on(&task, "1", Behavior::AutoUpgrade, vec![]);
    let info = run.info();
    assert_eq!(
        (info.behavior(), info.deployment_version, info.revision_number),
        (Behavior::AutoUpgrade, Some(v("1")), 3)
    );
    assert!(info.version_transition.is_none());

    run.0.signal("go");
    let offer = run.offer(TaskKind::Workflow);
    let directive = offer.directive.clone().expect("a directive");
    assert_eq!((directive.behavior(), directive.version, directive.revision), (Behavior::AutoUpgrade, Some(v("1")), 3));
    let task = run.start_on(&offer, "2", 4).expect("started");
    run.0.crash();
    run.complete_on(&task, "2", Behavior::Pinned, vec![]);
    let info = run.info();
    assert_eq!((info.behavior(), info.deployment_version), (Behavior::Pinned, Some(v("2"))));
    let shown = &run.0.snapshot().search_attributes.expect("attributes").indexed_fields;
    assert_eq!(&shown["TemporalWorkerDeploymentVersion"].data[..], b"\"d:2\"");
    assert_eq!(&shown["TemporalUsedWorkerDeploymentVersions"].data[..], b"[\"d:1\",\"d:2\"]");
}

#[test]
fn a_pinned_run_refuses_workers_of_other_versions_and_tells_its_own_of_the_news() {
    let mut run = Versioned::started();
    run.work_on("1", 3, Behavior::Pinned, vec![]);
    run.0.signal("go");
    let offer = run.offer(TaskKind::Workflow);
    assert_eq!(run.start_on(&offer, "2", 4).map(drop).expect_err("refused").grpc_code(), Code::NotFound);
    let poll = PollWorkflowTaskQueueRequest { deployment_options: Some(options("1")), ..Default::default() };
    run.0.call(workflow_call::Command::RecordWorkflowTaskStarted(RecordWorkflowTaskStarted {
        run_id: offer.run_id.clone(),
        scheduled_event_id: offer.scheduled_event_id,
        attempt: offer.attempt,
        stamp: offer.stamp,
        request_id: "poll".into(),
        poll: Some(poll),
        routing_revision: 3,
        target_version: Some(v("2")),
        target_revision: 4,
        build_id: String::new(),
    }));
    match run.0.last() {
        history_event::Attributes::WorkflowTaskStartedEventAttributes(started) => {
            assert!(started.target_worker_deployment_version_changed);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_override_moves_what_waits_and_makes_earlier_offers_stale() {
    let mut run = Versioned::started();
    run.work_on("1", 3, Behavior::AutoUpgrade, vec![commands::activity("a")]);
    let activity = run.offer(TaskKind::Activity);
    run.0.signal("go");
    let before = run.offer(TaskKind::Workflow);
    run.pin(Some("2"));
    let after = run.offer(TaskKind::Workflow);
    assert_eq!(after.directive.clone().expect("a directive").version, Some(v("2")));
    assert!(run.start_on(&before, "1", 3).is_err());
    let again = run.offer(TaskKind::Activity);
    assert!(again.stamp > activity.stamp);
    assert!(run.start_on(&after, "2", 3).is_ok());
    assert!(run.info().version_transition.is_none());
    run.pin(None);
    assert_eq!(run.info().deployment_version, Some(v("1")));
}

#[test]
fn an_activity_that_goes_ahead_brings_its_workflow_along() {
    let mut run = Versioned::started();
    run.work_on("1", 1, Behavior::AutoUpgrade, vec![commands::activity("a")]);
    let offer = run.offer(TaskKind::Activity);
    assert!(run.start_activity(&offer, "2", "2").is_err());
    assert_eq!(run.info().version_transition.expect("moving").deployment_version, Some(v("2")));
    // While it moves nothing starts; then the activity comes again, and goes with it.
    assert!(run.start_activity(&offer, "1", "2").is_err());
    run.work_on("2", 2, Behavior::AutoUpgrade, vec![]);
    let again = run.offer(TaskKind::Activity);
    assert_eq!(again.directive.clone().expect("a directive").version, Some(v("2")));
    assert!(run.start_activity(&offer, "1", "2").is_err());
    assert!(run.start_activity(&again, "2", "2").is_ok());
}

#[test]
fn an_activity_of_other_workers_is_their_own_business() {
    let mut run = Versioned::started();
    run.work_on("1", 1, Behavior::AutoUpgrade, vec![commands::activity("a")]);
    let offer = run.offer(TaskKind::Activity);
    assert!(run.start_activity(&offer, "7", "1").is_ok());
    assert!(run.info().version_transition.is_none());
}

#[test]
fn a_continued_run_inherits_what_it_is_pinned_to() {
    let mut run = Versioned::started();
    let again = Command {
        command_type: CommandType::ContinueAsNewWorkflowExecution as i32,
        attributes: Some(Attributes::ContinueAsNewWorkflowExecutionCommandAttributes(
            ContinueAsNewWorkflowExecutionCommandAttributes::default(),
        )),
        ..Default::default()
    };
    run.work_on("1", 3, Behavior::Pinned, vec![]);
    run.0.signal("go");
    run.work_on("1", 3, Behavior::Pinned, vec![again]);
    let info = run.info();
    assert_eq!((info.behavior(), info.deployment_version), (Behavior::Pinned, Some(v("1"))));
    let offer = run.offer(TaskKind::Workflow);
    assert!(run.start_on(&offer, "2", 4).is_err());
    assert!(run.start_on(&offer, "1", 3).is_ok());
}
