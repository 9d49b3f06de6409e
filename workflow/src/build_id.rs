//! The older forms of worker versioning: the build id that a run is on. By a rule of its task queue it is assigned one when
//! its first workflow task starts, and may be redirected by each later one. Otherwise it is on that of the worker that
//! completed its latest workflow task, which may be one of a set; the task queue knows.

#![allow(deprecated, reason = "worker deployments have replaced it")]

use perdure_proto::{
    build_ids,
    perdure::{
        node::v1::{ParentInfo, RecordWorkflowTaskStarted, VersionDirective},
        state::v1::RunBuildId,
    },
    temporal::api::{
        common::v1::WorkerVersionStamp,
        enums::v1::{ContinueAsNewInitiator, VersioningBehavior as Behavior},
        history::v1::{
            StartChildWorkflowExecutionInitiatedEventAttributes, WorkflowExecutionStartedEventAttributes,
            WorkflowTaskCompletedEventAttributes,
        },
        workflowservice::v1::PollWorkflowTaskQueueRequest,
    },
};

use crate::{activity::Activity, run::Run};

/// Build ids that the list of used ones names at most; the oldest go first.
const MOST_USED: usize = 50;

impl Run {
    fn build_id(&self) -> Option<&RunBuildId> {
        self.info.versioning.as_ref()?.build_id.as_ref()
    }

    fn edit_build_id(&mut self) -> &mut RunBuildId {
        self.edit_versioning().build_id.get_or_insert_default()
    }

    pub(crate) fn assigned_build_id(&self) -> String {
        self.build_id().map(|build_id| build_id.assigned.clone()).unwrap_or_default()
    }

    pub(crate) fn inherited_build_id(&self) -> String {
        self.build_id().map(|build_id| build_id.inherited.clone()).unwrap_or_default()
    }

    /// No worker has completed a workflow task yet, and nothing is inherited: the task queue's rules say where the next one
    /// goes, even if it is not the first.
    pub(crate) fn is_unassigned(&self) -> bool {
        self.info.last_completed_workflow_task_started_id == 0
            && self.build_id().is_none_or(|build_id| build_id.inherited.is_empty() && build_id.in_set.is_empty())
    }

    /// What a task queue has to know of a run that no deployment has to do with.
    pub(crate) fn build_id_directive(&self) -> Option<Box<VersionDirective>> {
        let build_id = self.build_id().filter(|_| !self.is_unassigned())?;
        let known = if build_id.assigned.is_empty() { &build_id.in_set } else { &build_id.assigned };
        (!known.is_empty())
            .then(|| Box::new(VersionDirective { build_id: known.clone(), ..VersionDirective::default() }))
    }

    /// Where an activity goes, and whether the rules of its own task queue may say so.
    pub(crate) fn activity_directive(&self, activity: &Activity) -> (Option<Box<VersionDirective>>, bool) {
        let directive = self.version_directive();
        if activity.scheduled().use_workflow_build_id {
            return (directive, false);
        }
        // A deployment's version is for all queues.
        let directive = directive.filter(|directive| directive.build_id.is_empty());
        let is_unassigned = directive.is_none();
        (directive, is_unassigned)
    }

    /// What the Started event says of a worker that uses an older form.
    pub(crate) fn stamp_of(poll: &PollWorkflowTaskQueueRequest) -> Option<WorkerVersionStamp> {
        let build_id =
            build_ids::of_worker(poll.worker_version_capabilities.as_ref(), poll.deployment_options.as_ref())?;
        Some(WorkerVersionStamp { build_id: build_id.to_owned(), use_versioning: true })
    }

    /// A rule has brought a workflow task to its worker.
    pub(crate) fn note_assigned(&mut self, request: &RecordWorkflowTaskStarted) {
        if request.build_id.is_empty() || self.assigned_build_id() == request.build_id {
            return;
        }
        let build_id = self.edit_build_id();
        build_id.assigned.clone_from(&request.build_id);
        note_used(build_id, &request.build_id);
        self.show_version();
    }

    /// A worker that no deployment has to do with has completed a workflow task.
    pub(crate) fn note_stamp(&mut self, a: &WorkflowTaskCompletedEventAttributes) {
        let is_newer = a.deployment_version.is_some()
            || a.deployment.is_some()
            || a.versioning_behavior() != Behavior::Unspecified;
        let stamp = a.worker_version.as_ref().filter(|stamp| stamp.use_versioning && !is_newer);
        let used = stamp.map(|stamp| stamp.build_id.as_str()).unwrap_or_default();
        if used.is_empty() {
            if self.build_id().is_some_and(|build_id| !build_id.in_set.is_empty()) {
                self.edit_build_id().in_set.clear();
            }
            return;
        }
        let build_id = self.edit_build_id();
        if build_id.assigned.is_empty() {
            used.clone_into(&mut build_id.in_set);
        }
        note_used(build_id, used);
    }

    /// What the first event says.
    pub(crate) fn begin_build_id(&mut self, attributes: &WorkflowExecutionStartedEventAttributes) {
        let stamp = attributes.source_version_stamp.as_ref().filter(|stamp| stamp.use_versioning);
        if !attributes.inherited_build_id.is_empty() {
            let build_id = self.edit_build_id();
            build_id.inherited.clone_from(&attributes.inherited_build_id);
            build_id.assigned.clone_from(&attributes.inherited_build_id);
        } else if let Some(stamp) = stamp {
            let build_id = self.edit_build_id();
            build_id.in_set.clone_from(&stamp.build_id);
            note_used(build_id, &stamp.build_id);
        }
    }

    /// A run that is continued as new keeps its build id, if its worker wants that.
    pub(crate) fn bequeath_build_id(&self, attributes: &mut WorkflowExecutionStartedEventAttributes) {
        let Some(build_id) = self.build_id().filter(|_| self.effective().0 == Behavior::Unspecified) else { return };
        attributes.inherited_build_id.clone_from(&build_id.assigned);
        if build_id.assigned.is_empty() {
            attributes.source_version_stamp = stamp(&build_id.in_set);
        }
    }

    /// A run that follows by itself knows no more than what its predecessor has inherited.
    pub(crate) fn retry_build_id(&self, attributes: &mut WorkflowExecutionStartedEventAttributes) {
        if attributes.initiator() == ContinueAsNewInitiator::Retry {
            attributes.inherited_build_id = self.inherited_build_id();
        }
    }

    /// A child inherits it, if its parent's worker wants that.
    pub(crate) fn tell_child_build_id(
        &self,
        parent: &mut ParentInfo,
        child: &StartChildWorkflowExecutionInitiatedEventAttributes,
    ) {
        let is_wanted = child.inherit_build_id && child.namespace_id == *self.key.namespace_id;
        let applies = is_wanted && self.effective().0 == Behavior::Unspecified;
        let Some(build_id) = self.build_id().filter(|_| applies) else { return };
        parent.build_id_in_set = build_id.assigned.is_empty();
        parent.build_id = if parent.build_id_in_set { build_id.in_set.clone() } else { build_id.assigned.clone() };
    }

    /// What the search attribute for build ids says: first where the run is now.
    pub(crate) fn shown_build_ids(&self) -> Vec<String> {
        let unversioned = || "unversioned".to_owned();
        let Some(build_id) = self.build_id() else {
            return vec![unversioned()];
        };
        let now = if !build_id.assigned.is_empty() {
            Some(format!("assigned:{}", build_id.assigned))
        } else {
            build_id.in_set.is_empty().then(unversioned)
        };
        now.into_iter().chain(build_id.used.iter().map(|used| format!("versioned:{used}"))).collect()
    }
}

/// What a child says in its first event.
pub(crate) fn inherit_build_id(attributes: &mut WorkflowExecutionStartedEventAttributes, parent: &ParentInfo) {
    if parent.build_id_in_set {
        attributes.source_version_stamp = stamp(&parent.build_id);
    } else {
        attributes.inherited_build_id.clone_from(&parent.build_id);
    }
}

fn stamp(build_id: &str) -> Option<WorkerVersionStamp> {
    (!build_id.is_empty()).then(|| WorkerVersionStamp { build_id: build_id.to_owned(), use_versioning: true })
}

fn note_used(build_id: &mut RunBuildId, used: &str) {
    if !build_id.used.iter().any(|known| known == used) {
        build_id.used.push(used.to_owned());
        let excess = build_id.used.len().saturating_sub(MOST_USED);
        build_id.used.drain(..excess);
    }
}
