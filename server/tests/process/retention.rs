//! Closed workflows go when their retention is over, from memory and from disk, also when it ends while nobody serves.

use std::{path::Path, time::Duration};

use perdure_persistence::{
    Cas, Store,
    embedded::{Config, Embedded},
};
use perdure_proto::{
    perdure::state::v1::NamespaceRecord,
    temporal::api::workflowservice::v1::{
        GetWorkflowExecutionHistoryRequest, TerminateWorkflowExecutionRequest,
        workflow_service_client::WorkflowServiceClient,
    },
};
use perdure_types::{ChainKey, Timestamp};
use prost::Message;
use tempfile::tempdir;
use tonic::{Code, transport::Channel};

use crate::common::{NAMESPACE, PATIENCE, Server, describe, execution, start_request};

/// Shorter than the API lets anybody ask for.
const RETENTION: Duration = Duration::from_millis(700);

#[tokio::test(flavor = "multi_thread")]
async fn closed_workflows_go() {
    let directory = tempdir().unwrap();
    stop(Server::start(directory.path(), &[]));
    let namespace_id = shorten_retention(directory.path()).await;

    let server = Server::start(directory.path(), &[]);
    let mut client = server.client().await;
    start_and_terminate(&mut client, "while-serving").await;
    wait_until_gone(&mut client, "while-serving").await;
    client.start_workflow_execution(start_request("open")).await.unwrap();
    start_and_terminate(&mut client, "while-down").await;
    server.signal("KILL");
    server.wait();
    tokio::time::sleep(RETENTION).await;

    let server = Server::start(directory.path(), &[]);
    let mut client = server.client().await;
    wait_until_gone(&mut client, "while-down").await;
    client.describe_workflow_execution(describe("open")).await.unwrap();
    stop(server);

    let store = Embedded::open(&Config::new(directory.path())).unwrap();
    for workflow_id in ["while-serving", "while-down"] {
        let chain = ChainKey::new(namespace_id.as_str(), workflow_id);
        assert_eq!(store.read_head(&chain).await.unwrap(), None);
    }
    for (shard, _) in store.list_shards().await.unwrap() {
        let wakeups = store.read_wakeups(shard, None, Timestamp::MAX, 100).await.unwrap();
        assert!(wakeups.iter().all(|wakeup| &*wakeup.chain.workflow_id == "open"), "{wakeups:?}");
    }
    let chain = ChainKey::new(namespace_id.as_str(), "open");
    assert!(store.read_head(&chain).await.unwrap().is_some());
}

fn stop(server: Server) {
    server.signal("TERM");
    assert_eq!(server.wait().0.code(), Some(0));
}

/// Gives the id of the namespace.
async fn shorten_retention(directory: &Path) -> String {
    let store = Embedded::open(&Config::new(directory)).unwrap();
    let namespaces = store.list_namespaces().await.unwrap();
    let mut row = namespaces.into_iter().find(|row| row.name == NAMESPACE).unwrap();
    let record =
        NamespaceRecord { retention_ns: RETENTION.as_nanos() as i64, ..NamespaceRecord::decode(row.record).unwrap() };
    let (id, version) = (row.id.clone(), row.version);
    row.record = record.encode_to_vec().into();
    row.version += 1;
    assert_eq!(store.cas_namespace(Some(version), row).await.unwrap(), Cas::Applied);
    id
}

async fn start_and_terminate(client: &mut WorkflowServiceClient<Channel>, workflow_id: &str) {
    client.start_workflow_execution(start_request(workflow_id)).await.unwrap();
    let request = TerminateWorkflowExecutionRequest {
        namespace: NAMESPACE.into(),
        workflow_execution: Some(execution(workflow_id)),
        ..Default::default()
    };
    client.terminate_workflow_execution(request).await.unwrap();
}

async fn wait_until_gone(client: &mut WorkflowServiceClient<Channel>, workflow_id: &str) {
    let gone = async {
        while let Ok(found) = client.describe_workflow_execution(describe(workflow_id)).await {
            drop(found);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
    let described = client.describe_workflow_execution(describe(workflow_id)).await;
    assert_eq!(described.unwrap_err().code(), Code::NotFound);
    let request = GetWorkflowExecutionHistoryRequest {
        namespace: NAMESPACE.into(),
        execution: Some(execution(workflow_id)),
        ..Default::default()
    };
    let history = client.get_workflow_execution_history(request).await;
    assert_eq!(history.unwrap_err().code(), Code::NotFound);
}
