//! Versions of worker deployments: which one a run is on, how it comes to another, and what runs inherit.
//!
//! A run is on the version of the worker that completed its latest workflow task. If its behavior lets it, a task may go
//! to a worker of another version, where the task queue's routing leads; from the start of that task until a worker of the
//! new version completes one the run is in *transition*: nothing of it goes to the old version.

#![allow(deprecated, reason = "older clients still send what newer ones replaced, and histories show both")]

use bytes::Bytes;
use perdure_proto::{
    Error,
    perdure::{
        node::v1::{ParentInfo, RecordActivityTaskStarted, RecordWorkflowTaskStarted, VersionDirective},
        state::v1::{VersioningState, WorkflowOptions},
    },
    temporal::api::{
        common::v1::Payload,
        deployment::v1::{InheritedAutoUpgradeInfo, WorkerDeploymentVersion as Version},
        enums::v1::{ContinueAsNewInitiator, ContinueAsNewVersioningBehavior, VersioningBehavior as Behavior},
        history::v1::{
            DeclinedTargetVersionUpgrade, WorkflowExecutionStartedEventAttributes, WorkflowTaskCompletedEventAttributes,
        },
        workflow::v1::{DeploymentVersionTransition, WorkflowExecutionVersioningInfo, versioning_override::Override},
    },
    versions,
};
use perdure_types::Timestamp;

use crate::{api::Env, build_id::inherit_build_id, run::Run, start::json_text};

/// How tasks of a run are routed: by its behavior, and by the version that it is on.
pub(crate) type Effective = (Behavior, Option<Version>);

/// Versions that the list of used ones names at most; the oldest go first.
const MOST_USED: usize = 50;

impl Run {
    fn version_info(&self) -> &WorkflowExecutionVersioningInfo {
        static NONE: std::sync::LazyLock<WorkflowExecutionVersioningInfo> =
            std::sync::LazyLock::new(WorkflowExecutionVersioningInfo::default);
        self.info.versioning.as_ref().and_then(|versioning| versioning.info.as_ref()).unwrap_or(&NONE)
    }

    pub(crate) fn edit_versioning(&mut self) -> &mut VersioningState {
        self.info.edit().versioning.get_or_insert_default()
    }

    fn edit_version_info(&mut self) -> &mut WorkflowExecutionVersioningInfo {
        self.edit_versioning().info.get_or_insert_default()
    }

    /// Neither a version nor an override has to do with this run.
    pub(crate) fn is_plain(&self) -> bool {
        self.info.versioning.is_none() && self.versioning_override().is_none()
    }

    pub(crate) fn is_in_transition(&self) -> bool {
        self.version_info().version_transition.is_some()
    }

    pub(crate) fn effective(&self) -> Effective {
        if self.is_plain() {
            return (Behavior::Unspecified, None);
        }
        let info = self.version_info();
        if let Some(transition) = &info.version_transition {
            return (Behavior::AutoUpgrade, transition.deployment_version.clone());
        }
        let base = if info.behavior() == Behavior::Unspecified { None } else { info.deployment_version.clone() };
        match self.versioning_override() {
            Some(over) => (versions::override_behavior(over), versions::override_target(over).or(base)),
            None => (info.behavior(), base),
        }
    }

    /// What a task queue has to know to route a task; `None`: nothing but its own routing.
    pub(crate) fn version_directive(&self) -> Option<Box<VersionDirective>> {
        if self.is_plain() {
            return None;
        }
        let (behavior, version) = self.effective();
        if behavior == Behavior::Unspecified {
            return self.build_id_directive();
        }
        let info = self.version_info();
        let first = self.info.last_completed_workflow_task_started_id == 0;
        let ramping =
            info.continue_as_new_initial_versioning_behavior() == ContinueAsNewVersioningBehavior::UseRampingVersion;
        Some(Box::new(VersionDirective {
            behavior: behavior as i32,
            version,
            revision: info.revision_number,
            use_ramping_version: first && ramping,
            build_id: String::new(),
        }))
    }

    // ---- Starts of tasks ---------------------------------------------------------------------------------------

    /// A task of a pinned run that was offered before it was pinned.
    pub(crate) fn refuses_worker(&self, version: Option<&Version>) -> bool {
        let (behavior, own) = self.effective();
        behavior == Behavior::Pinned && version != own.as_ref()
    }

    /// A worker has started a workflow task: of another version, perhaps.
    pub(crate) fn note_worker(&mut self, request: &RecordWorkflowTaskStarted, version: Option<Version>) {
        if version != self.effective().1 {
            self.begin_transition(version, request.routing_revision);
        }
    }

    /// From here on tasks go to this version. The started workflow task, if there is one, is that version's.
    fn begin_transition(&mut self, version: Option<Version>, revision: i64) {
        let info = self.edit_version_info();
        info.version_transition =
            Some(DeploymentVersionTransition { deployment_version: version, ..Default::default() });
        info.revision_number = revision;
        self.info.edit().sticky = None;
    }

    /// Whether an activity may start with this worker. If it brings the run to another version the answer is a refusal,
    /// too, that is to be recorded: the activity comes again when a workflow task is completed there.
    pub(crate) fn admit_activity_worker(
        &mut self,
        c: &RecordActivityTaskStarted,
        env: &Env,
    ) -> Result<Option<Error>, Error> {
        let worker = versions::of_worker(c.poll.as_ref().and_then(|poll| poll.deployment_options.as_ref()));
        if worker.is_none() && self.is_plain() {
            return Ok(None);
        }
        let moving = || Error::not_found("The workflow is moving to another deployment version.");
        if self.is_in_transition() {
            return Err(moving());
        }
        let (behavior, own) = self.effective();
        // Activities of pinned runs on queues that the version does not serve are nobody's business here.
        if worker == own || behavior == Behavior::Pinned {
            return Ok(None);
        }
        let name = |version: &Option<Version>| version.as_ref().map(|v| v.deployment_name.clone()).unwrap_or_default();
        let ahead = name(&worker) == name(&c.workflow_target) && c.routing_revision > c.workflow_target_revision;
        if worker != c.workflow_target && !ahead {
            return Ok(None);
        }
        self.begin_transition(worker, c.routing_revision);
        self.offer_workflow_task_again(env.now);
        self.ensure_workflow_task(env);
        Ok(Some(moving()))
    }

    // ---- Completions -------------------------------------------------------------------------------------------

    /// What a completed workflow task says about its worker. True if tasks are routed in another way now.
    pub(crate) fn follow_completion(&mut self, a: &WorkflowTaskCompletedEventAttributes) -> bool {
        let behavior = a.versioning_behavior();
        self.note_stamp(a);
        if behavior == Behavior::Unspecified && self.is_plain() {
            return false;
        }
        let before = self.effective();
        let version = a.deployment_version.clone().or_else(|| {
            let old = a.deployment.as_ref().map(|old| versions::version(&old.series_name, &old.build_id));
            versions::parse(&a.worker_deployment_version).ok().flatten().or(old)
        });
        let once = self.versioning_override().is_some_and(|over| {
            matches!(&over.r#override, Some(Override::OneTime(once)) if once.target_deployment_version == version)
        });
        let versioning = self.edit_versioning();
        versioning.worker_deployment_name.clone_from(&a.worker_deployment_name);
        let info = versioning.info.get_or_insert_default();
        let arrived = info.version_transition.as_ref().is_some_and(|t| t.deployment_version == version);
        if arrived {
            info.version_transition = None;
        }
        info.set_behavior(behavior);
        info.deployment_version = version.clone().filter(|_| behavior != Behavior::Unspecified);
        if let Some(text) = version.as_ref().map(versions::text)
            && !versioning.used_versions.contains(&text)
        {
            versioning.used_versions.push(text);
            let excess = versioning.used_versions.len().saturating_sub(MOST_USED);
            versioning.used_versions.drain(..excess);
        }
        if once {
            self.info.edit().options = Some(Box::new(WorkflowOptions::default()));
        }
        self.show_version();
        arrived || before != self.effective()
    }

    /// Tasks are routed in another way: those that wait to be started are offered again.
    pub(crate) fn offer_activities_again(&mut self, now: Timestamp) {
        let waiting: Vec<i64> = self.activities.iter().filter(|(_, a)| a.waits()).map(|(id, _)| *id).collect();
        for id in waiting {
            if let Some(activity) = self.activities.get_mut(&id) {
                activity.info.stamp += 1;
            }
            self.offer_activity_when_due(id, now);
        }
    }

    fn offer_workflow_task_again(&mut self, now: Timestamp) {
        let normal = self.info.task_queue.clone();
        let info = self.info.edit();
        info.sticky = None;
        if let Some(task) = info.workflow_task.as_mut().filter(|task| task.started_event_id == 0) {
            task.stamp += 1;
            task.sticky = false;
            task.task_queue = normal;
            self.offer_workflow_task_when_due(now);
        }
    }

    /// The override has changed.
    pub(crate) fn override_changed(&mut self, before: Effective, now: Timestamp) {
        if self.effective() == before {
            return;
        }
        // What waits goes where the override says at once. A started task runs to its end.
        if self.is_in_transition() {
            self.edit_version_info().version_transition = None;
        }
        self.show_version();
        self.offer_workflow_task_again(now);
        self.offer_activities_again(now);
    }

    // ---- A newer version for pinned runs -------------------------------------------------------------------------

    /// Whether the worker of a pinned run is to be told that runs that are not pinned go to another version now. What it
    /// was told in vain, in this run or the one before, is not said again.
    pub(crate) fn notice_target(&mut self, target: Option<(Option<Version>, i64)>) -> bool {
        let (behavior, own) = self.effective();
        if behavior == Behavior::Unspecified {
            return false;
        }
        let versioning = self.edit_versioning();
        let revision_of = |seen: &Option<DeclinedTargetVersionUpgrade>| seen.as_ref().map_or(0, |s| s.revision_number);
        let seen = revision_of(&versioning.notified_target).max(revision_of(&versioning.declined_target));
        let declined = versioning.declined_target.as_ref().map(|declined| declined.revision_number);
        let overridden = self.versioning_override().is_some();
        if overridden {
            let versioning = self.edit_versioning();
            versioning.notified_target = None;
            versioning.declined_target = None;
        } else if let Some((target, revision)) = target.filter(|_| behavior == Behavior::Pinned) {
            let versioning = self.edit_versioning();
            if own == target && revision >= seen {
                versioning.notified_target = None;
                versioning.declined_target = None;
            } else if own != target && declined.is_none_or(|declined| revision > declined) && revision >= seen {
                versioning.notified_target =
                    Some(DeclinedTargetVersionUpgrade { deployment_version: target, revision_number: revision });
                versioning.declined_target = None;
            }
        }
        behavior == Behavior::Pinned && self.info.versioning.as_ref().is_some_and(|v| v.notified_target.is_some())
    }

    // ---- Inheritance -------------------------------------------------------------------------------------------

    /// What the first event says about versions.
    pub(crate) fn begin_versioning(&mut self, attributes: &WorkflowExecutionStartedEventAttributes) {
        if let Some(version) = &attributes.inherited_pinned_version {
            let info = self.edit_version_info();
            info.deployment_version = Some(version.clone());
            info.set_behavior(Behavior::Pinned);
            if !attributes.continued_execution_run_id.is_empty() {
                self.edit_versioning().declined_target = attributes.declined_target_version_upgrade.clone();
            }
        }
        if let Some(inherited) = &attributes.inherited_auto_upgrade_info {
            let info = self.edit_version_info();
            info.deployment_version = inherited.source_deployment_version.clone();
            info.revision_number = inherited.source_deployment_revision_number;
            info.set_behavior(Behavior::AutoUpgrade);
            info.continue_as_new_initial_versioning_behavior = inherited.continue_as_new_initial_versioning_behavior;
        }
        self.begin_build_id(attributes);
        if !self.is_plain() {
            self.show_version();
        }
    }

    /// What the run that follows this one takes over. A version is inherited only where its workers poll: on the same
    /// task queue.
    pub(crate) fn bequeath_version(
        &self,
        attributes: &mut WorkflowExecutionStartedEventAttributes,
        initial: ContinueAsNewVersioningBehavior,
    ) {
        let same_queue = attributes.task_queue.as_ref().is_some_and(|queue| queue.name == self.info.task_queue);
        if self.is_plain() || !same_queue {
            return;
        }
        attributes.versioning_override = self.versioning_override().filter(|over| versions::is_pinned(over)).cloned();
        let (behavior, version) = self.effective();
        let (start, info) = (self.start(), self.version_info());
        let (pinned, upgrading, initial) = match attributes.initiator() {
            ContinueAsNewInitiator::CronSchedule => return,
            ContinueAsNewInitiator::Retry => {
                let pinned = behavior == Behavior::Pinned && start.inherited_pinned_version.is_some();
                let again = info.continue_as_new_initial_versioning_behavior();
                (pinned, behavior == Behavior::AutoUpgrade, again)
            }
            ContinueAsNewInitiator::Workflow | ContinueAsNewInitiator::Unspecified => {
                let chosen = initial != ContinueAsNewVersioningBehavior::Unspecified;
                let pinned = behavior == Behavior::Pinned && !chosen;
                (pinned, behavior == Behavior::AutoUpgrade || (behavior == Behavior::Pinned && chosen), initial)
            }
        };
        if pinned {
            attributes.inherited_pinned_version = version;
            let versioning = self.info.versioning.as_ref();
            attributes.declined_target_version_upgrade = match attributes.initiator() {
                ContinueAsNewInitiator::Retry => start.declined_target_version_upgrade.clone(),
                _ => versioning.and_then(|v| v.notified_target.clone().or_else(|| v.declined_target.clone())),
            };
        } else if upgrading {
            attributes.inherited_auto_upgrade_info = upgrade_from(version, info.revision_number, initial);
        }
    }

    /// What a child on this task queue is told about this run's version.
    pub(crate) fn tell_child(&self, parent: &mut ParentInfo, namespace_id: &str, task_queue: &str) {
        if self.is_plain() || namespace_id != &*self.key.namespace_id {
            return;
        }
        let (behavior, version) = self.effective();
        parent.versioning_behavior = behavior as i32;
        parent.deployment_version = version;
        parent.versioning_revision = self.version_info().revision_number;
        parent.versioning_override = self.versioning_override().filter(|over| versions::is_pinned(over)).cloned();
        parent.queue_has_version = task_queue == self.info.task_queue;
    }

    // ---- Shown -------------------------------------------------------------------------------------------------

    pub(crate) fn versioning_info(&self) -> Option<WorkflowExecutionVersioningInfo> {
        if self.is_plain() {
            return None;
        }
        let mut info = self.version_info().clone();
        info.versioning_override = self.versioning_override().cloned();
        if info == WorkflowExecutionVersioningInfo::default() {
            return None;
        }
        Some(versions::with_legacy(info))
    }

    pub(crate) fn worker_deployment_name(&self) -> String {
        let target = self.versioning_override().and_then(versions::override_target);
        let named = self.info.versioning.as_ref().map(|v| v.worker_deployment_name.clone()).unwrap_or_default();
        target.map(|version| version.deployment_name).unwrap_or(named)
    }

    /// Keeps the search attributes that tell of versions.
    pub(crate) fn show_version(&mut self) {
        let over = self.versioning_override();
        let info = self.version_info();
        let behavior = over.map_or(info.behavior(), versions::override_behavior);
        let version = over.and_then(versions::override_target).or_else(|| info.deployment_version.clone());
        let used = self.info.versioning.as_ref().map(|v| v.used_versions.clone()).unwrap_or_default();
        let name = version.as_ref().map(|v| v.deployment_name.clone()).unwrap_or_default();
        let text = version.as_ref().map(versions::text).unwrap_or_default();
        let (shown, first) = match behavior {
            Behavior::Pinned => ("Pinned", vec![format!("pinned:{text}")]),
            Behavior::AutoUpgrade => ("AutoUpgrade", Vec::new()),
            Behavior::Unspecified => ("", self.shown_build_ids()),
        };
        let build_ids = first.into_iter().chain(used.iter().cloned()).collect();
        let values = [
            ("TemporalWorkerDeployment", keyword(&name)),
            ("TemporalWorkerDeploymentVersion", keyword(&text)),
            ("TemporalWorkflowVersioningBehavior", keyword(shown)),
            ("TemporalUsedWorkerDeploymentVersions", keywords(used)),
            ("BuildIds", keywords(build_ids)),
        ];
        let changed =
            values.iter().any(|(key, value)| self.search_attributes.indexed_fields.get(*key) != value.as_ref());
        if !changed {
            return;
        }
        let fields = &mut self.search_attributes.edit().indexed_fields;
        for (key, value) in values {
            match value {
                Some(value) => drop(fields.insert(key.to_owned(), value)),
                None => drop(fields.remove(key)),
            }
        }
    }
}

/// What a child says in its first event of what it takes over from its parent.
pub(crate) fn inherit_from_parent(attributes: &mut WorkflowExecutionStartedEventAttributes, parent: &ParentInfo) {
    inherit_build_id(attributes, parent);
    if !parent.queue_has_version {
        return;
    }
    if attributes.versioning_override.is_none() {
        attributes.versioning_override.clone_from(&parent.versioning_override);
    }
    match parent.versioning_behavior() {
        Behavior::Pinned => attributes.inherited_pinned_version.clone_from(&parent.deployment_version),
        Behavior::AutoUpgrade => {
            let (version, revision) = (parent.deployment_version.clone(), parent.versioning_revision);
            let initial = ContinueAsNewVersioningBehavior::Unspecified;
            attributes.inherited_auto_upgrade_info = upgrade_from(version, revision, initial);
        }
        Behavior::Unspecified => {}
    }
}

fn upgrade_from(
    version: Option<Version>,
    revision: i64,
    initial: ContinueAsNewVersioningBehavior,
) -> Option<InheritedAutoUpgradeInfo> {
    (version.is_some() && revision != 0).then_some(InheritedAutoUpgradeInfo {
        source_deployment_version: version,
        source_deployment_revision_number: revision,
        continue_as_new_initial_versioning_behavior: initial as i32,
    })
}

fn keyword(text: &str) -> Option<Payload> {
    (!text.is_empty()).then(|| keyword_value(text))
}

/// A search attribute of that kind.
pub fn keyword_value(text: &str) -> Payload {
    payload("Keyword", json_text(text))
}

fn keywords(texts: Vec<String>) -> Option<Payload> {
    let list: Vec<String> = texts.iter().map(|text| json_text(text)).collect();
    (!list.is_empty()).then(|| payload("KeywordList", format!("[{}]", list.join(","))))
}

fn payload(kind: &'static str, json: String) -> Payload {
    let metadata = [("encoding", Bytes::from_static(b"json/plain")), ("type", Bytes::from_static(kind.as_bytes()))];
    Payload {
        metadata: metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        data: json.into(),
        ..Payload::default()
    }
}
