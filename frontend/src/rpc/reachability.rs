//! Whether workers of a build id may still get tasks, in the older forms of worker versioning: by what the task queue's sets
//! and rules say of new workflows, and by the lists of those that exist.

#![allow(deprecated)]

use perdure_proto::{
    Error, build_ids,
    perdure::state::v1::BuildIds,
    temporal::api::{
        enums::v1::{BuildIdTaskReachability, TaskReachability},
        taskqueue::v1::{BuildIdReachability, TaskQueue, TaskQueueReachability},
        workflowservice::v1::{
            DescribeTaskQueueResponse, GetWorkerTaskReachabilityRequest, GetWorkerTaskReachabilityResponse,
        },
    },
};
use perdure_types::{Duration, EntityKind, Limits, Timestamp};

use super::{count::count_of, old_versioning::build_ids_of};
use crate::{call::Call, validate};

/// A text as queries write it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

async fn exists(call: &Call<'_>, namespace: &str, query: &str) -> Result<bool, Error> {
    Ok(count_of(EntityKind::Workflow, call, namespace, query).await?.0 > 0)
}

// ---- Rules ---------------------------------------------------------------------------------------------------------

pub(super) fn check_describe(build_ids: &[String], limits: &Limits) -> Result<(), Error> {
    let most = limits.reachability_build_ids;
    if build_ids.len() as i64 > most {
        return Err(Error::invalid_argument(format!(
            "Too many build ids queried at once with ReportTaskReachability==true, limit: {most}"
        )));
    }
    Ok(())
}

/// Completes the description of a task queue.
pub(super) async fn add_to(
    described: &mut DescribeTaskQueueResponse,
    call: &Call<'_>,
    (namespace, task_queue): (&str, &str),
) -> Result<(), Error> {
    let known = build_ids_of(call, namespace, task_queue).await?;
    for (build_id, info) in &mut described.versions_info {
        let reachability = by_rules(call, namespace, task_queue, &known, build_id).await?;
        info.task_reachability = reachability as i32;
    }
    Ok(())
}

async fn by_rules(
    call: &Call<'_>,
    namespace: &str,
    task_queue: &str,
    known: &BuildIds,
    build_id: &str,
) -> Result<BuildIdTaskReachability, Error> {
    if known.redirect_rules.iter().any(|rule| build_ids::ends(rule).0 == build_id) {
        return Ok(BuildIdTaskReachability::Unreachable);
    }
    if sources(known, build_id, None).iter().any(|source| gets_new(known, source)) {
        return Ok(BuildIdTaskReachability::Reachable);
    }
    let sources =
        sources(known, build_id, Some((call.frontend().rows()?.now(), call.limits().reachability_rule_grace)));
    if exists(call, namespace, &query_of(task_queue, &sources, true)).await? {
        return Ok(BuildIdTaskReachability::Reachable);
    }
    if exists(call, namespace, &query_of(task_queue, &sources, false)).await? {
        return Ok(BuildIdTaskReachability::ClosedWorkflowsOnly);
    }
    Ok(BuildIdTaskReachability::Unreachable)
}

/// The build id and those that rules redirect to it; rules that were deleted of late too, if asked for.
fn sources<'a>(known: &'a BuildIds, build_id: &'a str, deleted: Option<(Timestamp, Duration)>) -> Vec<&'a str> {
    let late = known
        .deleted_redirect_rules
        .iter()
        .filter(move |rule| deleted.is_some_and(|(now, grace)| now.since(Timestamp(rule.delete_time_ns)) <= grace));
    let mut sources: Vec<&str> =
        build_ids::upstream(known.redirect_rules.iter().chain(late), build_id).into_iter().collect();
    sources.push(build_id);
    sources
}

/// Whether assignment rules give it new workflows. Those after a full ramp are not reached.
fn gets_new(known: &BuildIds, build_id: &str) -> bool {
    for rule in known.assignment_rules.iter().filter_map(|rule| rule.rule.as_ref()) {
        if rule.target_build_id == build_id {
            return true;
        }
        if build_ids::is_fully_ramped(rule) {
            return false;
        }
    }
    build_id.is_empty()
}

/// Open workflows that are on one of the build ids, or closed ones that have been.
fn query_of(task_queue: &str, build_ids: &[&str], open: bool) -> String {
    let (prefix, status) = if open { ("assigned", "=") } else { ("versioned", "!=") };
    let entry = |build_id: &&str| match *build_id {
        "" => quoted("unversioned"),
        build_id => quoted(&format!("{prefix}:{build_id}")),
    };
    let entries: Vec<String> = build_ids.iter().map(entry).collect();
    let mut filter = format!("BuildIds IN ({})", entries.join(", "));
    if build_ids.contains(&"") {
        // Nothing is said of workflows that no versioned worker has taken part in.
        filter = format!("(BuildIds IS NULL OR {filter})");
    }
    format!("TaskQueue = {} AND {filter} AND ExecutionStatus {status} 'Running'", quoted(task_queue))
}

// ---- Sets ----------------------------------------------------------------------------------------------------------

pub(super) async fn of_sets(
    call: &Call<'_>,
    request: GetWorkerTaskReachabilityRequest,
) -> Result<GetWorkerTaskReachabilityResponse, Error> {
    call.namespace(&request.namespace)?;
    check_sets_request(&request, call.limits())?;
    let most = usize::try_from(call.limits().reachability_task_queues).unwrap_or(usize::MAX);
    let mut answers = Vec::new();
    for build_id in &request.build_ids {
        let mut queues = Vec::new();
        for (index, task_queue) in request.task_queues.iter().enumerate() {
            let reachability = if index < most {
                let known = build_ids_of(call, &request.namespace, task_queue).await?;
                by_sets(call, &request, task_queue, &known, build_id).await?
            } else {
                vec![TaskReachability::Unspecified as i32]
            };
            queues.push(TaskQueueReachability { task_queue: task_queue.clone(), reachability });
        }
        answers.push(BuildIdReachability { build_id: build_id.clone(), task_queue_reachability: queues });
    }
    Ok(GetWorkerTaskReachabilityResponse { build_id_reachability: answers })
}

fn check_sets_request(request: &GetWorkerTaskReachabilityRequest, limits: &Limits) -> Result<(), Error> {
    let refuse = |message: &str| Err(Error::invalid_argument(message));
    if request.build_ids.is_empty() {
        return refuse("Must query at least one build ID (or empty string for unversioned worker)");
    }
    if request.build_ids.len() as i64 > limits.reachability_build_ids {
        let most = limits.reachability_build_ids;
        return Err(Error::invalid_argument(format!("Too many build ids queried at once, limit: {most}")));
    }
    if request.build_ids.iter().any(|build_id| build_id.len() as i64 > limits.build_id_length) {
        return refuse("Build ID exceeds configured limit.workerBuildIdSize, use a shorter build ID.");
    }
    // Nobody keeps a list of the task queues of a build id.
    if request.task_queues.is_empty() {
        return refuse("Cannot get reachability without specifying at least one task queue");
    }
    for name in &request.task_queues {
        let mut queue = TaskQueue { name: name.clone(), ..TaskQueue::default() };
        validate::task_queue(Some(&mut queue), limits)?;
    }
    Ok(())
}

async fn by_sets(
    call: &Call<'_>,
    request: &GetWorkerTaskReachabilityRequest,
    task_queue: &str,
    known: &BuildIds,
    build_id: &str,
) -> Result<Vec<i32>, Error> {
    let kind = request.reachability();
    let since = call.limits().reachability_set_since_default;
    let now = call.frontend().rows()?.now();
    let Some(found) = in_sets(known, build_id, kind, now, since) else {
        return Ok(Vec::new());
    };
    let mut reachability = Vec::new();
    if found.by_new {
        reachability.push(TaskReachability::NewWorkflows as i32);
    }
    let (kind, status) = match kind {
        TaskReachability::NewWorkflows => return Ok(reachability),
        TaskReachability::OpenWorkflows => (kind, " AND ExecutionStatus = 'Running'"),
        TaskReachability::ClosedWorkflows => (kind, " AND ExecutionStatus != 'Running'"),
        TaskReachability::ExistingWorkflows | TaskReachability::Unspecified => {
            (TaskReachability::ExistingWorkflows, "")
        }
    };
    let query = format!("TaskQueue = {} AND {}{status}", quoted(task_queue), found.filter);
    if exists(call, &request.namespace, &query).await? {
        reachability.push(kind as i32);
    }
    Ok(reachability)
}

struct InSets {
    by_new: bool,
    /// Finds what its workers get of that which exists.
    filter: String,
}

/// `None`: its workers get nothing.
fn in_sets(
    known: &BuildIds,
    build_id: &str,
    kind: TaskReachability,
    now: Timestamp,
    grace: Duration,
) -> Option<InSets> {
    let sets = &known.sets;
    let of_late = |since_ns: i64| now.since(Timestamp(since_ns)) < grace;
    let (is_default, by_new, filter) = if build_id.is_empty() {
        let first_ns = sets.iter().map(|set| set.default_since_ns).min();
        let filter = "BuildIds = 'unversioned'".to_owned();
        (sets.is_empty(), first_ns.is_none_or(of_late), filter)
    } else {
        let (index, place) = build_ids::find_in_sets(sets, build_id)?;
        let set = &sets[index];
        if place + 1 != set.build_ids.len() {
            return None;
        }
        let is_default = index + 1 == sets.len();
        let entries: Vec<String> = set.build_ids.iter().map(|id| quoted(&format!("versioned:{id}"))).collect();
        let filter = format!("BuildIds IN ({})", entries.join(", "));
        (is_default, is_default || of_late(set.default_since_ns), filter)
    };
    // Workflows that no worker has seen yet go to the default. Unversioned workers leave no trace at all.
    let unseen = is_default && kind != TaskReachability::ClosedWorkflows || build_id.is_empty();
    let filter = if unseen { format!("(BuildIds IS NULL OR {filter})") } else { filter };
    Some(InSets { by_new, filter })
}

#[cfg(test)]
mod tests {
    use perdure_proto::{
        perdure::state::v1::{AssignmentRule, BuildIdSet, RedirectRule},
        temporal::api::taskqueue::v1::{BuildIdAssignmentRule, CompatibleBuildIdRedirectRule},
    };

    use super::*;

    fn assignment(target: &str) -> AssignmentRule {
        let rule = BuildIdAssignmentRule { target_build_id: target.into(), ramp: None };
        AssignmentRule { rule: Some(rule), ..Default::default() }
    }

    fn redirect(source: &str, target: &str, delete_time_ns: i64) -> RedirectRule {
        let rule = CompatibleBuildIdRedirectRule { source_build_id: source.into(), target_build_id: target.into() };
        RedirectRule { rule: Some(rule), delete_time_ns, ..Default::default() }
    }

    #[test]
    fn new_workflows_get_no_further_than_the_first_full_ramp() {
        let known = BuildIds { assignment_rules: vec![assignment("1"), assignment("2")], ..Default::default() };
        assert!(gets_new(&known, "1") && !gets_new(&known, "2") && !gets_new(&known, ""));
        assert!(gets_new(&BuildIds::default(), ""));
    }

    #[test]
    fn rules_that_were_deleted_of_late_count() {
        let known = BuildIds {
            redirect_rules: vec![redirect("1", "2", 0)],
            deleted_redirect_rules: vec![redirect("0", "2", Duration::from_secs(100).0)],
            ..Default::default()
        };
        let at = |seconds| Some((Timestamp(Duration::from_secs(seconds).0), Duration::from_secs(60)));
        assert_eq!(sources(&known, "2", None), ["1", "2"]);
        assert_eq!(sources(&known, "2", at(120)), ["0", "1", "2"]);
        assert_eq!(sources(&known, "2", at(200)), ["1", "2"]);
        assert_eq!(
            query_of("it's", &["1", ""], true),
            "TaskQueue = 'it\\'s' AND (BuildIds IS NULL OR BuildIds IN ('assigned:1', 'unversioned')) AND ExecutionStatus = 'Running'"
        );
    }

    #[test]
    fn only_the_newest_of_a_set_gets_anything() {
        let set = |ids: &[&str], default_since_ns| BuildIdSet {
            build_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            default_since_ns,
        };
        let known = BuildIds { sets: vec![set(&["1.0", "1.1"], 1), set(&["2"], 2)], ..Default::default() };
        let by_new = |build_id, at| {
            let kind = TaskReachability::ExistingWorkflows;
            in_sets(&known, build_id, kind, Timestamp(at), Duration(10)).map(|found| found.by_new)
        };
        assert_eq!(by_new("1.0", 5), None);
        assert_eq!((by_new("1.1", 5), by_new("1.1", 50)), (Some(true), Some(false)));
        assert_eq!(by_new("2", 50), Some(true));
        assert_eq!((by_new("", 5), by_new("", 50), by_new("9", 5)), (Some(true), Some(false), None));
    }
}
