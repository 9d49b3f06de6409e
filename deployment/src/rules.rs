//! Rules about build ids, the second form of worker versioning: which one new workflows are assigned to, and from which
//! one to which they are redirected.

use perdure_proto::{
    Code, Error,
    build_ids::{self, ends, is_fully_ramped, is_in_sets, ramp, upstream},
    perdure::{
        node::v1::UpdateVersioningRules,
        state::v1::{AssignmentRule, BuildIds, RedirectRule},
    },
    temporal::api::{
        taskqueue::v1::{
            BuildIdAssignmentRule, CompatibleBuildIdRedirectRule, RampByPercentage, build_id_assignment_rule::Ramp,
        },
        workflowservice::v1::update_worker_versioning_rules_request::{
            CommitBuildId, DeleteBuildIdAssignmentRule, InsertBuildIdAssignmentRule, Operation,
            ReplaceBuildIdAssignmentRule,
        },
    },
};
use perdure_types::{Duration, Limits, Timestamp};

/// For how long deleted redirect rules are remembered, and how many: what they have sent on may not be listed yet.
const DELETED_KEPT: Duration = Duration::from_secs(3600);
const MOST_DELETED: usize = 100;
/// Workers that have not polled for so long are not counted on.
const POLLER_WINDOW: &str = "1m10s";

const NO_FULL_RAMP: &str = "at least one fully-ramped assignment rule must exist (use force=true to bypass this requirement and set the unversioned queue as the default)";
const PARTIAL_RAMP_OF_SOURCE: &str = "update breaks requirement, this build ID cannot be the target of a partially-ramped assignment rule because it is the source of a redirect rule";

/// On error it may have changed something: the caller keeps the state of before.
pub(crate) fn update(
    build_ids: &mut BuildIds,
    update: UpdateVersioningRules,
    now: Timestamp,
    limits: &Limits,
) -> Result<(), Error> {
    let request = update.request.unwrap_or_default();
    check_token(build_ids, &request.conflict_token)?;
    let operation = request.operation.ok_or_else(|| Error::invalid_argument("the request names no operation"))?;
    let forgotten = Timestamp(now.0.saturating_sub(DELETED_KEPT.0)).as_nanos();
    build_ids.deleted_redirect_rules.retain(|rule| rule.delete_time_ns > forgotten);
    match operation {
        Operation::InsertAssignmentRule(insert) => insert_assignment(build_ids, insert, now)?,
        Operation::ReplaceAssignmentRule(replace) => replace_assignment(build_ids, replace, now)?,
        Operation::DeleteAssignmentRule(delete) => delete_assignment(build_ids, &delete)?,
        Operation::AddCompatibleRedirectRule(add) => {
            let rule = check_redirect(build_ids, add.rule)?;
            add_redirect(build_ids, rule, now)?;
            check_redirects(build_ids, limits)?;
        }
        Operation::ReplaceCompatibleRedirectRule(replace) => {
            let rule = check_redirect(build_ids, replace.rule)?;
            remove_redirect(build_ids, &rule.source_build_id, now)?;
            insert_redirect(build_ids, rule, now);
            check_redirects(build_ids, limits)?;
        }
        Operation::DeleteCompatibleRedirectRule(delete) => {
            remove_redirect(build_ids, &delete.source_build_id, now)?;
        }
        Operation::CommitBuildId(commit) => commit_build_id(build_ids, commit, update.has_recent_poller, now)?,
    }
    let (count, most) = (build_ids.assignment_rules.len(), limits.assignment_rules_in_queue);
    if most > 0 && count as i64 > most {
        let message = format!("update exceeds number of assignment rules permitted in namespace ({count}/{most})");
        return Err(Error::failed_precondition(message));
    }
    Ok(())
}

/// A client that changes rules must have seen them as they are.
fn check_token(build_ids: &BuildIds, token: &[u8]) -> Result<(), Error> {
    let known = build_ids.revision.to_be_bytes();
    if token == known {
        return Ok(());
    }
    let message = format!("provided conflict token '{token:?}' does not match existing one '{known:?}'");
    Err(Error::failed_precondition(message))
}

// ---- Assignment rules ----------------------------------------------------------------------------------------------

/// Whoever has ever sent all new workflows to some build id must not stop that by accident: unversioned workers, who would get
/// them, may be gone.
fn must_keep_full_ramp(build_ids: &mut BuildIds, force: bool) -> bool {
    build_ids.has_had_full_ramp |= has_full_ramp(build_ids);
    build_ids.has_had_full_ramp && !force
}

fn has_full_ramp(build_ids: &BuildIds) -> bool {
    build_ids.assignment_rules.iter().filter_map(|rule| rule.rule.as_ref()).any(is_fully_ramped)
}

fn is_redirected(build_ids: &BuildIds, build_id: &str) -> bool {
    build_ids.redirect_rules.iter().any(|rule| ends(rule).0 == build_id)
}

fn check_target(build_ids: &BuildIds, target: &str) -> Result<(), Error> {
    if is_in_sets(build_ids, target) {
        let message = "update breaks requirement, target build ID is already a member of a version set";
        return Err(Error::failed_precondition(message));
    }
    Ok(())
}

fn check_assignment(
    build_ids: &BuildIds,
    rule: Option<BuildIdAssignmentRule>,
    now: Timestamp,
) -> Result<AssignmentRule, Error> {
    let mut rule = rule.unwrap_or_default();
    let percentage = ramp(&rule);
    if !(0.0..=100.0).contains(&percentage) {
        return Err(Error::invalid_argument("ramp percentage must be in range [0, 100]"));
    }
    check_target(build_ids, &rule.target_build_id)?;
    if !is_fully_ramped(&rule) && is_redirected(build_ids, &rule.target_build_id) {
        return Err(Error::failed_precondition(PARTIAL_RAMP_OF_SOURCE));
    }
    rule.ramp = Some(Ramp::PercentageRamp(RampByPercentage { ramp_percentage: percentage }));
    Ok(AssignmentRule { rule: Some(rule), create_time_ns: now.as_nanos() })
}

fn place(build_ids: &BuildIds, index: i32) -> Result<usize, Error> {
    let count = build_ids.assignment_rules.len();
    usize::try_from(index).ok().filter(|index| *index < count).ok_or_else(|| {
        let message = format!("rule index {index} is out of bounds for assignment rule list of length {count}");
        Error::invalid_argument(message)
    })
}

fn insert_assignment(
    build_ids: &mut BuildIds,
    insert: InsertBuildIdAssignmentRule,
    now: Timestamp,
) -> Result<(), Error> {
    let index =
        usize::try_from(insert.rule_index).map_err(|_| Error::invalid_argument("rule index cannot be negative"))?;
    let rule = check_assignment(build_ids, insert.rule, now)?;
    let index = index.min(build_ids.assignment_rules.len());
    build_ids.assignment_rules.insert(index, rule);
    Ok(())
}

fn replace_assignment(
    build_ids: &mut BuildIds,
    replace: ReplaceBuildIdAssignmentRule,
    now: Timestamp,
) -> Result<(), Error> {
    let rule = check_assignment(build_ids, replace.rule, now)?;
    let index = place(build_ids, replace.rule_index)?;
    let must_stay = must_keep_full_ramp(build_ids, replace.force);
    build_ids.assignment_rules[index] = rule;
    keep_full_ramp(build_ids, must_stay)
}

fn delete_assignment(build_ids: &mut BuildIds, delete: &DeleteBuildIdAssignmentRule) -> Result<(), Error> {
    let index = place(build_ids, delete.rule_index)?;
    let must_stay = must_keep_full_ramp(build_ids, delete.force);
    build_ids.assignment_rules.remove(index);
    keep_full_ramp(build_ids, must_stay)
}

fn keep_full_ramp(build_ids: &BuildIds, must_stay: bool) -> Result<(), Error> {
    if must_stay && !has_full_ramp(build_ids) { Err(Error::failed_precondition(NO_FULL_RAMP)) } else { Ok(()) }
}

/// All that is new goes to this build id; ramps of others stay.
fn commit_build_id(
    build_ids: &mut BuildIds,
    commit: CommitBuildId,
    has_recent_poller: bool,
    now: Timestamp,
) -> Result<(), Error> {
    let target = commit.target_build_id;
    if !has_recent_poller && !commit.force {
        return Err(Error::failed_precondition(format!(
            "no versioned poller with build ID '{target}' seen within the last {POLLER_WINDOW}, use force=true to commit anyways"
        )));
    }
    check_target(build_ids, &target)?;
    build_ids.has_had_full_ramp = true;
    let stays = |rule: &BuildIdAssignmentRule| !is_fully_ramped(rule) && rule.target_build_id != target;
    build_ids.assignment_rules.retain(|rule| rule.rule.as_ref().is_some_and(stays));
    let rule = check_assignment(build_ids, Some(BuildIdAssignmentRule { target_build_id: target, ramp: None }), now)?;
    build_ids.assignment_rules.push(rule);
    Ok(())
}

// ---- Redirect rules ------------------------------------------------------------------------------------------------

fn check_redirect(
    build_ids: &BuildIds,
    rule: Option<CompatibleBuildIdRedirectRule>,
) -> Result<CompatibleBuildIdRedirectRule, Error> {
    let rule = rule.unwrap_or_default();
    if rule.target_build_id.is_empty() {
        let message = "the unversioned build ID cannot be the target of a redirect rule";
        return Err(Error::invalid_argument(message));
    }
    if is_in_sets(build_ids, &rule.source_build_id) {
        let message = "update breaks requirement, source build ID is already a member of a version set";
        return Err(Error::failed_precondition(message));
    }
    check_target(build_ids, &rule.target_build_id)?;
    Ok(rule)
}

fn add_redirect(build_ids: &mut BuildIds, rule: CompatibleBuildIdRedirectRule, now: Timestamp) -> Result<(), Error> {
    let source = &rule.source_build_id;
    let mut assigned = build_ids.assignment_rules.iter().filter_map(|rule| rule.rule.as_ref());
    if assigned.any(|rule| !is_fully_ramped(rule) && rule.target_build_id == *source) {
        let message = "redirect rule source build ID cannot be the target of any partially-ramped assignment rule";
        return Err(Error::failed_precondition(message));
    }
    if let Some((_, target)) = build_ids.redirect_rules.iter().map(ends).find(|(known, _)| known == source) {
        let message = format!("source {source} already redirects to target {target}");
        return Err(Error::new(Code::AlreadyExists, message));
    }
    insert_redirect(build_ids, rule, now);
    Ok(())
}

fn insert_redirect(build_ids: &mut BuildIds, rule: CompatibleBuildIdRedirectRule, now: Timestamp) {
    let rule = RedirectRule { rule: Some(rule), create_time_ns: now.as_nanos(), delete_time_ns: 0 };
    build_ids.redirect_rules.insert(0, rule);
}

fn remove_redirect(build_ids: &mut BuildIds, source: &str, now: Timestamp) -> Result<(), Error> {
    let index = build_ids
        .redirect_rules
        .iter()
        .position(|rule| ends(rule).0 == source)
        .ok_or_else(|| Error::not_found(format!("no redirect rule found with source ID {source}")))?;
    let mut removed = build_ids.redirect_rules.remove(index);
    removed.delete_time_ns = now.as_nanos();
    build_ids.deleted_redirect_rules.push(removed);
    let excess = build_ids.deleted_redirect_rules.len().saturating_sub(MOST_DELETED);
    build_ids.deleted_redirect_rules.drain(..excess);
    Ok(())
}

fn check_redirects(build_ids: &BuildIds, limits: &Limits) -> Result<(), Error> {
    let rules = &build_ids.redirect_rules;
    let refuse = |what: &str, count: usize, most: i64| {
        let message = format!("update exceeds number of {what} permitted in namespace ({count}/{most})");
        Err(Error::failed_precondition(message))
    };
    if limits.redirect_rules_in_queue > 0 && rules.len() as i64 > limits.redirect_rules_in_queue {
        return refuse("redirect rules", rules.len(), limits.redirect_rules_in_queue);
    }
    // Each source has one rule: whoever comes back to where it was goes in a ring.
    if rules.iter().any(|rule| is_redirected(build_ids, build_ids::redirect(build_ids, ends(rule).0))) {
        return Err(Error::failed_precondition("update would break acyclic requirement"));
    }
    for rule in rules {
        let count = upstream(rules.iter(), ends(rule).1).len();
        if count as i64 > limits.upstream_build_ids {
            return refuse("upstream build ids", count, limits.upstream_build_ids);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
