//! The older forms of worker versioning: which build id a run is on, and what follows inherits it.

#![allow(deprecated)]

mod common;

use common::*;
use perdure_proto::{
    perdure::node::v1::{Offer, RecordWorkflowTaskStarted, TaskKind, workflow_call, workflow_reply},
    temporal::api::{
        command::v1::{
            Command, ContinueAsNewWorkflowExecutionCommandAttributes, StartChildWorkflowExecutionCommandAttributes,
            command::Attributes,
        },
        common::v1::{WorkerVersionCapabilities, WorkerVersionStamp},
        enums::v1::CommandType,
        history::v1::history_event,
        workflow::v1::WorkflowExecutionInfo,
        workflowservice::v1::{DescribeWorkflowExecutionRequest, PollWorkflowTaskQueueRequest},
    },
};

struct Run(TestChain);

impl Run {
    fn offer(&mut self) -> Offer {
        self.0.take_offer(TaskKind::Workflow).expect("an offer")
    }

    /// A worker of the build id does the next workflow task. `assigned`: by a rule, and not by a set.
    fn work_on(&mut self, build_id: &str, assigned: bool, commands: Vec<Command>) {
        let offer = self.offer();
        let poll = PollWorkflowTaskQueueRequest {
            worker_version_capabilities: Some(WorkerVersionCapabilities {
                build_id: build_id.into(),
                use_versioning: true,
                ..Default::default()
            }),
            ..Default::default()
        };
        let reply = self.0.call(workflow_call::Command::RecordWorkflowTaskStarted(RecordWorkflowTaskStarted {
            run_id: offer.run_id.clone(),
            scheduled_event_id: offer.scheduled_event_id,
            attempt: offer.attempt,
            stamp: offer.stamp,
            request_id: format!("poll-{build_id}"),
            poll: Some(poll),
            build_id: if assigned { build_id.into() } else { String::new() },
            ..Default::default()
        }));
        let Some(workflow_reply::Reply::WorkflowTask(response)) = reply.message.reply else { panic!("no task") };
        let task = WorkflowTask { response, history: reply.history };
        let mut request = completion(&task, commands);
        request.worker_version_stamp = Some(WorkerVersionStamp { build_id: build_id.into(), use_versioning: true });
        self.0.call(workflow_call::Command::RespondWorkflowTaskCompleted(request));
    }

    fn next_build_id(&mut self) -> (String, bool) {
        self.0.signal("go");
        let offer = self.offer();
        let told = (offer.directive.clone().map(|directive| directive.build_id).unwrap_or_default(), offer.unassigned);
        let task = self.0.try_poll_workflow_task(&offer).expect("started");
        self.0.complete(&task, vec![]);
        told
    }

    fn info(&mut self) -> WorkflowExecutionInfo {
        let reply = self.0.call(workflow_call::Command::Describe(DescribeWorkflowExecutionRequest::default()));
        match reply.message.reply {
            Some(workflow_reply::Reply::Describe(described)) => described.workflow_execution_info.expect("info"),
            other => panic!("{other:?}"),
        }
    }

    fn shown(&self) -> String {
        let attributes = self.0.snapshot().search_attributes.expect("attributes").indexed_fields;
        String::from_utf8(attributes["BuildIds"].data.to_vec()).expect("text")
    }
}

#[test]
fn a_rule_assigns_a_build_id_and_redirects_to_another() {
    let mut run = Run(TestChain::started());
    run.work_on("1", true, vec![]);
    assert_eq!(run.info().assigned_build_id, "1");
    assert!(run.info().versioning_info.is_none(), "no deployment has to do with it");
    run.0.signal("go");
    run.0.crash();
    run.work_on("2", true, vec![]);
    assert_eq!(run.info().assigned_build_id, "2");
    assert_eq!(run.shown(), r#"["assigned:2","versioned:1","versioned:2"]"#);
    let started = run.0.history().iter().filter_map(|event| match &event.attributes {
        Some(history_event::Attributes::WorkflowTaskStartedEventAttributes(started)) => started.worker_version.clone(),
        _ => None,
    });
    assert_eq!(started.map(|stamp| stamp.build_id).collect::<Vec<_>>(), ["1", "2"]);
}

#[test]
fn a_run_stays_in_the_set_of_the_worker_that_it_had() {
    let mut run = Run(TestChain::started());
    run.work_on("1", false, vec![]);
    assert_eq!(run.shown(), r#"["versioned:1"]"#);
    assert_eq!(run.next_build_id(), ("1".to_owned(), false));
    assert_eq!(run.next_build_id(), (String::new(), false), "an unversioned worker has taken it over");
    assert_eq!(run.shown(), r#"["unversioned","versioned:1"]"#);
}

#[test]
fn rules_have_a_say_until_a_worker_has_completed_a_task() {
    let mut run = Run(TestChain::started());
    let offer = run.offer();
    assert!(offer.unassigned && offer.directive.is_none());
    let task = run.0.try_poll_workflow_task(&offer).expect("started");
    run.0.complete(&task, vec![]);
    assert_eq!(run.next_build_id(), (String::new(), false), "what unversioned workers began they go on with");
}

#[test]
fn activities_are_the_workflows_or_go_their_own_way() {
    let mut run = Run(TestChain::started());
    let activity = |id: &str, own| commands::activity_with(id, |activity| activity.use_workflow_build_id = own);
    run.work_on("1", true, vec![activity("a", true)]);
    let offer = run.0.take_offer(TaskKind::Activity).expect("an offer");
    assert_eq!((offer.directive.expect("a directive").build_id.as_str(), offer.unassigned), ("1", false));
    run.0.signal("go");
    run.work_on("1", true, vec![activity("b", false)]);
    let offer = run.0.take_offer(TaskKind::Activity).expect("an offer");
    assert!(offer.directive.is_none() && offer.unassigned);
}

#[test]
fn what_follows_inherits_a_build_id_if_the_worker_wants_that() {
    for inherit in [true, false] {
        let mut run = Run(TestChain::started());
        let child = StartChildWorkflowExecutionCommandAttributes {
            workflow_id: "child".into(),
            workflow_type: Some(perdure_proto::temporal::api::common::v1::WorkflowType { name: "c".into() }),
            inherit_build_id: inherit,
            ..Default::default()
        };
        let child = Attributes::StartChildWorkflowExecutionCommandAttributes(child);
        run.work_on("1", true, vec![command(CommandType::StartChildWorkflowExecution, child)]);
        let told = run.0.calls.iter().find_map(|(_, call)| match &call.command {
            Some(workflow_call::Command::Start(start)) => start.parent.as_ref().map(|p| p.build_id.clone()),
            _ => None,
        });
        let expect = if inherit { "1" } else { "" };
        assert_eq!(told.as_deref(), Some(expect));

        run.0.signal("go");
        let again = ContinueAsNewWorkflowExecutionCommandAttributes { inherit_build_id: inherit, ..Default::default() };
        let again = Attributes::ContinueAsNewWorkflowExecutionCommandAttributes(again);
        run.work_on("1", true, vec![command(CommandType::ContinueAsNewWorkflowExecution, again)]);
        let info = run.info();
        assert_eq!((info.inherited_build_id.as_str(), info.assigned_build_id.as_str()), (expect, expect));
        let offer = run.offer();
        assert_eq!(offer.unassigned, !inherit);
        assert_eq!(offer.directive.map(|directive| directive.build_id).unwrap_or_default(), expect);
    }
}
