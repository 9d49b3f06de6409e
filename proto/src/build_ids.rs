//! Build ids, as the older forms of worker versioning use them: in sets of compatible ones, and in rules that assign one
//! to new workflows and redirect from one to another. Here is what they mean for tasks and polls; `deployment` changes
//! them.
//!
//! Where a build id stands for workers' version, as a [`WorkerDeploymentVersion`], the deployment has no name.

use std::collections::BTreeSet;

use crate::{
    perdure::state::v1::{BuildIdSet, BuildIds, RedirectRule},
    temporal::api::{
        common::v1::WorkerVersionCapabilities,
        deployment::v1::{WorkerDeploymentOptions, WorkerDeploymentVersion},
        taskqueue::v1::{BuildIdAssignmentRule, build_id_assignment_rule::Ramp},
    },
    versions,
};

/// The build id of a worker that uses an older form.
pub fn of_worker<'a>(
    capabilities: Option<&'a WorkerVersionCapabilities>,
    options: Option<&WorkerDeploymentOptions>,
) -> Option<&'a str> {
    let capabilities = capabilities.filter(|c| c.use_versioning && c.deployment_series_name.is_empty())?;
    let is_newer = versions::of_worker(options).is_some();
    (!is_newer && !capabilities.build_id.is_empty()).then_some(capabilities.build_id.as_str())
}

/// What stands for its workers among versions.
pub fn as_version(build_id: &str) -> WorkerDeploymentVersion {
    versions::version("", build_id)
}

/// In percent: 100 if none is given.
pub fn ramp(rule: &BuildIdAssignmentRule) -> f32 {
    match &rule.ramp {
        Some(Ramp::PercentageRamp(ramp)) => ramp.ramp_percentage,
        None => 100.0,
    }
}

pub fn is_fully_ramped(rule: &BuildIdAssignmentRule) -> bool {
    ramp(rule) >= 100.0
}

/// Source and target.
pub fn ends(rule: &RedirectRule) -> (&str, &str) {
    rule.rule.as_ref().map_or(("", ""), |rule| (&rule.source_build_id, &rule.target_build_id))
}

/// The build id whose workers get what is of this one, by redirect rules. Rules make no cycle.
pub fn redirect<'a>(build_ids: &'a BuildIds, build_id: &'a str) -> &'a str {
    let mut reached = build_id;
    for _ in 0..=build_ids.redirect_rules.len() {
        match build_ids.redirect_rules.iter().map(ends).find(|(source, _)| *source == reached) {
            Some((_, target)) => reached = target,
            None => break,
        }
    }
    reached
}

/// The set of a build id, by its place, and the build id's place in it.
pub fn find_in_sets(sets: &[BuildIdSet], build_id: &str) -> Option<(usize, usize)> {
    sets.iter().enumerate().find_map(|(index, set)| {
        let place = set.build_ids.iter().position(|known| known == build_id)?;
        Some((index, place))
    })
}

pub fn is_in_sets(build_ids: &BuildIds, build_id: &str) -> bool {
    find_in_sets(&build_ids.sets, build_id).is_some()
}

/// The build id whose workers get what is of this one.
pub fn served_by<'a>(build_ids: &'a BuildIds, build_id: &'a str) -> &'a str {
    match find_in_sets(&build_ids.sets, build_id) {
        Some((set, _)) => build_ids.sets[set].build_ids.last().map_or(build_id, String::as_str),
        None => redirect(build_ids, build_id),
    }
}

/// The build id whose workers get what is of none yet. `None`: unversioned workers. `place`: where between 0 and 100 the
/// workflow is, for ramps.
pub fn assign(build_ids: &BuildIds, place: f64) -> Option<&str> {
    let rules = build_ids.assignment_rules.iter().filter_map(|rule| rule.rule.as_ref());
    let assigned = rules
        .filter(|rule| is_fully_ramped(rule) || f64::from(ramp(rule)) > place)
        .map(|rule| rule.target_build_id.as_str())
        .next()
        .unwrap_or_default();
    let chosen = if assigned.is_empty() {
        build_ids.sets.last().and_then(|set| set.build_ids.last()).map_or("", String::as_str)
    } else {
        assigned
    };
    // Rules may redirect from unversioned workers, too.
    Some(redirect(build_ids, chosen)).filter(|build_id| !build_id.is_empty())
}

/// What new workflows get when no ramp is under way. Empty: unversioned workers.
pub fn default_of(build_ids: &BuildIds) -> &str {
    let rules = build_ids.assignment_rules.iter().filter_map(|rule| rule.rule.as_ref());
    rules.filter(|rule| is_fully_ramped(rule)).map(|rule| rule.target_build_id.as_str()).next().unwrap_or_default()
}

/// All build ids that rules redirect to this one, near or far.
pub fn upstream<'a>(rules: impl Iterator<Item = &'a RedirectRule> + Clone, build_id: &str) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    let mut targets = vec![build_id];
    while let Some(reached) = targets.pop() {
        for (source, _) in rules.clone().map(ends).filter(|(_, target)| *target == reached) {
            if source != build_id && found.insert(source) {
                targets.push(source);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        perdure::state::v1::AssignmentRule,
        temporal::api::taskqueue::v1::{CompatibleBuildIdRedirectRule, RampByPercentage},
    };

    fn set(build_ids: &[&str]) -> BuildIdSet {
        BuildIdSet { build_ids: build_ids.iter().map(|id| (*id).to_owned()).collect(), default_since_ns: 0 }
    }

    fn assignment(target: &str, percent: Option<f32>) -> AssignmentRule {
        let ramp = percent.map(|p| Ramp::PercentageRamp(RampByPercentage { ramp_percentage: p }));
        AssignmentRule {
            rule: Some(BuildIdAssignmentRule { target_build_id: target.into(), ramp }),
            ..AssignmentRule::default()
        }
    }

    fn redirection(source: &str, target: &str) -> RedirectRule {
        let rule = CompatibleBuildIdRedirectRule { source_build_id: source.into(), target_build_id: target.into() };
        RedirectRule { rule: Some(rule), ..RedirectRule::default() }
    }

    #[test]
    fn the_newest_of_a_set_serves_all_of_it() {
        let build_ids = BuildIds { sets: vec![set(&["1.0", "1.1"]), set(&["2.0"])], ..BuildIds::default() };
        assert_eq!(served_by(&build_ids, "1.0"), "1.1");
        assert_eq!(served_by(&build_ids, "9"), "9");
        assert_eq!(assign(&build_ids, 50.0), Some("2.0"));
        assert_eq!(assign(&BuildIds::default(), 50.0), None);
    }

    #[test]
    fn the_first_rule_that_applies_wins_and_redirects_are_followed_to_their_end() {
        let build_ids = BuildIds {
            assignment_rules: vec![assignment("3", Some(30.0)), assignment("1", None), assignment("9", None)],
            redirect_rules: vec![redirection("1", "1.1"), redirection("1.1", "1.2")],
            ..BuildIds::default()
        };
        assert_eq!(assign(&build_ids, 29.9), Some("3"));
        assert_eq!(assign(&build_ids, 30.0), Some("1.2"));
        assert_eq!((served_by(&build_ids, "1"), served_by(&build_ids, "3")), ("1.2", "3"));
        assert_eq!(default_of(&build_ids), "1");
        let known = upstream(build_ids.redirect_rules.iter(), "1.2");
        assert_eq!(known, BTreeSet::from(["1", "1.1"]));
    }

    #[test]
    fn a_ring_of_rules_does_not_hang() {
        let build_ids =
            BuildIds { redirect_rules: vec![redirection("1", "2"), redirection("2", "1")], ..BuildIds::default() };
        assert!(["1", "2"].contains(&redirect(&build_ids, "1")));
        assert_eq!(upstream(build_ids.redirect_rules.iter(), "1"), BTreeSet::from(["2"]));
    }

    #[test]
    fn only_workers_that_ask_for_an_older_form_have_a_build_id() {
        let capabilities = |build_id: &str, use_versioning| WorkerVersionCapabilities {
            build_id: build_id.into(),
            use_versioning,
            ..WorkerVersionCapabilities::default()
        };
        assert_eq!(of_worker(Some(&capabilities("1", true)), None), Some("1"));
        assert_eq!(of_worker(Some(&capabilities("1", false)), None), None);
        let options =
            WorkerDeploymentOptions { deployment_name: "d".into(), build_id: "1".into(), worker_versioning_mode: 2 };
        assert_eq!(of_worker(Some(&capabilities("1", true)), Some(&options)), None);
    }
}
