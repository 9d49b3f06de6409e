//! Which workers get a task: decided by the routing of the deployments whose workers poll the queue, and by what the task's
//! execution says of itself. Where no deployment has a say, build ids may have one: they are what older workers use in the
//! place of versions, and stand among them as versions of a deployment without a name.

#![allow(deprecated, reason = "older clients look at what newer ones replaced")]

use std::collections::BTreeSet;

use perdure_proto::{
    build_ids,
    perdure::{
        node::v1::VersionDirective,
        state::v1::{BuildIds, TaskQueueState},
    },
    temporal::api::{
        deployment::v1::{RoutingConfig, WorkerDeploymentVersion as Version},
        enums::v1::{TaskQueueType, VersioningBehavior},
        taskqueue::v1::TaskQueueVersioningInfo,
    },
    versions,
};
use perdure_types::Timestamp;
use xxhash_rust::xxh3::xxh3_64;

/// The routing of one type of a task queue. Cheap to ask when no deployment has to do with it.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Routing {
    current: Option<Version>,
    current_revision: i64,
    current_since: Timestamp,
    ramping: Option<Version>,
    ramp_percentage: f32,
    ramp_revision: i64,
    ramp_since: Timestamp,
    /// `(deployment, build id)` of all versions whose workers poll here.
    members: BTreeSet<(String, String)>,
    build_ids: Option<BuildIds>,
}

/// What is asked of a routing: where a task goes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Asked<'a> {
    pub workflow_id: &'a str,
    pub directive: Option<&'a VersionDirective>,
    /// Set if no build id has to do with it yet: a place on the way from 0 to 100, for the ramps of rules.
    pub place: Option<f64>,
}

/// Where a task goes; `None`: to unversioned workers. And the revision of the routing that says so.
pub(crate) type Target = (Option<Version>, i64);

impl Routing {
    pub fn of(state: &TaskQueueState, kind: TaskQueueType) -> Self {
        let mut routing = Self { build_ids: state.build_ids.clone(), ..Self::default() };
        for deployment in &state.deployments {
            let here = deployment.versions.iter().filter(|version| version.types.contains(&(kind as i32)));
            routing.members.extend(here.map(|version| (deployment.name.clone(), version.build_id.clone())));
        }
        let configs = || state.deployments.iter().filter_map(|deployment| deployment.routing_config.as_ref());
        let is_member = |version: &Option<Version>| version.as_ref().is_some_and(|v| routing.has(v));
        // A version whose workers poll here wins over a deployment that has gone back to unversioned workers.
        let choose = |version: fn(&RoutingConfig) -> &Option<Version>, since: fn(&RoutingConfig) -> Timestamp| {
            let versioned = configs().filter(|config| is_member(version(config))).max_by_key(|config| since(config));
            versioned
                .or_else(|| configs().filter(|config| version(config).is_none()).max_by_key(|config| since(config)))
        };
        let current = choose(|c| &c.current_deployment_version, current_since).cloned();
        let ramping = choose(|c| &c.ramping_deployment_version, ramp_since).cloned();
        if let Some(config) = current {
            routing.current_since = current_since(&config);
            routing.current = config.current_deployment_version;
            routing.current_revision = config.revision_number;
        }
        if let Some(config) = ramping {
            routing.ramp_since = ramp_since(&config);
            routing.ramping = config.ramping_deployment_version;
            routing.ramp_percentage = config.ramping_version_percentage;
            routing.ramp_revision = config.revision_number;
        }
        routing
    }

    /// Whether workers of this version poll here.
    pub fn has(&self, version: &Version) -> bool {
        // A lookup by parts would need a key type of its own; queues have few versions.
        self.members.iter().any(|(name, build)| *name == version.deployment_name && *build == version.build_id)
    }

    /// Neither a deployment nor a build id has to do with this queue.
    pub fn is_plain(&self) -> bool {
        self.members.is_empty() && self.build_ids.is_none()
    }

    /// Where tasks of a workflow go that is not pinned.
    pub fn target(&self, workflow_id: &str, use_ramping: bool) -> Target {
        let ramps = if use_ramping && self.ramping.is_some() {
            true
        } else if self.ramp_percentage <= 0.0 {
            false
        } else {
            self.ramp_percentage >= 100.0 || share(workflow_id.as_bytes()) <= f64::from(self.ramp_percentage)
        };
        if ramps { (self.ramping.clone(), self.ramp_revision) } else { (self.current.clone(), self.current_revision) }
    }

    /// Where a task goes.
    pub fn route(&self, kind: TaskQueueType, asked: Asked<'_>) -> Target {
        let target = self.route_by_deployments(kind, asked);
        let behavior = asked.directive.map_or(VersioningBehavior::Unspecified, VersionDirective::behavior);
        if target.0.is_some() || behavior != VersioningBehavior::Unspecified {
            return target;
        }
        (self.route_by_build_ids(asked).map(build_ids::as_version), target.1)
    }

    fn route_by_build_ids<'a>(&'a self, asked: Asked<'a>) -> Option<&'a str> {
        let own = asked.directive.map(|directive| directive.build_id.as_str()).filter(|own| !own.is_empty());
        match (&self.build_ids, own) {
            (Some(build_ids), Some(own)) => Some(build_ids::served_by(build_ids, own)),
            (Some(build_ids), None) => build_ids::assign(build_ids, asked.place?),
            (None, own) => own,
        }
    }

    /// The build id whose workers have taken the place of this one's, if there is one.
    pub fn newer_build_id(&self, build_id: &str) -> Option<String> {
        let served_by = build_ids::served_by(self.build_ids.as_ref()?, build_id);
        (served_by != build_id).then(|| served_by.to_owned())
    }

    /// Whether it is by a rule that a worker of this build id gets a task, and not by a set.
    pub fn is_assigned(&self, build_id: &str) -> bool {
        self.build_ids.as_ref().is_none_or(|build_ids| !build_ids::is_in_sets(build_ids, build_id))
    }

    /// Which build id new workflows go to when no ramp is under way. Empty: unversioned workers.
    pub fn default_build_id(&self) -> &str {
        self.build_ids.as_ref().map_or("", build_ids::default_of)
    }

    fn route_by_deployments(&self, kind: TaskQueueType, asked: Asked<'_>) -> Target {
        let Asked { workflow_id, directive, .. } = asked;
        let Some(directive) = directive else {
            return if self.members.is_empty() { (None, 0) } else { self.target(workflow_id, false) };
        };
        let own = directive.version.as_ref();
        if directive.behavior() == VersioningBehavior::Pinned {
            // An activity on a queue that the version does not serve goes its own way.
            let is_apart = kind == TaskQueueType::Activity && own.is_some_and(|version| !self.has(version));
            return if is_apart { self.target(workflow_id, false) } else { (own.cloned(), directive.revision) };
        }
        let (target, revision) = self.target(workflow_id, directive.use_ramping_version);
        let is_ahead = |target: &Version| {
            own.is_some_and(|own| own.deployment_name == target.deployment_name) && directive.revision > revision
        };
        match target {
            // The execution knows of a later routing than this queue: it stays where it is.
            Some(target) if is_ahead(&target) => (own.cloned(), directive.revision),
            target => (target, revision),
        }
    }

    /// Whether a sticky queue may still have a workflow task: not if it would go to workers of another version.
    pub fn may_stick(&self, workflow_id: &str, directive: Option<&VersionDirective>) -> bool {
        if directive.is_some_and(|directive| directive.behavior() == VersioningBehavior::Pinned) {
            return true;
        }
        let target = self.route(TaskQueueType::Workflow, Asked { workflow_id, directive, place: None }).0;
        let own = directive.and_then(|directive| match &directive.version {
            None if !directive.build_id.is_empty() => Some(build_ids::as_version(&directive.build_id)),
            version => version.clone(),
        });
        target == own
    }

    pub fn info(&self) -> Option<TaskQueueVersioningInfo> {
        let update = self.current_since.max(self.ramp_since);
        if update == Timestamp::ZERO {
            return None;
        }
        let is_ramping = self.ramping.is_some() || self.ramp_percentage > 0.0;
        let ramping_version = if is_ramping { versions::legacy_text(self.ramping.as_ref()) } else { String::new() };
        Some(TaskQueueVersioningInfo {
            current_version: versions::legacy_text(self.current.as_ref()),
            current_deployment_version: self.current.clone(),
            ramping_version,
            ramping_deployment_version: self.ramping.clone(),
            ramping_version_percentage: self.ramp_percentage,
            update_time: update.to_proto(),
        })
    }
}

fn current_since(config: &RoutingConfig) -> Timestamp {
    Timestamp::from_proto(config.current_version_changed_time.as_ref())
}

fn ramp_since(config: &RoutingConfig) -> Timestamp {
    Timestamp::from_proto(config.ramping_version_percentage_changed_time.as_ref())
}

/// A place on the way from 0 to 100 that is an id's for good: a rising percentage takes ever more of them along.
pub(crate) fn share(id: &[u8]) -> f64 {
    100.0 * (xxh3_64(id) as f64 / u64::MAX as f64)
}

#[cfg(test)]
mod tests {
    use perdure_proto::perdure::state::v1::{BuildIdSet, TaskQueueDeployment, TaskQueueVersion};

    use super::*;

    const WORKFLOW: TaskQueueType = TaskQueueType::Workflow;

    fn v(build_id: &str) -> Version {
        versions::version("d", build_id)
    }

    fn routing(current: Option<&str>, ramping: Option<&str>, percentage: f32, builds: &[&str]) -> Routing {
        let at = |s: i64| Timestamp(s * 1_000_000_000).to_proto();
        let config = RoutingConfig {
            current_deployment_version: current.map(v),
            current_version_changed_time: at(1),
            ramping_deployment_version: ramping.map(v),
            ramping_version_percentage: percentage,
            ramping_version_percentage_changed_time: at(2),
            revision_number: 7,
            ..RoutingConfig::default()
        };
        let version =
            |b: &&str| TaskQueueVersion { build_id: (*b).into(), types: vec![WORKFLOW as i32], ..Default::default() };
        let deployment = TaskQueueDeployment {
            name: "d".into(),
            routing_config: Some(config),
            versions: builds.iter().map(version).collect(),
            revision: 1,
        };
        Routing::of(&TaskQueueState { deployments: vec![deployment], ..Default::default() }, WORKFLOW)
    }

    fn asked(directive: Option<&VersionDirective>) -> Asked<'_> {
        Asked { workflow_id: "w", directive, place: None }
    }

    fn directive(behavior: VersioningBehavior, build_id: &str, revision: i64) -> VersionDirective {
        VersionDirective { behavior: behavior as i32, version: Some(v(build_id)), revision, ..Default::default() }
    }

    #[test]
    fn new_and_upgrading_workflows_go_to_the_current_version_and_pinned_ones_stay() {
        let routing = routing(Some("2"), None, 0.0, &["1", "2"]);
        assert_eq!(routing.route(WORKFLOW, asked(None)), (Some(v("2")), 7));
        let upgrading = directive(VersioningBehavior::AutoUpgrade, "1", 6);
        assert_eq!(routing.route(WORKFLOW, asked(Some(&upgrading))), (Some(v("2")), 7));
        assert!(!routing.may_stick("w", Some(&upgrading)));
        let pinned = directive(VersioningBehavior::Pinned, "1", 6);
        assert_eq!(routing.route(WORKFLOW, asked(Some(&pinned))).0, Some(v("1")));
        assert!(routing.may_stick("w", Some(&pinned)));
    }

    #[test]
    fn a_task_that_knows_of_a_later_routing_is_not_sent_back() {
        let routing = routing(Some("2"), None, 0.0, &["1", "2", "3"]);
        let ahead = directive(VersioningBehavior::AutoUpgrade, "3", 8);
        assert_eq!(routing.route(WORKFLOW, asked(Some(&ahead))), (Some(v("3")), 8));
    }

    #[test]
    fn a_version_that_no_worker_of_the_queue_has_is_none_of_it() {
        assert_eq!(routing(Some("2"), None, 0.0, &["1"]).route(WORKFLOW, asked(None)), (None, 0));
        assert!(routing(None, None, 0.0, &["1"]).may_stick("w", None));
    }

    #[test]
    fn a_ramp_takes_its_share_and_keeps_it() {
        let ids: Vec<String> = (0..1000).map(|i| format!("workflow-{i}")).collect();
        let ramped = |percentage| -> BTreeSet<&String> {
            let routing = routing(Some("1"), Some("2"), percentage, &["1", "2"]);
            ids.iter().filter(|id| routing.target(id, false).0 == Some(v("2"))).collect()
        };
        let (none, some, more, all) = (ramped(0.0), ramped(30.0), ramped(60.0), ramped(100.0));
        assert!(none.is_empty() && all.len() == 1000);
        assert!((200..400).contains(&some.len()), "{}", some.len());
        assert!(some.is_subset(&more));
        let routing = routing(Some("1"), Some("2"), 0.0, &["1", "2"]);
        assert_eq!(routing.target("w", true).0, Some(v("2")));
    }

    #[test]
    fn build_ids_decide_where_no_deployment_does() {
        let set = |ids: &[&str]| BuildIdSet {
            build_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            default_since_ns: 0,
        };
        let build_ids = BuildIds { sets: vec![set(&["1.0", "1.1"]), set(&["2.0"])], ..Default::default() };
        let state = TaskQueueState { build_ids: Some(build_ids), ..Default::default() };
        let routing = Routing::of(&state, WORKFLOW);
        let on = |build_id: &str| VersionDirective { build_id: build_id.into(), ..Default::default() };
        let of = |asked| routing.route(WORKFLOW, asked).0.map(|version| version.build_id);
        assert_eq!(of(Asked { place: Some(50.0), ..asked(None) }).as_deref(), Some("2.0"), "new ones to the default");
        assert_eq!(of(asked(None)), None, "what unversioned workers began they go on with");
        assert_eq!(of(asked(Some(&on("1.0")))).as_deref(), Some("1.1"));
        assert!(!routing.may_stick("w", Some(&on("1.0"))) && routing.may_stick("w", Some(&on("1.1"))));
        assert_eq!(routing.newer_build_id("1.0").as_deref(), Some("1.1"));
        assert!(routing.newer_build_id("1.1").is_none() && !routing.is_assigned("1.1") && routing.is_assigned("9"));
        let nothing = Routing::default();
        assert_eq!(nothing.route(WORKFLOW, asked(Some(&on("7")))).0, Some(build_ids::as_version("7")));
    }
}
