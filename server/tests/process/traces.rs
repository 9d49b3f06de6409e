//! Traces, as a collector gets them.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::Span,
};
use tempfile::tempdir;
use tokio::net::TcpListener;
use tonic::{
    Request, Response, Status,
    transport::{Server as Grpc, server::TcpIncoming},
};

use crate::{
    cassandra::{SEEDS, given, keyspace, server as on_cassandra},
    common::{NAMESPACE, PATIENCE, Server, dev, start_request},
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = request.into_inner().resource_spans.into_iter();
        let spans = resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans);
        self.0.lock().unwrap().extend(spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn listen() -> (Self, SocketAddr) {
        let collector = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = Grpc::builder().add_service(TraceServiceServer::new(collector.clone()));
        tokio::spawn(service.serve_with_incoming(TcpIncoming::from(listener)));
        (collector, address)
    }

    /// The spans of a trace, from the one that was the client's to the record in the log, once all are there.
    async fn path(&self, trace: &str) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let spans: Vec<Span> =
                self.0.lock().unwrap().iter().filter(|span| hex(&span.trace_id) == trace).cloned().collect();
            if let Some(path) = path_to(&spans, "log.append") {
                return path;
            }
            assert!(Instant::now() < deadline, "no path to the log in {spans:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Names from the root to that span; the root's parent is the client's span. None: a part of it is not there.
fn path_to(spans: &[Span], name: &str) -> Option<Vec<String>> {
    let by_id: BTreeMap<String, &Span> = spans.iter().map(|span| (hex(&span.span_id), span)).collect();
    let mut span = spans.iter().find(|span| span.name == name)?;
    let mut path = vec![span.name.clone()];
    while hex(&span.parent_span_id) != PARENT {
        span = by_id.get(&hex(&span.parent_span_id))?;
        path.push(span.name.clone());
    }
    path.reverse();
    Some(path)
}

fn traced(mut command: Command, collector: SocketAddr) -> Server {
    command.arg("--traces-endpoint").arg(format!("http://{collector}"));
    // In milliseconds; the collector is near.
    command.env("OTEL_BSP_SCHEDULE_DELAY", "50");
    let mut server = Server::spawn(command);
    server.wait_until_ready();
    server
}

async fn start(server: &Server, workflow_id: &str, trace: &str) {
    let mut request = Request::new(start_request(workflow_id));
    let traceparent = format!("00-{trace}-{PARENT}-01");
    request.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
    server.client().await.start_workflow_execution(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_from_the_call_to_the_log() {
    let (collector, address) = Collector::listen().await;
    let directory = tempdir().unwrap();
    let server = traced(dev(directory.path(), &[]), address);
    start(&server, "w", TRACE).await;
    assert_eq!(collector.path(TRACE).await, ["StartWorkflowExecution", "shard.call", "log.append"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_through_the_nodes() {
    let Some(seeds) = given(SEEDS) else { return };
    let (collector, address) = Collector::listen().await;
    let keyspace = keyspace("traces");
    let node = || traced(on_cassandra(&seeds, &["--keyspace", &keyspace, "--namespace", NAMESPACE]), address);
    let (first, second) = (node(), node());
    let mut hops = [0; 2];
    // The first node knows of the second by now, or soon.
    let deadline = Instant::now() + PATIENCE;
    for number in 1_u128.. {
        let trace = format!("{number:032x}");
        start(if number % 2 == 0 { &first } else { &second }, &format!("w-{number}"), &trace).await;
        let path = collector.path(&trace).await;
        match path.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["StartWorkflowExecution", "shard.call", "log.append"] => hops[0] += 1,
            ["StartWorkflowExecution", "node.call", "shard.call", "log.append"] => hops[1] += 1,
            _ => panic!("{path:?}"),
        }
        if hops.iter().all(|count| *count > 0) {
            return;
        }
        assert!(Instant::now() < deadline, "all workflows are on the node that was asked: {hops:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_is_none_is_refused() {
    let directory = tempdir().unwrap();
    let server = Server::spawn(dev(directory.path(), &["--traces-endpoint", "collector:4317"]));
    let (status, log) = server.wait();
    assert!(!status.success() && log.contains("http://127.0.0.1:4317"), "{log}");
}
