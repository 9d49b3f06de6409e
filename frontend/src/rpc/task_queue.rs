//! DescribeTaskQueue and ListTaskQueuePartitions.

use perdure_proto::{
    Error,
    perdure::node::v1::{matching_call, matching_reply},
    temporal::api::{
        enums::v1::{DescribeTaskQueueMode, TaskQueueKind, TaskQueueType},
        workflowservice::v1::{
            DescribeTaskQueueRequest, DescribeTaskQueueResponse, ListTaskQueuePartitionsRequest,
            ListTaskQueuePartitionsResponse,
        },
    },
};

use super::reachability;
use crate::{call::Call, validate};

#[allow(deprecated)]
pub(crate) async fn describe_task_queue(
    call: &Call<'_>,
    mut request: DescribeTaskQueueRequest,
) -> Result<DescribeTaskQueueResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    let enhanced = request.api_mode == DescribeTaskQueueMode::Enhanced as i32;
    let queue = if request.api_mode == DescribeTaskQueueMode::Unspecified as i32 {
        validate::task_queue_partition(request.task_queue.as_mut(), call.limits())?
    } else {
        validate::task_queue(request.task_queue.as_mut(), call.limits())?
    };
    if enhanced && queue.kind == TaskQueueKind::Sticky as i32 {
        return Err(Error::invalid_argument(
            "Enhanced DescribeTaskQueue is not valid for a sticky queue, use api_mode=UNSPECIFIED or a normal queue.",
        ));
    }
    let name = queue.name.clone();
    if enhanced || request.task_queue_type == TaskQueueType::Unspecified as i32 {
        request.task_queue_type = TaskQueueType::Workflow as i32;
    }
    if request.task_queue_types.is_empty() {
        request.task_queue_types = vec![TaskQueueType::Workflow as i32, TaskQueueType::Activity as i32];
    }
    if request.report_task_reachability {
        let named = request.versions.as_ref().map(|versions| versions.build_ids.as_slice()).unwrap_or_default();
        reachability::check_describe(named, call.limits())?;
    }
    let reachability = enhanced && request.report_task_reachability;
    let mut described = match call.matching(namespace.id(), &name, matching_call::Command::Describe(request)).await? {
        matching_reply::Reply::Describe(reply) => reply,
        _ => return Err(call.unexpected_reply()),
    };
    if reachability {
        reachability::add_to(&mut described, call, (namespace.name(), &name)).await?;
    }
    Ok(described)
}

pub(crate) async fn list_task_queue_partitions(
    call: &Call<'_>,
    mut request: ListTaskQueuePartitionsRequest,
) -> Result<ListTaskQueuePartitionsResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    let name = validate::task_queue(request.task_queue.as_mut(), call.limits())?.name.clone();
    match call.matching(namespace.id(), &name, matching_call::Command::ListPartitions(request)).await? {
        matching_reply::Reply::ListPartitions(reply) => Ok(reply),
        _ => Err(call.unexpected_reply()),
    }
}
