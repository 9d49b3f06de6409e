//! Families of versioning that worker deployments have replaced: sets of compatible build ids, and rules about them. Both are
//! part of what is durable of a task queue, and are off by default in Temporal's server; its keys for that are ours. The
//! first form of deployments is gone.

#![allow(deprecated)]

use perdure_proto::{
    Code, Error,
    perdure::{
        node::v1::{
            TaskQueueCommand, UpdateVersioningRules, matching_call, matching_reply, task_queue_command, workflow_call,
            workflow_reply,
        },
        state::v1::BuildIds,
    },
    temporal::api::{
        enums::v1::{DescribeTaskQueueMode, TaskQueueType},
        taskqueue::v1::{
            CompatibleVersionSet, TaskQueue, TaskQueueVersionSelection, TimestampedBuildIdAssignmentRule,
            TimestampedCompatibleBuildIdRedirectRule,
        },
        workflowservice::v1::{
            update_worker_build_id_compatibility_request::Operation as SetOperation,
            update_worker_versioning_rules_request::Operation as RuleOperation, *,
        },
    },
};
use perdure_types::{EntityKind, Limits, Timestamp};

use super::reachability;
use crate::{call::Call, validate};

/// How long ago workers of a build id may have polled that is to be committed.
const POLLER_WINDOW: perdure_types::Duration = perdure_types::Duration::from_secs(70);

fn no_version_sets() -> Error {
    let message = "Worker versioning v0.1 (Version Set-based, deprecated) is disabled on this namespace.";
    Error::new(Code::PermissionDenied, message)
}

fn no_rules() -> Error {
    let message = "Worker versioning v0.2 (Rules-based, deprecated) is disabled on this namespace.";
    Error::new(Code::PermissionDenied, message)
}

fn gone() -> Error {
    let message = "Deployments are deprecated and no longer supported, use Worker Deployments instead";
    Error::new(Code::Unimplemented, message)
}

macro_rules! refused {
    ($($rpc:ident($request:ident) -> $response:ident by $refusal:ident;)*) => {
        $(pub(crate) async fn $rpc(_call: &Call<'_>, _request: $request) -> Result<$response, Error> {
            Err($refusal())
        })*
    };
}

refused! {
    describe_deployment(DescribeDeploymentRequest) -> DescribeDeploymentResponse by gone;
    list_deployments(ListDeploymentsRequest) -> ListDeploymentsResponse by gone;
    get_deployment_reachability(GetDeploymentReachabilityRequest) -> GetDeploymentReachabilityResponse by gone;
    get_current_deployment(GetCurrentDeploymentRequest) -> GetCurrentDeploymentResponse by gone;
    set_current_deployment(SetCurrentDeploymentRequest) -> SetCurrentDeploymentResponse by gone;
}

/// Sends a command to what is durable of a task queue; gives back its sets and rules, and the revision of the whole.
async fn ask(
    call: &Call<'_>,
    namespace: &str,
    task_queue: &str,
    command: task_queue_command::Command,
) -> Result<(BuildIds, i64), Error> {
    let namespace = call.namespace(namespace)?;
    let mut queue = TaskQueue { name: task_queue.to_owned(), ..TaskQueue::default() };
    let name = validate::task_queue(Some(&mut queue), call.limits())?.name.clone();
    let command = workflow_call::Command::TaskQueue(Box::new(TaskQueueCommand { command: Some(command) }));
    match call.entity(EntityKind::TaskQueue, namespace.id(), &name, command).await? {
        workflow_reply::Reply::TaskQueue(state) => Ok((state.build_ids.unwrap_or_default(), state.revision)),
        _ => Err(call.unexpected_reply()),
    }
}

/// The same for a change: what the client does next is to find it done, where tasks are matched too.
async fn change(
    call: &Call<'_>,
    namespace: &str,
    task_queue: &str,
    command: task_queue_command::Command,
) -> Result<BuildIds, Error> {
    let (build_ids, revision) = ask(call, namespace, task_queue, command).await?;
    let namespace_id = call.namespace(namespace)?.id().to_owned();
    // It is made, whether the queue's home can be reached now or not.
    let known = call.matching(&namespace_id, task_queue, matching_call::Command::AwaitRevision(revision)).await;
    if let Err(error) = known {
        tracing::debug!(%error, task_queue, "a task queue's home learns of a change later");
    }
    Ok(build_ids)
}

/// The sets and rules of a task queue as they are.
pub(super) async fn build_ids_of(call: &Call<'_>, namespace: &str, task_queue: &str) -> Result<BuildIds, Error> {
    Ok(ask(call, namespace, task_queue, task_queue_command::Command::Follow(-1)).await?.0)
}

// ---- Sets ----------------------------------------------------------------------------------------------------------

pub(crate) async fn update_worker_build_id_compatibility(
    call: &Call<'_>,
    request: UpdateWorkerBuildIdCompatibilityRequest,
) -> Result<UpdateWorkerBuildIdCompatibilityResponse, Error> {
    if !call.limits().version_sets {
        return Err(no_version_sets());
    }
    check_set_update(&request, call.limits())?;
    let (namespace, queue) = (request.namespace.clone(), request.task_queue.clone());
    change(call, &namespace, &queue, task_queue_command::Command::UpdateVersionSets(request)).await?;
    Ok(UpdateWorkerBuildIdCompatibilityResponse {})
}

fn check_set_update(request: &UpdateWorkerBuildIdCompatibilityRequest, limits: &Limits) -> Result<(), Error> {
    let mut wrong = Vec::new();
    let mut expect = |holds: bool, what: &str| {
        if !holds {
            wrong.push(what.to_owned());
        }
    };
    expect(!request.namespace.is_empty(), "`namespace` to be set");
    expect(!request.task_queue.is_empty(), "`task_queue` to be set");
    expect(request.operation.is_some(), "an operation to be specified");
    let build_id = match &request.operation {
        Some(SetOperation::AddNewCompatibleBuildId(add)) => {
            expect(!add.new_build_id.is_empty(), "`add_new_compatible_version` to be set");
            expect(!add.existing_compatible_build_id.is_empty(), "`existing_compatible_version` to be set");
            &add.new_build_id
        }
        Some(SetOperation::AddNewBuildIdInNewDefaultSet(new)) => {
            expect(!new.is_empty(), "`add_new_version_id_in_new_default_set` to be set");
            new
        }
        Some(SetOperation::PromoteSetByBuildId(build_id)) => {
            expect(!build_id.is_empty(), "`promote_set_by_version_id` to be set");
            build_id
        }
        Some(SetOperation::PromoteBuildIdWithinSet(build_id)) => {
            expect(!build_id.is_empty(), "`promote_version_id_within_set` to be set");
            build_id
        }
        Some(SetOperation::MergeSets(merge)) => &merge.primary_set_build_id,
        None => "",
    };
    let most = limits.build_id_length;
    expect(build_id.len() as i64 <= most, &format!(" Worker build IDs to be no larger than {most} characters"));
    if wrong.is_empty() {
        return Ok(());
    }
    let what = wrong.join(", ");
    Err(Error::invalid_argument(format!("request to update worker build ID compatability requires: , {what}")))
}

pub(crate) async fn get_worker_build_id_compatibility(
    call: &Call<'_>,
    request: GetWorkerBuildIdCompatibilityRequest,
) -> Result<GetWorkerBuildIdCompatibilityResponse, Error> {
    if !call.limits().version_sets {
        return Err(no_version_sets());
    }
    let sets = build_ids_of(call, &request.namespace, &request.task_queue).await?.sets;
    // The last ones are those that matter most.
    let skipped = match usize::try_from(request.max_sets) {
        Ok(most) if most > 0 => sets.len().saturating_sub(most),
        Ok(_) | Err(_) => 0,
    };
    let shown = sets.into_iter().skip(skipped).map(|set| CompatibleVersionSet { build_ids: set.build_ids });
    Ok(GetWorkerBuildIdCompatibilityResponse { major_version_sets: shown.collect() })
}

pub(crate) async fn get_worker_task_reachability(
    call: &Call<'_>,
    request: GetWorkerTaskReachabilityRequest,
) -> Result<GetWorkerTaskReachabilityResponse, Error> {
    if !call.limits().version_sets {
        return Err(no_rules());
    }
    reachability::of_sets(call, request).await
}

// ---- Rules ---------------------------------------------------------------------------------------------------------

pub(crate) async fn update_worker_versioning_rules(
    call: &Call<'_>,
    request: UpdateWorkerVersioningRulesRequest,
) -> Result<UpdateWorkerVersioningRulesResponse, Error> {
    if !call.limits().versioning_rules {
        return Err(no_rules());
    }
    check_build_ids(request.operation.as_ref())?;
    let (namespace, queue) = (request.namespace.clone(), request.task_queue.clone());
    let has_recent_poller = match &request.operation {
        Some(RuleOperation::CommitBuildId(commit)) if !commit.force => {
            has_recent_poller(call, &namespace, &queue, &commit.target_build_id).await?
        }
        _ => false,
    };
    let update = UpdateVersioningRules { request: Some(request), has_recent_poller };
    let shown = shown(change(call, &namespace, &queue, task_queue_command::Command::UpdateRules(update)).await?);
    Ok(UpdateWorkerVersioningRulesResponse {
        assignment_rules: shown.assignment_rules,
        compatible_redirect_rules: shown.compatible_redirect_rules,
        conflict_token: shown.conflict_token,
    })
}

fn check_build_ids(operation: Option<&RuleOperation>) -> Result<(), Error> {
    const LONGEST: usize = 255;
    let redirect = |rule: &Option<perdure_proto::temporal::api::taskqueue::v1::CompatibleBuildIdRedirectRule>| {
        rule.as_ref().map_or_else(Vec::new, |r| vec![r.target_build_id.len(), r.source_build_id.len()])
    };
    let lengths = match operation {
        Some(RuleOperation::InsertAssignmentRule(o)) => o.rule.iter().map(|r| r.target_build_id.len()).collect(),
        Some(RuleOperation::ReplaceAssignmentRule(o)) => o.rule.iter().map(|r| r.target_build_id.len()).collect(),
        Some(RuleOperation::AddCompatibleRedirectRule(o)) => redirect(&o.rule),
        Some(RuleOperation::ReplaceCompatibleRedirectRule(o)) => redirect(&o.rule),
        Some(RuleOperation::CommitBuildId(o)) => vec![o.target_build_id.len()],
        Some(RuleOperation::DeleteAssignmentRule(_) | RuleOperation::DeleteCompatibleRedirectRule(_)) | None => {
            Vec::new()
        }
    };
    match lengths.into_iter().find(|length| *length > LONGEST) {
        Some(length) => {
            let message = format!("BuildId must be <= {LONGEST} characters, was {length}");
            Err(Error::invalid_argument(message))
        }
        None => Ok(()),
    }
}

async fn has_recent_poller(call: &Call<'_>, namespace: &str, queue: &str, build_id: &str) -> Result<bool, Error> {
    let namespace_id = call.namespace(namespace)?.id().to_owned();
    let request = DescribeTaskQueueRequest {
        namespace: namespace.to_owned(),
        task_queue: Some(TaskQueue { name: queue.to_owned(), ..TaskQueue::default() }),
        api_mode: DescribeTaskQueueMode::Enhanced as i32,
        task_queue_types: vec![TaskQueueType::Workflow as i32, TaskQueueType::Activity as i32],
        versions: Some(TaskQueueVersionSelection { build_ids: vec![build_id.to_owned()], ..Default::default() }),
        report_pollers: true,
        ..DescribeTaskQueueRequest::default()
    };
    let reply = call.matching(&namespace_id, queue, matching_call::Command::Describe(request)).await?;
    let matching_reply::Reply::Describe(described) = reply else {
        return Err(call.unexpected_reply());
    };
    let types = described.versions_info.into_values().flat_map(|info| info.types_info.into_values());
    let mut seen = types.flat_map(|info| info.pollers).map(|p| Timestamp::from_proto(p.last_access_time.as_ref()));
    let now = call.frontend().rows()?.now();
    Ok(seen.any(|seen| now.since(seen) <= POLLER_WINDOW))
}

pub(crate) async fn get_worker_versioning_rules(
    call: &Call<'_>,
    request: GetWorkerVersioningRulesRequest,
) -> Result<GetWorkerVersioningRulesResponse, Error> {
    if !call.limits().versioning_rules {
        return Err(no_rules());
    }
    Ok(shown(build_ids_of(call, &request.namespace, &request.task_queue).await?))
}

fn shown(build_ids: BuildIds) -> GetWorkerVersioningRulesResponse {
    let conflict_token = build_ids.revision.to_be_bytes().to_vec().into();
    let assignment = build_ids.assignment_rules.into_iter().map(|known| TimestampedBuildIdAssignmentRule {
        rule: known.rule,
        create_time: Timestamp(known.create_time_ns).to_proto(),
    });
    let redirect = build_ids.redirect_rules.into_iter().map(|known| TimestampedCompatibleBuildIdRedirectRule {
        rule: known.rule,
        create_time: Timestamp(known.create_time_ns).to_proto(),
    });
    GetWorkerVersioningRulesResponse {
        assignment_rules: assignment.collect(),
        compatible_redirect_rules: redirect.collect(),
        conflict_token,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_of_sets_says_all_that_is_wrong_with_it() {
        let check = |request: &UpdateWorkerBuildIdCompatibilityRequest| {
            check_set_update(request, &Limits::default()).map_err(|error| error.message)
        };
        let mut request = UpdateWorkerBuildIdCompatibilityRequest::default();
        let all = check(&request).expect_err("nothing is there");
        for part in ["`namespace`", "`task_queue`", "an operation"] {
            assert!(all.contains(part), "{all}");
        }
        request.namespace = "n".into();
        request.task_queue = "q".into();
        request.operation = Some(SetOperation::PromoteSetByBuildId("x".repeat(256)));
        assert!(check(&request).expect_err("too long").contains("255"));
        request.operation = Some(SetOperation::PromoteSetByBuildId("1".into()));
        assert_eq!(check(&request), Ok(()));
    }
}
