//! The pages as a browser gets them, over a cluster of one node in which nothing has happened yet.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use axum::{
    Router,
    body::Body,
    http::{Request, Response, StatusCode, header},
};
use http_body_util::BodyExt;
use perdure_cluster::{Alone, Cluster, LocalMatching, LocalShards, Namespace, NamespaceStore, Namespaces};
use perdure_console::{Console, router};
use perdure_frontend::{ClusterInfo, Frontend};
use perdure_proto::{
    Error,
    perdure::{
        node::v1::{
            MatchingCall, MatchingReply, QueueInfo, QueueInfos, ShardCall, ShardReply, ShardStatus, ShardStatuses,
            WorkflowCall, WorkflowReply, matching_call, matching_reply, shard_reply,
        },
        state::v1::NamespaceRecord,
    },
    temporal::api::enums::v1::NamespaceState,
};
use perdure_types::{
    IdMatch, Layout, Limits, ListedRun, ShardId, ShardMap, SlotCount, Timestamp, VisibilityCount, VisibilityQuery,
};
use perdure_visibility::Rows;
use tokio::sync::{Notify, watch};
use tower_service::Service;

const SLOTS: u32 = 4;

struct Idle;

#[async_trait]
impl LocalShards for Idle {
    async fn call(&self, _shard: ShardId, _call: &WorkflowCall) -> Result<WorkflowReply, Error> {
        Err(Error::not_found("no such workflow: <b>"))
    }

    async fn shard(&self, _call: ShardCall) -> Result<ShardReply, Error> {
        let status = |shard| ShardStatus { shard, ownership: "serving".into(), epoch: 3, ..ShardStatus::default() };
        let shards = (0..SLOTS).map(status).collect();
        Ok(ShardReply { reply: Some(shard_reply::Reply::Statuses(ShardStatuses { shards })) })
    }

    async fn layout(&self) -> Result<Layout, Error> {
        let slots = SlotCount::new(SLOTS).expect("a power of two");
        Ok(Layout { map: ShardMap::default(), shards: Default::default(), goal: slots })
    }
}

#[async_trait]
impl LocalMatching for Idle {
    async fn call(&self, call: MatchingCall) -> Result<MatchingReply, Error> {
        let Some(matching_call::Command::ListQueues(_)) = call.command else {
            return Err(Error::unimplemented("this"));
        };
        let queue = QueueInfo { name: "orders".into(), kind: "activity".into(), backlog: 2, ..QueueInfo::default() };
        let infos = QueueInfos { queues: vec![queue], total: 1 };
        Ok(MatchingReply { reply: Some(matching_reply::Reply::Queues(infos)) })
    }
}

#[async_trait]
impl Rows for Idle {
    async fn list(&self, _query: &VisibilityQuery) -> Result<Vec<ListedRun>, Error> {
        Ok(Vec::new())
    }

    async fn find(&self, _list_id: &str, _ids: &IdMatch, _limit: usize) -> Result<Vec<ListedRun>, Error> {
        Ok(Vec::new())
    }

    fn now(&self) -> Timestamp {
        Timestamp(1)
    }

    async fn counts(&self, _list_id: &str) -> Result<Vec<VisibilityCount>, Error> {
        Ok(Vec::new())
    }
}

#[derive(Default)]
struct MemoryNamespaces(Mutex<Vec<Namespace>>);

#[async_trait]
impl NamespaceStore for MemoryNamespaces {
    async fn list(&self) -> Result<Vec<Namespace>, Error> {
        Ok(self.0.lock().expect("not poisoned").clone())
    }

    async fn put(&self, _expected: Option<u64>, namespace: Namespace) -> Result<bool, Error> {
        self.0.lock().expect("not poisoned").push(namespace);
        Ok(true)
    }
}

async fn console() -> Router {
    let slots = SlotCount::new(SLOTS).expect("a power of two");
    let cluster = Cluster::new(slots, Arc::new(Idle), Arc::new(Idle));
    let namespaces = Namespaces::load(Arc::new(MemoryNamespaces::default())).await.expect("works");
    let record = NamespaceRecord {
        id: "5a1f4b80-4f3c-4f86-9b2a-6f3a3a3f0001".into(),
        name: "default".into(),
        state: NamespaceState::Registered as i32,
        ..Default::default()
    };
    assert!(namespaces.create(record).await.expect("works"));
    let (_, draining) = watch::channel(false);
    let limits = Arc::new(Limits::default());
    let frontend = Frontend::new(cluster.clone(), Arc::new(namespaces), limits, ClusterInfo::default(), draining);
    let node = Alone {
        cluster_id: "c".into(),
        name: "127.0.0.1:7234".into(),
        frontend_address: "127.0.0.1:7233".into(),
        version: "1".into(),
        started_ns: 0,
        slots,
    };
    let admin = cluster.admin_alone(node, Arc::new(Notify::new()));
    router(Console {
        frontend: frontend.with_lists(Arc::new(Idle)),
        admin,
        clock: || 60_000_000_000,
        on_loopback: true,
    })
}

async fn get(path: &str) -> Response<Body> {
    let request = Request::get(path).header(header::HOST, "localhost:8233").body(Body::empty()).expect("works");
    console().await.call(request).await.expect("works")
}

async fn text(path: &str) -> (StatusCode, String) {
    let response = get(path).await;
    let status = response.status();
    let body = response.into_body().collect().await.expect("works").to_bytes();
    (status, String::from_utf8(body.to_vec()).expect("works"))
}

#[tokio::test]
async fn an_empty_namespace_says_so() {
    let (status, text) = text("/workflows").await;
    assert_eq!(status, StatusCode::OK);
    assert!(text.contains("No workflow has run in this namespace yet"), "{text}");
    assert!(text.contains("<option selected>default</option>"), "{text}");
}

#[tokio::test]
async fn a_filter_that_cannot_be_read_is_shown_with_the_error() {
    let (status, text) = text("/workflows?query=Nonsense+%3D+%3Cscript%3E").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(text.contains("role=\"alert\"") && text.contains("Nonsense"), "{text}");
    assert!(!text.contains("<script>"), "{text}");
    assert!(!text.contains("data-live"), "what is wrong stays wrong: {text}");
}

#[tokio::test]
async fn a_namespace_that_is_not_there_is_not_found() {
    let (status, text) = text("/workflows?namespace=%22%3E%3Cb%3E").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(!text.contains("<b>"), "{text}");
}

#[tokio::test]
async fn the_cluster_is_shown_with_its_shards() {
    let (status, text) = text("/cluster").await;
    assert_eq!(status, StatusCode::OK);
    assert!(text.contains("127.0.0.1:7234") && text.contains("4 shards, 0 of them not served"), "{text}");
    assert_eq!(text.matches("<td class=\"wide\">serving</td>").count(), SLOTS as usize, "{text}");
}

#[tokio::test]
async fn task_queues_are_shown_with_their_backlog() {
    let (status, text) = text("/task-queues").await;
    assert_eq!(status, StatusCode::OK);
    assert!(text.contains("orders") && text.contains("<b>2</b>"), "{text}");
}

#[tokio::test]
async fn a_run_that_is_not_there_says_why() {
    for path in ["/namespaces/default/workflows/w", "/namespaces/default/workflows/a%2Fb/r"] {
        let (status, text) = text(path).await;
        assert!(status.is_client_error(), "{path}: {status}");
        assert!(text.contains("role=\"alert\"") && !text.contains("<b>"), "{text}");
    }
}

#[tokio::test]
async fn paths_of_the_web_ui_lead_here() {
    let to = async |path: &str| get(path).await.headers()[header::LOCATION].to_str().expect("works").to_owned();
    assert_eq!(to("/").await, "/workflows");
    assert_eq!(to("/namespaces/a%20b/workflows").await, "/workflows?namespace=a+b");
    assert_eq!(to("/namespaces/n/workflows/a%2Fb/r/history").await, "/namespaces/n/workflows/a%2Fb/r");
    assert_eq!(get("/nowhere").await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn pages_may_run_nothing_but_their_own_script() {
    for path in ["/workflows", "/nowhere", "/console.js"] {
        let response = get(path).await;
        let policy = response.headers()[header::CONTENT_SECURITY_POLICY].to_str().expect("works");
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    }
    let (_, text) = text("/workflows").await;
    assert!(!text.contains(" style=") && !text.contains(" onclick"), "the policy would refuse it: {text}");
}

#[tokio::test]
async fn another_name_for_this_machine_is_refused() {
    let request = Request::get("/workflows").header(header::HOST, "evil.example").body(Body::empty()).expect("works");
    assert_eq!(console().await.call(request).await.expect("works").status(), StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn nothing_can_be_changed() {
    for method in ["POST", "PUT", "DELETE"] {
        let request = Request::builder().method(method).uri("/cluster").header(header::HOST, "localhost");
        let response = console().await.call(request.body(Body::empty()).expect("works")).await.unwrap();
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED, "{method}");
    }
}
