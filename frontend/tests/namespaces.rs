//! The life of a namespace, and what clients learn about server and namespace when they connect.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod common;

use common::{NAMESPACE, NAMESPACE_ID, fixture, no_matching, no_workflow};
use perdure_frontend::COMPATIBLE_SERVER_VERSION;
use perdure_proto::temporal::api::{
    enums::v1::{IndexedValueType, NamespaceState},
    namespace::v1::{NamespaceConfig, UpdateNamespaceInfo},
    operatorservice::v1::{ListSearchAttributesRequest, operator_service_server::OperatorService},
    workflowservice::v1::{workflow_service_server::WorkflowService, *},
};
use tonic::{Code, Request};

fn days(days: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds: days * 86_400, nanos: 0 })
}

fn register(name: &str) -> Request<RegisterNamespaceRequest> {
    Request::new(RegisterNamespaceRequest {
        namespace: name.into(),
        workflow_execution_retention_period: days(3),
        ..Default::default()
    })
}

fn by_name(name: &str) -> Request<DescribeNamespaceRequest> {
    Request::new(DescribeNamespaceRequest { namespace: name.into(), ..Default::default() })
}

#[tokio::test]
async fn registered_described_updated_deprecated() {
    let f = fixture(no_workflow, no_matching).await;
    f.frontend.register_namespace(register("shop")).await.unwrap();
    let status = f.frontend.register_namespace(register("shop")).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);

    let described = f.frontend.describe_namespace(by_name("shop")).await.unwrap().into_inner();
    let info = described.namespace_info.unwrap();
    assert_eq!(info.state, NamespaceState::Registered as i32);
    assert_eq!(described.config.unwrap().workflow_execution_retention_ttl, days(3));
    let by_id = DescribeNamespaceRequest { id: info.id.clone(), ..Default::default() };
    let described = f.frontend.describe_namespace(Request::new(by_id)).await.unwrap().into_inner();
    assert_eq!(described.namespace_info.unwrap().name, "shop");

    let update = UpdateNamespaceRequest {
        namespace: "shop".into(),
        update_info: Some(UpdateNamespaceInfo { description: "orders".into(), ..Default::default() }),
        config: Some(NamespaceConfig { workflow_execution_retention_ttl: days(5), ..Default::default() }),
        ..Default::default()
    };
    let updated = f.frontend.update_namespace(Request::new(update)).await.unwrap().into_inner();
    assert_eq!(updated.namespace_info.unwrap().description, "orders");
    assert_eq!(updated.config.unwrap().workflow_execution_retention_ttl, days(5));

    let deprecate = DeprecateNamespaceRequest { namespace: "shop".into(), ..Default::default() };
    f.frontend.deprecate_namespace(Request::new(deprecate)).await.unwrap();
    let start = StartWorkflowExecutionRequest { namespace: "shop".into(), ..Default::default() };
    let status = f.frontend.start_workflow_execution(Request::new(start)).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(status.message(), "Namespace has invalid state: Deprecated. Must be Registered.");
}

#[tokio::test]
async fn listed_in_pages() {
    let f = fixture(no_workflow, no_matching).await;
    for name in ["b", "a", "c"] {
        f.frontend.register_namespace(register(name)).await.unwrap();
    }
    let (mut names, mut token) = (Vec::new(), bytes::Bytes::new());
    loop {
        let request = ListNamespacesRequest { page_size: 2, next_page_token: token, ..Default::default() };
        let page = f.frontend.list_namespaces(Request::new(request)).await.unwrap().into_inner();
        assert!(page.namespaces.len() <= 2);
        names.extend(page.namespaces.into_iter().map(|n| n.namespace_info.unwrap().name));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["a", "b", "c", NAMESPACE]);
}

#[tokio::test]
async fn refused() {
    let f = fixture(no_workflow, no_matching).await;
    let check = async |request: RegisterNamespaceRequest, message: &str| {
        let status = f.frontend.register_namespace(Request::new(request)).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, message));
    };
    check(RegisterNamespaceRequest::default(), "Namespace not set on request.").await;
    check(
        RegisterNamespaceRequest { namespace: "n".into(), ..Default::default() },
        "A valid retention period is not set on request.",
    )
    .await;
    let global = RegisterNamespaceRequest { is_global_namespace: true, ..register("n").into_inner() };
    check(global, "Cannot register global namespace when not enabled").await;

    let status = f.frontend.describe_namespace(by_name("")).await.unwrap_err();
    assert_eq!(status.message(), "Namespace not set on request.");
    let status = f.frontend.describe_namespace(by_name("nowhere")).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "Namespace nowhere is not found."));
    let both =
        DescribeNamespaceRequest { namespace: NAMESPACE.into(), id: NAMESPACE_ID.into(), weak_consistency: false };
    assert_eq!(f.frontend.describe_namespace(Request::new(both)).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn what_clients_see_when_they_connect() {
    let f = fixture(no_workflow, no_matching).await;
    let info = f.frontend.get_system_info(Request::new(GetSystemInfoRequest {})).await.unwrap().into_inner();
    assert_eq!(info.server_version, COMPATIBLE_SERVER_VERSION);
    let capabilities = info.capabilities.unwrap();
    assert!(capabilities.eager_workflow_start && capabilities.encoded_failure_attributes);
    assert!(capabilities.supports_schedules);
    assert!(capabilities.nexus);

    let described = f.frontend.describe_namespace(by_name(NAMESPACE)).await.unwrap().into_inner();
    let capabilities = described.namespace_info.unwrap().capabilities.unwrap();
    assert!(capabilities.sync_update && capabilities.async_update && capabilities.worker_heartbeats);
    assert!(capabilities.workflow_pause);
    assert!(capabilities.standalone_activities);

    let cluster = f.frontend.get_cluster_info(Request::new(GetClusterInfoRequest {})).await.unwrap().into_inner();
    assert_eq!(cluster.server_version, COMPATIBLE_SERVER_VERSION);
}

#[tokio::test]
async fn system_search_attributes() {
    let f = fixture(no_workflow, no_matching).await;
    let request = ListSearchAttributesRequest { namespace: NAMESPACE.into() };
    let listed = f.frontend.list_search_attributes(Request::new(request)).await.unwrap().into_inner();
    assert_eq!(listed.system_attributes.len(), 33);
    assert_eq!(listed.system_attributes["ExecutionStatus"], IndexedValueType::Keyword as i32);
    assert!(listed.custom_attributes.is_empty());
}
