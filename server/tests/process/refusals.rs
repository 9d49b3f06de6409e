//! Every reason not to start has its exit code and says what to do.

use std::{fs, net::TcpListener, path::Path};

use tempfile::tempdir;

use crate::{
    common::{Server, dev, run, start_request},
    filesystem::{Mounted, is_root},
};

/// The code, and each of the texts in the last line.
fn check(outcome: (Option<i32>, String), code: i32, texts: &[&str]) {
    let (found, log) = outcome;
    let last = log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    assert_eq!(found, Some(code), "{log}");
    for text in texts {
        assert!(last.contains(text), "{text:?} is not in {last:?}");
    }
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn the_port_is_taken() {
    let directory = tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let data = directory.path().join("data");
    check(run(dev(&data, &["--port", &port])), 10, &["cannot listen on", &port, "--port"]);
    assert!(!data.exists(), "a server that does not start leaves nothing behind");
    check(run(dev(&data, &["--metrics-port", &port])), 10, &["cannot serve metrics on", &port]);
}

#[test]
fn another_process_holds_the_directory() {
    let directory = tempdir().unwrap();
    let holder = Server::start(directory.path(), &[]);
    let pid = format!("process {}", holder.pid());
    check(run(dev(directory.path(), &[])), 11, &["is in use by another process", &pid]);
    // Until it is gone, even by force.
    drop(holder);
    Server::start(directory.path(), &[]);
}

#[test]
fn the_data_is_newer() {
    let directory = with_data();
    fs::write(directory.path().join("FORMAT"), "perdure-store 999\n").unwrap();
    check(run(dev(directory.path(), &[])), 12, &["store format 999", "use a newer binary"]);
}

#[test]
fn the_data_is_damaged() {
    let directory = with_data();
    fs::write(directory.path().join("FORMAT"), "no such thing").unwrap();
    check(run(dev(directory.path(), &[])), 13, &["damaged", "FORMAT"]);

    let directory = with_data();
    fs::write(directory.path().join("tables.redb"), vec![0x5a; 1 << 20]).unwrap();
    check(run(dev(directory.path(), &[])), 13, &["damaged"]);
}

#[tokio::test]
async fn the_log_is_damaged() {
    let directory = tempdir().unwrap();
    let server = Server::start(directory.path(), &[]);
    let mut client = server.client().await;
    for number in 0..20 {
        client.start_workflow_execution(start_request(&format!("w-{number}"))).await.unwrap();
    }
    drop(server);
    let segment = only_segment(directory.path());
    let mut bytes = fs::read(&segment).unwrap();
    let at = bytes.windows(3).position(|window| window == b"w-3").unwrap();
    bytes[at] ^= 0x40;
    fs::write(&segment, bytes).unwrap();
    check(run(dev(directory.path(), &[])), 13, &["bad record at byte"]);
    fs::remove_file(directory.path().join("tables.redb")).unwrap();
    check(run(dev(directory.path(), &[])), 13, &["damaged", "tables.redb is missing"]);
}

#[test]
fn the_tables_are_lost_after_a_good_stop() {
    let directory = tempdir().unwrap();
    let server = Server::start(directory.path(), &[]);
    server.signal("TERM");
    server.wait();
    fs::remove_file(directory.path().join("tables.redb")).unwrap();
    check(run(dev(directory.path(), &[])), 13, &["damaged", "tables.redb is missing", "backup"]);
}

/// The one log segment of a server that was killed.
fn only_segment(directory: &Path) -> std::path::PathBuf {
    let segments = fs::read_dir(directory.join("log")).unwrap();
    let segments = segments.flat_map(|session| fs::read_dir(session.unwrap().path()).unwrap());
    let segments: Vec<_> = segments.map(|segment| segment.unwrap().path()).collect();
    assert_eq!(segments.len(), 1, "{segments:?}");
    segments[0].clone()
}

#[test]
fn the_directory_is_not_a_store() {
    let directory = tempdir().unwrap();
    fs::write(directory.path().join("holiday.jpg"), "").unwrap();
    check(run(dev(directory.path(), &[])), 1, &["holds no Perdure store", "choose another directory"]);
    let file = directory.path().join("holiday.jpg");
    check(run(dev(&file, &[])), 1, &["cannot be opened"]);
}

#[test]
fn the_directory_cannot_be_written() {
    let Some(mounted) = Mounted::tmpfs("16m") else {
        if is_root() {
            eprintln!("skipped: this root may not mount, and permissions do not bind it");
            return;
        }
        let directory = with_data();
        let made_read_only = std::process::Command::new("chmod").args(["-R", "a-w"]).arg(directory.path()).status();
        assert!(made_read_only.unwrap().success());
        check(run(dev(directory.path(), &[])), 14, &["cannot be written"]);
        let made_writable = std::process::Command::new("chmod").args(["-R", "u+w"]).arg(directory.path()).status();
        assert!(made_writable.unwrap().success());
        return;
    };
    let data = mounted.path().join("data");
    drop(Server::start(&data, &[]));
    mounted.remount("ro");
    check(run(dev(&data, &[])), 14, &["cannot be written"]);
    check(run(dev(&mounted.path().join("new"), &[])), 14, &["cannot be written"]);
}

#[test]
fn the_command_line_is_wrong() {
    let directory = tempdir().unwrap();
    let data = directory.path().join("data");
    let (code, log) = run(dev(&data, &["--prot", "1"]));
    assert!(code == Some(2) && log.contains("--prot") && log.contains("--port"), "{log}");
    let knob = ["--dynamic-config-value", "limit.historyCount.eror=1"];
    check(run(dev(&data, &knob)), 2, &["limit.historyCount.eror", "limit.historyCount.error"]);
    let knob = ["--dynamic-config-value", "limit.historyCount.error=many"];
    check(run(dev(&data, &knob)), 2, &["limit.historyCount.error", "many"]);
    let knob = ["--dynamic-config-value", "limit.historyCount.error"];
    check(run(dev(&data, &knob)), 2, &["KEY=VALUE"]);
    assert!(!data.exists(), "a server that does not start leaves nothing behind");
}

/// A directory that a server has used.
fn with_data() -> tempfile::TempDir {
    let directory = tempdir().unwrap();
    drop(Server::start(directory.path(), &[]));
    directory
}
