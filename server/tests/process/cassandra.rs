//! `perdure server`: how it is configured, and what it says when Cassandra is not as it should be.
//!
//! What needs a Cassandra finds it by `PERDURE_TEST_CASSANDRA_SEEDS`, and one that wants TLS and a password by
//! `PERDURE_TEST_SECURE_CASSANDRA_SEEDS` and `PERDURE_TEST_SECURE_CASSANDRA_CA`; `cargo xtask test` sets all of them. Without
//! them these tests say so and pass.

use std::process::Command;

use perdure_proto::temporal::api::workflowservice::v1::DescribeNamespaceRequest;
use tempfile::tempdir;
use tonic::Code;

use crate::common::{BINARY, NAMESPACE, Server, describe, run, start_request};

pub const SEEDS: &str = "PERDURE_TEST_CASSANDRA_SEEDS";
const SECURE_SEEDS: &str = "PERDURE_TEST_SECURE_CASSANDRA_SEEDS";
const SECURE_CA: &str = "PERDURE_TEST_SECURE_CASSANDRA_CA";

pub fn given(name: &str) -> Option<String> {
    let value = std::env::var(name).ok();
    if value.is_none() {
        eprintln!("SKIPPED: needs {name} (cargo xtask cassandra up)");
    }
    value
}

/// A command of the binary that hears nothing of this process's environment.
fn perdure(arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.env_clear().args(arguments);
    command
}

/// A server on ports that the system chooses.
pub fn server(seeds: &str, arguments: &[&str]) -> Command {
    let mut command = perdure(&["server", "--port", "0", "--cluster-port", "0", "--cassandra-seeds", seeds]);
    command.args(arguments);
    command
}

pub fn keyspace(purpose: &str) -> String {
    format!("process_{purpose}_{}", std::process::id())
}

fn ready(command: Command) -> Server {
    let mut server = Server::spawn(command);
    server.wait_until_ready();
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_outlives_a_kill() {
    let Some(seeds) = given(SEEDS) else { return };
    let keyspace = keyspace("kill");
    let command = || server(&seeds, &["--keyspace", &keyspace, "--namespace", NAMESPACE]);
    let first = ready(command());
    let mut client = first.client().await;
    for number in 0..50 {
        client.start_workflow_execution(start_request(&format!("w-{number}"))).await.unwrap();
    }
    drop(first);
    let second = ready(command());
    let mut client = second.client().await;
    for number in 0..50 {
        client.describe_workflow_execution(describe(&format!("w-{number}"))).await.unwrap();
    }
    second.signal("TERM");
    let (status, log) = second.wait();
    assert!(status.success(), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_namespaces_that_were_asked_for() {
    let Some(seeds) = given(SEEDS) else { return };
    let server = ready(server(&seeds, &["--keyspace", &keyspace("names"), "--namespace", "mine"]));
    let mut client = server.client().await;
    let mut ask = async |name: &str| {
        let request = DescribeNamespaceRequest { namespace: name.into(), ..Default::default() };
        client.describe_namespace(request).await.map(|_| ()).map_err(|status| status.code())
    };
    assert_eq!(ask("mine").await, Ok(()));
    assert_eq!(ask("temporal-system").await, Ok(()));
    assert_eq!(ask("default").await, Err(Code::NotFound));
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_and_a_password_by_temporals_names() {
    let (Some(seeds), Some(ca)) = (given(SECURE_SEEDS), given(SECURE_CA)) else { return };
    let command = |password: &str| {
        let mut command = perdure(&["server", "--cluster-port", "0", "--namespace", NAMESPACE]);
        command
            .envs([("CASSANDRA_SEEDS", seeds.as_str()), ("CASSANDRA_TLS_ENABLED", "true"), ("CASSANDRA_CA", &ca)])
            .envs([("CASSANDRA_USER", "cassandra"), ("CASSANDRA_PASSWORD", password)])
            .envs([("KEYSPACE", keyspace("secure").as_str()), ("FRONTEND_GRPC_PORT", "0"), ("CASSANDRA_CERT", "")]);
        command
    };
    let server = ready(command("cassandra"));
    server.client().await.start_workflow_execution(start_request("w")).await.unwrap();
    assert!(!server.log().contains("CASSANDRA_PASSWORD"));

    let (code, log) = run(command("wrong"));
    assert!(code == Some(16) && log.contains("refuses the credentials"), "{code:?}\n{log}");
    let mut nobody = command("");
    nobody.env("CASSANDRA_USER", "");
    let (code, log) = run(nobody);
    assert!(code == Some(16) && log.contains("wants a user and a password"), "{code:?}\n{log}");
    let mut in_the_clear = command("cassandra");
    in_the_clear.args(["--cassandra-tls=false", "--cassandra-connect-timeout-ms", "1000"]);
    let (code, log) = run(in_the_clear);
    assert!(code == Some(15), "{code:?}\n{log}");
}

#[test]
fn nobody_is_there() {
    let arguments = ["--cassandra-port", "1", "--cassandra-connect-timeout-ms", "500"];
    let (code, log) = run(server("127.0.0.1", &arguments));
    assert!(code == Some(15) && log.contains("no Cassandra node can be reached (127.0.0.1:1)"), "{code:?}\n{log}");
}

#[test]
fn the_configuration_is_checked_and_shown() {
    let directory = tempdir().unwrap();
    let file = directory.path().join("perdure.toml");
    std::fs::write(&file, "port = 7300\n\n[cassandra]\nuser = \"u\"\npassword = \"hush\"\n").unwrap();
    let path = file.to_str().unwrap();
    let mut check = perdure(&["config", "check", "--config", path, "--keyspace", "k"]);
    let output = check.env("CASSANDRA_SEEDS", "a,b").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    for part in ["port = 7300", "seeds = [\"a\", \"b\"]", "# CASSANDRA_SEEDS", "keyspace = \"k\"", "# --keyspace"] {
        assert!(text.contains(part), "no {part} in\n{text}");
    }
    assert!(!text.contains("hush"), "{text}");

    std::fs::write(&file, "prt = 7300\n").unwrap();
    for command in ["server", "schema"] {
        let arguments: &[&str] = if command == "schema" { &["schema", "show"] } else { &["server"] };
        let mut command = perdure(arguments);
        command.args(["--config", path]);
        let (code, log) = run(command);
        assert!(code == Some(2) && log.contains("unknown setting prt; the nearest known one is port"), "{log}");
    }
}

#[test]
fn the_schema_is_shown_as_cql() {
    let output = perdure(&["schema", "show", "--keyspace", "k", "--replication-factor", "3"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("CREATE KEYSPACE IF NOT EXISTS \"k\""), "{text}");
    assert!(text.contains("node_log"), "{text}");
}
