//! What stands beside the API: health, reflection, metrics.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use tempfile::tempdir;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::{v1, v1alpha};

use crate::common::{Server, start_request};

const SERVICES: [&str; 3] = [
    "grpc.health.v1.Health",
    "temporal.api.operatorservice.v1.OperatorService",
    "temporal.api.workflowservice.v1.WorkflowService",
];

#[tokio::test]
async fn health_says_serving() {
    let directory = tempdir().unwrap();
    let server = Server::start(directory.path(), &[]);
    let mut health = HealthClient::new(server.channel().await);
    for service in ["", "temporal.api.workflowservice.v1.WorkflowService"] {
        let request = HealthCheckRequest { service: service.into() };
        assert_eq!(health.check(request).await.unwrap().into_inner().status(), ServingStatus::Serving);
    }
    let unknown = health.check(HealthCheckRequest { service: "no.such.Service".into() }).await;
    assert_eq!(unknown.unwrap_err().code(), tonic::Code::NotFound);
}

#[tokio::test]
async fn reflection_lists_and_describes() {
    let directory = tempdir().unwrap();
    let server = Server::start(directory.path(), &[]);
    let channel = server.channel().await;

    let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let ask = |request| v1::ServerReflectionRequest { host: String::new(), message_request: Some(request) };
    let list = ask(v1::server_reflection_request::MessageRequest::ListServices(String::new()));
    let symbol = ask(v1::server_reflection_request::MessageRequest::FileContainingSymbol(SERVICES[2].into()));
    let mut answers = client.server_reflection_info(tokio_stream::iter([list, symbol])).await.unwrap().into_inner();
    match answers.message().await.unwrap().unwrap().message_response.unwrap() {
        v1::server_reflection_response::MessageResponse::ListServicesResponse(list) => {
            let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
            assert!(SERVICES.iter().all(|name| names.iter().any(|found| found == name)), "{names:?}");
        }
        other => panic!("{other:?}"),
    }
    match answers.message().await.unwrap().unwrap().message_response.unwrap() {
        v1::server_reflection_response::MessageResponse::FileDescriptorResponse(file) => {
            assert!(!file.file_descriptor_proto.is_empty());
        }
        other => panic!("{other:?}"),
    }

    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let list = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1alpha::server_reflection_request::MessageRequest::ListServices(String::new())),
    };
    let mut answers = client.server_reflection_info(tokio_stream::iter([list])).await.unwrap().into_inner();
    match answers.message().await.unwrap().unwrap().message_response.unwrap() {
        v1alpha::server_reflection_response::MessageResponse::ListServicesResponse(list) => {
            assert!(SERVICES.iter().all(|name| list.service.iter().any(|service| service.name == *name)));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_requests() {
    let directory = tempdir().unwrap();
    let server = Server::start(directory.path(), &[]);
    server.client().await.start_workflow_execution(start_request("w")).await.unwrap();
    let text = scrape(&server.metrics_address);
    let line = text
        .lines()
        .find(|line| line.starts_with("service_requests") && line.contains("operation=\"StartWorkflowExecution\""));
    let count = line.and_then(|line| line.rsplit_once(' ')).map(|(_, count)| count);
    assert_eq!(count, Some("1"), "{text}");
    assert!(text.contains("# HELP") && text.contains("perdure_log_bytes_total"), "{text}");
}

pub fn scrape(address: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer
}
