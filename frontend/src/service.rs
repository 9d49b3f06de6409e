//! The table of all RPCs: which are built, which answer UNIMPLEMENTED. The README's table and the tests read it as data.

use perdure_proto::{
    Error,
    temporal::api::{
        operatorservice::v1::{operator_service_server::OperatorService, *},
        workflowservice::v1::{workflow_service_server::WorkflowService, *},
    },
};
use tonic::{Request, Response, Status};

use crate::{Frontend, call::Call, rpc};

/// "StartWorkflowExecutionRequest" to "StartWorkflowExecution".
const fn rpc_name(request_type: &'static str) -> &'static str {
    request_type.split_at(request_type.len() - "Request".len()).0
}

/// Implements a gRPC service trait: each RPC of the first list by the function of its name in `rpc`.
macro_rules! service {
    (
        $service:ident, $done:ident, $open:ident
        implemented { $($module:ident::$rpc:ident($request:ident) -> $response:ident;)* }
        unimplemented { $($open_rpc:ident($open_request:ident) -> $open_response:ident;)* }
    ) => {
        /// RPCs of the service that are built.
        pub const $done: &[&str] = &[$(rpc_name(stringify!($request))),*];
        /// RPCs of the service that answer UNIMPLEMENTED.
        pub const $open: &[&str] = &[$(rpc_name(stringify!($open_request))),*];

        #[tonic::async_trait]
        impl $service for Frontend {
            $(
                async fn $rpc(&self, request: Request<$request>) -> Result<Response<$response>, Status> {
                    let call = Call::begin(self, const { rpc_name(stringify!($request)) }, &request);
                    let outcome = rpc::$module::$rpc(&call, request.into_inner()).await;
                    call.finish(outcome)
                }
            )*
            $(
                async fn $open_rpc(&self, request: Request<$open_request>) -> Result<Response<$open_response>, Status> {
                    let name = const { rpc_name(stringify!($open_request)) };
                    Call::begin(self, name, &request).finish(Err(Error::unimplemented(name)))
                }
            )*
        }
    };
}

service! {
    WorkflowService, WORKFLOW_IMPLEMENTED, WORKFLOW_UNIMPLEMENTED
    implemented {
        namespace_write::register_namespace(RegisterNamespaceRequest) -> RegisterNamespaceResponse;
        namespace_read::describe_namespace(DescribeNamespaceRequest) -> DescribeNamespaceResponse;
        namespace_read::list_namespaces(ListNamespacesRequest) -> ListNamespacesResponse;
        namespace_write::update_namespace(UpdateNamespaceRequest) -> UpdateNamespaceResponse;
        namespace_write::deprecate_namespace(DeprecateNamespaceRequest) -> DeprecateNamespaceResponse;
        start::start_workflow_execution(StartWorkflowExecutionRequest) -> StartWorkflowExecutionResponse;
        multi_operation::execute_multi_operation(ExecuteMultiOperationRequest) -> ExecuteMultiOperationResponse;
        history::get_workflow_execution_history(GetWorkflowExecutionHistoryRequest) -> GetWorkflowExecutionHistoryResponse;
        history::get_workflow_execution_history_reverse(GetWorkflowExecutionHistoryReverseRequest) -> GetWorkflowExecutionHistoryReverseResponse;
        poll::poll_workflow_task_queue(PollWorkflowTaskQueueRequest) -> PollWorkflowTaskQueueResponse;
        workflow_task::respond_workflow_task_completed(RespondWorkflowTaskCompletedRequest) -> RespondWorkflowTaskCompletedResponse;
        workflow_task::respond_workflow_task_failed(RespondWorkflowTaskFailedRequest) -> RespondWorkflowTaskFailedResponse;
        poll::poll_activity_task_queue(PollActivityTaskQueueRequest) -> PollActivityTaskQueueResponse;
        activity_by_token::record_activity_task_heartbeat(RecordActivityTaskHeartbeatRequest) -> RecordActivityTaskHeartbeatResponse;
        activity_by_id::record_activity_task_heartbeat_by_id(RecordActivityTaskHeartbeatByIdRequest) -> RecordActivityTaskHeartbeatByIdResponse;
        activity_by_token::respond_activity_task_completed(RespondActivityTaskCompletedRequest) -> RespondActivityTaskCompletedResponse;
        activity_by_id::respond_activity_task_completed_by_id(RespondActivityTaskCompletedByIdRequest) -> RespondActivityTaskCompletedByIdResponse;
        activity_by_token::respond_activity_task_failed(RespondActivityTaskFailedRequest) -> RespondActivityTaskFailedResponse;
        activity_by_id::respond_activity_task_failed_by_id(RespondActivityTaskFailedByIdRequest) -> RespondActivityTaskFailedByIdResponse;
        activity_by_token::respond_activity_task_canceled(RespondActivityTaskCanceledRequest) -> RespondActivityTaskCanceledResponse;
        activity_by_id::respond_activity_task_canceled_by_id(RespondActivityTaskCanceledByIdRequest) -> RespondActivityTaskCanceledByIdResponse;
        cancel::request_cancel_workflow_execution(RequestCancelWorkflowExecutionRequest) -> RequestCancelWorkflowExecutionResponse;
        signal::signal_workflow_execution(SignalWorkflowExecutionRequest) -> SignalWorkflowExecutionResponse;
        signal_with_start::signal_with_start_workflow_execution(SignalWithStartWorkflowExecutionRequest) -> SignalWithStartWorkflowExecutionResponse;
        terminate::terminate_workflow_execution(TerminateWorkflowExecutionRequest) -> TerminateWorkflowExecutionResponse;
        list::list_open_workflow_executions(ListOpenWorkflowExecutionsRequest) -> ListOpenWorkflowExecutionsResponse;
        list::list_closed_workflow_executions(ListClosedWorkflowExecutionsRequest) -> ListClosedWorkflowExecutionsResponse;
        list::list_workflow_executions(ListWorkflowExecutionsRequest) -> ListWorkflowExecutionsResponse;
        list::list_archived_workflow_executions(ListArchivedWorkflowExecutionsRequest) -> ListArchivedWorkflowExecutionsResponse;
        list::scan_workflow_executions(ScanWorkflowExecutionsRequest) -> ScanWorkflowExecutionsResponse;
        count::count_workflow_executions(CountWorkflowExecutionsRequest) -> CountWorkflowExecutionsResponse;
        search_attributes::get_search_attributes(GetSearchAttributesRequest) -> GetSearchAttributesResponse;
        query_task::respond_query_task_completed(RespondQueryTaskCompletedRequest) -> RespondQueryTaskCompletedResponse;
        sticky::reset_sticky_task_queue(ResetStickyTaskQueueRequest) -> ResetStickyTaskQueueResponse;
        worker::shutdown_worker(ShutdownWorkerRequest) -> ShutdownWorkerResponse;
        query::query_workflow(QueryWorkflowRequest) -> QueryWorkflowResponse;
        describe::describe_workflow_execution(DescribeWorkflowExecutionRequest) -> DescribeWorkflowExecutionResponse;
        task_queue::describe_task_queue(DescribeTaskQueueRequest) -> DescribeTaskQueueResponse;
        system::get_cluster_info(GetClusterInfoRequest) -> GetClusterInfoResponse;
        system::get_system_info(GetSystemInfoRequest) -> GetSystemInfoResponse;
        task_queue::list_task_queue_partitions(ListTaskQueuePartitionsRequest) -> ListTaskQueuePartitionsResponse;
        update::update_workflow_execution(UpdateWorkflowExecutionRequest) -> UpdateWorkflowExecutionResponse;
        update::poll_workflow_execution_update(PollWorkflowExecutionUpdateRequest) -> PollWorkflowExecutionUpdateResponse;
        worker::record_worker_heartbeat(RecordWorkerHeartbeatRequest) -> RecordWorkerHeartbeatResponse;
        workers::list_workers(ListWorkersRequest) -> ListWorkersResponse;
        workers::count_workers(CountWorkersRequest) -> CountWorkersResponse;
        workers::describe_worker(DescribeWorkerRequest) -> DescribeWorkerResponse;
        reset::reset_workflow_execution(ResetWorkflowExecutionRequest) -> ResetWorkflowExecutionResponse;
        delete::delete_workflow_execution(DeleteWorkflowExecutionRequest) -> DeleteWorkflowExecutionResponse;
        pause::pause_workflow_execution(PauseWorkflowExecutionRequest) -> PauseWorkflowExecutionResponse;
        pause::unpause_workflow_execution(UnpauseWorkflowExecutionRequest) -> UnpauseWorkflowExecutionResponse;
        options::update_workflow_execution_options(UpdateWorkflowExecutionOptionsRequest) -> UpdateWorkflowExecutionOptionsResponse;
        activity_operation::update_activity_options(UpdateActivityOptionsRequest) -> UpdateActivityOptionsResponse;
        activity_operation::pause_activity(PauseActivityRequest) -> PauseActivityResponse;
        activity_operation::unpause_activity(UnpauseActivityRequest) -> UnpauseActivityResponse;
        activity_operation::reset_activity(ResetActivityRequest) -> ResetActivityResponse;
        activity_operation::pause_activity_execution(PauseActivityExecutionRequest) -> PauseActivityExecutionResponse;
        activity_operation::reset_activity_execution(ResetActivityExecutionRequest) -> ResetActivityExecutionResponse;
        activity_operation::unpause_activity_execution(UnpauseActivityExecutionRequest) -> UnpauseActivityExecutionResponse;
        activity_operation::update_activity_execution_options(UpdateActivityExecutionOptionsRequest) -> UpdateActivityExecutionOptionsResponse;
        batch::start_batch_operation(StartBatchOperationRequest) -> StartBatchOperationResponse;
        batch::stop_batch_operation(StopBatchOperationRequest) -> StopBatchOperationResponse;
        batch::describe_batch_operation(DescribeBatchOperationRequest) -> DescribeBatchOperationResponse;
        batch::list_batch_operations(ListBatchOperationsRequest) -> ListBatchOperationsResponse;
        schedule::create_schedule(CreateScheduleRequest) -> CreateScheduleResponse;
        schedule::describe_schedule(DescribeScheduleRequest) -> DescribeScheduleResponse;
        schedule::update_schedule(UpdateScheduleRequest) -> UpdateScheduleResponse;
        schedule::patch_schedule(PatchScheduleRequest) -> PatchScheduleResponse;
        schedule::list_schedule_matching_times(ListScheduleMatchingTimesRequest) -> ListScheduleMatchingTimesResponse;
        schedule::delete_schedule(DeleteScheduleRequest) -> DeleteScheduleResponse;
        list_schedules::list_schedules(ListSchedulesRequest) -> ListSchedulesResponse;
        list_schedules::count_schedules(CountSchedulesRequest) -> CountSchedulesResponse;
        standalone_activity::start_activity_execution(StartActivityExecutionRequest) -> StartActivityExecutionResponse;
        standalone_activity::describe_activity_execution(DescribeActivityExecutionRequest) -> DescribeActivityExecutionResponse;
        standalone_activity::poll_activity_execution(PollActivityExecutionRequest) -> PollActivityExecutionResponse;
        list_activities::list_activity_executions(ListActivityExecutionsRequest) -> ListActivityExecutionsResponse;
        list_activities::count_activity_executions(CountActivityExecutionsRequest) -> CountActivityExecutionsResponse;
        workflow_rules::create_workflow_rule(CreateWorkflowRuleRequest) -> CreateWorkflowRuleResponse;
        workflow_rules::describe_workflow_rule(DescribeWorkflowRuleRequest) -> DescribeWorkflowRuleResponse;
        workflow_rules::delete_workflow_rule(DeleteWorkflowRuleRequest) -> DeleteWorkflowRuleResponse;
        workflow_rules::list_workflow_rules(ListWorkflowRulesRequest) -> ListWorkflowRulesResponse;
        workflow_rules::trigger_workflow_rule(TriggerWorkflowRuleRequest) -> TriggerWorkflowRuleResponse;
        standalone_activity::request_cancel_activity_execution(RequestCancelActivityExecutionRequest) -> RequestCancelActivityExecutionResponse;
        standalone_activity::terminate_activity_execution(TerminateActivityExecutionRequest) -> TerminateActivityExecutionResponse;
        standalone_activity::delete_activity_execution(DeleteActivityExecutionRequest) -> DeleteActivityExecutionResponse;
        standalone_nexus::start_nexus_operation_execution(StartNexusOperationExecutionRequest) -> StartNexusOperationExecutionResponse;
        standalone_nexus::describe_nexus_operation_execution(DescribeNexusOperationExecutionRequest) -> DescribeNexusOperationExecutionResponse;
        standalone_nexus::poll_nexus_operation_execution(PollNexusOperationExecutionRequest) -> PollNexusOperationExecutionResponse;
        list_nexus_operations::list_nexus_operation_executions(ListNexusOperationExecutionsRequest) -> ListNexusOperationExecutionsResponse;
        list_nexus_operations::count_nexus_operation_executions(CountNexusOperationExecutionsRequest) -> CountNexusOperationExecutionsResponse;
        standalone_nexus::request_cancel_nexus_operation_execution(RequestCancelNexusOperationExecutionRequest) -> RequestCancelNexusOperationExecutionResponse;
        standalone_nexus::terminate_nexus_operation_execution(TerminateNexusOperationExecutionRequest) -> TerminateNexusOperationExecutionResponse;
        standalone_nexus::delete_nexus_operation_execution(DeleteNexusOperationExecutionRequest) -> DeleteNexusOperationExecutionResponse;
        worker_deployment::describe_worker_deployment_version(DescribeWorkerDeploymentVersionRequest) -> DescribeWorkerDeploymentVersionResponse;
        worker_deployment::set_worker_deployment_current_version(SetWorkerDeploymentCurrentVersionRequest) -> SetWorkerDeploymentCurrentVersionResponse;
        worker_deployment::describe_worker_deployment(DescribeWorkerDeploymentRequest) -> DescribeWorkerDeploymentResponse;
        worker_deployment::delete_worker_deployment(DeleteWorkerDeploymentRequest) -> DeleteWorkerDeploymentResponse;
        worker_deployment::delete_worker_deployment_version(DeleteWorkerDeploymentVersionRequest) -> DeleteWorkerDeploymentVersionResponse;
        worker_deployment::set_worker_deployment_ramping_version(SetWorkerDeploymentRampingVersionRequest) -> SetWorkerDeploymentRampingVersionResponse;
        worker_deployment::list_worker_deployments(ListWorkerDeploymentsRequest) -> ListWorkerDeploymentsResponse;
        worker_deployment::create_worker_deployment(CreateWorkerDeploymentRequest) -> CreateWorkerDeploymentResponse;
        worker_deployment::create_worker_deployment_version(CreateWorkerDeploymentVersionRequest) -> CreateWorkerDeploymentVersionResponse;
        worker_deployment::update_worker_deployment_version_compute_config(UpdateWorkerDeploymentVersionComputeConfigRequest) -> UpdateWorkerDeploymentVersionComputeConfigResponse;
        worker_deployment::validate_worker_deployment_version_compute_config(ValidateWorkerDeploymentVersionComputeConfigRequest) -> ValidateWorkerDeploymentVersionComputeConfigResponse;
        worker_deployment::update_worker_deployment_version_metadata(UpdateWorkerDeploymentVersionMetadataRequest) -> UpdateWorkerDeploymentVersionMetadataResponse;
        worker_deployment::set_worker_deployment_manager(SetWorkerDeploymentManagerRequest) -> SetWorkerDeploymentManagerResponse;
        old_versioning::update_worker_build_id_compatibility(UpdateWorkerBuildIdCompatibilityRequest) -> UpdateWorkerBuildIdCompatibilityResponse;
        old_versioning::get_worker_build_id_compatibility(GetWorkerBuildIdCompatibilityRequest) -> GetWorkerBuildIdCompatibilityResponse;
        old_versioning::update_worker_versioning_rules(UpdateWorkerVersioningRulesRequest) -> UpdateWorkerVersioningRulesResponse;
        old_versioning::get_worker_versioning_rules(GetWorkerVersioningRulesRequest) -> GetWorkerVersioningRulesResponse;
        old_versioning::get_worker_task_reachability(GetWorkerTaskReachabilityRequest) -> GetWorkerTaskReachabilityResponse;
        old_versioning::describe_deployment(DescribeDeploymentRequest) -> DescribeDeploymentResponse;
        old_versioning::list_deployments(ListDeploymentsRequest) -> ListDeploymentsResponse;
        old_versioning::get_deployment_reachability(GetDeploymentReachabilityRequest) -> GetDeploymentReachabilityResponse;
        old_versioning::get_current_deployment(GetCurrentDeploymentRequest) -> GetCurrentDeploymentResponse;
        old_versioning::set_current_deployment(SetCurrentDeploymentRequest) -> SetCurrentDeploymentResponse;
        poll::poll_nexus_task_queue(PollNexusTaskQueueRequest) -> PollNexusTaskQueueResponse;
        nexus_task::respond_nexus_task_completed(RespondNexusTaskCompletedRequest) -> RespondNexusTaskCompletedResponse;
        nexus_task::respond_nexus_task_failed(RespondNexusTaskFailedRequest) -> RespondNexusTaskFailedResponse;
        task_queue_config::update_task_queue_config(UpdateTaskQueueConfigRequest) -> UpdateTaskQueueConfigResponse;
    }
    unimplemented {
        fetch_worker_config(FetchWorkerConfigRequest) -> FetchWorkerConfigResponse;
        update_worker_config(UpdateWorkerConfigRequest) -> UpdateWorkerConfigResponse;
        poll_workflow_execution_time_skipping(PollWorkflowExecutionTimeSkippingRequest) -> PollWorkflowExecutionTimeSkippingResponse;
    }
}

service! {
    OperatorService, OPERATOR_IMPLEMENTED, OPERATOR_UNIMPLEMENTED
    implemented {
        search_attributes::add_search_attributes(AddSearchAttributesRequest) -> AddSearchAttributesResponse;
        search_attributes::remove_search_attributes(RemoveSearchAttributesRequest) -> RemoveSearchAttributesResponse;
        search_attributes::list_search_attributes(ListSearchAttributesRequest) -> ListSearchAttributesResponse;
        namespace_delete::delete_namespace(DeleteNamespaceRequest) -> DeleteNamespaceResponse;
        clusters::remove_remote_cluster(RemoveRemoteClusterRequest) -> RemoveRemoteClusterResponse;
        clusters::list_clusters(ListClustersRequest) -> ListClustersResponse;
        nexus_endpoint::get_nexus_endpoint(GetNexusEndpointRequest) -> GetNexusEndpointResponse;
        nexus_endpoint::create_nexus_endpoint(CreateNexusEndpointRequest) -> CreateNexusEndpointResponse;
        nexus_endpoint::update_nexus_endpoint(UpdateNexusEndpointRequest) -> UpdateNexusEndpointResponse;
        nexus_endpoint::delete_nexus_endpoint(DeleteNexusEndpointRequest) -> DeleteNexusEndpointResponse;
        nexus_endpoint::list_nexus_endpoints(ListNexusEndpointsRequest) -> ListNexusEndpointsResponse;
    }
    unimplemented {
        add_or_update_remote_cluster(AddOrUpdateRemoteClusterRequest) -> AddOrUpdateRemoteClusterResponse;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use perdure_proto::TEMPORAL_DESCRIPTORS;
    use prost::Message;

    use super::*;

    fn check(service: &str, done: &[&str], open: &[&str]) {
        let files = prost_types::FileDescriptorSet::decode(TEMPORAL_DESCRIPTORS).expect("descriptors").file;
        let methods: BTreeSet<String> = files
            .iter()
            .flat_map(|file| &file.service)
            .filter(|s| s.name() == service)
            .flat_map(|s| s.method.iter().map(|m| m.name().to_owned()))
            .collect();
        let listed: BTreeSet<String> = done.iter().chain(open).map(|rpc| (*rpc).to_owned()).collect();
        assert_eq!(listed.len(), done.len() + open.len(), "an RPC stands in the table twice");
        assert_eq!(listed, methods);
    }

    #[test]
    fn every_rpc_stands_in_the_table_once() {
        check("WorkflowService", WORKFLOW_IMPLEMENTED, WORKFLOW_UNIMPLEMENTED);
        check("OperatorService", OPERATOR_IMPLEMENTED, OPERATOR_UNIMPLEMENTED);
    }
}
