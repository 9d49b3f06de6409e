//! `perdure admin` against a node that is the whole cluster.

use std::process::Command;

use serde_json::Value;
use tempfile::tempdir;

use crate::common::{BINARY, Server, field, start_request};

fn ask(address: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(BINARY).args(["admin", "--address", address]).args(arguments).output().unwrap();
    let text = if output.status.success() { output.stdout } else { output.stderr };
    (output.status.success(), String::from_utf8(text).unwrap())
}

fn json(address: &str, arguments: &[&str]) -> Value {
    let (ok, text) = ask(address, &[&["--json"], arguments].concat());
    assert!(ok, "{text}");
    serde_json::from_str(&text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_on_its_own_answers_operators() {
    let directory = tempdir().unwrap();
    let server = Server::start(directory.path(), &[]);
    let address = field(&server.wait_for_line("admin port"), "address").to_owned();
    let mut client = server.client().await;
    for i in 0..20 {
        client.start_workflow_execution(start_request(&format!("w{i}"))).await.unwrap();
    }
    let members = json(&address, &["members"]);
    assert_eq!(members["members"].as_array().unwrap().len(), 1);
    assert_eq!((&members["members"][0]["state"], &members["slots"]), (&Value::from("alive"), &Value::from(64)));
    assert_eq!(members["members"][0]["shardsServed"], Value::from(64));
    let shards = json(&address, &["shards"]);
    assert_eq!(shards["shards"].as_array().unwrap().len(), 64);
    let loaded: u64 = (0..64)
        .map(|shard| {
            let shard = json(&address, &["shard", &shard.to_string()]);
            assert_eq!(shard["ownership"], Value::from("serving"));
            shard["loaded"].as_u64().unwrap()
        })
        .sum();
    assert!(loaded >= 20, "{loaded} entities in memory");
    let queues = json(&address, &["queues"]);
    let queue = &queues["queues"][0];
    assert_eq!((&queue["name"], &queue["kind"]), (&Value::from("queue"), &Value::from("workflow")));
    assert_eq!((&queue["backlog"], &queue["pollers"]), (&Value::from(20), &Value::from(0)), "{queues}");
    let latency = |shard: u64| json(&address, &["shard", &shard.to_string()])["commitLatencyNs"].as_u64().unwrap();
    assert!((0..64).any(|shard| latency(shard) > 0), "20 commits took some time");
    let (ok, text) = ask(&address, &["shard", "64"]);
    assert!(!ok && text.contains("no shard 64"), "{text}");
    let (ok, text) = ask(&address, &["drain", "nobody"]);
    assert!(!ok && text.contains("no member"), "{text}");

    let (ok, _) = ask(&address, &["drain", &address]);
    assert!(ok);
    let (status, log) = server.wait();
    assert!(status.success(), "{log}");
}
