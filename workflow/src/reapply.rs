//! What a reset takes over of what had happened after its point: signals and updates unless they are excluded, changes of
//! options, and what became of children that had been started before the point.

use std::{collections::BTreeSet, sync::Arc};

use perdure_proto::temporal::api::{
    enums::v1::{ResetReapplyExcludeType, ResetReapplyType, UpdateAdmittedEventOrigin},
    history::v1::{
        HistoryEvent, WorkflowExecutionOptionsUpdatedEventAttributes, WorkflowExecutionUpdateAdmittedEventAttributes,
        history_event::Attributes,
    },
    update::v1::Request,
    workflowservice::v1::ResetWorkflowExecutionRequest,
};

use crate::{api::Env, nexus::ended_operation, run::Run, signal::Signal};

/// Kinds of events that are not to be taken over.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Excluded {
    signals: bool,
    updates: bool,
    nexus: bool,
    /// Every kind there is is named: then nothing at all is.
    everything: bool,
}

impl Excluded {
    /// From both ways of saying it: the kinds to exclude, and (older) the kinds to include.
    #[allow(deprecated, reason = "older clients still send what newer ones replaced")]
    pub fn of(request: &ResetWorkflowExecutionRequest) -> Self {
        let mut kinds: BTreeSet<i32> = request.reset_reapply_exclude_types.iter().copied().collect();
        use ResetReapplyExcludeType as Kind;
        match request.reset_reapply_type() {
            ResetReapplyType::Signal => kinds.extend([Kind::Update as i32]),
            ResetReapplyType::None => kinds.extend([Kind::Signal as i32, Kind::Update as i32]),
            ResetReapplyType::Unspecified | ResetReapplyType::AllEligible => {}
        }
        let all = [Kind::Signal, Kind::Update, Kind::Nexus, Kind::CancelRequest];
        Self {
            signals: kinds.contains(&(Kind::Signal as i32)),
            updates: kinds.contains(&(Kind::Update as i32)),
            nexus: kinds.contains(&(Kind::Nexus as i32)),
            everything: all.iter().all(|kind| kinds.contains(&(*kind as i32))),
        }
    }
}

impl Run {
    pub(crate) fn reapply(&mut self, events: &[HistoryEvent], excluded: &Excluded, base: &Run, env: &mut Env) {
        if excluded.everything {
            return;
        }
        for event in events {
            match &event.attributes {
                Some(Attributes::WorkflowExecutionSignaledEventAttributes(a)) if !excluded.signals => {
                    let signal = Signal {
                        name: a.signal_name.clone(),
                        input: a.input.clone(),
                        identity: a.identity.clone(),
                        header: a.header.clone(),
                        external_execution: a.external_workflow_execution.clone(),
                        request_id: a.request_id.clone(),
                        links: event.links.clone(),
                    };
                    self.record_signal(env, signal);
                }
                Some(Attributes::WorkflowExecutionUpdateAdmittedEventAttributes(a)) if !excluded.updates => {
                    self.readmit(a.request.clone(), a.origin(), env);
                }
                // Without a request the update was admitted by an event before, which is taken over itself.
                Some(Attributes::WorkflowExecutionUpdateAcceptedEventAttributes(a)) if !excluded.updates => {
                    self.readmit(a.accepted_request.clone(), UpdateAdmittedEventOrigin::Reapply, env);
                }
                Some(Attributes::WorkflowExecutionOptionsUpdatedEventAttributes(a)) => {
                    self.reapply_options(event, a, env);
                }
                Some(attributes) => {
                    self.reapply_child_event(event, attributes, base, env);
                    if !excluded.nexus {
                        self.reapply_nexus_event(event, attributes, env);
                    }
                }
                None => {}
            }
        }
    }

    fn readmit(&mut self, request: Option<Request>, origin: UpdateAdmittedEventOrigin, env: &Env) {
        let Some(request) = request else { return };
        let attributes =
            WorkflowExecutionUpdateAdmittedEventAttributes { request: Some(request), origin: origin as i32 };
        self.add_event(env.now, Attributes::WorkflowExecutionUpdateAdmittedEventAttributes(attributes));
        if let Some(event) = self.last_new_event()
            && let Some(attributes) = &event.attributes
        {
            self.follow_update(&event, attributes);
        }
    }

    fn reapply_options(&mut self, event: &HistoryEvent, a: &WorkflowExecutionOptionsUpdatedEventAttributes, env: &Env) {
        if !a.attached_request_id.is_empty() && self.request_ids.contains_key(&a.attached_request_id) {
            return;
        }
        let workflow_update_options = self.attachments_to_reapply(&a.workflow_update_options);
        if workflow_update_options.is_empty() && !a.workflow_update_options.is_empty() {
            return;
        }
        let a = &WorkflowExecutionOptionsUpdatedEventAttributes { workflow_update_options, ..a.clone() };
        let id = self.add_prepared(
            env.now,
            HistoryEvent {
                links: event.links.clone(),
                worker_may_ignore: event.worker_may_ignore,
                attributes: Some(Attributes::WorkflowExecutionOptionsUpdatedEventAttributes(a.clone())),
                ..HistoryEvent::default()
            },
        );
        self.follow_options(id, a);
        self.attach_callbacks(&a.attached_request_id, &a.attached_completion_callbacks, env.now);
        self.take_attachments(&a.workflow_update_options, id, env.now);
    }

    /// What became of operations that had been scheduled before the point.
    fn reapply_nexus_event(&mut self, event: &HistoryEvent, attributes: &Attributes, env: &Env) {
        let Some((id, request_id, is_start)) = nexus_operation_of(attributes) else { return };
        let Some(operation) = self.nexus_operations.get(&id) else { return };
        let is_same = request_id.is_empty() || operation.scheduled().request_id == request_id;
        if !is_same || (is_start && operation.has_started()) {
            return;
        }
        let attributes = Some(attributes.clone());
        self.add_prepared(env.now, HistoryEvent { links: event.links.clone(), attributes, ..HistoryEvent::default() });
        let Some(event) = self.last_new_event() else { return };
        if let Some(attributes) = &Arc::clone(&event).attributes {
            self.follow_nexus(&event, attributes, env);
        }
    }

    fn reapply_child_event(&mut self, event: &HistoryEvent, attributes: &Attributes, base: &Run, env: &Env) {
        let Some((initiated, is_start)) = child_of(attributes) else { return };
        let Some(child) = self.children.get(&initiated) else { return };
        let started_event_id = child.info.started_event_id;
        if is_start && started_event_id != 0 {
            return;
        }
        let mut attributes = attributes.clone();
        set_started_event(&mut attributes, started_event_id);
        self.add_prepared(
            env.now,
            HistoryEvent { links: event.links.clone(), attributes: Some(attributes), ..HistoryEvent::default() },
        );
        let Some(event) = self.last_new_event() else { return };
        if let Some(attributes) = &Arc::clone(&event).attributes {
            self.follow_child(&event, attributes, base);
        }
    }
}

/// Of events that handlers cause: the operation's Scheduled event and its request, and whether they say that it has started.
fn nexus_operation_of(attributes: &Attributes) -> Option<(i64, &str, bool)> {
    match attributes {
        Attributes::NexusOperationStartedEventAttributes(a) => Some((a.scheduled_event_id, &a.request_id, true)),
        other => ended_operation(other).map(|(id, request_id)| (id, request_id, false)),
    }
}

/// Of events about a child that do not begin it: its initiated event, and whether they say that it has started.
fn child_of(attributes: &Attributes) -> Option<(i64, bool)> {
    use Attributes as A;
    match attributes {
        A::ChildWorkflowExecutionStartedEventAttributes(a) => Some((a.initiated_event_id, true)),
        A::StartChildWorkflowExecutionFailedEventAttributes(a) => Some((a.initiated_event_id, false)),
        A::ChildWorkflowExecutionCompletedEventAttributes(a) => Some((a.initiated_event_id, false)),
        A::ChildWorkflowExecutionFailedEventAttributes(a) => Some((a.initiated_event_id, false)),
        A::ChildWorkflowExecutionCanceledEventAttributes(a) => Some((a.initiated_event_id, false)),
        A::ChildWorkflowExecutionTimedOutEventAttributes(a) => Some((a.initiated_event_id, false)),
        A::ChildWorkflowExecutionTerminatedEventAttributes(a) => Some((a.initiated_event_id, false)),
        _ => None,
    }
}

/// In the new run the child's Started event stands elsewhere.
fn set_started_event(attributes: &mut Attributes, id: i64) {
    use Attributes as A;
    match attributes {
        A::ChildWorkflowExecutionCompletedEventAttributes(a) => a.started_event_id = id,
        A::ChildWorkflowExecutionFailedEventAttributes(a) => a.started_event_id = id,
        A::ChildWorkflowExecutionCanceledEventAttributes(a) => a.started_event_id = id,
        A::ChildWorkflowExecutionTimedOutEventAttributes(a) => a.started_event_id = id,
        A::ChildWorkflowExecutionTerminatedEventAttributes(a) => a.started_event_id = id,
        _ => {}
    }
}
