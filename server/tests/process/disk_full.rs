//! The disk fills up under a serving process: callers may try again, the process says why it ends, and once there is
//! room all that was acknowledged is there.

use std::{collections::BTreeMap, path::Path, process::Command, time::Duration};

use perdure_proto::temporal::api::common::v1::{Payload, Payloads};
use tempfile::tempdir;
use tokio::task::JoinSet;
use tonic::Code;

use crate::{
    common::{BINARY, Server, describe, dev, run, start_request},
    filesystem::Mounted,
};

const CALLERS: usize = 8;
const INPUT_BYTES: usize = 64 << 10;
/// Starts of one caller at most: far more than fit.
const STARTS: usize = 2_000;
/// What callers may try again after, as all SDKs do. A call that was cut off reads as one of the last two.
const RETRYABLE: [Code; 4] = [Code::Unavailable, Code::ResourceExhausted, Code::Unknown, Code::Cancelled];

#[tokio::test(flavor = "multi_thread")]
async fn a_small_file_system() {
    let Some(mounted) = Mounted::tmpfs("24m") else {
        eprintln!("skipped: no right to mount; `a_limit_on_files` covers the rest");
        return;
    };
    let data = mounted.path().join("data");
    let acknowledged = fill(Server::start(&data, &[])).await;
    // While it is still full: the same code, or it serves what it has.
    let mut again = Server::spawn(dev(&data, &[]));
    tokio::time::sleep(Duration::from_millis(500)).await;
    if !again.is_running() {
        let (status, log) = again.wait();
        assert_eq!(status.code(), Some(14), "{log}");
    } else {
        drop(again);
    }
    mounted.remount("size=512m");
    check(&data, acknowledged).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_on_files() {
    let directory = tempdir().unwrap();
    let data = directory.path().join("data");
    // Blocks of 512 bytes: 6 MB a file.
    let acknowledged = fill(limited(&data, 12_000)).await;
    check(&data, acknowledged).await;
}

#[test]
fn no_room_to_begin() {
    let Some(mounted) = Mounted::tmpfs("64k") else {
        eprintln!("skipped: no right to mount");
        return;
    };
    let (code, log) = run(dev(&mounted.path().join("data"), &[]));
    assert_eq!(code, Some(14), "{log}");
    assert!(log.contains("No space left"), "{log}");
}

/// A server whose files cannot grow beyond so many blocks, without root. The signal that comes with it is ignored.
fn limited(data: &Path, blocks: u64) -> Server {
    let mut command = Command::new("sh");
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    command.arg("-c").arg(script).arg(BINARY).args(["dev", "--port", "0", "--db-filename"]).arg(data);
    let mut server = Server::spawn(command);
    server.wait_until_ready();
    server
}

/// Starts workflows until the process has ended; gives those that it acknowledged, with their runs.
async fn fill(server: Server) -> BTreeMap<String, String> {
    let client = server.client().await;
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let mut client = client.clone();
        callers.spawn(async move {
            let mut acknowledged = Vec::new();
            for number in 0..STARTS {
                let workflow_id = format!("w-{caller}-{number}");
                let mut request = start_request(&workflow_id);
                let data = vec![b'x'; INPUT_BYTES].into();
                request.input = Some(Payloads { payloads: vec![Payload { data, ..Default::default() }] });
                match client.start_workflow_execution(request).await {
                    Ok(started) => acknowledged.push((workflow_id, started.into_inner().run_id)),
                    Err(status) => return (acknowledged, Some(status)),
                }
            }
            (acknowledged, None)
        });
    }
    let mut all = BTreeMap::new();
    while let Some(outcome) = callers.join_next().await {
        let (acknowledged, status) = outcome.unwrap();
        all.extend(acknowledged);
        let status = status.expect("the disk never filled up");
        assert!(RETRYABLE.contains(&status.code()), "{status:?}");
    }
    assert!(!all.is_empty());
    let (status, log) = server.wait();
    assert_eq!(status.code(), Some(14), "{log}");
    assert!(log.contains("serving ends"), "{log}");
    assert!(!log.contains("panicked"), "{log}");
    all
}

/// A new process has all of them, and serves on.
async fn check(data: &Path, acknowledged: BTreeMap<String, String>) {
    let server = Server::start(data, &[]);
    let mut client = server.client().await;
    for (workflow_id, run_id) in &acknowledged {
        let found = client.describe_workflow_execution(describe(workflow_id)).await.unwrap().into_inner();
        let found = found.workflow_execution_info.and_then(|info| info.execution).unwrap();
        assert_eq!(found.run_id, *run_id);
    }
    client.start_workflow_execution(start_request("after")).await.unwrap();
}
