//! A frontend over shards and task queues that a test scripts.

#![allow(dead_code, clippy::unwrap_used)] // Each test file uses a part of it; tests may unwrap.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use perdure_cluster::{Cluster, LocalMatching, LocalShards, Namespace, NamespaceStore, Namespaces};
use perdure_frontend::{ClusterInfo, Frontend};
use perdure_proto::{
    Error,
    perdure::{
        node::v1::{
            MatchingCall, MatchingReply, TaskToken, WorkflowCall, WorkflowReply, matching_call, matching_reply,
            task_token, workflow_call, workflow_reply,
        },
        state::v1::NamespaceRecord,
    },
    temporal::api::enums::v1::NamespaceState,
};
use perdure_types::{Limits, ShardId, SlotCount};
use prost::Message;
use tokio::sync::watch;

pub const NAMESPACE: &str = "default";
pub const NAMESPACE_ID: &str = "5a1f4b80-4f3c-4f86-9b2a-6f3a3a3f0001";
pub const RUN_ID: &str = "0fd54b4e-0b8e-4ad5-9ab4-0b9a9d4a4a10";

type WorkflowScript =
    dyn Fn(&workflow_call::Command, usize) -> Option<Result<workflow_reply::Reply, Error>> + Send + Sync;
type MatchingScript = dyn Fn(&MatchingCall, usize) -> Option<Result<matching_reply::Reply, Error>> + Send + Sync;

/// Answers by a script, which is told how many calls came before; no answer is one that never comes.
pub struct Shards {
    script: Box<WorkflowScript>,
    pub calls: Mutex<Vec<WorkflowCall>>,
}

#[async_trait]
impl LocalShards for Shards {
    async fn call(&self, _shard: ShardId, call: &WorkflowCall) -> Result<WorkflowReply, Error> {
        let before = {
            let mut calls = self.calls.lock().unwrap();
            calls.push(call.clone());
            calls.len() - 1
        };
        match (self.script)(call.command.as_ref().unwrap(), before) {
            Some(outcome) => outcome.map(|reply| WorkflowReply { reply: Some(reply) }),
            None => std::future::pending().await,
        }
    }
}

pub struct Queues {
    script: Box<MatchingScript>,
    pub calls: Mutex<Vec<MatchingCall>>,
    /// Calls that were dropped before they were answered.
    pub dropped: Arc<AtomicUsize>,
}

struct Dropped(Arc<AtomicUsize>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl LocalMatching for Queues {
    async fn call(&self, call: MatchingCall) -> Result<MatchingReply, Error> {
        let before = {
            let mut calls = self.calls.lock().unwrap();
            calls.push(call.clone());
            calls.len() - 1
        };
        match (self.script)(&call, before) {
            Some(outcome) => outcome.map(|reply| MatchingReply { reply: Some(reply) }),
            None => {
                let _dropped = Dropped(self.dropped.clone());
                std::future::pending().await
            }
        }
    }
}

#[derive(Default)]
struct MemoryNamespaces(Mutex<Vec<Namespace>>);

#[async_trait]
impl NamespaceStore for MemoryNamespaces {
    async fn list(&self) -> Result<Vec<Namespace>, Error> {
        Ok(self.0.lock().unwrap().clone())
    }

    async fn put(&self, expected: Option<u64>, namespace: Namespace) -> Result<bool, Error> {
        let mut stored = self.0.lock().unwrap();
        let found = stored.iter().position(|n| n.name() == namespace.name());
        if found.map(|i| stored[i].version) != expected {
            return Ok(false);
        }
        match found {
            Some(i) => stored[i] = namespace,
            None => stored.push(namespace),
        }
        Ok(true)
    }
}

pub struct Fixture {
    pub frontend: Frontend,
    pub shards: Arc<Shards>,
    pub queues: Arc<Queues>,
    pub draining: watch::Sender<bool>,
}

impl Fixture {
    pub fn workflow_commands(&self) -> Vec<workflow_call::Command> {
        self.shards.calls.lock().unwrap().iter().map(|c| c.command.clone().unwrap()).collect()
    }

    pub fn matching_commands(&self) -> Vec<matching_call::Command> {
        self.queues.calls.lock().unwrap().iter().map(|c| c.command.clone().unwrap()).collect()
    }
}

/// With the namespace "default" in it.
pub async fn fixture(
    workflow: impl Fn(&workflow_call::Command, usize) -> Option<Result<workflow_reply::Reply, Error>>
    + Send
    + Sync
    + 'static,
    matching: impl Fn(&MatchingCall, usize) -> Option<Result<matching_reply::Reply, Error>> + Send + Sync + 'static,
) -> Fixture {
    let shards = Arc::new(Shards { script: Box::new(workflow), calls: Mutex::default() });
    let queues = Arc::new(Queues { script: Box::new(matching), calls: Mutex::default(), dropped: Arc::default() });
    let cluster = Cluster::new(SlotCount::new(4).unwrap(), shards.clone(), queues.clone());
    let namespaces = Namespaces::load(Arc::new(MemoryNamespaces::default())).await.unwrap();
    let record = NamespaceRecord {
        id: NAMESPACE_ID.into(),
        name: NAMESPACE.into(),
        state: NamespaceState::Registered as i32,
        retention_ns: 86_400_000_000_000,
        ..Default::default()
    };
    assert!(namespaces.create(record).await.unwrap());
    let (draining, watch) = watch::channel(false);
    let limits = Arc::new(Limits { blob_size_error_bytes: 1_000, ..Limits::default() });
    let frontend = Frontend::new(cluster, Arc::new(namespaces), limits, ClusterInfo::default(), watch);
    Fixture { frontend, shards, queues, draining }
}

/// For calls that must not get as far.
pub fn no_workflow(command: &workflow_call::Command, _: usize) -> Option<Result<workflow_reply::Reply, Error>> {
    panic!("called with {command:?}")
}

pub fn no_matching(call: &MatchingCall, _: usize) -> Option<Result<matching_reply::Reply, Error>> {
    panic!("called with {call:?}")
}

/// A request whose client waits for so long.
pub fn within<T>(timeout: Duration, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(timeout);
    request
}

pub fn token(kind: task_token::Kind) -> TaskToken {
    TaskToken {
        kind: kind as i32,
        namespace_id: NAMESPACE_ID.into(),
        workflow_id: "w".into(),
        run_id: RUN_ID.into(),
        scheduled_event_id: 5,
        started_event_id: 6,
        attempt: 1,
        query_id: "q".into(),
        task_queue: "orders".into(),
        ..Default::default()
    }
}

pub fn token_bytes(kind: task_token::Kind) -> bytes::Bytes {
    perdure_frontend::seal_task_token(&token(kind).encode_to_vec().into())
}
