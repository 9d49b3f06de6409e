//! What becomes of a task whose worker goes away between asking for it and getting it.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod common;

use bytes::{BufMut, Bytes, BytesMut};
use common::{Fixture, NAMESPACE, fixture, token, token_bytes};
use http_body::Body as _;
use perdure_proto::{
    perdure::node::v1::{Empty, matching_reply, task_token::Kind, workflow_call, workflow_reply},
    temporal::api::{
        taskqueue::v1::TaskQueue,
        workflowservice::v1::{PollWorkflowTaskQueueRequest, PollWorkflowTaskQueueResponse},
    },
};
use prost::Message;
use tonic::{
    body::Body,
    codegen::{Service, http},
};

async fn with_a_task() -> Fixture {
    let offered = PollWorkflowTaskQueueResponse { task_token: token_bytes(Kind::Workflow), ..Default::default() };
    fixture(
        |_, _| Some(Ok(workflow_reply::Reply::Empty(Empty {}))),
        move |_, _| Some(Ok(matching_reply::Reply::WorkflowTask(offered.clone()))),
    )
    .await
}

/// The answer as the connection gets it, its body not yet read.
async fn poll(f: &Fixture, message: &[u8]) -> http::Response<Body> {
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.put_slice(message);
    let request = http::Request::post("/temporal.api.workflowservice.v1.WorkflowService/PollWorkflowTaskQueue")
        .header("content-type", "application/grpc")
        .body(Body::new(Whole(Some(framed.freeze()))))
        .unwrap();
    f.frontend.workflow_service().call(request).await.unwrap()
}

fn request() -> Vec<u8> {
    let task_queue = Some(TaskQueue { name: "orders".into(), ..Default::default() });
    PollWorkflowTaskQueueRequest { namespace: NAMESPACE.into(), task_queue, ..Default::default() }.encode_to_vec()
}

struct Whole(Option<Bytes>);

impl http_body::Body for Whole {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Ready(self.0.take().map(|data| Ok(http_body::Frame::data(data))))
    }
}

async fn read_frame(body: &mut Body) -> Option<http_body::Frame<Bytes>> {
    let frame = std::future::poll_fn(|cx| std::pin::Pin::new(&mut *body).poll_frame(cx)).await;
    frame.map(|f| f.unwrap())
}

#[tokio::test]
async fn a_task_that_was_not_written_is_offered_again() {
    for frames_written in 0..2 {
        let f = with_a_task().await;
        let mut body = poll(&f, &request()).await.into_body();
        for _ in 0..frames_written {
            assert!(read_frame(&mut body).await.unwrap().is_data());
        }
        drop(body);
        while f.shards.calls.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        let [workflow_call::Command::TaskUndelivered(undelivered)] = &f.workflow_commands()[..] else {
            panic!("one report")
        };
        assert_eq!(undelivered.token, Some(token(Kind::Workflow)));
    }
}

#[tokio::test]
async fn a_task_that_was_written_is_not() {
    let f = with_a_task().await;
    let mut body = poll(&f, &request()).await.into_body();
    while read_frame(&mut body).await.is_some() {}
    drop(body);
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(f.workflow_commands().is_empty());
}

#[tokio::test]
async fn a_request_over_the_limit_is_refused_as_clients_know_it() {
    let f = with_a_task().await;
    let response = poll(&f, &vec![0; perdure_frontend::MAX_REQUEST_BYTES + 1]).await;
    let status = tonic::Status::from_header_map(response.headers()).unwrap();
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    assert_eq!(status.message(), "grpc: received message larger than max (4194305 vs. 4194304)");
    assert!(f.queues.calls.lock().unwrap().is_empty());
}
