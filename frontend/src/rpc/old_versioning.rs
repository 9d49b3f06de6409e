//! Families of versioning that worker deployments have replaced. They answer as the newest Temporal server does by default:
//! version sets and rules are switched off, the first form of deployments is gone.

use perdure_proto::{Code, Error, temporal::api::workflowservice::v1::*};

use crate::call::Call;

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
    update_worker_build_id_compatibility(UpdateWorkerBuildIdCompatibilityRequest) -> UpdateWorkerBuildIdCompatibilityResponse by no_version_sets;
    get_worker_build_id_compatibility(GetWorkerBuildIdCompatibilityRequest) -> GetWorkerBuildIdCompatibilityResponse by no_version_sets;
    update_worker_versioning_rules(UpdateWorkerVersioningRulesRequest) -> UpdateWorkerVersioningRulesResponse by no_rules;
    get_worker_versioning_rules(GetWorkerVersioningRulesRequest) -> GetWorkerVersioningRulesResponse by no_rules;
    get_worker_task_reachability(GetWorkerTaskReachabilityRequest) -> GetWorkerTaskReachabilityResponse by no_rules;
    describe_deployment(DescribeDeploymentRequest) -> DescribeDeploymentResponse by gone;
    list_deployments(ListDeploymentsRequest) -> ListDeploymentsResponse by gone;
    get_deployment_reachability(GetDeploymentReachabilityRequest) -> GetDeploymentReachabilityResponse by gone;
    get_current_deployment(GetCurrentDeploymentRequest) -> GetCurrentDeploymentResponse by gone;
    set_current_deployment(SetCurrentDeploymentRequest) -> SetCurrentDeploymentResponse by gone;
}
